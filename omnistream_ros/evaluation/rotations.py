# SPDX-License-Identifier: Apache-2.0
"""Rotation arithmetic in numpy: quaternions (x, y, z, w), matrices, angles."""

from __future__ import annotations

import numpy as np


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of unit quaternions (..., 4) in the order x, y, z, w."""
    x, y, z, w = np.moveaxis(np.asarray(quaternions, dtype=np.float64), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternions_of(rotations: np.ndarray) -> np.ndarray:
    """Unit quaternions (..., 4), x, y, z, w with w >= 0, of rotation matrices (..., 3, 3).

    The symmetric 4x4 matrix built from R has the quaternion as its leading eigenvector (Bar-Itzhack
    2000), which stays exact at half turns, where dividing by w does not.
    """
    r = np.asarray(rotations, dtype=np.float64)
    k = np.empty((*r.shape[:-2], 4, 4))
    trace = np.trace(r, axis1=-2, axis2=-1)
    for i in range(3):
        for j in range(3):
            k[..., i, j] = r[..., i, j] + r[..., j, i]
        k[..., i, i] -= trace
    k[..., 0, 3] = k[..., 3, 0] = r[..., 2, 1] - r[..., 1, 2]
    k[..., 1, 3] = k[..., 3, 1] = r[..., 0, 2] - r[..., 2, 0]
    k[..., 2, 3] = k[..., 3, 2] = r[..., 1, 0] - r[..., 0, 1]
    k[..., 3, 3] = trace
    q = np.linalg.eigh(k)[1][..., :, -1]
    return np.where(q[..., 3:] < 0, -q, q)


def rotation_angles(rotations: np.ndarray) -> np.ndarray:
    """Angles (...) in radians, 0 to pi, of rotation matrices (..., 3, 3).

    From both the sine (skew part) and the cosine (trace), so that tiny and half turns are exact.
    """
    r = np.asarray(rotations)
    skew = np.stack(
        [r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], -1
    )
    return np.arctan2(np.linalg.norm(skew, axis=-1), np.trace(r, axis1=-2, axis2=-1) - 1.0)
