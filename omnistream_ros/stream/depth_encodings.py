# SPDX-License-Identifier: Apache-2.0
"""Depth as ROS stores it in raw image messages, to metres (REP-118)."""

from __future__ import annotations

import numpy as np

from omnistream_ros.stream.image_encodings import Fault, ImageError, check_rows, pixels_of

#: Encoding to the type of one pixel.
DEPTH_ENCODINGS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4", "64FC1": "f8"}


def depth_to_metres(
    data: np.ndarray, encoding: str, height: int, width: int, step: int, is_bigendian: bool
) -> np.ndarray:
    """Depth (height, width) float32 in metres, NaN where unknown.

    16UC1 is millimetres with 0 for unknown; 32FC1 and 64FC1 are metres with any value that is not
    finite or not positive for unknown.

    Args:
        data: uint8.
        step: bytes from one row to the next.

    Raises:
        ImageError: not depth, or the data does not fit the size.
    """
    if encoding not in DEPTH_ENCODINGS:
        raise ImageError(
            Fault.UNSUPPORTED_ENCODING,
            f"encoding {encoding!r} is not depth; expected 16UC1 (mm) or 32FC1 (m)",
        )
    dtype = np.dtype((">" if is_bigendian else "<") + DEPTH_ENCODINGS[encoding])
    check_rows(encoding, height, width, step, data.size, width * dtype.itemsize, height)
    return metres(pixels_of(data, dtype, height, width, 1, step))


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
