# SPDX-License-Identifier: Apache-2.0
"""`pip install .`: the parts that need no ROS, and the `omnistream` command. See setup.cfg.

In a ROS 2 workspace CMakeLists.txt builds the package instead, with its messages and nodes.
"""

from setuptools import setup

setup()
