# SPDX-License-Identifier: Apache-2.0
"""Pixels of the image messages in a bag: to RGB, and depth to metres.

The work is done in ``stream/``, where the node has it from too; here messages are taken apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omnistream_ros.stream.compressed_images import decode_depth, decode_rgb
from omnistream_ros.stream.depth_encodings import depth_to_metres
from omnistream_ros.stream.image_encodings import check_colour, image_to_rgb8


def rgb_image(message: Any) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of a ``sensor_msgs/Image``.

    Raises:
        ImageError: unknown encoding, zero size, step too small, data too short.
    """
    data = np.frombuffer(message.data, np.uint8)
    check_colour(message.encoding, message.height, message.width, message.step, data.size)
    return np.ascontiguousarray(
        image_to_rgb8(
            data, message.encoding, message.height, message.width, message.step,
            bool(message.is_bigendian),
        )
    )  # fmt: skip


def depth_image(message: Any) -> np.ndarray:
    """Depth (H, W) float32 in metres, NaN where unknown, of a ``sensor_msgs/Image``.

    Raises:
        ImageError: as `rgb_image`.
    """
    return depth_to_metres(
        np.frombuffer(message.data, np.uint8), message.encoding, message.height, message.width,
        message.step, bool(message.is_bigendian),
    )  # fmt: skip


def compressed_rgb(message: Any) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of a ``sensor_msgs/CompressedImage`` (JPEG, PNG, WebP ...).

    Raises:
        ImageError: the bytes are not an image.
    """
    return decode_rgb(bytes(message.data), f"compressed image of format {message.format!r}")


def compressed_depth(message: Any) -> np.ndarray:
    """Depth (H, W) float32 metres of a ``CompressedImage`` (compressedDepth by PNG or RVL).

    Raises:
        ImageError: broken data.
    """
    return decode_depth(bytes(message.data), message.format)
