# SPDX-License-Identifier: Apache-2.0
"""What the geometric heads are trained on: depth, confidence, rays and camera.

All depth terms work on the residual of log depth, so an error of ten per cent costs the same at
half a metre and at ten. Targets are brought to the model's canonical focal length first: the
network sees pixels and cannot know the focal length that took them, so it predicts the depth that
a camera of `canonical_fx` pixels would have seen, and the caller rescales with the real one
(the idea of Metric3D, Yin et al., ICCV 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnistream_ros.model import CameraPrediction, Prediction
from omnistream_ros.training.data import Batch

_SMALLEST_DEPTH = 1e-3  # metres; keeps the logarithm finite where the head underflows


@dataclass(frozen=True)
class LossWeights:
    """How much each term counts; a weight of zero switches the term off."""

    log_l1: float = 0.5
    scale_invariant: float = 1.0
    gradient: float = 4.0
    confidence: float = 0.1
    rays: float = 0.5
    translation: float = 0.5
    rotation: float = 0.5
    field_of_view: float = 0.5
    step_translation: float = 0.0  # between neighbouring frames
    step_rotation: float = 0.0


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` where `valid`; zero (with zero gradient) where nothing is valid."""
    total = torch.where(valid, values, torch.zeros_like(values)).sum()
    return total / valid.sum().clamp(min=1)


def canonical_log_depth(
    depth: Tensor, focal_x: Tensor, canonical_fx: float
) -> tuple[Tensor, Tensor]:
    """Log depth (B, T, H, W) at the canonical focal length, and where it is known.

    `depth` is in metres with NaN or values <= 0 for unknown; `focal_x` (B, T) and `canonical_fx`
    are in pixels.
    """
    valid = torch.isfinite(depth) & (depth > 0)
    metres = torch.where(valid, depth, torch.ones_like(depth))
    to_canonical = canonical_fx / focal_x  # (B, T)
    return torch.log(metres * to_canonical[..., None, None]), valid


def log_l1(residual: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute log-depth error: what makes the depth metric."""
    return masked_mean(residual.abs(), valid)


def scale_invariant_l1(residual: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute log-depth error after removing one scale per clip (B, T, H, W).

    One scale for all frames of a clip, not one per frame: a scale that flickers is an error.
    """
    counts = valid.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    offset = torch.where(valid, residual, torch.zeros_like(residual)).sum(
        dim=(1, 2, 3), keepdim=True
    )
    return masked_mean((residual - offset / counts).abs(), valid)


def gradient_matching(residual: Tensor, valid: Tensor, scales: int = 4) -> Tensor:
    """Mean over `scales` of the mean absolute image gradient of the residual (B, T, H, W).

    MegaDepth (Li and Snavely, CVPR 2018) and MiDaS (Ranftl et al., PAMI 2020): depth edges and
    surface slopes must agree at 1, 2, 4, ... pixels. A difference counts where both ends are known.
    """
    total = residual.new_zeros(())
    for level in range(scales):
        step = 2**level
        r, v = residual[..., ::step, ::step], valid[..., ::step, ::step]
        total = total + masked_mean((r[..., 1:] - r[..., :-1]).abs(), v[..., 1:] & v[..., :-1])
        total = total + masked_mean(
            (r[..., 1:, :] - r[..., :-1, :]).abs(), v[..., 1:, :] & v[..., :-1, :]
        )
    return total / scales


def confidence_loss(error: Tensor, confidence: Tensor, valid: Tensor) -> Tensor:
    """Negative log likelihood `confidence * error - log(confidence)`, for the confidence alone.

    Its minimum is `confidence = 1 / expected error`: 10 means that about ten per cent of error is
    to be expected. The error carries no gradient here. Rendered depth has no label noise that a
    low weight should excuse, and hard pixels are the ones worth learning.
    """
    return masked_mean(confidence * error.detach() - torch.log(confidence), valid)


def ray_targets(poses: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Rays (B, T, 6, H, W) in the first camera: direction with unit depth, then origin in metres.

    A pixel's point is `origin + depth * direction`, as in Depth Anything 3 (the direction is not
    normalised). `poses` (B, T, 4, 4) camera-to-first-camera, `intrinsics` (B, T, 4) fx fy cx cy.
    """
    height, width = size
    fx, fy, cx, cy = (intrinsics[..., i, None, None] for i in range(4))  # (B, T, 1, 1)
    u = torch.arange(width, dtype=poses.dtype, device=poses.device)
    v = torch.arange(height, dtype=poses.dtype, device=poses.device)[:, None]
    x, y = torch.broadcast_tensors((u - cx) / fx, (v - cy) / fy)  # (B, T, H, W)
    in_camera = torch.stack([x, y, torch.ones_like(x)], dim=2)  # (B, T, 3, H, W)
    direction = torch.einsum("btij,btjhw->btihw", poses[..., :3, :3], in_camera)
    origin = poses[..., :3, 3, None, None].expand_as(direction)
    return torch.cat([direction, origin], dim=2)


def ray_loss(
    rays: Tensor, confidence: Tensor | None, target: Tensor, confidence_weight: float
) -> Tensor:
    """L1 of rays (B, T, 6, H, W), plus the likelihood of their confidence (B, T, H, W)."""
    error = (rays - target).abs().mean(dim=2)  # (B, T, H, W)
    loss = error.mean()
    if confidence is not None and confidence_weight:
        everywhere = torch.ones_like(error, dtype=torch.bool)
        loss = loss + confidence_weight * confidence_loss(error, confidence, everywhere)
    return loss


def quaternion_from_matrix(rotation: Tensor) -> Tensor:
    """Unit quaternions (..., 4) x y z w of rotation matrices (..., 3, 3), with w >= 0.

    Uses the largest of the four components as pivot, so no rotation loses precision.
    """
    m = rotation
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    # Row k of `k4` is 4 * q[k] * q: every row is parallel to the answer (Bar-Itzhack's K + I).
    xy, xz, yz = (
        m[..., 0, 1] + m[..., 1, 0],
        m[..., 0, 2] + m[..., 2, 0],
        m[..., 1, 2] + m[..., 2, 1],
    )
    wx, wy, wz = (
        m[..., 2, 1] - m[..., 1, 2],
        m[..., 0, 2] - m[..., 2, 0],
        m[..., 1, 0] - m[..., 0, 1],
    )
    diagonal = torch.stack([2 * m[..., i, i] - trace for i in range(3)] + [trace], dim=-1) + 1
    k4 = torch.stack(
        [
            torch.stack([diagonal[..., 0], xy, xz, wx], dim=-1),
            torch.stack([xy, diagonal[..., 1], yz, wy], dim=-1),
            torch.stack([xz, yz, diagonal[..., 2], wz], dim=-1),
            torch.stack([wx, wy, wz, diagonal[..., 3]], dim=-1),
        ],
        dim=-2,
    )  # (..., 4, 4)
    pivot = diagonal.argmax(dim=-1)[..., None, None].expand(*diagonal.shape[:-1], 1, 4)
    q = torch.nn.functional.normalize(k4.gather(-2, pivot).squeeze(-2), dim=-1)
    return torch.where(q[..., 3:] < 0, -q, q)


def field_of_view(intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Horizontal and vertical field of view in radians (..., 2) of fx fy cx cy (..., 4)."""
    height, width = size
    return torch.stack(
        [
            2 * torch.atan(0.5 * width / intrinsics[..., 0]),
            2 * torch.atan(0.5 * height / intrinsics[..., 1]),
        ],
        dim=-1,
    )


def camera_losses(
    camera: CameraPrediction, poses: Tensor, intrinsics: Tensor, size: tuple[int, int]
) -> dict[str, Tensor]:
    """L1 of translation (metres), of the quaternion up to sign, and of the field of view.

    The first frame is the origin by definition and teaches no motion; a clip of one frame trains
    the field of view alone. Poses (B, T, 4, 4) are relative to the first frame.
    """
    fov_error = (camera.fov - field_of_view(intrinsics, size)).abs().mean()
    if poses.shape[1] == 1:
        zero = fov_error.new_zeros(())
        return {"translation": zero, "rotation": zero, "field_of_view": fov_error}
    target = quaternion_from_matrix(poses[:, 1:, :3, :3])  # (B, T-1, 4)
    predicted = camera.quaternion[:, 1:]
    same_side = torch.where((predicted * target).sum(-1, keepdim=True) < 0, -target, target)
    return {
        "translation": (camera.translation[:, 1:] - poses[:, 1:, :3, 3]).abs().mean(),
        "rotation": (predicted - same_side).abs().mean(),
        "field_of_view": fov_error,
    }


def step_losses(camera: CameraPrediction, poses: Tensor) -> dict[str, Tensor]:
    """L1 of the motion between neighbouring frames, as the predicted poses imply it.

    Translation in the earlier camera (metres) and quaternion up to sign; a pose that drifts slowly
    is good here, one that trembles is not. Zero for clips of one frame.
    """
    if poses.shape[1] == 1:
        zero = camera.translation.sum() * 0
        return {"step_translation": zero, "step_rotation": zero}
    rotation, translation = poses[..., :3, :3], poses[..., :3, 3]
    back = rotation[:, :-1].transpose(-1, -2)
    true_step = (back @ (translation[:, 1:] - translation[:, :-1]).unsqueeze(-1)).squeeze(-1)
    true_turn = quaternion_from_matrix(back @ rotation[:, 1:])
    inverse = camera.quaternion[:, :-1] * camera.quaternion.new_tensor([-1.0, -1, -1, 1])
    step = _turned(inverse, camera.translation[:, 1:] - camera.translation[:, :-1])
    turn = _product(inverse, camera.quaternion[:, 1:])
    same_side = torch.where((turn * true_turn).sum(-1, keepdim=True) < 0, -true_turn, true_turn)
    return {
        "step_translation": (step - true_step).abs().mean(),
        "step_rotation": (turn - same_side).abs().mean(),
    }


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Quaternions (..., 4) x y z w: first b, then a."""
    av, aw, bv, bw = a[..., :3], a[..., 3:], b[..., :3], b[..., 3:]
    vector = aw * bv + bw * av + torch.linalg.cross(av, bv)
    return torch.cat((vector, aw * bw - (av * bv).sum(-1, keepdim=True)), dim=-1)


def _turned(quaternion: Tensor, vector: Tensor) -> Tensor:
    """Vectors (..., 3) turned by unit quaternions (..., 4)."""
    axis, w = quaternion[..., :3], quaternion[..., 3:]
    twice = 2 * torch.linalg.cross(axis, vector)
    return vector + w * twice + torch.linalg.cross(axis, twice)


def total_loss(
    prediction: Prediction, batch: Batch, canonical_fx: float, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms whose output was predicted, and each term by itself (detached)."""
    size = (batch.depth.shape[-2], batch.depth.shape[-1])
    parts: dict[str, Tensor] = {}
    if prediction.depth is not None:
        target, valid = canonical_log_depth(batch.depth, batch.intrinsics[..., 0], canonical_fx)
        residual = torch.log(prediction.depth.float().clamp(min=_SMALLEST_DEPTH)) - target
        parts["log_l1"] = log_l1(residual, valid)
        parts["scale_invariant"] = scale_invariant_l1(residual, valid)
        parts["gradient"] = gradient_matching(residual, valid)
        if prediction.depth_confidence is not None:
            parts["confidence"] = confidence_loss(
                residual.abs(), prediction.depth_confidence.float(), valid
            )
    if prediction.rays is not None:
        rays = ray_targets(batch.poses, batch.intrinsics, size)
        confidence = prediction.ray_confidence
        parts["rays"] = ray_loss(
            prediction.rays.float(),
            None if confidence is None else confidence.float(),
            rays,
            weights.confidence,
        )
    if prediction.camera is not None:
        parts |= camera_losses(prediction.camera, batch.poses, batch.intrinsics, size)
        if weights.step_translation or weights.step_rotation:
            parts |= step_losses(prediction.camera, batch.poses)
    used = [getattr(weights, name) * value for name, value in parts.items()]
    total = torch.stack([value for value in used]).sum()
    return total, {name: value.detach() for name, value in parts.items()}
