# SPDX-License-Identifier: Apache-2.0
"""Small parts of ROS messages, read by attribute: stamps and vectors."""

from __future__ import annotations

from typing import Any

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
TF = "tf2_msgs/msg/TFMessage"
ODOMETRY = "nav_msgs/msg/Odometry"
POSE = "geometry_msgs/msg/PoseStamped"


def stamp_of(header: Any) -> int:
    """Header stamp in nanoseconds."""
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)


def xyz(vector: Any) -> tuple[float, float, float]:
    """A Vector3 or Point."""
    return (vector.x, vector.y, vector.z)


def xyzw(quaternion: Any) -> tuple[float, float, float, float]:
    """A Quaternion."""
    return (quaternion.x, quaternion.y, quaternion.z, quaternion.w)
