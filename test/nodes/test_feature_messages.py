# SPDX-License-Identifier: Apache-2.0
"""Tensors through messages: the same numbers, the same memory, and no message that lies."""

from __future__ import annotations

import array

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from omnistream_ros.msg import FeatureTensor, StreamStatus
from rclpy.serialization import deserialize_message, serialize_message
from ros_processes import NODE, NodeStarter, User

from omnistream_ros.nodes.feature_messages import BadTensorError, set_tensor, to_numpy, to_torch

NUMPY_TYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "?"]


def through_the_wire(tensor: torch.Tensor | np.ndarray) -> FeatureTensor:
    message = FeatureTensor()
    set_tensor(message, tensor)
    return deserialize_message(serialize_message(message), FeatureTensor)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_numpy_round_trip(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(NUMPY_TYPES)))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    values = data.draw(hnp.arrays(dtype, shape))
    message = through_the_wire(values)
    received = to_numpy(message)
    assert received.dtype == dtype
    np.testing.assert_array_equal(received, values)
    assert to_torch(message).shape == values.shape


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_torch_round_trip(dtype: torch.dtype) -> None:
    values = (torch.randn(3, 4, 5) * 50).to(dtype)
    received = to_torch(through_the_wire(values))
    assert received.dtype == dtype
    assert torch.equal(received, values)
    assert torch.equal(to_torch(through_the_wire(values.transpose(0, 2))), values.transpose(0, 2))


def test_reading_copies_nothing() -> None:
    message = through_the_wire(torch.arange(12.0).reshape(3, 4))
    view, tensor = to_numpy(message), to_torch(message)
    memory = np.frombuffer(message.data, np.float32)
    memory[5] = -1.0
    assert view[1, 1] == -1.0
    assert tensor[1, 1] == -1.0
    del message, memory
    assert tensor[2, 3] == 11.0  # the tensor keeps the memory alive


def test_strides_and_offset_of_other_publishers() -> None:
    """A transposed view inside a larger storage, as DLPack allows it."""
    storage = np.arange(40, dtype=np.float32)
    message = FeatureTensor(dtype_code=2, dtype_bits=32, dtype_lanes=1)
    message.shape, message.strides, message.byte_offset = [3, 4], [1, 6], 8
    message.data = array.array("B", storage.tobytes())
    expected = storage[2:][np.arange(3)[:, None] + 6 * np.arange(4)]
    np.testing.assert_array_equal(to_numpy(message), expected)
    message.strides, message.byte_offset = [-4, 1], 4 * 20
    np.testing.assert_array_equal(to_numpy(message)[:, 0], [20, 16, 12])
    with pytest.raises(BadTensorError, match="negative strides"):
        to_torch(message)


def honest() -> FeatureTensor:
    message = FeatureTensor()
    set_tensor(message, np.zeros((3, 4), np.float32))
    return message


LIES = {
    "shape too large": ({"shape": [3, 5]}, "reach bytes 0 to 60 of 48"),
    "absurd shape": ({"shape": [2**62, 2**62]}, "larger than any memory"),
    "absurd shape without elements": ({"shape": [0, 2**60]}, "larger than any memory"),
    "shape of a large memory": ({"shape": [2**20, 2**20]}, "reach bytes"),
    "negative size": ({"shape": [-3, 4]}, "negative size"),
    "too many dimensions": ({"shape": [1] * 9}, "9 dimensions"),
    "strides reach out": ({"strides": [5, 1]}, "reach bytes"),
    "strides reach before": ({"strides": [-4, 1]}, "reach bytes -32"),
    "overflowing stride": ({"strides": [2**63 - 1, 1]}, "reach bytes"),
    "zero stride": ({"strides": [0, 1]}, "share memory"),
    "overlapping strides": ({"strides": [2, 1]}, "share memory"),
    "number of strides": ({"strides": [1]}, "1 strides for 2 dimensions"),
    "offset": ({"byte_offset": 4}, "reach bytes 4 to 52 of 48"),
    "huge offset": ({"byte_offset": 2**64 - 4}, "reach bytes"),
    "misaligned offset": ({"byte_offset": 2, "shape": [2, 4]}, "no multiple of the 4 byte"),
    "unknown type": ({"dtype_code": 5}, "code 5"),
    "odd bits": ({"dtype_bits": 24}, "24 bits"),
    "lanes": ({"dtype_lanes": 4}, "dtype_lanes"),
    "cut data": ({"data": array.array("B", bytes(47))}, "of 47"),
    "no data": ({"data": array.array("B")}, "of 0"),
}


@pytest.mark.parametrize("lie", LIES)
def test_message_that_lies_is_refused(lie: str) -> None:
    changes, words = LIES[lie]
    message = honest()
    for name, value in changes.items():
        setattr(message, name, value)
    for read in (to_numpy, to_torch):
        with pytest.raises(BadTensorError, match=words):
            read(message)


def test_bytes_that_are_no_booleans_are_refused() -> None:
    message = FeatureTensor(dtype_code=6, dtype_bits=8, dtype_lanes=1, shape=[3])
    message.data = array.array("B", [0, 1, 2])
    with pytest.raises(BadTensorError, match="0 or 1"):
        to_torch(message)


sizes = st.one_of(st.integers(-2, 6), st.integers(-(2**63), 2**63 - 1))


@settings(max_examples=400, deadline=None)
@given(
    code=st.sampled_from([0, 1, 2, 3, 4, 6, 255]),
    bits=st.sampled_from([0, 1, 8, 16, 32, 64, 128]),
    shape=st.lists(sizes, max_size=4),
    strides=st.one_of(st.just([]), st.lists(sizes, max_size=4)),
    offset=st.one_of(st.integers(0, 40), st.integers(0, 2**64 - 1)),
    size=st.integers(0, 64),
)
def test_any_message_is_refused_or_stays_inside_its_data(
    code: int, bits: int, shape: list, strides: list, offset: int, size: int
) -> None:
    message = FeatureTensor(dtype_code=code, dtype_bits=bits, dtype_lanes=1, byte_offset=offset)
    message.shape, message.strides = shape, strides
    message.data = array.array("B", bytes(size))
    try:
        view = to_numpy(message)
    except BadTensorError:
        return
    assert view.shape == tuple(shape)
    if view.size:
        low, high = np.lib.array_utils.byte_bounds(view)
        begin, _ = np.lib.array_utils.byte_bounds(np.frombuffer(message.data, np.uint8))
        assert begin <= low
        assert high <= begin + size
        view.fill(1)  # every element is its own memory
        assert view.sum() == view.size


def test_second_process_decodes_the_node_features(user: User, start_node: NodeStarter) -> None:
    """A user receives every tensor that was asked for, with its place in the stream."""
    node = start_node(
        autostart=True,
        features='["0:patch", "-1:cls", "-1:cls:normed", "-1:register", "-1:camera:normed"]',
        stream_id="left eye",
    )
    features = user.collect(FeatureTensor, f"{NODE}/features")
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images")
    send = user.camera()
    user.wait_until(lambda: status)
    while not features:
        frame = user.process(send, status, width=128, height=96)
    user.wait_until(lambda: len(features) % 5 == 0)
    latest = features[-5:]
    F = FeatureTensor
    assert [(m.layer, m.kind, m.normed) for m in latest] == [
        (0, F.PATCH, False),
        (1, F.CLS, False),
        (1, F.CLS, True),
        (1, F.REGISTER, False),
        (1, F.CAMERA, True),
    ]
    assert [tuple(to_torch(m).shape) for m in latest] == [(3, 4, 64), (64,), (64,), (4, 64), (64,)]
    for message in latest:
        assert message.header == frame.header
        assert (message.epoch, message.frame_index) == (frame.epoch, frame.frame_index)
        assert message.context_frames == frame.context_frames
        assert message.stream_id == "left eye"
        assert (message.model_name, message.weights_sha256) == ("tiny", frame.weights_sha256)
        assert (message.grid_height, message.grid_width, message.patch_size) == (3, 4, 16)
        assert (message.model_height, message.model_width) == (48, 64)
        assert (message.source_height, message.source_width) == (96, 128)
        np.testing.assert_allclose(message.model_to_source, [2, 0, 0.5, 0, 2, 0.5])
        assert np.isfinite(to_numpy(message)).all()
    raw, normed = (to_torch(m) for m in latest[1:3])
    assert not torch.allclose(raw, normed)
