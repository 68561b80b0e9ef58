# SPDX-License-Identifier: Apache-2.0
"""The colour encodings of ROS image messages, and their conversion to 8-bit RGB.

Names as in ``sensor_msgs/image_encodings.hpp``, plus ``nv12``, which drivers use and the header
lacks. The results equal those of cv_bridge: same OpenCV conversions, same 16 to 8 bit scaling, and
8UC3 and 8UC4 taken for BGR(A) as there. No ROS is needed: everything takes plain values, so that
the node and the readers of bags share it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import cv2
import numpy as np


class Fault(str, enum.Enum):
    """What can be wrong with an image message; stable names, for counters."""

    UNSUPPORTED_ENCODING = "unsupported_encoding"
    EMPTY_IMAGE = "empty_image"
    UNSUPPORTED_SIZE = "unsupported_size"
    WRONG_STEP = "wrong_step"
    SHORT_DATA = "short_data"
    BROKEN_DATA = "broken_data"


class ImageError(ValueError):
    """An image that contradicts itself or cannot be read: ``fault`` to count, the text to read."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How one encoding lies in memory.

    Attributes:
        channels: values per pixel and row of the message (1 for Bayer and planar formats).
        bits: bits per value, 8 or 16.
        to_rgb: (rows, W, channels) or (rows, W) array of that many bits -> (H, W, 3), same bits.
        even_width, even_height: chroma is shared by pairs of columns, rows.
        planes: rows in the message per two rows of the image (more than 2 when chroma follows).
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


def _nv24(planes: np.ndarray) -> np.ndarray:
    """A plane of Y, then one of V, U pairs as large again twice; video range BT.601."""
    rows, width = planes.shape
    height = rows // 3
    y = 1.164383 * (planes[:height].astype(np.float32) - 16.0)
    chroma = planes[height:].reshape(height, width, 2).astype(np.float32) - 128.0
    v, u = chroma[..., 0], chroma[..., 1]
    rgb = np.stack([y + 1.596027 * v, y - 0.812968 * v - 0.391762 * u, y + 2.017232 * u], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _encodings() -> dict[str, Encoding]:
    known = {
        "yuv422": Encoding(2, 8, _by_opencv(cv2.COLOR_YUV2RGB_UYVY), even_width=True),
        "yuv422_yuy2": Encoding(2, 8, _by_opencv(cv2.COLOR_YUV2RGB_YUY2), even_width=True),
        "nv24": Encoding(1, 8, _nv24, planes=6),
        "8UC1": Encoding(1, 8, _by_opencv(cv2.COLOR_GRAY2RGB)),
        "8UC3": Encoding(3, 8, _by_opencv(cv2.COLOR_BGR2RGB)),
        "8UC4": Encoding(4, 8, _by_opencv(cv2.COLOR_BGRA2RGB)),
    }
    # Newer names of the first two.
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


def check_colour(encoding: str, height: int, width: int, step: int, size: int) -> None:
    """Check that the pixels described by an image message are there, before memory is taken.

    Args:
        step: bytes from one row to the next.
        size: bytes of data.

    Raises:
        ImageError: with the first fault found, and what to do about it.
    """
    layout = ENCODINGS.get(encoding)
    if layout is None:
        raise ImageError(
            Fault.UNSUPPORTED_ENCODING,
            f"image encoding '{encoding}' cannot be read: use one of {', '.join(ENCODINGS)}, "
            "for example with image_proc",
        )
    _check_size(height, width)
    if (layout.even_width and width % 2) or (layout.even_height and height % 2):
        raise ImageError(
            Fault.UNSUPPORTED_SIZE,
            f"image of {width}x{height} pixels cannot be '{encoding}', which shares colour between "
            "pairs of pixels: check the camera driver",
        )
    check_rows(encoding, height, width, step, size, layout.row_bytes(width), layout.rows(height))


def check_rows(
    encoding: str, height: int, width: int, step: int, size: int, row_bytes: int, rows: int
) -> None:
    """Check that ``rows`` rows of ``row_bytes``, ``step`` bytes apart, fit into ``size`` bytes.

    Raises:
        ImageError: they do not, or the image has no pixel.
    """
    _check_size(height, width)
    if step < row_bytes:
        raise ImageError(
            Fault.WRONG_STEP,
            f"image step is {step} bytes but a row of {width} pixels '{encoding}' takes "
            f"{row_bytes}: the publisher must set step to the bytes of one row, padding included",
        )
    if size < (rows - 1) * step + row_bytes:  # the last row may go without its padding
        raise ImageError(
            Fault.SHORT_DATA,
            f"image data has {size} bytes but {rows} rows with step {step} take "
            f"{rows * step}: the message was cut short or its size is wrong",
        )


def _check_size(height: int, width: int) -> None:
    if height == 0 or width == 0:
        raise ImageError(
            Fault.EMPTY_IMAGE, f"image of {width}x{height} pixels: check the camera driver"
        )


def pixels_of(
    data: np.ndarray, dtype: np.dtype, rows: int, width: int, channels: int, step: int
) -> np.ndarray:
    """Checked bytes as pixels (rows, width[, channels]); a view, with row padding left outside."""
    shape: tuple[int, ...] = (rows, width)
    strides: tuple[int, ...] = (step, channels * dtype.itemsize)
    if channels > 1:
        shape, strides = (*shape, channels), (*strides, dtype.itemsize)
    return np.ndarray(shape, dtype, buffer=data, strides=strides)


def image_to_rgb8(
    data: np.ndarray, encoding: str, height: int, width: int, step: int, is_bigendian: bool
) -> np.ndarray:
    """Convert the bytes of an image message that passed `check_colour` to RGB.

    Args:
        data: uint8, as many as `check_colour` wants.
        encoding: a key of ``ENCODINGS``.
        step: bytes from one row to the next.
        is_bigendian: order of the two bytes of 16-bit values.

    Returns:
        (height, width, 3) uint8. For ``rgb8`` a view of ``data``, otherwise a new array.
    """
    layout = ENCODINGS[encoding]
    value = np.dtype(np.uint8 if layout.bits == 8 else (">u2" if is_bigendian else "<u2"))
    image = pixels_of(data, value, layout.rows(height), width, layout.channels, step)
    if not image.dtype.isnative:
        image = image.astype(value.newbyteorder("="))
    if layout.to_rgb is not _unchanged:
        # OpenCV wants compact pixels in rows that may be padded; numpy says whether they are.
        image = layout.to_rgb(np.ascontiguousarray(image))
    if layout.bits == 16:
        # v * 255 / 65535 rounded to nearest; 257 is odd, so there are no ties.
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return image
