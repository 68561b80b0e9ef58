# SPDX-License-Identifier: Apache-2.0
"""What the camera_info of one camera say of the lenses of its images, by image size."""

from __future__ import annotations

from typing import NamedTuple

from sensor_msgs.msg import CameraInfo

from omnistream_ros.stream.calibration import CalibrationError, calibration_of
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.undistort import Undistorter

# Image sizes remembered at a time; two publishers on one topic are a mistake.
_MAX_SIZES = 8


class Lens(NamedTuple):
    """What is known of the lens of an image.

    Attributes:
        info: the newest good camera_info of this image size, if any came.
        intrinsics: the pinhole camera from it; None when unknown or not calibrated.
        undistorter: takes the distortion out; None when there is none, or nobody wants that.
    """

    info: CameraInfo | None = None
    intrinsics: Intrinsics | None = None
    undistorter: Undistorter | None = None


_UNKNOWN = Lens()


class Lenses:
    """Written by one thread (`learn`), read by any.

    Args:
        rectified: the images are undistorted already.
        rectify: undistort them if not.
    """

    def __init__(self, *, rectified: bool, rectify: bool) -> None:
        self._rectified = rectified
        self._rectify = rectify and not rectified
        self._lenses: dict[tuple[int, int], Lens] = {}
        self._newest: CameraInfo | None = None  # good one

    def of(self, width: int, height: int) -> Lens:
        """The lens of images of this size."""
        return self._lenses.get((width, height), _UNKNOWN)

    def knows(self, width: int, height: int) -> bool:
        """Whether a camera_info came for images of this size."""
        return (width, height) in self._lenses

    def known_sizes(self) -> str:
        """The sizes for which a camera_info came, in words; empty without any."""
        return ", ".join(f"{width}x{height}" for width, height in list(self._lenses))

    def learn(self, info: CameraInfo) -> str:
        """Take in a camera_info.

        Returns:
            What the user should know about it, in words; usually nothing.

        Raises:
            CalibrationError: it cannot be used; what was known stays.
        """
        if self._newest is not None and _same(self._newest, info):
            return ""  # as nearly every time: a camera sends one with each image
        calibration = calibration_of(info, rectified=self._rectified)
        if calibration is None:
            self._remember((info.width, info.height), Lens(info))
            return (
                "camera_info says that the camera is not calibrated (K is zero): the field of view "
                "is estimated and depth is not metric; calibrate it with camera_calibration"
            )
        remark, undistorter = "", None
        if self._rectify and calibration.distortion is not None:
            try:
                undistorter = Undistorter(calibration)
            except CalibrationError as error:
                remark = f"the images are used as they are: {error}"
        camera = calibration.intrinsics
        self._remember((camera.width, camera.height), Lens(info, camera, undistorter))
        return remark

    def _remember(self, size: tuple[int, int], lens: Lens) -> None:
        if size not in self._lenses and len(self._lenses) >= _MAX_SIZES:
            self._lenses = {}
        self._lenses[size] = lens
        self._newest = lens.info


def _same(a: CameraInfo, b: CameraInfo) -> bool:
    """Whether two describe the same camera; headers may differ."""
    return (
        (a.width, a.height) == (b.width, b.height)
        and (a.k == b.k).all()
        and (a.p == b.p).all()
        and a.d == b.d
        and a.distortion_model == b.distortion_model
        and (a.binning_x, a.binning_y, a.roi) == (b.binning_x, b.binning_y, b.roi)
    )
