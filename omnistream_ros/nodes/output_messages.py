# SPDX-License-Identifier: Apache-2.0
"""A result as messages: depth, its camera_info, pictures and feature tensors; nothing is sent."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from omnistream_ros.msg import FeatureTensor
from omnistream_ros.nodes.distribution import byte_array
from omnistream_ros.nodes.feature_messages import KINDS, set_tensor
from omnistream_ros.stream.compressed_images import encode_depth
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.result import FeatureKey, StreamResult
from omnistream_ros.stream.undistort import Undistorter

DEPTH_ENCODINGS = ("32FC1", "16UC1")


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What every consumer must know about the model; constant while the node is configured."""

    name: str
    sha256: str
    patch_size: int
    layers: int
    has_depth: bool
    has_pose: bool
    metric: bool = False
    licence: str = ""
    accuracy: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SourceFacts:
    """What a result does not carry of the image it came from.

    Attributes:
        pixels: as they came, (H, W, 3) uint8.
        rectified: whether the result is that of an undistorted image.
        lens: what took the distortion out of the pixels, if they had any.
    """

    header: Header
    pixels: np.ndarray
    camera_info: CameraInfo | None
    rectified: bool
    lens: Undistorter | None
    stream_id: str
    dropped_since_last: int


def depth_image(depth: torch.Tensor, encoding: str, header: Header) -> Image:
    """Depth (H, W) in metres as an image message (REP-118).

    ``32FC1``: metres, NaN where unknown. ``16UC1``: millimetres, 0 where unknown or beyond the
    65.535 m that the format holds.
    """
    # In numpy: several times as fast as torch for so little work.
    metres = depth.float().cpu().numpy()
    known = (metres > 0.0) & (metres < np.inf)
    if encoding == "32FC1":
        values = np.where(known, metres, np.float32(np.nan))
    else:
        millimetres = np.round(metres * 1000.0)
        known &= millimetres <= 65535.0
        values = np.where(known, millimetres, 0.0).astype(np.uint16)
    return image_message(values, encoding, header)


def compressed_depth_image(depth: torch.Tensor, header: Header) -> CompressedImage:
    """Depth (H, W) in metres as a PNG of 16UC1, as image_transport does: for thin links."""
    image = depth_image(depth, "16UC1", header)
    values = np.frombuffer(image.data, np.uint16).reshape(image.height, image.width)
    message = CompressedImage(header=header, format="16UC1; compressedDepth png")
    message.data = array.array("B", encode_depth(values))
    return message


def image_message(values: np.ndarray, encoding: str, header: Header) -> Image:
    """Pixels (H, W) or (H, W, C), contiguous, as a message of the encoding that fits them."""
    height, width = values.shape[:2]
    image = Image(header=header, height=height, width=width, encoding=encoding)
    image.is_bigendian = 0
    image.step = values.nbytes // height
    image.data = byte_array(values)
    return image


def depth_camera_info(camera: Intrinsics, source: SourceFacts) -> CameraInfo:
    """The camera_info of the depth image: its own size, the lens of the source image.

    Depth of an image that was not undistorted lies in its pixels, so its distortion (which is in
    normalised coordinates and knows no resolution) is kept.
    """
    info = CameraInfo(header=source.header, width=camera.width, height=camera.height)
    given = source.camera_info
    info.distortion_model, info.d = "plumb_bob", [0.0] * 5
    if given is not None and not source.rectified and given.distortion_model:
        info.distortion_model, info.d = given.distortion_model, given.d
    k = [camera.fx, 0.0, camera.cx, 0.0, camera.fy, camera.cy, 0.0, 0.0, 1.0]
    info.k = k
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0]
    return info


def feature_message(
    key: FeatureKey,
    tensor: torch.Tensor,
    result: StreamResult,
    source: SourceFacts,
    model: ModelFacts,
) -> FeatureTensor:
    """One feature tensor with all that is needed to use it elsewhere."""
    message = feature_facts(key, result, source, model)
    set_tensor(message, tensor)
    return message


def feature_facts(
    key: FeatureKey, result: StreamResult, source: SourceFacts, model: ModelFacts
) -> FeatureTensor:
    """The same without the tensor."""
    message = FeatureTensor(
        header=source.header,
        stream_id=source.stream_id,
        epoch=result.epoch,
        frame_index=result.frame_index,
        context_frames=result.context_frames,
        dropped_since_last=source.dropped_since_last,
        model_name=model.name,
        weights_sha256=model.sha256,
        layer=key.layer % model.layers,
        kind=KINDS[key.kind],
        normed=key.normed,
        patch_size=model.patch_size,
    )
    message.grid_height, message.grid_width = result.grid
    message.model_height, message.model_width = result.model_size
    message.source_height, message.source_width = result.source_size
    message.model_to_source = np.asarray(result.model_to_source, np.float64).reshape(6)
    return message
