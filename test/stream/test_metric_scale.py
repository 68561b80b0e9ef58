# SPDX-License-Identifier: Apache-2.0
"""Evidence of scale from synthetic worlds, and what a scale does to the results of a stream."""

from __future__ import annotations

import dataclasses

import box_room
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.metric_scale import Evidence, MetricScale
from omnistream_ros.stream.result import Pose, StreamResult, Tracking
from omnistream_ros.stream.scale_estimate import ENOUGH, ScaleStatus
from omnistream_ros.stream.scale_evidence import WayComparison, from_ground, from_points
from omnistream_ros.stream.stopwatch import Stopwatch

CAMERA = box_room.CAMERA
UP = np.array([0.0, -1.0, 0.0])  # of a level camera, optical axes
FLOOR = 1.1  # y of the floor of the room, below a camera at the origin
TENTH = 10**8


def room(unit: float, pitch: float = 0.0) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Depth as a model says it whose unit is `unit` metres, true points (N, 3), and up."""
    turn = Rotation.from_rotvec([-pitch, 0, 0], degrees=True).as_matrix()
    pose = np.eye(4)
    pose[:3, :3] = turn
    points, depth = box_room.cast(pose, CAMERA)
    optical = turn.T @ points.reshape(3, -1)
    return torch.from_numpy(depth / unit).float(), optical.T, turn.T @ UP


def result(
    stamp_ns: int,
    depth: torch.Tensor | None = None,
    position: object = None,
    tracking: Tracking = Tracking.GOOD,
    metric: bool = False,
) -> StreamResult:
    pose = None
    if position is not None:
        pose = Pose(np.array(position, np.float64), np.array([0, 0, 0, 1.0]), np.eye(6), tracking)
    return StreamResult(
        stamp_ns=stamp_ns,
        epoch=0,
        frame_index=0,
        epoch_reason=None,
        context_frames=1,
        metric=metric,
        intrinsics=CAMERA,
        depth=depth,
        confidence=None,
        pose=pose,
        features={},
        grid=(6, 8),
        model_size=(96, 128),
        source_size=(96, 128),
        model_to_source=np.eye(3)[:2],
        watch=Stopwatch(torch.device("cpu")),
    )


# --- evidence ---


@settings(max_examples=25)
@given(st.floats(0.1, 10.0), st.integers(0, 10**6), st.floats(0.0, 0.4))
def test_range_points_give_the_unit(unit: float, seed: int, wrong: float) -> None:
    depth, points, _ = room(unit)
    rng = np.random.default_rng(seed)
    chosen = points[rng.choice(len(points), 200, replace=False)]
    lies = rng.random(200) < wrong
    chosen[lies] *= rng.uniform(0.05, 0.5, (lies.sum(), 1))  # something stands in the way
    ratio = from_points(chosen, depth, CAMERA)
    assert ratio == pytest.approx(unit, rel=0.03)


def test_points_outside_the_image_or_not_finite_say_nothing() -> None:
    depth, points, _ = room(2.0)
    behind = points * [1, 1, -1]
    aside = points + np.array([100.0, 0, 0])
    holes = np.full((50, 3), np.nan)
    assert from_points(np.concatenate((behind, aside, holes)), depth, CAMERA) is None
    assert from_points(np.zeros((0, 3)), depth, CAMERA) is None
    few = np.concatenate((points[::2000], behind, holes))
    assert len(points[::2000]) < 8
    assert from_points(few, depth, CAMERA) is None


def test_unknown_depth_says_nothing() -> None:
    depth, points, _ = room(2.0)
    assert from_points(points, torch.full_like(depth, torch.nan), CAMERA) is None


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 10.0), st.floats(0.0, 50.0), st.integers(0, 10**6))
def test_ground_gives_the_unit(unit: float, pitch: float, seed: int) -> None:
    depth, _, up = room(unit, pitch)
    noise = torch.from_numpy(np.random.default_rng(seed).normal(1, 0.004, depth.shape))
    ratio = from_ground((depth * noise).float(), CAMERA, up, FLOOR)
    assert ratio == pytest.approx(unit, rel=0.05)


def test_a_table_in_front_is_not_the_ground() -> None:
    depth, points, up = room(1.0, pitch=25.0)
    # A level table 0.6 m below the camera hides a third of the floor.
    below = -(points @ up).reshape(96, 128)
    table = 0.6 / (below / depth.numpy())
    hidden = np.zeros((96, 128), bool)
    hidden[:, :40] = True
    hidden &= (table > 0) & (table < depth.numpy())
    with_table = torch.from_numpy(np.where(hidden, table, depth.numpy())).float()
    assert hidden.mean() > 0.1
    assert from_ground(with_table, CAMERA, up, FLOOR) == pytest.approx(1.0, rel=0.05)


def test_without_ground_nothing_is_said() -> None:
    depth, _, up = room(1.0, pitch=-60.0)  # the ceiling and a wall
    assert from_ground(depth, CAMERA, up, FLOOR) is None
    assert from_ground(torch.full_like(depth, torch.nan), CAMERA, UP, FLOOR) is None


@settings(max_examples=25)
@given(st.floats(0.1, 10.0), st.integers(0, 10**6), st.floats(5.0, 60.0))
def test_ways_give_the_unit(unit: float, seed: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_matrix()

    def place(t: float) -> np.ndarray:
        return np.array([np.sin(t), 0.5 * t, 0.3 * np.cos(2 * t)])

    way = WayComparison()
    ratios = []
    for i in range(100):
        t = 0.1 * i
        way.add_ours(i * TENTH, turn @ place(t) / unit + 5.0)
        if i % 3 == 0:  # theirs come in bursts, late, at a rate of their own
            for late in np.arange(max(0.0, t - 0.3), t, 1 / rate):
                way.add_theirs(round(late * 1e9) + 1, place(late) + rng.normal(0, 1e-4, 3))
        ratios += [ratio for _, ratio in way.ratios()]
    assert len(ratios) >= 5
    assert np.median(ratios) == pytest.approx(unit, rel=0.1)


def test_a_camera_that_was_lost_is_not_compared_across() -> None:
    way = WayComparison()
    for i in range(40):
        way.add_theirs(i * TENTH, np.array([0.1 * i, 0, 0]))
    way.add_ours(0, np.zeros(3))
    assert list(way.ratios()) == []
    way.lost()
    way.add_ours(10 * TENTH, np.array([77.0, 0, 0]))
    assert list(way.ratios()) == []
    way.add_ours(13 * TENTH, np.array([77.6, 0, 0]))
    assert list(way.ratios()) == [(13 * TENTH, pytest.approx(0.5))]


def test_standing_still_and_gaps_say_nothing() -> None:
    way = WayComparison()
    for i in range(60):
        way.add_ours(i * TENTH, np.array([0.01 * i, 0, 0]))
        way.add_theirs(i * TENTH, np.zeros(3))
    assert list(way.ratios()) == []
    way = WayComparison()
    for i in range(60):
        way.add_ours(i * TENTH, np.array([0.1 * i, 0, 0]))
    way.add_theirs(1, np.zeros(3))
    way.add_theirs(59 * TENTH, np.array([50.0, 0, 0]))  # six seconds later
    assert list(way.ratios()) == []


# --- a stream ---


def test_the_model_alone_changes_nothing() -> None:
    scale = MetricScale()
    depth, _, _ = room(1.0)
    for metric in (False, True):
        given_result = result(0, depth, (1, 2, 3), metric=metric)
        out = scale.apply(given_result)
        assert out.depth is depth
        assert out.metric is metric
        assert out.pose is not None
        assert out.pose.translation.tolist() == [1, 2, 3]
        np.testing.assert_array_equal(out.pose.covariance, np.eye(6))


def test_a_fixed_factor_scales_depth_pose_and_covariance_alike() -> None:
    depth, _, _ = room(1.0)
    out = MetricScale("fixed", 2.5).apply(result(0, depth, (1, 2, 3)))
    assert out.metric
    torch.testing.assert_close(out.depth, 2.5 * depth)
    assert out.pose is not None
    np.testing.assert_allclose(out.pose.translation, [2.5, 5, 7.5])
    place = np.array([2.5, 5, 7.5])
    expected = np.array([6.25] * 3 + [1] * 3) + np.append((0.02 * place) ** 2, [0, 0, 0])
    np.testing.assert_allclose(np.diag(out.pose.covariance), expected)


@given(st.floats(0.1, 10.0), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_a_known_scale_is_surer_than_the_model_is_of_its_own(factor: float, way: list) -> None:
    """What is left is the drift, and 2 % of the way; and it is a covariance."""
    drift = np.diag([0.01, 0.02, 0.03, 0.1, 0.1, 0.1]) ** 2
    covariance = drift.copy()
    covariance[:3, :3] += 0.3**2 * np.outer(way, way)
    given_result = result(0, position=way)
    assert given_result.pose is not None
    pose = dataclasses.replace(given_result.pose, covariance=covariance, scale_error=0.3)
    out = MetricScale("fixed", factor).apply(dataclasses.replace(given_result, pose=pose)).pose
    assert out is not None
    place = factor * np.array(way)
    left = out.covariance[:3, :3] - 0.02**2 * np.outer(place, place)
    np.testing.assert_allclose(left, factor**2 * drift[:3, :3], atol=1e-9 * (1 + place @ place))
    assert np.linalg.eigvalsh(out.covariance).min() > -1e-9 * (1 + place @ place)
    assert out.scale_error == 0.02
    unknown = MetricScale().apply(dataclasses.replace(given_result, pose=pose)).pose
    assert unknown is not None
    np.testing.assert_array_equal(unknown.covariance, covariance)


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(-5, 5)), min_size=2, max_size=30),
)
def test_a_changing_factor_never_moves_where_the_camera_is(steps: list) -> None:
    scale = MetricScale()
    raw, published = np.zeros(3), None
    for i, (factor, step) in enumerate(steps):
        scale.fix(factor)
        moved = raw + np.array([step, 0, 0])
        out = scale.apply(result(i, position=moved)).pose
        assert out is not None
        if published is not None:
            np.testing.assert_allclose(
                out.translation - published, factor * (moved - raw), atol=1e-9
            )
        raw, published = moved, out.translation


@pytest.mark.parametrize("source", ["height", "range", "odometry"])
def test_a_stream_becomes_metric_and_stays_so(source: str) -> None:
    """Depth and pose of a model whose unit is 0.4 m; then the input stops."""
    depth, points, up = room(0.4, pitch=20.0)
    scale = MetricScale(source)
    stamp = 0
    for i in range(8 * ENOUGH):
        stamp = 5 * i * TENTH
        metres = np.array([0.05 * i, 0, 0])
        evidence = {
            "height": Evidence(up=up, height=FLOOR),
            "range": Evidence(points=points[::50]),
            "odometry": Evidence(positions=((stamp, metres[::-1]),)),
        }[source]
        assert scale.needs_depth(stamp) == (source != "odometry")
        assert scale.needs_pose == (source == "odometry")
        out = scale.apply(result(stamp, depth, metres / 0.4), evidence)
        if i == 0:
            assert not out.metric
            assert out.depth is depth
    assert out.metric
    assert scale.state(stamp).status is ScaleStatus.KNOWN
    assert scale.state(stamp).factor == pytest.approx(0.4, rel=0.05)
    later = stamp + 60 * 10 * TENTH
    frozen = scale.apply(result(later, depth, metres / 0.4))
    assert frozen.metric
    assert scale.state(later).status is ScaleStatus.FROZEN
    torch.testing.assert_close(frozen.depth, out.depth)


def test_restart_keeps_the_scale_and_forgets_the_way() -> None:
    scale = MetricScale()
    scale.fix(2.0)
    scale.apply(result(0, position=(1, 0, 0)))
    scale.fix(3.0)
    scale.apply(result(1, position=(1, 0, 0)))
    scale.restart()
    out = scale.apply(result(2, position=(1, 0, 0))).pose
    assert out is not None
    assert out.translation.tolist() == [3, 0, 0]


def test_fixing_and_letting_go() -> None:
    depth, points, _ = room(0.5)
    scale = MetricScale("range")
    for i in range(ENOUGH):
        scale.apply(result(5 * i * TENTH, depth), Evidence(points=points[::50]))
    assert scale.factor == pytest.approx(0.5, rel=0.03)
    scale.fix(7.0)
    assert scale.factor == 7.0
    assert scale.state(0).source == "fixed"
    assert not scale.needs_depth(10**12)
    scale.unfix()
    assert scale.factor == pytest.approx(0.5, rel=0.03)
    fixed = MetricScale("fixed", 2.0)
    fixed.fix(5.0)
    assert fixed.factor == 5.0
    fixed.unfix()
    assert fixed.factor == 2.0


@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan, np.inf])
def test_a_factor_that_cannot_be_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        MetricScale("fixed", factor)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match="model, fixed, height, odometry, range"):
        MetricScale("sonar")


def test_a_saved_scale_goes_on_to_the_last_bit() -> None:
    depth, points, _ = room(0.5)

    def run(scale: MetricScale, steps: range) -> list[StreamResult]:
        return [
            scale.apply(
                result(5 * i * TENTH, depth * (1 + 0.01 * i), (0.1 * i, 0, 0)),
                Evidence(points=points[i::50]),
            )
            for i in steps
        ]

    whole = MetricScale("range")
    expected = run(whole, range(40))[20:]
    begun, restored = MetricScale("range"), MetricScale("range")
    run(begun, range(20))
    restored.load_state_dict(begun.state_dict())
    for ours, theirs in zip(run(restored, range(20, 40)), expected, strict=True):
        assert torch.equal(ours.depth, theirs.depth)
        np.testing.assert_array_equal(ours.pose.translation, theirs.pose.translation)
    with pytest.raises(ValueError, match="'scale'"):
        MetricScale("height").load_state_dict(begun.state_dict())


def test_depth_of_another_size_is_compared_in_its_own_pixels() -> None:
    depth, points, _ = room(0.5)
    large = torch.nn.functional.interpolate(depth[None, None], scale_factor=3, mode="nearest")
    camera: Intrinsics = CAMERA.resized(384, 288)
    assert from_points(points[::30], large[0, 0], camera) == pytest.approx(0.5, rel=0.03)
    scale = MetricScale("range")
    scaled = dataclasses.replace(result(0, large[0, 0]), intrinsics=camera)
    for i in range(ENOUGH):
        frame = dataclasses.replace(scaled, stamp_ns=5 * i * TENTH)
        scale.apply(frame, Evidence(points=points[::30]))
    assert scale.factor == pytest.approx(0.5, rel=0.03)
