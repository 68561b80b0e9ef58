# SPDX-License-Identifier: Apache-2.0
#
# The environment of this checkout, after scripts/setup. In bash or zsh:
#
#   source scripts/env.sh
#
# Python, the `omnistream` command, the node and the messages are then found; edits of Python files
# of the checkout take effect at once.
_omnistream_root=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd -P)

export VIRTUAL_ENV=$_omnistream_root/.venv
export PATH=$VIRTUAL_ENV/bin:$PATH
if ! grep -q '^include-system-site-packages = true' "$VIRTUAL_ENV/pyvenv.cfg"; then
  # ROS 2 from wheels, and nothing of another one that may be sourced.
  unset PYTHONPATH LD_LIBRARY_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH
  export ROS_DISTRO=kilted RMW_IMPLEMENTATION=rmw_fastrtps_cpp
fi
export AMENT_PREFIX_PATH=$VIRTUAL_ENV${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}
export CMAKE_PREFIX_PATH=$VIRTUAL_ENV${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}
export LD_LIBRARY_PATH=$VIRTUAL_ENV/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PYTHONPATH=$_omnistream_root${PYTHONPATH:+:$PYTHONPATH}
# Large images need a larger shared-memory segment. ROS 2 Jazzy knows the older name only, and later
# ones warn of it.
case ${ROS_DISTRO:-} in
  jazzy) export FASTRTPS_DEFAULT_PROFILES_FILE=${FASTRTPS_DEFAULT_PROFILES_FILE:-$_omnistream_root/config/fastdds.xml} ;;
  *) export FASTDDS_DEFAULT_PROFILES_FILE=${FASTDDS_DEFAULT_PROFILES_FILE:-$_omnistream_root/config/fastdds.xml} ;;
esac
unset _omnistream_root
