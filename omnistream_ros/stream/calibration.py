# SPDX-License-Identifier: Apache-2.0
"""The camera that a ``sensor_msgs/CameraInfo`` describes: its pinhole and its lens distortion.

Messages are read by attribute, so that what rclpy gives and what the `rosbags` library gives both
do; nothing here needs ROS.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from omnistream_ros.stream.frame import Intrinsics

#: Number of coefficients that a distortion model may have, by its names in ROS.
MODELS = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8, 12, 14),
    "equidistant": (4,),
    "fisheye": (4,),
}


class CalibrationError(ValueError):
    """A camera_info that must not be used; the text says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Distortion:
    """What a lens does to a pinhole image.

    Attributes:
        model: a key of ``MODELS``.
        coefficients: in the order of OpenCV: k1, k2, p1, p2, k3 ...; of ``equidistant`` and
            ``fisheye`` (Kannala and Brandt) k1 to k4.
    """

    model: str
    coefficients: tuple[float, ...]

    def check(self) -> None:
        """Make sure that it can be taken out.

        Raises:
            CalibrationError: unknown model or another number of coefficients.
        """
        if self.model not in MODELS:
            raise CalibrationError(
                f"lens distortion of model {self.model!r} is not known (known: "
                f"{', '.join(MODELS)}): undistort the images first, for example with image_proc"
            )
        if len(self.coefficients) not in MODELS[self.model]:
            raise CalibrationError(
                f"{self.model} has {' or '.join(map(str, MODELS[self.model]))} coefficients, "
                f"camera_info has {len(self.coefficients)}"
            )


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A camera: its pinhole at the size of its images, and its distortion, None without any."""

    intrinsics: Intrinsics
    distortion: Distortion | None = None

    def resized(self, width: int, height: int) -> Calibration:
        """The same camera after its image was resized; distortion is of rays, not of pixels."""
        return Calibration(self.intrinsics.resized(width, height), self.distortion)


def calibration_of(
    info: Any, *, rectified: bool, size: tuple[int, int] | None = None
) -> Calibration | None:
    """The camera of the images that come with a camera_info.

    Binning and region of interest are applied (sensor_msgs/CameraInfo: K and P describe the full
    sensor).

    Args:
        rectified: the images were undistorted already, so P (where it is set) holds instead of K
            and D.
        size: width and height of the images, for a camera_info that leaves its own at zero.

    Returns:
        None when the camera says that it is not calibrated (first element zero).

    Raises:
        CalibrationError: a number is not finite, or a focal length or size is not positive.
    """
    projected = rectified and info.p[0] != 0.0
    name, matrix, columns = ("P", info.p, 4) if projected else ("K", info.k, 3)
    if not all(math.isfinite(x) for numbers in (info.k, info.p, info.d, info.r) for x in numbers):
        raise CalibrationError(
            "camera_info holds a number that is not finite: calibrate the camera again or correct "
            "its calibration file"
        )
    if matrix[0] == 0.0:
        return None
    bin_x, bin_y = max(1, info.binning_x), max(1, info.binning_y)
    roi = info.roi
    whole = roi.width == 0 or roi.height == 0  # all zero means the full sensor
    width, height = (info.width, info.height) if whole else (roi.width, roi.height)
    if size is not None and 0 in (width, height):
        width, height = size[0] * bin_x, size[1] * bin_y
    left, top = (0, 0) if whole else (roi.x_offset, roi.y_offset)
    try:
        intrinsics = Intrinsics(
            fx=matrix[0] / bin_x,
            fy=matrix[columns + 1] / bin_y,
            cx=(matrix[2] - left + 0.5) / bin_x - 0.5,
            cy=(matrix[columns + 2] - top + 0.5) / bin_y - 0.5,
            width=width // bin_x,
            height=height // bin_y,
        )
    except ValueError as error:
        raise CalibrationError(f"camera_info cannot be used ({name} matrix): {error}") from None
    if rectified or not any(info.d):
        return Calibration(intrinsics)
    coefficients = tuple(float(number) for number in info.d)
    return Calibration(intrinsics, Distortion(info.distortion_model, coefficients))
