# SPDX-License-Identifier: Apache-2.0
"""What is asked of the matching head: four things at once.

That the softmax peaks where the place is, that the position is right to a fraction of a cell, that
the confidence knows when it is, and that the motion solved from both moves the points to where they
belong.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from omnistream_ros.model.matching import WINDOW, Matches, MatchingHead, flat_places
from omnistream_ros.training.differentiable_motion import project, solve_motion
from omnistream_ros.training.matching_pairs import PairBatch

# A match counts as right within this distance, in cells (2 pixels of the model image).
_RIGHT = 0.5
_POSE_CAP = 4.0  # cells; a motion that is this wrong teaches nothing about how to improve


def match_pairs(head: MatchingHead, batch: PairBatch) -> Matches:
    """Match a batch as odometry does: around where the expected motion takes the points."""
    expected = project(batch.predicted_points, batch.camera, batch.expected)
    key = flat_places(head.describe(batch.key))  # (B, h*w, C)
    chosen = key.gather(1, batch.chosen.unsqueeze(-1).expand(-1, -1, key.shape[2]))
    return head.match(chosen, head.describe(batch.current), expected)


def matching_losses(matches: Matches, batch: PairBatch) -> dict[str, Tensor]:
    """Losses of one batch by name, scalars: peak, position, confidence, motion."""
    local = batch.target - matches.corner  # (B, N, 2) in candidates
    findable = batch.visible & matches.searched & ((local >= 0) & (local <= WINDOW - 1)).all(-1)
    count = findable.sum().clamp_min(1)

    error = (matches.position - batch.target).norm(dim=-1)  # (B, N)
    error = torch.where(findable, error, 0.0)
    right = findable & (error.detach() < _RIGHT)
    judged = batch.known & matches.searched
    confidence = F.binary_cross_entropy_with_logits(
        matches.confidence, right.float(), reduction="none"
    )
    return {
        "peak": torch.where(findable, _cross_entropy(matches, local), 0.0).sum() / count,
        "position": error.clamp_max(2.0).sum() / count,
        "confidence": (confidence * judged).sum() / judged.sum().clamp_min(1),
        "motion": _motion_loss(matches, batch),
    }


def _cross_entropy(matches: Matches, local: Tensor) -> Tensor:
    """Against the four candidates around the true place, weighted bilinearly; (B, N)."""
    local = local.nan_to_num(0.0).clamp(0, WINDOW - 1)
    low = local.floor().clamp_max(WINDOW - 2).long()
    part = local - low
    loss = torch.zeros_like(part[..., 0])
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        wx = part[..., 0] if dx else 1 - part[..., 0]
        wy = part[..., 1] if dy else 1 - part[..., 1]
        index = (low[..., 1] + dy) * WINDOW + low[..., 0] + dx
        chosen = matches.log_probability.gather(2, index.unsqueeze(-1)).squeeze(-1)
        loss = loss - wx * wy * chosen.clamp_min(-50.0)  # -inf outside of the image
    return loss


def _motion_loss(matches: Matches, batch: PairBatch) -> Tensor:
    """Mean distance in cells between where the solved and the true motion take the points.

    With true depth: errors of the depth head would drown what matching can be blamed for.
    """
    weights = matches.confidence.sigmoid() * (matches.searched & batch.known)
    motion = solve_motion(
        batch.points, matches.position, weights, batch.camera, batch.expected, rounds=5
    )
    points = torch.where(batch.known.unsqueeze(-1), batch.points, 1.0)
    moved = points @ motion.matrix[:, :3, :3].transpose(1, 2)
    moved = moved + motion.matrix[:, None, :3, 3]  # (B, N, 3)
    pixels = moved[..., :2] / moved[..., 2:].clamp_min(0.1) * batch.camera[:, None, :2]
    distance = (pixels + batch.camera[:, None, 2:] - batch.target).norm(dim=-1)
    distance = torch.where(batch.visible, distance, 0.0).clamp_max(_POSE_CAP)
    return distance.sum() / batch.visible.sum().clamp_min(1)
