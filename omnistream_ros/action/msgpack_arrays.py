# SPDX-License-Identifier: Apache-2.0
"""msgpack with numpy arrays, in the form that openpi's servers and clients exchange.

An array is a map with the byte keys ``__ndarray__`` (true), ``data``, ``dtype`` (such as ``<f4``)
and ``shape``; a numpy scalar one with ``__npgeneric__``, ``data`` and ``dtype``. What comes in is
data from outside: only numbers become arrays, and only where the sizes fit the bytes.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

_NUMBERS = "biuf"  # kinds of numpy types: bool, signed, unsigned, floating point


class BadMessageError(ValueError):
    """Bytes that are no such message; the text says why."""


def pack(value: Any) -> bytes:
    """Nested dicts, lists, texts, numbers and numpy arrays as bytes."""
    return msgpack.packb(value, default=_plain)


def unpack(data: bytes) -> Any:
    """The inverse of :func:`pack`; arrays are read-only views of the bytes.

    Raises:
        BadMessageError: the bytes are none, or an array in them lies about itself.
    """
    try:
        return msgpack.unpackb(data, object_hook=_array, strict_map_key=False)
    except BadMessageError:
        raise
    except Exception as error:  # msgpack raises ValueError, TypeError, its own, and more
        raise BadMessageError(f"no msgpack ({type(error).__name__}: {error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in _NUMBERS:
        raise TypeError(f"arrays of {value.dtype} have no place in a message")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} has no place in a message")


def _array(record: dict) -> Any:
    if b"__ndarray__" in record:
        dtype = _number_type(record)
        data, shape = record.get(b"data"), record.get(b"shape")
        if not isinstance(shape, list) or not isinstance(data, bytes):
            raise BadMessageError("an array without data or shape")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise BadMessageError(f"an array of shape {shape}")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise BadMessageError(f"an array of shape {shape} and {dtype} with {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in record:
        value = record.get(b"data")
        if not isinstance(value, (bool, int, float)):
            raise BadMessageError("a number that is none")
        return _number_type(record).type(value)
    return record


def _number_type(record: dict) -> np.dtype:
    try:
        dtype = np.dtype(record.get(b"dtype"))
    except (TypeError, ValueError) as error:
        raise BadMessageError("an array of an unknown type") from error
    if dtype.kind not in _NUMBERS or not isinstance(record.get(b"dtype"), str):
        raise BadMessageError(f"an array of {dtype}; only numbers are read")
    return dtype
