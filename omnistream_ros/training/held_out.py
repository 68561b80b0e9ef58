# SPDX-License-Identifier: Apache-2.0
"""Judging weights during training on rendered clips that are never trained on.

Clips run through the causal forward in float32 as a stream would see them: unaugmented, from the
first frame, all frames. Figures are those of `evaluation`, so they compare with every other table.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict, dataclass

import torch

from omnistream_ros.evaluation.depth_metrics import DepthMetrics, evaluate_depth, weighted_mean
from omnistream_ros.evaluation.depth_pairs import DepthPairs
from omnistream_ros.model import OmniStream
from omnistream_ros.training.data import Clip, collate


@dataclass(frozen=True)
class HeldOutScore:
    """Depth error in metres as predicted, and after one scale (ratio of medians) per clip."""

    abs_rel: float
    abs_rel_scaled: float
    delta_1: float
    delta_1_scaled: float

    def as_dict(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"AbsRel {self.abs_rel:.3f} (one scale per clip {self.abs_rel_scaled:.3f})  "
            f"delta<1.25 {self.delta_1:.3f} ({self.delta_1_scaled:.3f})"
        )


@torch.no_grad()
def score_clips(model: OmniStream, clips: list[Clip]) -> HeldOutScore:
    """Scores depth on the clips, pixel-weighted; raises ValueError where there are none.

    Weights whose depth is not finite score infinitely badly.
    """
    if not clips:
        raise ValueError("no held-out clip to score on")
    metric: list[DepthMetrics] = []
    scaled: list[DepthMetrics] = []
    for clip in clips:
        batch = collate([clip])
        prediction = model.forward_clip(batch.pixels, rays=False, camera=False)
        assert prediction.depth is not None
        to_real = batch.intrinsics[..., 0] / (model.config.canonical_focal * clip.rgb.shape[2])
        depth = (prediction.depth * to_real[..., None, None])[0].numpy()  # (T, H, W)
        if not math.isfinite(depth.sum()):
            return HeldOutScore(math.inf, math.inf, 0.0, 0.0)
        with closing(DepthPairs()) as pairs:
            for index, (predicted, true) in enumerate(zip(depth, clip.depth, strict=True)):
                pairs.add(index, predicted, true)
            metric.append(evaluate_depth(pairs, "metric").metrics)
            scaled.append(evaluate_depth(pairs, "median").metrics)
    one, other = weighted_mean(metric), weighted_mean(scaled)
    return HeldOutScore(one.abs_rel, other.abs_rel, one.delta1, other.delta1)
