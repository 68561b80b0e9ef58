# SPDX-License-Identifier: Apache-2.0
"""Lens distortion taken out of images and depth: what the pinhole of the same K would have seen.

The maps are made once per camera; an image then costs one `cv2.remap`. Pixels that the lens did not
see, or where a fitted polynomial folds back on itself, are black in images and NaN in depth.
"""

from __future__ import annotations

import cv2
import numpy as np

from omnistream_ros.stream.calibration import Calibration
from omnistream_ros.stream.frame import Intrinsics

_OUTSIDE = -1e4  # far from every pixel


class Undistorter:
    """Undistorts the images of one camera.

    Attributes:
        intrinsics: of its output, which are those of its input: size and K are kept.

    Raises:
        CalibrationError: the distortion is of a kind that is not known.
        ValueError: there is none.
    """

    def __init__(self, calibration: Calibration) -> None:
        if calibration.distortion is None:
            raise ValueError("the camera has no distortion: there is nothing to take out")
        calibration.distortion.check()
        self.intrinsics: Intrinsics = calibration.intrinsics
        self._map_x, self._map_y = _maps(calibration)

    def image(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 of the camera, undistorted; bilinear, black outside."""
        return cv2.remap(image, self._map_x, self._map_y, cv2.INTER_LINEAR)

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """Depth (H, W) float32, registered to the camera's images; nearest pixel, NaN outside."""
        return cv2.remap(
            depth, self._map_x, self._map_y, cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT, borderValue=np.nan,
        )  # fmt: skip


def _maps(calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """For every pixel of the undistorted image, where it lies in the distorted one, (H, W) x 2."""
    camera, distortion = calibration.intrinsics, calibration.distortion
    assert distortion is not None
    k, size = camera.matrix(), (camera.width, camera.height)
    d = np.array(distortion.coefficients)
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    radius = np.hypot((columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy)
    if distortion.model in ("equidistant", "fisheye"):
        x, y = cv2.fisheye.initUndistortRectifyMap(k, d, np.eye(3), k, size, cv2.CV_32FC1)
        angle = np.linspace(0.0, np.arctan(radius.max()), 1000)
        squares = angle**2
        bent = angle * (1 + squares * np.polynomial.polynomial.polyval(squares, d))
        grows_up_to = np.tan(angle[_growing(bent)])
    else:
        x, y = cv2.initUndistortRectifyMap(k, d, None, k, size, cv2.CV_32FC1)
        through = np.linspace(0.0, radius.max(), 1000)
        grows_up_to = through[_growing(through * _radial(through**2, d))]
    # Beyond, a polynomial that was fitted to an image has no truth; the border itself is inside.
    outside = radius > grows_up_to * (1 + 1e-9)
    x[outside] = y[outside] = _OUTSIDE
    return x, y


def _radial(squares: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Radial factor of plumb_bob and rational_polynomial at squared radii."""
    k = np.zeros(8)
    k[: min(len(d), 8)] = d[:8]  # k1 k2 p1 p2 k3 k4 k5 k6
    polyval = np.polynomial.polynomial.polyval
    return polyval(squares, [1, k[0], k[1], k[4]]) / polyval(squares, [1, k[5], k[6], k[7]])


def _growing(bent: np.ndarray) -> int:
    """Index of the last sample up to which ``bent`` grows."""
    falls = np.flatnonzero(np.diff(bent) <= 0)
    return int(falls[0]) if len(falls) else len(bent) - 1
