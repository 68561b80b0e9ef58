# SPDX-License-Identifier: Apache-2.0
"""OmniStream on ROS 2: streaming depth, pose and features from camera images."""

from pkgutil import extend_path

# The generated `omnistream_ros.msg` is built into another folder than the source tree;
# extending the path lets both halves of the one package be imported together.
__path__ = extend_path(__path__, __name__)
