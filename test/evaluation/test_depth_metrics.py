# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from omnistream_ros.evaluation.depth_alignment import (
    AlignmentError,
    align_depth,
    exact_scale,
    exact_scale_shift,
    median,
    protocol_scale,
)
from omnistream_ros.evaluation.depth_metrics import (
    DepthView,
    constant_baseline,
    depth_metrics,
    evaluate_depth,
    temporal_change,
    weighted_mean,
)
from omnistream_ros.evaluation.depth_pairs import DepthPairs, check_same_camera
from omnistream_ros.evaluation.recordings import DepthFrame, RecordingError
from omnistream_ros.stream.frame import Frame, Intrinsics


def scene(seed: int = 0, frames: int = 3, shape: tuple[int, int] = (12, 16)):
    """Predictions and truths (frames, H, W) with outliers and unknown pixels."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 8.0, (frames, *shape)).astype(np.float32)
    prediction = (0.4 * truth * np.exp(rng.normal(0, 0.2, truth.shape)) + 0.3).astype(np.float32)
    prediction[rng.random(truth.shape) < 0.05] *= 6
    truth[rng.random(truth.shape) < 0.1] = np.nan
    return prediction, truth


def pairs_of(prediction: np.ndarray, truth: np.ndarray, **options) -> DepthPairs:
    pairs = DepthPairs()
    for index, (p, t) in enumerate(zip(prediction, truth, strict=True)):
        pairs.add(index, p, t, **options)
    return pairs


def plain_metrics(p: np.ndarray, t: np.ndarray) -> dict[str, float]:
    """Written from the definitions, pixel by pixel."""
    rows = []
    for a, b in zip(p.astype(float).ravel(), t.astype(float).ravel(), strict=True):
        ratio = max(a / b, b / a)
        rows.append(
            (abs(a - b) / b, (a - b) ** 2 / b, (a - b) ** 2, (np.log(a) - np.log(b)) ** 2,
             np.log(ratio), ratio < 1.25, ratio < 1.25**2, ratio < 1.25**3)
        )  # fmt: skip
    means = np.array(rows, dtype=float).mean(axis=0)
    means[2:4] = np.sqrt(means[2:4])
    names = ("abs_rel", "sq_rel", "rmse", "log_rmse", "log_mae", "delta1", "delta2", "delta3")
    return dict(zip(names, means, strict=True))


def reference_protocol_scale(p: np.ndarray, t: np.ndarray) -> float:
    """The published loop over one flat array."""
    s = t.mean() / p.mean()
    for _ in range(10):
        w = 1 / (np.abs(s * p - t) + 1e-8)
        s = (w * p * t).sum() / (w * p * p).sum()
    return max(s, 1e-3)


@pytest.mark.parametrize("mode", ["metric", "scale", "median", "scale_shift"])
@pytest.mark.parametrize("way", ["protocol", "exact"])
def test_sequence_agrees_with_independent_computation(mode: str, way: str) -> None:
    prediction, truth = scene()
    valid = np.isfinite(truth)
    p, t = prediction[valid].astype(np.float64), truth[valid].astype(np.float64)
    result = evaluate_depth(pairs_of(prediction, truth), mode, way)
    if mode == "metric":
        aligned = p
    elif mode == "median":
        lower = (len(p) - 1) // 2
        aligned = p * np.sort(t)[lower] / np.sort(p)[lower]
    elif mode == "scale" and way == "protocol":
        aligned = p * reference_protocol_scale(p, t)
    else:
        aligned = least_absolute(p, t, shift=mode == "scale_shift")
    expected = plain_metrics(np.maximum(aligned, 1e-3), t)
    for name in ("log_rmse", "log_mae", "delta1", "delta2", "delta3"):
        assert getattr(result.metrics, name) == pytest.approx(expected[name], abs=1e-6)
    expected = plain_metrics(aligned, t) if (aligned > 0).all() else expected
    for name in ("abs_rel", "sq_rel", "rmse"):
        assert getattr(result.metrics, name) == pytest.approx(expected[name], abs=1e-6)
    assert result.metrics.pixels == len(p)


def least_absolute(p: np.ndarray, t: np.ndarray, *, shift: bool) -> np.ndarray:
    """sum |s p + b - t| as a linear programme, solved by HiGHS."""
    n = len(p)
    columns = np.stack([p, np.ones(n)], axis=1) if shift else p[:, None]
    a = np.block([[columns, -np.eye(n)], [-columns, -np.eye(n)]])
    k = columns.shape[1]
    cost = np.r_[np.zeros(k), np.ones(n)]
    bounds = [(None, None)] * k + [(0, None)] * n
    solution = linprog(cost, A_ub=a, b_ub=np.r_[t, -t], bounds=bounds, method="highs")
    return columns @ solution.x[:k]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.booleans())
def test_exact_solvers_find_the_optimum_of_the_linear_programme(
    seed: int, count: int, outliers: bool
) -> None:
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.1, 5, count)
    t = 1.7 * p + 0.4 + rng.normal(0, 0.1, count) + outliers * (rng.random(count) < 0.3) * 20
    blocks = [(p[: count // 2], t[: count // 2]), (p[count // 2 :], t[count // 2 :])]
    scale = exact_scale(blocks)
    best = np.abs(least_absolute(p, t, shift=False) - t).sum()
    assert np.abs(scale * p - t).sum() <= best * (1 + 1e-7) + 1e-9
    both = exact_scale_shift(blocks)
    best = np.abs(least_absolute(p, t, shift=True) - t).sum()
    assert np.abs(both.apply(p) - t).sum() <= best * (1 + 1e-6) + 1e-6


def test_exact_beats_protocol_where_outliers_are_many() -> None:
    prediction, truth = scene(3)
    pairs = pairs_of(prediction, truth)
    errors = {}
    for way in ("protocol", "exact"):
        alignment = align_depth(pairs, "scale", way)
        errors[way] = sum(np.abs(alignment.apply(p) - t).sum() for p, t in pairs)
    assert errors["exact"] <= errors["protocol"] * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-2, 1e2), st.sampled_from(["scale", "median", "scale_shift"]),
       st.sampled_from(["protocol", "exact"]), st.booleans())  # fmt: skip
def test_aligned_metrics_do_not_see_the_scale(
    factor: float, mode: str, way: str, per_frame: bool
) -> None:
    if (mode, way) == ("scale", "protocol"):
        # Ten rounds may end on a pixel whose residual became 0; only a factor without rounding,
        # a power of two, then leads to the same pixel.
        factor = 2.0 ** round(np.log2(factor))
    prediction, truth = scene(7)
    first = evaluate_depth(pairs_of(prediction, truth), mode, way, per_frame=per_frame).metrics
    scaled = pairs_of(prediction * np.float32(factor), truth)
    second = evaluate_depth(scaled, mode, way, per_frame=per_frame).metrics
    assert second.abs_rel == pytest.approx(first.abs_rel, rel=1e-4)
    assert second.rmse == pytest.approx(first.rmse, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 2.0), st.floats(-1.0, 1.0))
def test_scale_shift_undoes_any_affine_change(factor: float, offset: float) -> None:
    prediction, truth = scene(7)
    first = evaluate_depth(pairs_of(prediction, truth), "scale_shift").metrics
    changed = pairs_of(prediction * np.float32(factor) + np.float32(offset), truth)
    second = evaluate_depth(changed, "scale_shift").metrics
    assert second.abs_rel == pytest.approx(first.abs_rel, rel=1e-3)


def test_a_perfect_prediction_is_perfect_under_every_alignment() -> None:
    _, truth = scene()
    perfect = pairs_of(np.nan_to_num(truth, nan=1.0) * 2, truth)
    for mode in ("scale", "median", "scale_shift"):
        metrics = evaluate_depth(perfect, mode, "exact").metrics
        assert metrics.abs_rel == pytest.approx(0, abs=1e-6)
        assert metrics.delta1 == 1.0
    metrics = evaluate_depth(perfect, "metric").metrics
    assert (metrics.abs_rel, metrics.delta1) == (pytest.approx(1.0), 0.0)
    assert metrics.delta3 == 0.0  # 2 > 1.25^3
    assert metrics.log_rmse == pytest.approx(np.log(2))
    assert metrics.log_mae == pytest.approx(np.log(2))


def test_per_frame_values_and_their_pixel_weighted_mean() -> None:
    prediction, truth = scene()
    truth[1] = np.nan  # a frame without truth has no value, not the value 0
    result = evaluate_depth(pairs_of(prediction, truth), "metric")
    assert result.per_frame[1] is None
    known = [frame for frame in result.per_frame if frame is not None]
    mean = weighted_mean(known)
    assert mean.abs_rel == pytest.approx(result.metrics.abs_rel)
    assert mean.delta1 == pytest.approx(result.metrics.delta1)
    assert mean.pixels == result.metrics.pixels


def test_weighted_mean_weighs_by_pixels() -> None:
    base = evaluate_depth(pairs_of(*scene()), "metric").metrics
    many = dataclasses.replace(base, abs_rel=0.1, pixels=300)
    few = dataclasses.replace(base, abs_rel=0.5, pixels=100)
    assert weighted_mean([many, few]).abs_rel == pytest.approx(0.2)
    with pytest.raises(AlignmentError):
        weighted_mean([])


def test_missing_predictions_are_counted_not_scored() -> None:
    prediction, truth = scene()
    prediction[:, :6] = np.nan
    result = evaluate_depth(pairs_of(prediction, truth), "metric")
    valid = np.isfinite(truth)
    assert result.metrics.pixels == np.isfinite(truth[:, 6:]).sum()
    assert result.coverage == pytest.approx(result.metrics.pixels / valid.sum())


def test_limits_and_clip() -> None:
    truth = np.array([[1.0, 50.0, 70.0, 80.0]], dtype=np.float32)
    prediction = np.array([[1.0, 90.0, 90.0, 80.0]], dtype=np.float32)
    pairs = pairs_of([prediction], [truth], limits=(0.0, 70.0))
    metrics = evaluate_depth(pairs, "metric", clip=70.0).metrics
    assert metrics.pixels == 2
    assert metrics.abs_rel == pytest.approx((0.0 + 20 / 50) / 2)


def test_prediction_is_resized_to_the_truth() -> None:
    truth = np.full((24, 32), 2.0, dtype=np.float32)
    pairs = pairs_of([np.full((12, 16), 2.0, dtype=np.float32)], [truth])
    assert pairs.pixels == truth.size
    assert evaluate_depth(pairs, "metric").metrics.abs_rel == pytest.approx(0.0, abs=1e-6)


def test_blocks_on_disk_equal_blocks_in_memory() -> None:
    prediction, truth = scene(frames=6)
    memory, disk = pairs_of(prediction, truth), DepthPairs(memory_pixels=10)
    for index in range(6):
        disk.add(index, prediction[index], truth[index])
    assert [p.tobytes() + t.tobytes() for p, t in memory] == [
        p.tobytes() + t.tobytes() for p, t in disk
    ]
    assert evaluate_depth(memory, "scale") == evaluate_depth(disk, "scale")
    disk.close()


@pytest.mark.parametrize("memory", [10, 10_000])
def test_long_sequences_are_compared_at_some_pixels_but_weigh_by_all(memory: int) -> None:
    prediction, truth = scene(seed=4, frames=9)
    valid = np.isfinite(truth)
    total = int(valid.sum())
    few = DepthPairs(memory_pixels=memory, most_pixels=total // 3)
    for index, (p, t) in enumerate(zip(prediction, truth, strict=True)):
        few.add(index, p, t)
    assert few.every == 4
    assert (few.compared, few.pixels <= total // 3) == (total, True)
    kept = [(p[v][::4], t[v][::4]) for p, t, v in zip(prediction, truth, valid, strict=True)]
    for block, (p, t) in zip(few, kept, strict=True):
        assert np.array_equal(block[0], p)
        assert np.array_equal(block[1], t)
    result = evaluate_depth(few, "metric")
    errors = np.concatenate([np.abs(p - t) / t for p, t in kept])
    assert result.metrics.abs_rel == pytest.approx(errors.mean(), rel=1e-6)
    assert result.metrics.pixels == total
    few.close()


def test_nothing_to_compare_is_an_error_not_a_number() -> None:
    empty = np.full((1, 4, 4), np.nan, dtype=np.float32)
    for mode in ("metric", "scale", "median", "scale_shift"):
        with pytest.raises(AlignmentError, match="no pixel"):
            evaluate_depth(pairs_of(np.ones_like(empty), empty), mode)
    with pytest.raises(AlignmentError):
        constant_baseline(pairs_of(np.ones_like(empty), empty))
    zero = [(np.zeros(5), np.ones(5))]
    for solve in (protocol_scale, exact_scale, lambda b: align_depth(b, "median")):
        with pytest.raises(AlignmentError):
            solve(zero)
    with pytest.raises(ValueError, match="positive"):
        depth_metrics(np.ones(3), np.array([1.0, 0.0, 2.0]))
    with pytest.raises(ValueError, match="shape"):
        depth_metrics(np.ones(3), np.ones(4))


def test_constant_prediction_gets_the_median_as_shift() -> None:
    truth = np.array([1.0, 2.0, 4.0])
    found = exact_scale_shift([(np.full(3, 0.7), truth)])
    assert found.apply(np.array([0.7]))[0] == pytest.approx(2.0)


@settings(deadline=None)
@given(st.lists(st.floats(0.125, 100, width=32), min_size=1, max_size=40))
def test_median_is_the_lower_middle_value(values: list[float]) -> None:
    array = np.array(values)
    found = median([(array[:7], array[:7]), (array[7:], array[7:])], 0)
    assert found == pytest.approx(np.sort(array)[(len(array) - 1) // 2], rel=1e-9)


def test_constant_baseline() -> None:
    truth = np.array([[[1.0, 2.0, 4.0]]], dtype=np.float32)
    metrics = constant_baseline(pairs_of(np.ones_like(truth), truth))
    assert metrics.abs_rel == pytest.approx((1.0 + 0.0 + 0.5) / 3)


# -- another camera -------------------------------------------------------------------------------


def test_truth_of_another_camera_is_refused() -> None:
    camera = Intrinsics(100, 100, 31.5, 23.5, 64, 48)
    frame = Frame(np.zeros((48, 64, 3), np.uint8), 0, camera)
    half = np.ones((24, 32), np.float32)
    check_same_camera(frame, DepthFrame(0, half, camera.resized(32, 24)))
    check_same_camera(frame, DepthFrame(0, half, None))
    wide = Intrinsics(60, 60, 15.5, 11.5, 32, 24)
    with pytest.raises(RecordingError, match="another camera"):
        check_same_camera(frame, DepthFrame(0, half, wide))
    with pytest.raises(RecordingError, match="registered"):
        check_same_camera(frame, DepthFrame(0, np.ones((32, 32), np.float32), None))


# -- along the motion -----------------------------------------------------------------------------


def wall(shift: float, factor: float = 1.0) -> DepthView:
    """A camera looking at a wall 3 m away from ``shift`` metres to the right, and 0.5 m closer."""
    camera = Intrinsics(40, 40, 15.5, 11.5, 32, 24)
    pose = np.eye(4)
    pose[0, 3] = shift
    truth = np.full((24, 32), 3.0, np.float32)
    return DepthView(factor * truth, truth, camera, pose)


def test_temporal_change_sees_flicker_and_nothing_else() -> None:
    assert temporal_change(wall(0.0), wall(0.2)) == pytest.approx(0.0, abs=1e-6)
    assert temporal_change(wall(0.0, 2.0), wall(0.2, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert temporal_change(wall(0.0), wall(0.2, 1.1)) == pytest.approx(np.log(1.1), rel=1e-5)
    assert np.isnan(temporal_change(wall(0.0), wall(50.0)))
