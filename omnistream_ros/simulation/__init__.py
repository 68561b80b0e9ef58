# SPDX-License-Identifier: Apache-2.0
"""Simulated robots with a camera: tasks, scripted experts, recorded episodes. Knows no ROS."""
