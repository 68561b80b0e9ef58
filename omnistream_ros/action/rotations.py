# SPDX-License-Identifier: Apache-2.0
"""Rotation vectors and quaternions, as far as blending actions needs them.

A rotation vector has the axis as its direction and the angle (radians) as its length. Quaternions
are (x, y, z, w) of unit length; q and -q are the same rotation.
"""

from __future__ import annotations

import math

import numpy as np

_SMALL = 1e-8
_ROUNDS = 16  # of the mean; blends of similar actions settle in two or three


def to_quaternion(vector: np.ndarray) -> np.ndarray:
    """Rotation vectors (..., 3) as quaternions (..., 4), w >= 0 for angles up to pi."""
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    # sin(a/2)/a, by its series where the quotient would be 0/0
    scale = np.where(
        angle < _SMALL, 0.5 - angle**2 / 48.0, np.sin(angle / 2) / np.maximum(angle, _SMALL)
    )
    return np.concatenate([vector * scale, np.cos(angle / 2)], axis=-1)


def to_vector(quaternion: np.ndarray) -> np.ndarray:
    """The shorter rotation vector (..., 3) of quaternions (..., 4); its angle is at most pi."""
    q = np.where(quaternion[..., 3:] < 0.0, -quaternion, quaternion)
    sine = np.linalg.norm(q[..., :3], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, q[..., 3:])
    return q[..., :3] * np.where(sine < _SMALL, 2.0, angle / np.maximum(sine, _SMALL))


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rotation `b` followed by `a`, (..., 4) each."""
    av, aw, bv, bw = a[..., :3], a[..., 3:], b[..., :3], b[..., 3:]
    vector = aw * bv + bw * av + np.cross(av, bv)
    return np.concatenate([vector, aw * bw - (av * bv).sum(-1, keepdims=True)], axis=-1)


def inverse(quaternion: np.ndarray) -> np.ndarray:
    """The rotation back."""
    return quaternion * np.array([-1.0, -1.0, -1.0, 1.0])


def mean(quaternions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rotation (4,) with the least weighted sum of squared angles to those given (N, 4).

    Of two rotations that is their slerp (Shoemake 1985); of more, its one generalisation that does
    not depend on their order (the Karcher mean, found by averaging in the tangent space; Manton
    2004).
    """
    weights = weights / weights.sum()
    middle = quaternions[int(weights.argmax())]
    for _ in range(_ROUNDS):
        away = weights @ to_vector(multiply(quaternions, inverse(middle)))
        middle = multiply(to_quaternion(away), middle)
        if np.linalg.norm(away) < _SMALL:
            break
    return middle / np.linalg.norm(middle)


def near(angles: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The same angles by so many whole turns that they lie within half a turn of the reference."""
    turns = np.round((angles - reference) / math.tau)
    return angles - math.tau * turns
