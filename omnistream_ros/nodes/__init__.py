# SPDX-License-Identifier: Apache-2.0
"""Everything that knows ROS: the lifecycle nodes, their messages, and the tools around them."""
