# SPDX-License-Identifier: Apache-2.0
"""Feature tensors as messages, and messages as numpy or torch without a copy.

Any node can use the reading half::

    from omnistream_ros.nodes.feature_messages import to_numpy, to_torch

    def on_features(self, message: FeatureTensor) -> None:
        patches = to_torch(message)            # (grid_height, grid_width, D)

The layout is that of tensor_msgs/ExperimentalTensor, hence of DLPack: strides count elements,
``byte_offset`` bytes. A message is data from outside: before memory is interpreted, everything it
says about itself is checked.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from omnistream_ros.msg import FeatureTensor
from omnistream_ros.nodes.distribution import byte_array
from omnistream_ros.stream.result import FeatureKind

if TYPE_CHECKING:
    import torch

KINDS = {
    FeatureKind.PATCH: FeatureTensor.PATCH,
    FeatureKind.CLS: FeatureTensor.CLS,
    FeatureKind.REGISTER: FeatureTensor.REGISTER,
    FeatureKind.CAMERA: FeatureTensor.CAMERA,
    FeatureKind.POOLED: FeatureTensor.POOLED,
}
_BFLOAT16 = (FeatureTensor.DTYPE_BFLOAT, 16)
_NUMPY_TYPES = {
    **{(FeatureTensor.DTYPE_INT, 8 * size): np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{(FeatureTensor.DTYPE_UINT, 8 * size): np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{(FeatureTensor.DTYPE_FLOAT, 8 * size): np.dtype(f"<f{size}") for size in (2, 4, 8)},
    (FeatureTensor.DTYPE_BOOL, 8): np.dtype(np.bool_),
}
_CODES = {dtype: key for key, dtype in _NUMPY_TYPES.items()}
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 2**48


class BadTensorError(ValueError):
    """A message whose description of its tensor does not fit its data; the text says where."""


def set_tensor(message: FeatureTensor, tensor: torch.Tensor | np.ndarray) -> None:
    """Store a tensor in the message's tensor fields, compact and row-major.

    This is the one copy on the way out (and from the device to the host).
    """
    if isinstance(tensor, np.ndarray):
        values, code, bits = _numpy_values(tensor)
    else:
        values, code, bits = _torch_values(tensor)
    message.dtype_code, message.dtype_bits, message.dtype_lanes = code, bits, 1
    message.shape = list(tensor.shape)
    message.strides = []
    message.byte_offset = 0
    message.data = byte_array(values)


def to_numpy(message: FeatureTensor) -> np.ndarray:
    """The tensor of a message as an array that shares its memory (and keeps it alive).

    Raises:
        BadTensorError: sizes, strides, type or offset do not fit the data; or the tensor is
            bfloat16, which numpy does not have (``to_torch`` does).
    """
    if (message.dtype_code, message.dtype_bits) == _BFLOAT16:
        raise BadTensorError("numpy has no bfloat16; use to_torch")
    return _view(message)


def to_torch(message: FeatureTensor) -> torch.Tensor:
    """The tensor of a message as a torch tensor on the CPU that shares its memory.

    Raises:
        BadTensorError: as :func:`to_numpy`, or negative strides, which torch does not have.
    """
    import torch

    view = _view(message)
    if any(stride < 0 for stride in view.strides):
        raise BadTensorError("torch has no negative strides; use to_numpy")
    tensor = torch.from_numpy(view)
    bfloat = (message.dtype_code, message.dtype_bits) == _BFLOAT16
    return tensor.view(torch.bfloat16) if bfloat else tensor


def _numpy_values(array: np.ndarray) -> tuple[np.ndarray, int, int]:
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _CODES:
        raise BadTensorError(f"dtype {array.dtype} has no place in a FeatureTensor")
    code, bits = _CODES[dtype]
    # byte_array wants plain bytes; a zero-dimensional array is one element.
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8), code, bits


def _torch_values(tensor: torch.Tensor) -> tuple[np.ndarray, int, int]:
    import torch

    host = tensor.detach().to("cpu").contiguous()
    if host.dtype == torch.bfloat16:
        return host.reshape(-1).view(torch.uint8).numpy(), *_BFLOAT16
    return _numpy_values(host.numpy())


def _view(message: FeatureTensor) -> np.ndarray:
    """A checked view of the message's bytes; bfloat16 comes as int16 of the same bits."""
    key = (message.dtype_code, message.dtype_bits)
    if message.dtype_lanes != 1:
        raise BadTensorError(f"dtype_lanes must be 1, got {message.dtype_lanes}")
    dtype = np.dtype("<i2") if key == _BFLOAT16 else _NUMPY_TYPES.get(key)
    if dtype is None:
        raise BadTensorError(f"unknown element type: code {key[0]}, {key[1]} bits")
    shape = tuple(message.shape)
    if len(shape) > _MAX_DIMENSIONS:
        raise BadTensorError(f"{len(shape)} dimensions; at most {_MAX_DIMENSIONS} are read")
    if any(size < 0 for size in shape):
        raise BadTensorError(f"shape {list(shape)} has a negative size")
    if math.prod(size or 1 for size in shape) > _MAX_ELEMENTS:
        # Also without elements: numpy and torch cannot count that far.
        raise BadTensorError(f"shape {list(shape)} is larger than any memory")
    strides = _strides(message, shape)
    itemsize = dtype.itemsize
    available = len(message.data)
    offset = message.byte_offset
    if offset % itemsize:
        raise BadTensorError(f"byte_offset {offset} is no multiple of the {itemsize} byte elements")
    # Python integers do not overflow, whatever the message says.
    if math.prod(shape) == 0:
        first = last = 0
    else:
        reach = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
        first = sum(r for r in reach if r < 0)
        last = sum(r for r in reach if r > 0) + 1
    begin, end = offset + first * itemsize, offset + last * itemsize
    if begin < 0 or end > available:
        raise BadTensorError(
            f"shape {list(shape)}, strides {list(strides)} and byte_offset {offset} reach bytes "
            f"{begin} to {end} of {available}: the message was cut short or its sizes are wrong"
        )
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    if _overlaps(shape, strides):
        raise BadTensorError(
            f"strides {list(strides)} let elements of shape {list(shape)} share memory"
        )
    data = np.frombuffer(message.data, np.uint8)
    steps = tuple(stride * itemsize for stride in strides)
    # Any byte but 0 and 1 is undefined behaviour as a bool.
    if dtype == np.bool_ and np.ndarray(shape, np.uint8, data, offset, steps).max() > 1:
        raise BadTensorError("bool elements must be bytes 0 or 1")
    return np.ndarray(shape, dtype, data, offset, steps)


def _strides(message: FeatureTensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements; compact row-major when the message gives none."""
    if len(message.strides) == 0:
        return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if len(message.strides) != len(shape):
        raise BadTensorError(
            f"{len(message.strides)} strides for {len(shape)} dimensions; both or none"
        )
    return tuple(message.strides)


def _overlaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether two elements share memory (sufficient test for permuted and padded layouts).

    A writable view with shared elements would let one write change many values, and a few bytes
    would pose as a huge tensor.
    """
    span = 1
    for stride, size in sorted(
        (abs(stride), size) for stride, size in zip(strides, shape, strict=True) if size > 1
    ):
        if stride < span:
            return True
        span += stride * (size - 1)
    return False
