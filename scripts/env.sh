# SPDX-License-Identifier: Apache-2.0
#
# The environment of this checkout, after scripts/setup. In bash or zsh:
#
#   source scripts/env.sh
#
# Python, the `omnistream` command, the node and the messages are then found; edits of Python files
# of the checkout take effect at once.
_omnistream_root=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd -P)
_omnistream_prefix=$_omnistream_root/.build/install
_omnistream_python=$(cd "$_omnistream_root/.venv/lib" && echo python3*)

export VIRTUAL_ENV=$_omnistream_root/.venv
export PATH=$_omnistream_prefix/bin:$VIRTUAL_ENV/bin:$PATH
if ! grep -q '^include-system-site-packages = true' "$VIRTUAL_ENV/pyvenv.cfg"; then
  # ROS 2 from wheels; nothing of another one that may be sourced.
  unset PYTHONPATH LD_LIBRARY_PATH COLCON_PREFIX_PATH ROS_PYTHON_VERSION ROS_VERSION
  export ROS_DISTRO=kilted
  export AMENT_PREFIX_PATH=$VIRTUAL_ENV CMAKE_PREFIX_PATH=$VIRTUAL_ENV
  export RMW_IMPLEMENTATION=rmw_fastrtps_cpp
fi
export AMENT_PREFIX_PATH=$_omnistream_prefix:${AMENT_PREFIX_PATH:-}
export LD_LIBRARY_PATH=$_omnistream_prefix/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PYTHONPATH=$_omnistream_root:$_omnistream_prefix/lib/$_omnistream_python/site-packages${PYTHONPATH:+:$PYTHONPATH}
# Large images need a larger shared-memory segment; the second name is that of Fast DDS before 3.
export FASTDDS_DEFAULT_PROFILES_FILE=${FASTDDS_DEFAULT_PROFILES_FILE:-$_omnistream_root/config/fastdds.xml}
export FASTRTPS_DEFAULT_PROFILES_FILE=${FASTRTPS_DEFAULT_PROFILES_FILE:-$FASTDDS_DEFAULT_PROFILES_FILE}
unset _omnistream_root _omnistream_prefix _omnistream_python
