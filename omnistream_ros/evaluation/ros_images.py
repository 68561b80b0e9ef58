# SPDX-License-Identifier: Apache-2.0
"""Pixels of ROS image messages, without ROS: raw and compressed images to RGB, depth to metres.

Messages are read by attribute, so that what the `rosbags` library gives and what rclpy gives both
do. Encodings are those of ``sensor_msgs/image_encodings.hpp`` that cv_bridge converts to rgb8.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import cv2
import numpy as np


class ImageMessageError(ValueError):
    """An image message that contradicts itself or has an encoding that cannot be used."""


_NAMED = {
    # encoding: (channels, bytes per channel)
    "mono8": (1, 1),
    "mono16": (1, 2),
    "rgb8": (3, 1),
    "bgr8": (3, 1),
    "rgba8": (4, 1),
    "bgra8": (4, 1),
    "rgb16": (3, 2),
    "bgr16": (3, 2),
    "rgba16": (4, 2),
    "bgra16": (4, 2),
    "yuv422": (2, 1),
    "uyvy": (2, 1),
    "yuv422_yuy2": (2, 1),
    "yuyv": (2, 1),
}

# OpenCV names a Bayer pattern by its second row, second column on; ROS by its first pixels.
_BAYER = {
    "bayer_rggb": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg": cv2.COLOR_BayerGB2RGB,
}

_TO_RGB = {
    "mono": cv2.COLOR_GRAY2RGB,
    "bgr": cv2.COLOR_BGR2RGB,
    "rgba": cv2.COLOR_RGBA2RGB,
    "bgra": cv2.COLOR_BGRA2RGB,
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
}

_PLANAR = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21, "nv24": None}

_GENERIC = re.compile(r"(8|16|32|64)([USF])C([1-4]?)")
_DEPTH_ENCODINGS = ("16UC1", "mono16", "32FC1", "64FC1")


def rgb_image(message: Any) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of a ``sensor_msgs/Image``.

    Sixteen-bit colours are scaled by 255 / 65535; 8UC1 is grey, 8UC3 and 8UC4 are BGR(A) as
    cv_bridge takes them.

    Raises:
        ImageMessageError: unknown encoding, zero size, step too small, data too short.
    """
    encoding = message.encoding
    if encoding in _PLANAR:
        return _planar_yuv(message, encoding)
    pixels = _pixels(message)
    if encoding in ("rgb8", "rgb16"):
        rgb = pixels
    elif encoding.startswith("bayer_"):
        rgb = cv2.cvtColor(pixels, _BAYER[encoding.rstrip("0123456789")])
    elif encoding in _NAMED:
        base = encoding if encoding in _TO_RGB else encoding.rstrip("0123456789")
        rgb = cv2.cvtColor(pixels, _TO_RGB[base])
    elif encoding in ("8UC", "8UC1", "8UC3", "8UC4"):
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        rgb = cv2.cvtColor(pixels, _TO_RGB[{1: "mono", 3: "bgr", 4: "bgra"}[channels]])
    else:
        raise ImageMessageError(
            f"encoding {encoding!r} is not a colour or grey image; expected one of "
            f"{', '.join(sorted(_NAMED))}, bayer_*, {', '.join(_PLANAR)}, 8UC1, 8UC3, 8UC4"
        )
    if rgb.dtype == np.uint16:
        rgb = np.rint(rgb * (255.0 / 65535.0)).astype(np.uint8)
    return np.ascontiguousarray(rgb)


def depth_image(message: Any) -> np.ndarray:
    """Depth (H, W) float32 in metres, NaN where unknown, of a ``sensor_msgs/Image`` (REP-118).

    16UC1 is millimetres with 0 for unknown; 32FC1 and 64FC1 are metres with any value that is not
    finite or not positive for unknown.

    Raises:
        ImageMessageError: as `rgb_image`.
    """
    if message.encoding not in _DEPTH_ENCODINGS:
        raise ImageMessageError(
            f"encoding {message.encoding!r} is not depth; expected 16UC1 (mm) or 32FC1 (m)"
        )
    return metres(_pixels(message))


def metres(pixels: np.ndarray, per_metre: float = 1000.0) -> np.ndarray:
    """Stored depth to float32 metres with NaN for unknown.

    Args:
        pixels: (H, W); integers are multiples of 1 / ``per_metre`` metre with 0 for unknown, floats
            are metres already.
        per_metre: steps to a metre of the integer form.
    """
    depth = pixels.astype(np.float32)
    if np.issubdtype(pixels.dtype, np.integer):
        depth /= np.float32(per_metre)
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def compressed_rgb(message: Any) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of a ``sensor_msgs/CompressedImage`` (JPEG, PNG, WebP ...).

    Raises:
        ImageMessageError: the bytes are not an image.
    """
    return decode_rgb(bytes(message.data), f"compressed image of format {message.format!r}")


def compressed_depth(message: Any) -> np.ndarray:
    """Depth (H, W) float32 metres of a ``CompressedImage`` written by
    compressed_depth_image_transport.

    Its bytes are a header (int32 kind, float32 A, float32 B) and a PNG. 16UC1 is stored as it is;
    32FC1 as a 16-bit inverse depth: depth = A / (value - B), 0 for unknown.

    Raises:
        ImageMessageError: another format (such as RVL) or broken data.
    """
    encoding = message.format.split(";")[0].strip()
    data = bytes(message.data)
    if "compressedDepth" not in message.format:
        start, scale = 0, None  # a bare 16-bit PNG, in millimetres
    elif len(data) <= 12 or "rvl" in message.format.lower():
        raise ImageMessageError(f"compressed depth of format {message.format!r} is not supported")
    else:
        start = 12
        scale = struct.unpack_from("<ff", data, 4) if encoding == "32FC1" else None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8, offset=start), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 2:
        raise ImageMessageError(f"compressed depth of format {message.format!r} cannot be decoded")
    if scale is None:
        return metres(pixels)
    inverse = pixels.astype(np.float32) - np.float32(scale[1])
    with np.errstate(divide="ignore"):
        depth = np.float32(scale[0]) / inverse
    depth[(pixels == 0) | ~np.isfinite(depth) | (depth <= 0)] = np.nan
    return depth


def decode_rgb(data: bytes, what: str) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of an image file's bytes.

    Raises:
        ImageMessageError: the bytes are not an image; ``what`` is named in the message.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if pixels is None:
        raise ImageMessageError(f"{what} cannot be decoded ({len(data)} bytes)")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _layout(encoding: str) -> tuple[int, np.dtype]:
    """Channels and little-endian dtype of one pixel."""
    if encoding in _NAMED:
        channels, size = _NAMED[encoding]
        return channels, np.dtype(f"<u{size}")
    if encoding.startswith("bayer_") and encoding.rstrip("0123456789") in _BAYER:
        return 1, np.dtype("<u2" if encoding.endswith("16") else "u1")
    generic = _GENERIC.fullmatch(encoding)
    if generic:
        bits, kind, channels_text = generic.groups()
        letter = {"U": "u", "S": "i", "F": "f"}[kind]
        if not (kind == "F" and bits == "8"):
            return int(channels_text or 1), np.dtype(f"<{letter}{int(bits) // 8}")
    raise ImageMessageError(f"unknown image encoding {encoding!r}")


def _pixels(message: Any) -> np.ndarray:
    """The message's pixels, (H, W) or (H, W, C), native byte order, without its row padding."""
    channels, dtype = _layout(message.encoding)
    rows = _rows(message, message.height, message.width * channels * dtype.itemsize)
    if message.is_bigendian:
        dtype = dtype.newbyteorder(">")
    pixels = np.ascontiguousarray(rows).view(dtype)
    shape = (message.height, message.width) + ((channels,) if channels > 1 else ())
    return pixels.reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _rows(message: Any, rows: int, row_bytes: int) -> np.ndarray:
    """``rows`` x ``row_bytes`` of the message's data, after checking that the sizes agree."""
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0:
        raise ImageMessageError(f"image has no pixels: {width}x{height}")
    if step < row_bytes:
        raise ImageMessageError(
            f"step {step} is too small for {width} pixels of {message.encoding} ({row_bytes} bytes)"
        )
    data = np.frombuffer(message.data, dtype=np.uint8)
    # The last row may come without its padding.
    if data.size < step * (rows - 1) + row_bytes:
        raise ImageMessageError(
            f"data has {data.size} bytes, but {rows} rows of step {step} need {step * rows}"
        )
    if data.size < step * rows:
        data = np.concatenate([data, np.zeros(step * rows - data.size, np.uint8)])
    return data[: step * rows].reshape(rows, step)[:, :row_bytes]


def _planar_yuv(message: Any, encoding: str) -> np.ndarray:
    """A plane of Y, then interleaved chroma: NV12, NV21 (4:2:0) and NV24 (4:4:4), to RGB."""
    height, width = message.height, message.width
    conversion = _PLANAR[encoding]
    if conversion is not None:
        if height % 2 or width % 2:
            raise ImageMessageError(f"{encoding} needs an even size, got {width}x{height}")
        planes = _rows(message, height * 3 // 2, width)
        return cv2.cvtColor(np.ascontiguousarray(planes), conversion)
    planes = np.ascontiguousarray(_rows(message, height * 3, width)).reshape(-1)
    luma = planes[: height * width].reshape(height, width)
    chroma = planes[height * width :].reshape(height, width, 2)
    # OpenCV's YCrCb is full range; NV24 is video range (BT.601), as NV21 above.
    y = 1.164 * (luma.astype(np.float32) - 16.0)
    v, u = (chroma[..., i].astype(np.float32) - 128.0 for i in (0, 1))
    rgb = np.stack([y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
