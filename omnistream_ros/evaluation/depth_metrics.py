# SPDX-License-Identifier: Apache-2.0
"""How far predicted depth is from the truth, and how much it flickers along the true motion."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from omnistream_ros.evaluation.depth_alignment import (
    AlignmentError,
    DepthAlignment,
    Mode,
    Way,
    align_depth,
    median,
)
from omnistream_ros.evaluation.depth_pairs import DepthPairs
from omnistream_ros.stream.frame import Intrinsics

#: The logarithm of a prediction is taken of at least this (an aligned one may be negative), metres.
_LOG_FLOOR = 1e-3


@dataclasses.dataclass(frozen=True, slots=True)
class DepthMetrics:
    """Errors over a set of pixels with true depth t and aligned prediction p.

    Attributes:
        abs_rel: mean |p - t| / t.
        sq_rel: mean (p - t)^2 / t, metres.
        rmse: root mean (p - t)^2, metres.
        log_rmse: root mean (log p - log t)^2.
        log_mae: mean |log p - log t|.
        delta1, delta2, delta3: share of pixels with max(p / t, t / p) < 1.25, 1.25^2, 1.25^3.
        pixels: how many pixels were compared.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    log_rmse: float
    log_mae: float
    delta1: float
    delta2: float
    delta3: float
    pixels: int


_NAMES = ("abs_rel", "sq_rel", "rmse", "log_rmse", "log_mae", "delta1", "delta2", "delta3")
_SQUARED = ("rmse", "log_rmse")


@dataclasses.dataclass(frozen=True)
class SequenceDepth:
    """Depth of one sequence under one alignment.

    Attributes:
        mode, way: which alignment.
        alignment: what it came to; None with one alignment per frame.
        metrics: over all pixels of the sequence.
        per_frame: over the pixels of each frame, None where a frame has none; may be left out.
        coverage: share of the valid true pixels that have a prediction.
    """

    mode: Mode
    way: Way
    alignment: DepthAlignment | None
    metrics: DepthMetrics
    per_frame: list[DepthMetrics | None]
    coverage: float


def depth_metrics(prediction: np.ndarray, truth: np.ndarray) -> DepthMetrics:
    """Errors of aligned depth against the truth.

    Args:
        prediction, truth: equal shapes, metres, every truth positive; only valid pixels.

    Raises:
        AlignmentError: no pixels.
        ValueError: shapes differ or a truth is not positive.
    """
    return _finish(_sums(prediction, truth))


def evaluate_depth(
    pairs: DepthPairs,
    mode: Mode,
    way: Way = "protocol",
    *,
    per_frame: bool = False,
    clip: float | None = None,
) -> SequenceDepth:
    """Align a sequence and measure it.

    Args:
        per_frame: one alignment for every frame instead of one for the sequence.
        clip: aligned predictions beyond this many metres are set to it (Sintel: 70).

    Raises:
        AlignmentError: the sequence has no pixel that can be compared.
    """
    if not pairs.pixels:
        raise AlignmentError("no pixel has both a valid true depth and a prediction")
    whole = None if per_frame else align_depth(pairs, mode, way)
    total = np.zeros(len(_NAMES) + 1)
    frames: list[DepthMetrics | None] = []
    for prediction, truth in pairs:
        if not len(truth):
            frames.append(None)
            continue
        alignment = whole or align_depth([(prediction, truth)], mode, way)
        aligned = alignment.apply(prediction)
        if clip is not None:
            aligned = np.minimum(aligned, clip)
        sums = _sums(aligned, truth)
        total += sums
        frames.append(_finish(sums))
    # A long sequence is compared at some of its pixels, but weighs by all.
    metrics = dataclasses.replace(_finish(total), pixels=pairs.compared)
    coverage = pairs.compared / pairs.valid_truth
    return SequenceDepth(mode, way, whole, metrics, frames, coverage)


def constant_baseline(pairs: DepthPairs) -> DepthMetrics:
    """What one and the same depth everywhere would score: the median of the sequence's own truth.

    That median is more than a model can know, so a model below this has seen something.

    Raises:
        AlignmentError: the sequence has no pixel that can be compared.
    """
    constant = median(pairs, 1)
    sums = [_sums(np.full_like(truth, constant), truth) for _, truth in pairs]
    return dataclasses.replace(_finish(np.sum(sums, axis=0)), pixels=pairs.compared)


def weighted_mean(sequences: Sequence[DepthMetrics]) -> DepthMetrics:
    """The protocol's average: every metric of every sequence weighted by its pixels.

    Raises:
        AlignmentError: no sequences.
    """
    weights = np.array([m.pixels for m in sequences], dtype=np.float64)
    if not len(sequences) or weights.sum() == 0:
        raise AlignmentError("no sequence to average")
    values = {
        name: float(weights @ [getattr(m, name) for m in sequences] / weights.sum())
        for name in _NAMES
    }
    return DepthMetrics(**values, pixels=int(weights.sum()))


def _sums(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Sums (len(_NAMES) + 1,) of every error over the pixels, the last being their number."""
    p = np.asarray(prediction, dtype=np.float64)
    t = np.asarray(truth, dtype=np.float64)
    if p.shape != t.shape:
        raise ValueError(f"prediction {p.shape} and truth {t.shape} differ in shape")
    if t.size and not (t > 0).all():
        raise ValueError("true depth must be positive: leave unknown pixels out")
    error = p - t
    positive = np.maximum(p, _LOG_FLOOR)
    log_error = np.log(positive) - np.log(t)
    # A prediction that is not positive is outside every threshold.
    ratio = np.where(p > 0, np.maximum(positive / t, t / positive), np.inf)
    return np.array(
        [
            (np.abs(error) / t).sum(),
            (error * error / t).sum(),
            (error * error).sum(),
            (log_error * log_error).sum(),
            np.abs(log_error).sum(),
            *((ratio < 1.25**power).sum() for power in (1, 2, 3)),
            t.size,
        ],
        dtype=np.float64,
    )


def _finish(sums: np.ndarray) -> DepthMetrics:
    if not sums[-1]:
        raise AlignmentError("no valid pixel to compare")
    values = dict(zip(_NAMES, sums[:-1] / sums[-1], strict=True))
    for name in _SQUARED:
        values[name] = math.sqrt(values[name])
    return DepthMetrics(**{k: float(v) for k, v in values.items()}, pixels=int(sums[-1]))


# -- along the motion -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class DepthView:
    """One instant for the measure of temporal consistency: all (H, W) arrays of one size."""

    prediction: np.ndarray
    truth: np.ndarray
    intrinsics: Intrinsics
    camera_to_world: np.ndarray  # (4, 4)


def temporal_change(first: DepthView, second: DepthView, occlusion: float = 0.05) -> float:
    """How much the error of depth changes from one view to the next at the same points of the
    scene.

    Every true point of ``first`` is moved into ``second`` by the true motion; where it is seen
    there (its depth agrees with the truth there within ``occlusion``), the ratio prediction / truth
    of both views is compared. One factor on all predictions cancels out, a flicker does not.

    Returns:
        Mean |log ratio change|, NaN where no point is seen in both.
    """
    height, width = first.truth.shape
    rows, columns = np.mgrid[0:height, 0:width]
    z = first.truth.astype(np.float64)
    k = first.intrinsics
    points = np.stack([(columns - k.cx) / k.fx * z, (rows - k.cy) / k.fy * z, z], axis=-1)
    motion = np.linalg.inv(second.camera_to_world) @ first.camera_to_world
    moved = points @ motion[:3, :3].T + motion[:3, 3]  # (H, W, 3)
    k = second.intrinsics
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.rint(k.fx * moved[..., 0] / moved[..., 2] + k.cx)
        v = np.rint(k.fy * moved[..., 1] / moved[..., 2] + k.cy)
    height, width = second.truth.shape
    inside = (moved[..., 2] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    u, v = u[inside].astype(np.int64), v[inside].astype(np.int64)
    expected = moved[..., 2][inside]
    there = second.truth[v, u].astype(np.float64)
    before = first.prediction[inside] / z[inside]
    # The prediction is compared with the depth that the truth has at that very pixel, so that
    # rounding u and v to pixels costs nothing.
    after = second.prediction[v, u] / there
    with np.errstate(invalid="ignore"):
        seen = (np.abs(there - expected) < occlusion * expected) & (before > 0) & (after > 0)
    if not seen.any():
        return math.nan
    return float(np.abs(np.log(after[seen] / before[seen])).mean())


def mean_of(values: Iterable[float]) -> float:
    """Mean of the finite values, NaN when there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan
