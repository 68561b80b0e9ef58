# SPDX-License-Identifier: Apache-2.0
"""One camera stream: frames in, results out. Torch and numpy, no ROS."""
