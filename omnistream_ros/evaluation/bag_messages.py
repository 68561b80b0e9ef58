# SPDX-License-Identifier: Apache-2.0
"""Small parts of ROS messages, read by attribute: stamps, vectors, camera calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnistream_ros.stream.frame import Intrinsics

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


def intrinsics_of(
    info: Any | None, width: int, height: int, *, rectified: bool
) -> Intrinsics | None:
    """The pinhole of a ``CameraInfo`` for an image of this size; None when unknown or uncalibrated.

    Rectified images have the camera matrix inside P, others K.

    Raises:
        ValueError: a number is not finite, or the calibration is for an image of another shape.
    """
    if info is None:
        return None
    matrix = np.asarray(info.p if rectified and info.p[0] else info.k, dtype=np.float64)
    matrix = matrix.reshape(3, -1)
    fx, fy, cx, cy = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    if fx == 0.0:
        return None
    calibrated = Intrinsics(fx, fy, cx, cy, info.width or width, info.height or height)
    if (calibrated.width, calibrated.height) == (width, height):
        return calibrated
    if abs(calibrated.width * height - calibrated.height * width) > max(width, height):
        raise ValueError(
            f"camera_info is for {calibrated.width}x{calibrated.height}, but the image is "
            f"{width}x{height}: not the same camera"
        )
    return calibrated.resized(width, height)
