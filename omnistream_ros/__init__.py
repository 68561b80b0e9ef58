# SPDX-License-Identifier: Apache-2.0
"""OmniStream on ROS 2: streaming depth, pose and features from camera images."""

import os
from pkgutil import extend_path

# The generated `omnistream_ros.msg` is built into another folder than the source tree;
# extending the path lets both halves of the one package be imported together.
__path__ = extend_path(__path__, __name__)

# Threads of a parallel loop sleep where they wait for each other, unless the environment says
# otherwise; it has to be said before torch is imported. By default they spin: on a machine that has
# other work, and a robot has, one burns its time slice waiting for another that cannot run because
# of it. Milliseconds a frame of omnistream-nano on two cores with four other programs running:
# asleep 80, spinning 2170, one thread alone 136.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
