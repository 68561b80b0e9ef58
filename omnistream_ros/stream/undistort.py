# SPDX-License-Identifier: Apache-2.0
"""Lens distortion taken out of images and depth: what the pinhole of the same K would have seen.

The maps are made once per camera; an image then costs one `cv2.remap`. Pixels that the lens did not
see, or where a fitted polynomial folds back on itself, are black in images and NaN in depth.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from omnistream_ros.stream.calibration import Calibration
from omnistream_ros.stream.frame import Intrinsics

_OUTSIDE = -1e4  # far from every pixel


class Undistorter:
    """Undistorts the images of one camera, on the host or on a device.

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
        self._grid: Tensor | None = None  # of the device that asked

    def image(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 of the camera, undistorted; bilinear, black outside."""
        return cv2.remap(image, self._map_x, self._map_y, cv2.INTER_LINEAR)

    def image_on_device(self, image: Tensor) -> Tensor:
        """The same for (H, W, 3) uint8 on a device, where the result stays."""
        if self._grid is None or self._grid.device != image.device:
            height, width = self._map_x.shape
            # grid_sample wants the centres of the outer pixels at -1 and 1
            x = 2.0 * self._map_x / max(width - 1, 1) - 1.0
            y = 2.0 * self._map_y / max(height - 1, 1) - 1.0
            self._grid = torch.from_numpy(np.stack((x, y), axis=-1)).to(image.device)[None]
        planes = image.permute(2, 0, 1)[None].float()  # (1, 3, H, W)
        flat = functional.grid_sample(planes, self._grid, mode="bilinear", align_corners=True)
        return flat[0].round().to(torch.uint8).permute(1, 2, 0)

    def seen(self, height: int, width: int) -> np.ndarray:
        """Where an undistorted image of this size has a pixel that the lens saw, bool (H, W)."""
        rows, columns = _centres(self._map_x.shape, (height, width))
        x, y = self._map_x[rows, columns], self._map_y[rows, columns]
        rows_in, columns_in = self._map_x.shape
        return (x >= -0.5) & (x <= columns_in - 0.5) & (y >= -0.5) & (y <= rows_in - 0.5)

    def places(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where pixels of the undistorted image lie in the distorted one, (row, column), rounded;
        on its border for what the lens did not see."""
        height, width = self._map_x.shape
        x = np.rint(self._map_x[rows, columns]).clip(0, width - 1)
        y = np.rint(self._map_y[rows, columns]).clip(0, height - 1)
        return y.astype(np.intp), x.astype(np.intp)

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """Depth (H, W) float32, registered to the camera's images; nearest pixel, NaN outside."""
        return cv2.remap(
            depth, self._map_x, self._map_y, cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT, borderValue=np.nan,
        )  # fmt: skip


def _centres(full: tuple[int, ...], small: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the full image under the middle of each pixel of a smaller one."""
    rows, columns = (
        ((np.arange(n) + 0.5) * size / n).astype(np.intp)
        for n, size in zip(small, full, strict=True)
    )
    return rows[:, None], columns[None, :]


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
