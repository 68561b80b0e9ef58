# SPDX-License-Identifier: Apache-2.0
"""The image encodings that the package reads, and their conversion to 8-bit RGB.

Names as in ``sensor_msgs/image_encodings.hpp`` (plus ``nv12``, which drivers use and the header
lacks). The results equal those of cv_bridge: same OpenCV conversions, same 16 to 8 bit scaling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How one encoding lies in memory.

    Attributes:
        channels: values per pixel and row of the message (1 for Bayer and planar formats).
        bits: bits per value, 8 or 16.
        to_rgb: (H, W, channels) or (H, W) array of that many bits -> (H, W, 3), same bits.
        even_width, even_height: chroma is shared by pairs of columns, rows.
        planes: rows in the message per two rows of the image (3 when a chroma plane follows).
    """

    channels: int
    bits: int
    to_rgb: Callable[[np.ndarray], np.ndarray]
    even_width: bool = False
    even_height: bool = False
    planes: int = 2

    def row_bytes(self, width: int) -> int:
        """Bytes that the pixels of one row take, without padding."""
        return width * self.channels * self.bits // 8

    def rows(self, height: int) -> int:
        """Rows in the message for an image of this height."""
        return height * self.planes // 2


def _unchanged(image: np.ndarray) -> np.ndarray:
    return image


def _by_opencv(code: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: cv2.cvtColor(image, code)


def _encodings() -> dict[str, Encoding]:
    known = {
        "yuv422": Encoding(2, 8, _by_opencv(cv2.COLOR_YUV2RGB_UYVY), even_width=True),
        "yuv422_yuy2": Encoding(2, 8, _by_opencv(cv2.COLOR_YUV2RGB_YUY2), even_width=True),
    }
    # Newer names of the two above.
    known["uyvy"], known["yuyv"] = known["yuv422"], known["yuv422_yuy2"]
    for name, code in (("nv12", cv2.COLOR_YUV2RGB_NV12), ("nv21", cv2.COLOR_YUV2RGB_NV21)):
        known[name] = Encoding(1, 8, _by_opencv(code), even_width=True, even_height=True, planes=3)
    for bits in (8, 16):
        known[f"rgb{bits}"] = Encoding(3, bits, _unchanged)
        known[f"bgr{bits}"] = Encoding(3, bits, _by_opencv(cv2.COLOR_BGR2RGB))
        known[f"rgba{bits}"] = Encoding(4, bits, _by_opencv(cv2.COLOR_RGBA2RGB))
        known[f"bgra{bits}"] = Encoding(4, bits, _by_opencv(cv2.COLOR_BGRA2RGB))
        known[f"mono{bits}"] = Encoding(1, bits, _by_opencv(cv2.COLOR_GRAY2RGB))
        # OpenCV names a pattern after the second row and column: BayerBG is ROS's rggb.
        known[f"bayer_rggb{bits}"] = Encoding(1, bits, _by_opencv(cv2.COLOR_BayerBG2RGB))
        known[f"bayer_bggr{bits}"] = Encoding(1, bits, _by_opencv(cv2.COLOR_BayerRG2RGB))
        known[f"bayer_gbrg{bits}"] = Encoding(1, bits, _by_opencv(cv2.COLOR_BayerGR2RGB))
        known[f"bayer_grbg{bits}"] = Encoding(1, bits, _by_opencv(cv2.COLOR_BayerGB2RGB))
    return known


ENCODINGS = _encodings()


def image_to_rgb8(
    data: np.ndarray, encoding: str, height: int, width: int, step: int, is_bigendian: bool
) -> np.ndarray:
    """Convert the bytes of a checked image message (see ``image_checks``) to RGB.

    Args:
        data: (>= rows * step,) uint8.
        encoding: a key of ``ENCODINGS``.
        step: bytes from one row to the next.
        is_bigendian: order of the two bytes of 16-bit values.

    Returns:
        (height, width, 3) uint8. For ``rgb8`` a view of ``data``, otherwise a new array.
    """
    layout = ENCODINGS[encoding]
    rows = layout.rows(height)
    value = np.dtype(np.uint8 if layout.bits == 8 else (">u2" if is_bigendian else "<u2"))
    shape: tuple[int, ...] = (rows, width)
    strides: tuple[int, ...] = (step, layout.channels * value.itemsize)
    if layout.channels > 1:
        shape, strides = (*shape, layout.channels), (*strides, value.itemsize)
    image = np.ndarray(shape, value, buffer=data, strides=strides)  # row padding stays outside
    if not image.dtype.isnative:
        image = image.astype(value.newbyteorder("="))
    if layout.to_rgb is not _unchanged:
        # OpenCV wants compact pixels in rows that may be padded; numpy says whether they are.
        image = layout.to_rgb(np.ascontiguousarray(image))
    if layout.bits == 16:
        # v * 255 / 65535 rounded to nearest; 257 is odd, so there are no ties.
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return image
