# SPDX-License-Identifier: Apache-2.0
"""Rotations, rigid motions and rays: the small amount of geometry that a camera stream needs.

Conventions, everywhere in this package:

- quaternions are (x, y, z, w), of unit length, and returned with w >= 0;
- a rigid motion is a (4, 4) matrix; ``a_from_b`` takes coordinates in b to coordinates in a, so
  a camera's pose is ``world_from_camera``;
- optical axes: x right, y down, z forward. Body axes (FLU): x forward, y left, z up. REP-103.

Motions are numpy in float64: they are few, are composed for days, and must not drift.
"""

from __future__ import annotations

import numpy as np
import torch

from omnistream_ros.stream.frame import Intrinsics

# Rotation that takes optical coordinates to body coordinates: forward is z, left is -x, up is -y.
FLU_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
FLU_FROM_OPTICAL.setflags(write=False)


def quaternion_to_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of quaternions (..., 4) of any positive length.

    Raises:
        ValueError: a quaternion has length zero or is not finite.
    """
    q = np.asarray(quaternion, dtype=np.float64)
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if not (np.isfinite(norm).all() and (norm > 0.0).all()):
        raise ValueError(f"quaternion must be finite and not zero, got {q.tolist()}")
    x, y, z, w = np.moveaxis(q / norm, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def matrix_to_quaternion(rotation: np.ndarray) -> np.ndarray:
    """Quaternion (4,) of a rotation matrix (3, 3); exact also near half turns.

    The largest of the four components is found first, so that nothing is divided by a small number
    (Shepperd's method).
    """
    m = np.asarray(rotation, dtype=np.float64)
    trace = np.trace(m)
    # 4 q_i^2 - 1 for x, y, z, w
    squares = np.array([2 * m[0, 0] - trace, 2 * m[1, 1] - trace, 2 * m[2, 2] - trace, trace])
    largest = int(np.argmax(squares))
    if largest == 3:
        q = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1.0 + trace])
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        q = np.empty(4)
        q[i] = 1.0 + squares[i]
        q[j] = m[i, j] + m[j, i]
        q[k] = m[i, k] + m[k, i]
        q[3] = m[k, j] - m[j, k]
    q /= np.linalg.norm(q)
    return -q if q[3] < 0.0 else q


def rigid(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """The motions x -> rotation x + translation as (..., 4, 4)."""
    motion = np.zeros((*rotation.shape[:-2], 4, 4))
    motion[..., :3, :3] = rotation
    motion[..., :3, 3] = translation
    motion[..., 3, 3] = 1.0
    return motion


def rigid_inverse(motion: np.ndarray) -> np.ndarray:
    """The inverses of rigid motions (..., 4, 4)."""
    rotation = np.swapaxes(motion[..., :3, :3], -1, -2)
    return rigid(rotation, -(rotation @ motion[..., :3, 3:])[..., 0])


def orthonormalised(motion: np.ndarray) -> np.ndarray:
    """The rigid motion nearest to ``motion``: undoes the rounding of long products."""
    u, _, vt = np.linalg.svd(motion[:3, :3])
    u[:, 2] *= np.sign(np.linalg.det(u @ vt))  # a rotation, never a reflection
    return rigid(u @ vt, motion[:3, 3])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle (3,), radians, of a rotation matrix."""
    x, y, z, w = matrix_to_quaternion(rotation)
    sine = np.sqrt(x * x + y * y + z * z)
    # 2 atan2(s, w) / s tends to 2 for small angles
    factor = 2.0 if sine < 1e-12 else 2.0 * np.arctan2(sine, w) / sine
    return factor * np.array([x, y, z])


def rotation_from_vector(vector: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of axis times angle (..., 3), radians (Rodrigues' formula)."""
    turn = cross(np.asarray(vector, dtype=np.float64))
    turns = np.sqrt(np.square(vector).sum(-1))[..., None, None] / (2 * np.pi)
    # np.sinc(x) is sin(pi x) / (pi x), smooth through zero; 1 - cos x is 2 sin^2 (x / 2).
    return np.eye(3) + np.sinc(2 * turns) * turn + 0.5 * np.sinc(turns) ** 2 * (turn @ turn)


def cross(v: np.ndarray) -> np.ndarray:
    """The matrices (..., 3, 3) that multiply by v (..., 3) from the left in a cross product."""
    matrix = np.zeros((*v.shape, 3))
    matrix[..., 2, 1], matrix[..., 0, 2], matrix[..., 1, 0] = x, y, z = np.moveaxis(v, -1, 0)
    matrix[..., 1, 2], matrix[..., 2, 0], matrix[..., 0, 1] = -x, -y, -z
    return matrix


def pixel_rays(
    intrinsics: Intrinsics,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Rays (3, H, W) through the pixel centres, optical axes, scaled to z = 1."""
    u = torch.arange(intrinsics.width, device=device, dtype=torch.float64)
    v = torch.arange(intrinsics.height, device=device, dtype=torch.float64)
    x = ((u - intrinsics.cx) / intrinsics.fx).expand(intrinsics.height, -1)
    y = ((v - intrinsics.cy) / intrinsics.fy).unsqueeze(1).expand(-1, intrinsics.width)
    return torch.stack((x, y, torch.ones_like(x))).to(dtype)


def back_project(depth: torch.Tensor, intrinsics: Intrinsics) -> torch.Tensor:
    """Points (..., 3, H, W) of depth images (..., H, W), in optical axes and the depth's unit.

    Raises:
        ValueError: the intrinsics belong to another image size.
    """
    if tuple(depth.shape[-2:]) != (intrinsics.height, intrinsics.width):
        raise ValueError(
            f"depth is {depth.shape[-1]}x{depth.shape[-2]} but the intrinsics are for "
            f"{intrinsics.width}x{intrinsics.height}"
        )
    return depth.unsqueeze(-3) * pixel_rays(intrinsics, device=depth.device, dtype=depth.dtype)
