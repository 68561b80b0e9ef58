# SPDX-License-Identifier: Apache-2.0
"""The motion between two images from points with depth in one and their places in the other.

Robust weighted Gauss-Newton on the reprojection error over the six parameters of a rigid motion
(perspective-n-point by iteration). In torch, batched and differentiable, because the matching head
is trained through it; what follows a stream is `stream/motion_solver`. B batch, N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Points nearer than this (in the unit of depth) or behind the camera have no usable projection.
_NEAREST = 0.02
# Below this error (in pixels of the places) all points are taken as equally good: the places are
# not measured any better.
_SMALLEST_SCALE = 0.1
# Pulls directions that no point speaks about towards the starting motion.
_DAMPING = 1e-5


@dataclass
class Motion:
    """The estimate and what is known about its quality.

    Attributes:
        matrix: (B, 4, 4) the motion; takes coordinates of the first camera to the second.
        information: (B, 6, 6) normal matrix at the solution in inverse square pixels, for a
            perturbation exp(translation, rotation vector) applied on the left (second camera).
        error: (B,) median reprojection error in pixels over the points that count.
        support: (B,) sum of the final weights: how many points speak for the motion.
    """

    matrix: Tensor
    information: Tensor
    error: Tensor
    support: Tensor


def solve_motion(
    points: Tensor,
    places: Tensor,
    weights: Tensor,
    camera: Tensor,
    start: Tensor,
    *,
    rounds: int = 6,
) -> Motion:
    """Find the motion that takes `points` to where they were seen.

    Args:
        points: (B, N, 3) in the first camera, optical axes.
        places: (B, N, 2) pixels in the second image.
        weights: (B, N) in [0, 1]; 0 leaves a point out whatever its values are.
        camera: (B, 4) fx, fy, cx, cy in the pixels of `places`.
        start: (B, 4, 4) where to start.
        rounds: Gauss-Newton steps, each with new robust weights.
    """
    counted = weights > 0
    points = torch.where(counted.unsqueeze(-1), points, 1.0)  # no NaN times zero
    places = torch.where(counted.unsqueeze(-1), places, 0.0)
    # Near points pull with the inverse square of their depth. Before it is known who agrees with
    # whom, somebody walking close by would win against the whole room: first one point, one vote.
    depth = torch.where(counted, points[..., 2], torch.nan)
    typical = depth.nanmedian(dim=-1, keepdim=True).values.nan_to_num(1.0)  # (B, 1)
    equal = (points[..., 2] / typical).square().clamp_max(1.0)
    matrix = start
    for number in range(rounds):
        votes = weights * equal if number < rounds // 2 else weights
        residual, jacobian, robust, _ = _linearise(points, places, votes, camera, matrix)
        weighted = jacobian * robust[..., None, None]  # (B, N, 2, 6)
        normal = weighted.flatten(1, 2).transpose(1, 2) @ jacobian.flatten(1, 2)  # (B, 6, 6)
        gradient = weighted.flatten(1, 2).transpose(1, 2) @ residual.flatten(1, 2).unsqueeze(-1)
        step = torch.linalg.solve(_damped(normal), -gradient).squeeze(-1)  # (B, 6)
        # One step never turns or moves further than the linearisation can be trusted.
        step = step * (0.5 / step.detach().norm(dim=-1, keepdim=True).clamp_min(0.5))
        matrix = exponential(step) @ matrix
    _, jacobian, robust, error = _linearise(points, places, weights, camera, matrix)
    weighted = jacobian * robust[..., None, None]
    information = weighted.flatten(1, 2).transpose(1, 2) @ jacobian.flatten(1, 2)
    return Motion(matrix, information, error, robust.sum(-1))


def _linearise(
    points: Tensor, places: Tensor, weights: Tensor, camera: Tensor, matrix: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Residuals (B, N, 2), Jacobian (B, N, 2, 6), robust weights (B, N), median error (B,)."""
    moved = points @ matrix[:, :3, :3].transpose(1, 2) + matrix[:, None, :3, 3]  # (B, N, 3)
    usable = (moved[..., 2] > _NEAREST) & (weights > 0)
    x, y, z = moved.unbind(-1)
    inverse_z = z.clamp_min(_NEAREST).reciprocal()
    x, y = x * inverse_z, y * inverse_z  # on the plane z = 1
    fx, fy, cx, cy = (value.unsqueeze(1) for value in camera.unbind(-1))  # (B, 1)
    residual = torch.stack((fx * x + cx, fy * y + cy), dim=-1) - places

    zero = torch.zeros_like(x)
    # d(x, y)/d(translation, rotation) of exp(.) acting on the moved point
    row_u = torch.stack((inverse_z, zero, -x * inverse_z, -x * y, 1 + x * x, -y), dim=-1)
    row_v = torch.stack((zero, inverse_z, -y * inverse_z, -(1 + y * y), x * y, x), dim=-1)
    jacobian = torch.stack((fx[..., None] * row_u, fy[..., None] * row_v), dim=2)

    error = residual.norm(dim=-1)  # (B, N)
    known = torch.where(usable, error.detach(), torch.nan)
    median = torch.nan_to_num(known.nanmedian(dim=-1).values, nan=torch.inf)  # (B,)
    scale = 1.5 * median.clamp(_SMALLEST_SCALE, 1e3)
    # Cauchy's influence, squared: points that disagree lose all say, not just most of it.
    robust = (1 + (error / scale.unsqueeze(-1)).square()).reciprocal().square()
    return residual, jacobian, weights * robust * usable, median


def _damped(normal: Tensor) -> Tensor:
    """The normal matrix made safely invertible, relative to its own size."""
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    floor = diagonal.mean(-1, keepdim=True).clamp_min(1e-6)
    return normal + _DAMPING * torch.diag_embed(diagonal + floor)


def project(points: Tensor, camera: Tensor, matrix: Tensor) -> Tensor:
    """Pixels (B, N, 2) of points (B, N, 3) moved by (B, 4, 4); NaN for points behind the camera."""
    moved = points @ matrix[:, :3, :3].transpose(1, 2) + matrix[:, None, :3, 3]
    depth = torch.where(moved[..., 2:] > 0, moved[..., 2:], torch.nan)
    return moved[..., :2] / depth * camera[:, None, :2] + camera[:, None, 2:]


def exponential(twist: Tensor) -> Tensor:
    """Rigid motions (B, 4, 4) of (translation, rotation vector) (B, 6), the rotation exactly.

    The translation is applied as it stands (a retraction of SE(3), the same to first order).
    """
    translation, vector = twist[:, :3], twist[:, 3:]
    angle_squared = vector.square().sum(-1)[:, None, None] + 1e-14  # smooth at zero
    angle = angle_squared.sqrt()
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))
    identity = torch.eye(3, device=twist.device, dtype=twist.dtype)
    half = 0.5 * angle
    # (1 - cos a) / a^2 as (sin(a/2) / (a/2))^2 / 2, which loses no digits for small angles
    rotation = (
        identity + angle.sin() / angle * cross + 0.5 * (half.sin() / half).square() * cross @ cross
    )
    top = torch.cat((rotation, translation.unsqueeze(-1)), dim=-1)  # (B, 3, 4)
    bottom = torch.zeros_like(top[:, :1])
    bottom[..., 3] = 1.0
    return torch.cat((top, bottom), dim=1)
