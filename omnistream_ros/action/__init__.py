# SPDX-License-Identifier: Apache-2.0
"""Policies, action chunks, blending and safety limits. Knows neither ROS nor torch."""
