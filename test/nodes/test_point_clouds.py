# SPDX-License-Identifier: Apache-2.0
"""Point clouds and pictures of depth, against plain loops over the pixels."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from omnistream_ros.nodes.depth_pictures import colour_depth
from omnistream_ros.nodes.point_clouds import CloudSettings, cloud_message
from omnistream_ros.stream.frame import Intrinsics

CAMERA = Intrinsics(30.0, 31.0, 5.25, 3.5, 12, 8)


@dataclasses.dataclass(frozen=True)
class Depth:
    """The parts of a StreamResult that a cloud is made of."""

    depth: torch.Tensor
    confidence: torch.Tensor
    intrinsics: Intrinsics = CAMERA


def scene(seed: int, scale: int = 1) -> tuple[Depth, np.ndarray]:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.2, 9, (8, 12)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.2] = np.nan
    confidence = (1 + rng.exponential(3, depth.shape)).astype(np.float32)
    pixels = rng.integers(0, 256, (8 * scale, 12 * scale, 3), dtype=np.uint8)
    return Depth(torch.from_numpy(depth), torch.from_numpy(confidence)), pixels


def read(message: PointCloud2) -> np.ndarray:
    """(height, width, 5): what the message says by its own fields and steps."""
    raw = np.frombuffer(message.data, np.uint8).reshape(message.height, message.row_step)
    rows = raw[:, : message.width * message.point_step]
    points = rows.reshape(message.height, message.width, message.point_step)
    names = [field.name for field in message.fields]
    assert names == ["x", "y", "z", "rgb", "confidence"]
    columns = [
        np.ascontiguousarray(points[..., f.offset : f.offset + 4]).view("<f4")[..., 0]
        for f in message.fields
    ]
    return np.stack(columns, -1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 99),
    st.integers(1, 5),
    st.floats(0.1, 12),
    st.floats(1, 9),
    st.booleans(),
    st.sampled_from([1, 3]),
)
def test_points_are_those_of_a_loop(
    seed: int, stride: int, far: float, sure: float, organized: bool, scale: int
) -> None:
    result, pixels = scene(seed, scale)
    message = cloud_message(
        Header(frame_id="camera"), result, pixels, CloudSettings(stride, far, sure, organized)
    )
    expected, colours = [], []
    for v, u in itertools.product(range(0, 8, stride), range(0, 12, stride)):
        z = float(result.depth[v, u])
        confidence = float(result.confidence[v, u])
        keep = z > 0 and z <= np.float32(far) and confidence >= np.float32(sure)
        if keep or organized:
            xyz = [(u - CAMERA.cx) / CAMERA.fx * z, (v - CAMERA.cy) / CAMERA.fy * z, z]
            expected.append([*(xyz if keep else [np.nan] * 3), confidence])
            colours.append(pixels[v * scale + scale // 2, u * scale + scale // 2])
    found = read(message).reshape(-1, 5)
    np.testing.assert_allclose(
        found[:, [0, 1, 2, 4]], np.array(expected).reshape(-1, 4), rtol=1e-5, atol=1e-6
    )
    packed = np.ascontiguousarray(found[:, 3]).view(np.uint32)
    rgb = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1)
    np.testing.assert_array_equal(rgb, np.array(colours, np.uint8).reshape(-1, 3))
    shape = (len(range(0, 8, stride)), len(range(0, 12, stride)))
    assert (message.height, message.width) == (shape if organized else (1, len(expected)))
    assert message.is_dense == bool(np.isfinite(found[:, :3]).all())


def test_no_points_at_all() -> None:
    result, pixels = scene(0)
    nothing = Depth(torch.full_like(result.depth, torch.nan), result.confidence)
    message = cloud_message(Header(), nothing, pixels, CloudSettings())
    assert (message.height, message.width, len(message.data)) == (1, 0, 0)


def test_colours_fall_from_red_to_blue_and_black_is_unknown() -> None:
    depth = np.array([[0.1, 0.3, 1.0, 3.0, 10.0, 99.0, 0.0, -1.0, np.nan, np.inf]], np.float32)
    picture = colour_depth(depth)
    assert picture.shape == (1, 10, 3)
    np.testing.assert_array_equal(picture[0, 0], picture[0, 1])  # nearer than near
    np.testing.assert_array_equal(picture[0, 4], picture[0, 5])  # farther than far
    assert not picture[0, 6:].any()
    blue, green, red = picture[0, 1]
    assert red > blue
    assert red > green
    blue, green, red = picture[0, 4]
    assert blue > red
    assert picture[0, :6].any(axis=1).all(), "what is known is never black"


@pytest.mark.parametrize("scale", [1, 4])
def test_a_single_colour_stays_itself(scale: int) -> None:
    result, pixels = scene(1, scale)
    pixels[:] = (255, 128, 1)
    points = read(cloud_message(Header(), result, pixels, CloudSettings()))
    assert set(np.ascontiguousarray(points[..., 3]).view(np.uint32).flat) == {0xFF8001}
