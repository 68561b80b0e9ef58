# SPDX-License-Identifier: Apache-2.0
"""Judging weights during training on what is never trained on: rendered clips, or recordings.

Clips run through the causal forward in float32 as a stream would see them: unaugmented, from the
first frame, all frames. Figures are those of `evaluation`, so they compare with every other table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omnistream_ros.evaluation.depth_metrics import DepthMetrics, evaluate_depth, weighted_mean
from omnistream_ros.evaluation.depth_pairs import DepthPairs
from omnistream_ros.evaluation.recordings import open_recording
from omnistream_ros.model import ModelConfig, OmniStream
from omnistream_ros.training.clip_files import Clip
from omnistream_ros.training.data import collate
from omnistream_ros.training.recorded_streams import Cut, recorded_streams


@dataclass(frozen=True)
class HeldOutScore:
    """Depth error in metres as predicted, and after one scale (ratio of medians) per clip.

    `log_mae` decides which weights are better. AbsRel forgives too near more than too far and would
    reward a bias. So would not delta; but it sees only what crosses a factor of 1.25, and on some
    ten clips it goes up and down where all else gets better.
    """

    abs_rel: float
    abs_rel_scaled: float
    delta_1: float
    delta_1_scaled: float
    log_mae: float

    def as_dict(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)

    def better_than(self, old: Mapping[str, Any]) -> bool:
        """Whether this beats an old score, by name as in `as_dict`; one of before `log_mae` was
        told, or none, is beaten by any."""
        return "log_mae" not in old or self.log_mae < old["log_mae"]

    def __str__(self) -> str:
        return (
            f"log MAE {self.log_mae:.3f}  "
            f"AbsRel {self.abs_rel:.3f} (one scale per clip {self.abs_rel_scaled:.3f})  "
            f"delta<1.25 {self.delta_1:.3f} ({self.delta_1_scaled:.3f})"
        )


def score_depths(
    clips: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> HeldOutScore:
    """Scores depth against the truth, both (T, H, W) metres, pixel-weighted over all clips.

    Depth that is not finite scores infinitely badly; raises ValueError where there is no clip.
    """
    metric: list[DepthMetrics] = []
    scaled: list[DepthMetrics] = []
    for depth, truth in clips:
        if not math.isfinite(depth.sum()):
            return HeldOutScore(math.inf, math.inf, 0.0, 0.0, math.inf)
        with closing(DepthPairs()) as pairs:
            for index, (predicted, true) in enumerate(zip(depth, truth, strict=True)):
                pairs.add(index, predicted, true)
            if not pairs.pixels:  # none of these frames has true depth
                continue
            metric.append(evaluate_depth(pairs, "metric").metrics)
            scaled.append(evaluate_depth(pairs, "median").metrics)
    if not metric:
        raise ValueError("no held-out clip to score on")
    one, other = weighted_mean(metric), weighted_mean(scaled)
    return HeldOutScore(one.abs_rel, other.abs_rel, one.delta1, other.delta1, one.log_mae)


def score_clips(model: OmniStream, clips: list[Clip]) -> HeldOutScore:
    """Scores depth on the clips; raises ValueError where there are none."""
    return score_depths((_depth(model, clip), clip.depth) for clip in clips)


def clips_of_recordings(recordings: Sequence[Path], config: ModelConfig, length: int) -> list[Clip]:
    """Recordings with true depth as clips of up to `length` frames at the model's own size.

    Raises RecordingError for one that cannot be read, or has no depth or no calibration.
    """
    cut = Cut(pixels=config.model_pixels, patch=config.patch_size, frames=length)
    return [s.clip for path in recordings for s in recorded_streams(open_recording(path), cut)]


@torch.no_grad()
def _depth(model: OmniStream, clip: Clip) -> NDArray[np.float32]:
    """Depth in metres (T, H, W) of a clip at once."""
    batch = collate([clip])
    prediction = model.forward_clip(batch.pixels, rays=False, camera=False)
    assert prediction.depth is not None
    to_real = batch.intrinsics[..., 0] / model.config.canonical_fx
    return (prediction.depth * to_real[..., None, None])[0].numpy()
