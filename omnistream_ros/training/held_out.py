# SPDX-License-Identifier: Apache-2.0
"""Judging weights during training on rendered clips that are never trained on.

Clips run through the causal forward in float32 as a stream would see them: unaugmented, from the
first frame, all frames. AbsRel and delta < 1.25 (Eigen et al., 2014), pixel-weighted over clips.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

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


def _sums(predicted: Tensor, true: Tensor) -> Tensor:
    """Sum of relative errors and number of pixels within a factor of 1.25: (2,) float64."""
    ratio = predicted / true
    close = torch.maximum(ratio, 1 / ratio) < 1.25
    return torch.stack([(ratio - 1).abs().double().sum(), close.double().sum()])


@torch.no_grad()
def score_clips(model: OmniStream, clips: list[Clip]) -> HeldOutScore:
    """Scores depth on the clips; the model is left in the mode it came in."""
    plain, scaled = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    pixels = 0
    for clip in clips:
        batch = collate([clip])
        prediction = model.forward_clip(batch.pixels, rays=False, camera=False)
        assert prediction.depth is not None
        to_real = batch.intrinsics[..., 0] / (model.config.canonical_focal * clip.rgb.shape[2])
        depth = prediction.depth * to_real[..., None, None]
        valid = torch.isfinite(batch.depth)
        predicted, true = depth[valid], batch.depth[valid]
        plain += _sums(predicted, true)
        scaled += _sums(predicted * (true.median() / predicted.median()), true)
        pixels += int(valid.sum())
    if not pixels:
        raise ValueError("no valid pixel in the held-out clips")
    figures = [float(value) / pixels for value in (plain[0], scaled[0], plain[1], scaled[1])]
    return HeldOutScore(*(f if math.isfinite(f) else math.inf for f in figures))
