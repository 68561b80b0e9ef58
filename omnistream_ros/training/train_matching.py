# SPDX-License-Identifier: Apache-2.0
"""Trains the matching head of a finished model: minutes on one core, one command.

Everything else of the model is frozen. Four things are asked of the head at once: that the softmax
peaks where the place is, that the position is right to a fraction of a cell, that the confidence
knows when it is, and that the motion solved from both moves the points to where they belong.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnistream_ros.model import OmniStream, build_model, load_model, save_model
from omnistream_ros.model.matching import WINDOW, Matches, MatchingHead, flat_places
from omnistream_ros.training.augment import AugmentSettings, augment
from omnistream_ros.training.data import find_clips, is_validation
from omnistream_ros.training.differentiable_motion import project, solve_motion
from omnistream_ros.training.head_features import read_takes
from omnistream_ros.training.matching_pairs import ObservedClip, PairBatch, PairSampler, observe

MATCHING_WIDTH = 48
# A match counts as right within this distance, in cells (2 pixels of the model image).
_RIGHT = 0.5
_POSE_CAP = 4.0  # cells; a motion that is this wrong teaches nothing about how to improve


@dataclasses.dataclass(frozen=True)
class MatchingSettings:
    """One training of the matching head."""

    clips: Path
    steps: int = 800
    pairs_per_step: int = 4
    learning_rate: float = 4e-3
    clip_count: int = 150
    frames_per_clip: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "pairs_per_step", "clip_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"matching: {name} must be at least 1, got {getattr(self, name)}")
        if self.frames_per_clip < 2:
            raise ValueError("matching: a clip needs at least two frames to make a pair")


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


class MatchingTrainer:
    """Trains `head` on observed clips."""

    weights = {"peak": 1.0, "position": 1.0, "confidence": 0.5, "motion": 1.0}  # noqa: RUF012

    def __init__(
        self, head: MatchingHead, clips: list[ObservedClip], settings: MatchingSettings
    ) -> None:
        self.head = head
        self.settings = settings
        self.sampler = PairSampler(clips, seed=settings.seed, pairs=settings.pairs_per_step)
        self.optimiser = torch.optim.AdamW(head.parameters(), settings.learning_rate)
        self.skipped = 0

    def step(self, number: int) -> dict[str, float]:
        """One step; returns the losses. A step whose gradient is not finite is left out."""
        progress = number / self.settings.steps
        factor = min(1.0, (number + 1) / 50) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        batch = self.sampler.batch(number)
        losses = matching_losses(match_pairs(self.head, batch), batch)
        total = sum((self.weights[name] * loss for name, loss in losses.items()), torch.zeros(()))
        self.optimiser.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        if norm.isfinite():
            self.optimiser.step()
        else:
            self.skipped += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}


def match_pairs(head: MatchingHead, batch: PairBatch) -> Matches:
    """Match a batch as odometry does: around where the expected motion takes the points."""
    expected = project(batch.predicted_points, batch.camera, batch.expected)
    key = flat_places(head.describe(batch.key))  # (B, h*w, C)
    chosen = key.gather(1, batch.chosen.unsqueeze(-1).expand(-1, -1, key.shape[2]))
    return head.match(chosen, head.describe(batch.current), expected)


def observe_clips(
    model: OmniStream, settings: MatchingSettings, report: Callable[[str], None] = print
) -> list[ObservedClip]:
    """Training clips, augmented and seen through the model."""
    names = [name for name in find_clips(settings.clips) if not is_validation(name)]
    if not names:
        raise ValueError(f"no training clips in {settings.clips}; see omnistream render --help")
    rng = np.random.default_rng(settings.seed)
    chosen = rng.permutation(names)[: settings.clip_count]
    report(f"{len(chosen)} of {len(names)} clips through the frozen network")
    observed = []
    for name in chosen:
        # Each take is a stream of its own: the past of another place would spoil its depth.
        takes, left = list(read_takes(settings.clips / name)), settings.frames_per_clip
        for number in rng.permutation(len(takes)):
            take = takes[number]
            first = int(rng.integers(max(1, len(take) - left + 1)))
            take = take.frames(np.arange(first, min(len(take), first + left)))
            observed.append(observe(model, augment(take, rng, AugmentSettings())))
            left -= len(take)
            if left < 2:
                break
    return observed


def with_fresh_head(model: OmniStream, seed: int) -> OmniStream:
    """The same network with an untrained matching head, in evaluation mode."""
    torch.manual_seed(seed)
    fresh = build_model(dataclasses.replace(model.config, matching_width=MATCHING_WIDTH))
    others = {k: v for k, v in model.state_dict().items() if not k.startswith("matching_head.")}
    missing, unexpected = fresh.load_state_dict(others, strict=False)
    assert not unexpected
    assert all(name.startswith("matching_head.") for name in missing)
    return fresh.eval()


def train_matching(
    source: str | Path,
    output: Path,
    settings: MatchingSettings,
    *,
    start_from: str | Path | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Train the matching head of the model at `source` and write the whole model to `output`.

    Args:
        start_from: a model whose matching head is the starting point, for a trunk that has changed
            only a little; by default the head begins anew, whatever `source` has.

    Raises:
        ModelError: a model cannot be read or written.
        ValueError: no clips, or `start_from` has no matching head.
    """
    model, card = load_model(source)
    model = with_fresh_head(model, settings.seed)
    head = model.matching_head
    assert head is not None
    if start_from is not None:
        start = load_model(start_from)[0].matching_head
        if start is None:
            raise ValueError(f"{start_from} has no matching head to start from")
        head.load_state_dict(start.state_dict())

    began = time.monotonic()
    trainer = MatchingTrainer(head, observe_clips(model, settings, report), settings)
    head.train()
    recent: list[dict[str, float]] = []
    for number in range(settings.steps):
        recent = [*recent, trainer.step(number)][-100:]
        if (number + 1) % 100 == 0 or number + 1 == settings.steps:
            means = "  ".join(f"{k} {np.mean([r[k] for r in recent]):.3f}" for k in recent[0])
            seconds = time.monotonic() - began
            report(f"step {number + 1}/{settings.steps}  {means}  {seconds:.0f} s")
    head.eval()
    training = {
        **card.training,
        "matching head": {
            "steps": settings.steps,
            "clips": len(trainer.sampler.clips),
            "seconds": round(time.monotonic() - began),
        },
    }
    save_model(output, model, dataclasses.replace(card, training=training))
    report(f"wrote {output}" + (f"; {trainer.skipped} steps left out" if trainer.skipped else ""))
