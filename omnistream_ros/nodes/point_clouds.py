# SPDX-License-Identifier: Apache-2.0
"""The depth image as sensor_msgs/PointCloud2: x, y, z, colour and confidence of each pixel.

Built here because sensor_msgs_py exchanges height and width of a cloud in the shape of an image.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from omnistream_ros.nodes.distribution import byte_array
from omnistream_ros.stream.geometry import back_project
from omnistream_ros.stream.result import StreamResult
from omnistream_ros.stream.undistort import Undistorter

# "rgb" is 0x00RRGGBB in the bits of a float: what rviz and PCL have read for ever.
_FIELDS = ("x", "y", "z", "rgb", "confidence")
_POINT_STEP = 4 * len(_FIELDS)


@dataclasses.dataclass(frozen=True)
class CloudSettings:
    """Which points are worth sending; the node's `points_*` parameters.

    Attributes:
        stride: take every n-th pixel in both directions.
        max_range: metres along the optical axis.
        min_confidence: of the network, from 1.
        organized: keep the shape of the image, NaN where a point is left out, instead of a list.
    """

    stride: int = 1
    max_range: float = 100.0
    min_confidence: float = 1.0
    organized: bool = False


def cloud_message(
    header: Header,
    result: StreamResult,
    pixels: np.ndarray,
    settings: CloudSettings,
    lens: Undistorter | None = None,
) -> PointCloud2:
    """The points of a result in the camera's optical frame.

    Args:
        result: one with depth.
        pixels: (H, W, 3) uint8, the camera image that the result belongs to, of any size.
        lens: what was undistorted before the result was computed.
    """
    assert result.depth is not None
    assert result.confidence is not None
    every = settings.stride
    points = back_project(result.depth, result.intrinsics)[:, ::every, ::every]  # (3, h, w)
    confidence = result.confidence[::every, ::every]
    # One copy to the host for both.
    values = torch.cat((points, confidence[None])).float().cpu().numpy()  # (4, h, w)
    points, confidence = values[:3], values[3]
    depth = points[2]
    kept = (depth > 0) & (depth <= settings.max_range) & (confidence >= settings.min_confidence)

    height, width = depth.shape
    cloud = np.empty((height, width, len(_FIELDS)), np.float32)
    cloud[..., :3] = points.transpose(1, 2, 0)
    cloud[..., 3] = _packed_colour(pixels, result.depth.shape, every, lens)
    cloud[..., 4] = confidence
    if settings.organized:
        cloud[~kept, :3] = np.nan
    else:
        cloud = cloud[kept][None]  # (1, N, 5)

    height, width = cloud.shape[:2]
    message = PointCloud2(header=header, height=height, width=width)
    message.fields = [
        PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, name in enumerate(_FIELDS)
    ]
    message.point_step, message.row_step = _POINT_STEP, _POINT_STEP * width
    message.is_bigendian = False
    message.is_dense = not settings.organized or bool(kept.all())
    message.data = byte_array(cloud)
    return message


def _packed_colour(
    pixels: np.ndarray, size: torch.Size, stride: int, lens: Undistorter | None
) -> np.ndarray:
    """The colour (h, w) at the points' places in the image, as float32 bits of 0x00RRGGBB."""
    rows, columns = (
        # The pixel of the camera image under the middle of the depth image's pixel.
        ((np.arange(0, small, stride) + 0.5) * full / small).astype(np.intp)
        for small, full in zip(size, pixels.shape[:2], strict=True)
    )
    grid = rows[:, None], columns[None, :]
    if lens is not None:
        grid = lens.places(*grid)
    r, g, b = (pixels[grid[0], grid[1], c].astype(np.uint32) for c in range(3))
    return (r << 16 | g << 8 | b).view(np.float32)
