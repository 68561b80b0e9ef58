# SPDX-License-Identifier: Apache-2.0
"""The two forms in which images come: `sensor_msgs/Image`, and what image_transport compresses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from omnistream_ros.nodes.distribution import message_to_rgb8
from omnistream_ros.nodes.image_checks import (
    BadImageError,
    Drop,
    check_compressed,
    check_image,
)
from omnistream_ros.stream.compressed_images import decode_rgb
from omnistream_ros.stream.image_encodings import ImageError


@dataclasses.dataclass(frozen=True)
class Transport:
    """One form of images.

    Attributes:
        name: a value of the parameter `input_transport`.
        kind: the message type.
        type_name: the same in words of ROS.
        suffix: of the topic, after the name that is remapped (as image_transport does).
        check: makes sure that a message can be read, before memory is taken for it, and says
            (width, height); raises `BadImageError`.
        pixels: RGB (H, W, 3) uint8 of a checked message; raises `BadImageError`.
    """

    name: str
    kind: type
    type_name: str
    suffix: str
    check: Callable[[Any], tuple[int, int]]
    pixels: Callable[[Any], np.ndarray]


def _decompressed(message: CompressedImage) -> np.ndarray:
    try:
        return decode_rgb(bytes(message.data), f"compressed image of format '{message.format}'")
    except ImageError as error:
        raise BadImageError(Drop(error.fault.value), str(error)) from None


RAW = Transport("raw", Image, "sensor_msgs/msg/Image", "", check_image, message_to_rgb8)
COMPRESSED = Transport(
    "compressed",
    CompressedImage,
    "sensor_msgs/msg/CompressedImage",
    "/compressed",
    check_compressed,
    _decompressed,
)
TRANSPORTS = {transport.name: transport for transport in (RAW, COMPRESSED)}
