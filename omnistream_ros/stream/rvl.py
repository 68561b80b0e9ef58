# SPDX-License-Identifier: Apache-2.0
"""RVL, the lossless depth codec (A. D. Wilson, "Fast Lossless Depth Image Compression", ISS 2017).

Pixels are runs, in turn of zeros and of values; a value is its difference to the value before it.
Run lengths and differences (zigzag: 0, -1, 1, -2 ...) are written in nibbles of three bits, lowest
first, whose fourth bit says that more follow. Nibbles fill little-endian 32-bit words from the top.
"""

from __future__ import annotations

import numpy as np


def decode_rvl(stream: bytes, pixels: int) -> np.ndarray:
    """The (pixels,) uint16 values of a stream.

    Raises:
        ValueError: the stream ends early, or its runs do not add up to ``pixels``.
    """
    numbers = _numbers(stream)
    out = np.zeros(pixels, np.uint16)
    differences: list[np.ndarray] = []
    places: list[np.ndarray] = []
    at = done = 0
    while done < pixels:
        if at + 2 > len(numbers):
            raise ValueError(f"the RVL stream ends after {done} of {pixels} pixels")
        zeros, values = int(numbers[at]), int(numbers[at + 1])
        at += 2
        start = done + zeros
        done = start + values
        if done > pixels or at + values > len(numbers) or zeros + values == 0:
            raise ValueError(f"the RVL stream breaks off or overflows before pixel {pixels}")
        places.append(np.arange(start, done))
        differences.append(numbers[at : at + values])
        at += values
    zigzag = np.concatenate(differences)
    out[np.concatenate(places)] = np.cumsum((zigzag >> 1) ^ -(zigzag & 1)).astype(np.uint16)
    return out


def _numbers(stream: bytes) -> np.ndarray:
    """All numbers of a stream, int64; what is left of the last word gives zeros at the end."""
    words = np.frombuffer(stream, "<u4", len(stream) // 4).astype(np.int64)
    nibbles = (words[:, None] >> np.arange(28, -1, -4)).reshape(-1) & 0xF
    last = nibbles < 8  # of its number
    ends = np.flatnonzero(last)
    nibbles = nibbles[: ends[-1] + 1] if len(ends) else nibbles[:0]
    if not len(nibbles):
        return np.zeros(0, np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(nibbles)) - np.repeat(starts, np.diff(np.append(starts, len(nibbles))))
    if int(place.max()) > 10:  # 32 bits take eleven nibbles
        raise ValueError("the RVL stream holds a number of more than 32 bits")
    return np.add.reduceat((nibbles & 7) << (3 * place), starts)
