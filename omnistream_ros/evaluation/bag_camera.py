# SPDX-License-Identifier: Apache-2.0
"""The camera of an image topic in a bag: its intrinsics, and its images without distortion."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from omnistream_ros.stream.calibration import Calibration, calibration_of
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.undistort import Undistorter


class BagCamera:
    """Follows the camera_info messages of one topic; most of them say the same again.

    Args:
        rectified: the images of the topic are undistorted already.
    """

    def __init__(self, *, rectified: bool) -> None:
        self._rectified = rectified
        self._info: Any = None
        self._said: tuple[Any, ...] = ()
        self._prepared: tuple[Intrinsics | None, Undistorter | None] = (None, None)

    def learn(self, info: Any | None) -> None:
        """Take this camera_info for the images that follow."""
        self._info = info

    def pinhole(
        self, pixels: np.ndarray, kind: Literal["image", "depth"]
    ) -> tuple[np.ndarray, Intrinsics | None]:
        """The pixels as a pinhole would have seen them, and that pinhole, None when unknown.

        Raises:
            ValueError: the calibration cannot be used, or is for an image of another shape.
        """
        if self._info is None:
            return pixels, None
        height, width = pixels.shape[:2]
        info = self._info
        said = (
            *(np.asarray(numbers).tobytes() for numbers in (info.k, info.p, info.d)),
            info.distortion_model, info.width, info.height, info.binning_x, info.binning_y,
            info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height, width, height,
        )  # fmt: skip
        if said != self._said:
            self._prepared = self._prepare(width, height)
            self._said = said
        intrinsics, undistorter = self._prepared
        if undistorter is not None:
            pixels = undistorter.image(pixels) if kind == "image" else undistorter.depth(pixels)
        return pixels, intrinsics

    def _prepare(self, width: int, height: int) -> tuple[Intrinsics | None, Undistorter | None]:
        calibration = calibration_of(self._info, rectified=self._rectified, size=(width, height))
        if calibration is None:
            return None, None
        fitted = _fit(calibration, width, height)
        undistorter = None if fitted.distortion is None else Undistorter(fitted)
        return fitted.intrinsics, undistorter


def _fit(calibration: Calibration, width: int, height: int) -> Calibration:
    """The calibration for an image that may have been scaled, but not cropped."""
    camera = calibration.intrinsics
    if (camera.width, camera.height) == (width, height):
        return calibration
    if abs(camera.width * height - camera.height * width) > max(width, height):
        raise ValueError(
            f"camera_info is for {camera.width}x{camera.height}, but the image is "
            f"{width}x{height}: not the same camera"
        )
    return calibration.resized(width, height)
