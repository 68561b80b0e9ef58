# SPDX-License-Identifier: Apache-2.0
"""Alignments of predicted to true depth: the protocol's, and exact least absolute deviations.

All solvers go through the pixels in blocks, several times, and never hold more than one block, so
that a sequence of any length can be aligned. A block is a pair (prediction, truth) of equal (n,)
arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

Blocks = Iterable[tuple[np.ndarray, np.ndarray]]
Mode = Literal["metric", "scale", "scale_shift", "median"]
Way = Literal["protocol", "exact"]

MODES: tuple[Mode, ...] = ("metric", "scale", "scale_shift", "median")

#: Where the search for an exact alignment ends: relative to the scale, or to the range of depths;
#: for scale and shift also relative to the sum of absolute errors, of which a bound is known.
_PRECISION = 1e-10
_CUTS = 120


class AlignmentError(ValueError):
    """No alignment exists: there is no pixel, or the prediction is zero everywhere."""


@dataclasses.dataclass(frozen=True)
class DepthAlignment:
    """``aligned = scale * prediction + shift``."""

    scale: float = 1.0
    shift: float = 0.0

    def apply(self, prediction: np.ndarray) -> np.ndarray:
        """Aligned depth, same shape."""
        return self.scale * prediction + self.shift


def align_depth(blocks: Blocks, mode: Mode, way: Way = "protocol") -> DepthAlignment:
    """The alignment of a sequence.

    Args:
        blocks: re-iterable blocks of valid pixels, prediction and truth in metres.
        mode: ``metric`` none; ``scale`` one factor; ``scale_shift`` factor and offset; ``median``
            the ratio of the medians.
        way: how ``scale`` is solved. ``protocol`` does what MonST3R, CUT3R and StreamVGGT do;
            ``exact`` minimises the absolute error. ``scale_shift`` is always exact: the published
            codes stop a gradient descent before it converges.

    Raises:
        AlignmentError: no pixels, or nothing to scale.
    """
    if mode == "metric":
        return DepthAlignment()
    if mode == "median":
        bottom, top = median(blocks, 0), median(blocks, 1)
        if bottom <= 0:
            raise AlignmentError(f"the median of the prediction is {bottom}: nothing to scale")
        return DepthAlignment(scale=top / bottom)
    if mode == "scale":
        return DepthAlignment(
            scale=protocol_scale(blocks) if way == "protocol" else exact_scale(blocks)
        )
    if mode == "scale_shift":
        return exact_scale_shift(blocks)
    raise ValueError(f"unknown alignment {mode!r}; known: {', '.join(MODES)}")


def protocol_scale(blocks: Blocks, rounds: int = 10, eps: float = 1e-8) -> float:
    """Scale by iteratively reweighted least squares on the absolute error, as MonST3R and CUT3R do.

    Starts at mean(truth) / mean(prediction); ten rounds; at least 1e-3.

    Raises:
        AlignmentError: no pixels, or a prediction of mean zero.
    """
    count = total_prediction = total_truth = 0.0
    for prediction, truth in blocks:
        count += len(truth)
        total_prediction += float(prediction.sum())
        total_truth += float(truth.sum())
    if not count or total_prediction == 0.0:
        raise AlignmentError("no valid pixel to align" if not count else "prediction is zero")
    scale = total_truth / total_prediction
    for _ in range(rounds):
        top = bottom = 0.0
        for prediction, truth in blocks:
            weighted = scale * prediction  # in place from here: this is where the time goes
            weighted -= truth
            np.abs(weighted, out=weighted)
            weighted += eps
            np.divide(prediction, weighted, out=weighted)
            top += _dot(weighted, truth)
            bottom += _dot(weighted, prediction)
        scale = top / bottom
    return max(scale, 1e-3)


def exact_scale(blocks: Blocks) -> float:
    """The scale s that minimises sum |s p - t|: the median of t / p weighted by p, by halving.

    Raises:
        AlignmentError: no pixel with a positive prediction.
    """
    low, high = math.inf, -math.inf
    for prediction, truth in blocks:
        used = prediction > 0
        if used.any():
            ratio = truth[used] / prediction[used]
            low, high = min(low, float(ratio.min())), max(high, float(ratio.max()))
    if low > high:
        raise AlignmentError("no pixel with a positive prediction to align")

    def slope(scale: float) -> float:
        total = 0.0
        for p, t in blocks:
            used = np.maximum(p, 0.0)
            total += 2.0 * _dot(used, (scale * p >= t).astype(np.float64)) - float(used.sum())
        return total

    return _zero_crossing(slope, low, high)


def median(blocks: Blocks, which: Literal[0, 1]) -> float:
    """Median of all predictions (0) or truths (1); the lower one of two in the middle.

    Raises:
        AlignmentError: no values.
    """
    low, high, count = math.inf, -math.inf, 0
    for block in blocks:
        values = block[which]
        if len(values):
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            count += len(values)
    if not count:
        raise AlignmentError("no valid pixel to align")

    def slope(x: float) -> float:
        below = sum(np.count_nonzero(block[which] <= x) for block in blocks)
        return 2.0 * below - count

    return _zero_crossing(slope, low, high)


def exact_scale_shift(blocks: Blocks) -> DepthAlignment:
    """Scale and shift that minimise sum |s p + b - t|.

    A convex, piecewise linear function of two numbers: every pass gives one subgradient, which cuts
    away at least 1 - 1/e of the polygon that holds the minimum when it is taken at the centre of
    gravity (Levin 1965, Newman 1965). The prediction is standardised first, so that the polygon is
    round. Where the prediction is constant only the shift is found.

    Raises:
        AlignmentError: no pixels.
    """
    count = total = squares = truth_low = truth_high = 0.0
    truth_low, truth_high = math.inf, -math.inf
    for prediction, truth in blocks:
        if len(truth):
            count += len(truth)
            total += float(prediction.sum())
            squares += _dot(prediction, prediction)
            truth_low = min(truth_low, float(truth.min()))
            truth_high = max(truth_high, float(truth.max()))
    if not count:
        raise AlignmentError("no valid pixel to align")
    mean = total / count
    deviation = math.sqrt(max(squares / count - mean * mean, 0.0))
    if deviation < 1e-9 * max(abs(mean), 1e-9):
        return DepthAlignment(0.0, median(blocks, 1))
    reach = 2.0 * (truth_high - truth_low) + 1e-9
    middle = 0.5 * (truth_high + truth_low)
    polygon = np.array(
        [[-reach, middle - reach], [reach, middle - reach], [reach, middle + reach],
         [-reach, middle + reach]]
    )  # fmt: skip
    best, best_value, bound = polygon.mean(axis=0), math.inf, 0.0
    for _ in range(_CUTS):
        centre = _centroid(polygon)
        value, gradient = 0.0, np.zeros(2)
        for prediction, truth in blocks:
            unit = (prediction - mean) / deviation
            residual = centre[0] * unit + centre[1] - truth
            sign = np.sign(residual)
            value += float(np.abs(residual).sum())
            gradient += (_dot(sign, unit), float(sign.sum()))
        if value < best_value:
            best, best_value = centre, value
        # A convex function lies above its tangent, and its minimum inside of the polygon.
        bound = max(bound, value + float(((polygon - centre) @ gradient).min()))
        if best_value - bound <= _PRECISION * best_value:
            break
        norm = np.linalg.norm(gradient)
        if norm == 0.0:
            break
        polygon = _cut(polygon, centre, gradient / norm)
        if len(polygon) < 3 or np.ptp(polygon, axis=0).max() < 1e-8 * reach:
            break
    scale = float(best[0] / deviation)
    return DepthAlignment(scale, float(best[1] - scale * mean))


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product without BLAS, whose last digits depend on how many threads it takes."""
    return float(np.einsum("i,i", a, b))


def _zero_crossing(slope: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that never falls goes from negative to not negative, by halving."""
    while high - low > _PRECISION * max(abs(low), abs(high)):
        middle = 0.5 * (low + high)
        if slope(middle) < 0:
            low = middle
        else:
            high = middle
    return high


def _cut(polygon: np.ndarray, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The part of a convex polygon (N, 2) on the side of the line where ``normal`` is negative."""
    side = (polygon - point) @ normal
    kept = []
    for i in range(len(polygon)):
        j = (i + 1) % len(polygon)
        if side[i] <= 0:
            kept.append(polygon[i])
        if (side[i] < 0 < side[j]) or (side[j] < 0 < side[i]):
            u = side[i] / (side[i] - side[j])
            kept.append(polygon[i] + u * (polygon[j] - polygon[i]))
    return np.array(kept).reshape(-1, 2)


def _centroid(polygon: np.ndarray) -> np.ndarray:
    """Centre of gravity of a convex polygon (N, 2); the mean of its corners when it has no area."""
    origin = polygon.mean(axis=0)  # near the polygon, so that small areas keep their digits
    a = polygon - origin
    b = np.roll(a, -1, axis=0)
    cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    area = cross.sum()
    if abs(area) < 1e-300:
        return origin
    return origin + ((a + b) * cross[:, None]).sum(axis=0) / (3.0 * area)
