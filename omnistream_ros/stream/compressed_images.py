# SPDX-License-Identifier: Apache-2.0
"""Compressed images and depth, as image_transport puts them into ``CompressedImage`` messages."""

from __future__ import annotations

import struct

import cv2
import numpy as np

from omnistream_ros.stream.depth_encodings import metres
from omnistream_ros.stream.image_encodings import Fault, ImageError
from omnistream_ros.stream.rvl import decode_rvl

#: int32 kind, float32 A, float32 B, in front of the picture.
_DEPTH_HEADER = struct.Struct("<iff")
_RVL_SIZE = struct.Struct("<II")  # columns, rows
#: Pixels of an RVL image. Their number does not follow from that of the bytes: an image in which
#: nothing is known is one run of zeros, a few bytes whatever its size.
_MOST_PIXELS = 2**26
_PNG = b"\x89PNG\r\n\x1a\n"


def encoded_size(data: bytes | memoryview) -> tuple[int, int]:
    """Width and height that a JPEG or PNG says it has, read from its first bytes; nothing is
    decoded, so that nobody can make the reader take more memory than it wants to give.

    Raises:
        ImageError: neither of the two, or cut short.
    """
    head = bytes(data[:24])
    if head[:8] == _PNG:
        if len(head) == 24 and head[12:16] == b"IHDR":
            width, height = struct.unpack(">II", head[16:24])
            return int(width), int(height)
    elif head[:2] == b"\xff\xd8":
        return _jpeg_size(bytes(data))
    elif data:
        raise ImageError(
            Fault.UNSUPPORTED_ENCODING,
            "compressed image is neither JPEG nor PNG: let the publisher send one of them "
            "(image_transport: parameter 'format')",
        )
    raise ImageError(
        Fault.BROKEN_DATA, f"compressed image was cut short: {len(data)} bytes without a size"
    )


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walks over the segments of a JPEG up to its frame header; then looks for its end."""
    at, size = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        # SOF0 to SOF15 without DHT, JPG and DAC
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 9 <= len(data):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            size = (int(width), int(height))
        if marker == 0xDA and size is not None:  # compressed data, where FF is always escaped
            if data.find(b"\xff\xd9", at) < 0:
                break
            return size
        at += 2 + length
    raise ImageError(
        Fault.BROKEN_DATA, f"compressed image was cut short: {len(data)} bytes are no whole JPEG"
    )


def decode_rgb(data: bytes, what: str) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of an image file's bytes (JPEG, PNG, WebP ...).

    Raises:
        ImageError: the bytes are not an image; ``what`` is named in the message.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if pixels is None:
        raise ImageError(Fault.BROKEN_DATA, f"{what} cannot be decoded ({len(data)} bytes)")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def decode_depth(data: bytes, message_format: str) -> np.ndarray:
    """Depth (H, W) float32 metres, NaN unknown, as compressed_depth_image_transport writes it.

    A header and then a PNG, or for RVL the size and the stream. 16UC1 is stored as it is, 32FC1 as
    a 16-bit inverse depth: depth = A / (value - B), 0 for unknown. A format without
    ``compressedDepth`` is a bare 16-bit PNG in millimetres.

    Raises:
        ImageError: broken data.
    """
    inverse = None
    if "compressedDepth" in message_format:
        if len(data) <= _DEPTH_HEADER.size:
            raise _broken(message_format, f"{len(data)} bytes are too few")
        _, a, b = _DEPTH_HEADER.unpack_from(data)
        if message_format.split(";")[0].strip() == "32FC1":
            inverse = (a, b)
        data = data[_DEPTH_HEADER.size :]
    if "rvl" in message_format.lower():
        pixels = _rvl(data, message_format)
    else:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.ndim != 2:
            raise _broken(message_format, "not a PNG of one channel")
        pixels = decoded
    if inverse is None:
        return metres(pixels)
    with np.errstate(divide="ignore"):
        depth = np.float32(inverse[0]) / (pixels.astype(np.float32) - np.float32(inverse[1]))
    depth[(pixels == 0) | ~np.isfinite(depth) | (depth <= 0)] = np.nan
    return depth


def encode_depth(millimetres: np.ndarray, level: int = 1) -> bytes:
    """Depth (H, W) uint16 as compressed_depth_image_transport writes a 16UC1 image: without loss.

    Level 1 is the fastest of PNG that compresses: 3 takes twice the time for a tenth less.
    """
    done, png = cv2.imencode(".png", millimetres, [cv2.IMWRITE_PNG_COMPRESSION, level])
    if not done:
        raise ValueError(f"a depth image of shape {millimetres.shape} cannot be written as PNG")
    return _DEPTH_HEADER.pack(0, 0.0, 0.0) + png.tobytes()


def _rvl(data: bytes, message_format: str) -> np.ndarray:
    if len(data) < _RVL_SIZE.size:
        raise _broken(message_format, "no size in front of the RVL stream")
    columns, rows = _RVL_SIZE.unpack_from(data)
    stream = data[_RVL_SIZE.size :]
    if not 0 < columns * rows <= _MOST_PIXELS:
        raise _broken(message_format, f"it says to be {columns}x{rows} pixels large")
    try:
        return decode_rvl(stream, columns * rows).reshape(rows, columns)
    except ValueError as error:
        raise _broken(message_format, str(error)) from None


def _broken(message_format: str, why: str) -> ImageError:
    return ImageError(
        Fault.BROKEN_DATA,
        f"compressed depth of format {message_format!r} cannot be decoded: {why}",
    )
