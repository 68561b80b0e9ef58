# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from omnistream_ros.evaluation.pose_metrics import (
    Similarity,
    match,
    pose_metrics,
    scale_drift_percent,
    static_trajectory,
    umeyama,
)
from omnistream_ros.evaluation.trajectory import Trajectory, TrajectoryError, write_tum


def walk(count: int = 120, seed: int = 3) -> Trajectory:
    """A path like that of a hand-held camera."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.normal(size=(count, 3)), axis=0) * 0.02
    turns = Rotation.from_rotvec(np.cumsum(rng.normal(size=(count, 3)), axis=0) * 0.03)
    stamps = 1_600_000_000_000_000_000 + np.arange(count) * 33_333_333
    return Trajectory(stamps, np.cumsum(steps, axis=0), turns.as_quat())


def disturbed(truth: Trajectory, seed: int = 4) -> Trajectory:
    rng = np.random.default_rng(seed)
    noise = Rotation.from_rotvec(rng.normal(size=(len(truth), 3)) * 0.02)
    motion = Similarity(0.6, Rotation.random(random_state=seed).as_matrix(), rng.normal(size=3))
    moved = motion.apply(truth)
    return Trajectory(
        truth.stamps_ns + rng.integers(-4_000_000, 4_000_000, len(truth)),
        moved.translations + rng.normal(size=(len(truth), 3)) * 0.05,
        (Rotation.from_quat(moved.quaternions) * noise).as_quat(),
    )


@pytest.mark.parametrize("with_scale", [True, False])
def test_umeyama_recovers_a_known_motion(with_scale: bool) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 3))
    scale = 2.5 if with_scale else 1.0
    motion = Similarity(scale, Rotation.random(random_state=1).as_matrix(), np.array([1.0, -2, 3]))
    found = umeyama(points, motion.points(points), with_scale=with_scale)
    assert found.scale == pytest.approx(scale, abs=1e-12)
    assert np.allclose(found.rotation, motion.rotation, atol=1e-12)
    assert np.allclose(found.translation, motion.translation, atol=1e-12)


def test_umeyama_never_mirrors() -> None:
    points = np.random.default_rng(0).normal(size=(40, 3))
    found = umeyama(points, points * [1, 1, -1], with_scale=True)
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)


def test_umeyama_beats_every_neighbouring_motion() -> None:
    rng = np.random.default_rng(5)
    source, target = rng.normal(size=(30, 3)), rng.normal(size=(30, 3))

    def cost(motion: Similarity) -> float:
        return float(((motion.points(source) - target) ** 2).sum())

    best = umeyama(source, target, with_scale=True)
    for _ in range(300):
        turn = Rotation.from_rotvec(rng.normal(size=3) * 0.05).as_matrix()
        other = Similarity(
            best.scale * np.exp(rng.normal() * 0.05),
            turn @ best.rotation,
            best.translation + rng.normal(size=3) * 0.05,
        )
        assert cost(other) >= cost(best)


def test_points_that_determine_nothing_still_give_the_smallest_error() -> None:
    truth = walk()
    still = static_trajectory(truth.stamps_ns)
    metrics = pose_metrics(still, truth, alignment="sim3")
    spread = np.sqrt(((truth.translations - truth.translations.mean(axis=0)) ** 2).sum(1).mean())
    assert metrics.scale == 1.0
    assert metrics.ate_m == pytest.approx(spread, rel=1e-12)
    with pytest.raises(ValueError, match="equal sets"):
        umeyama(np.zeros((0, 3)), np.zeros((0, 3)), with_scale=True)
    with pytest.raises(ValueError, match="finite"):
        umeyama(np.full((3, 3), np.nan), np.zeros((3, 3)), with_scale=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 20.0))
def test_sim3_does_not_see_a_similarity_and_se3_not_a_rigid_motion(seed: int, scale: float) -> None:
    truth = walk()
    estimate = disturbed(truth)
    rng = np.random.default_rng(seed)
    turn = Rotation.random(random_state=rng.integers(2**31)).as_matrix()
    rigid = Similarity(1.0, turn, rng.normal(size=3) * 10)
    similar = Similarity(scale, turn, rng.normal(size=3) * 10)
    for alignment, motion in (("sim3", similar), ("se3", rigid)):
        first = pose_metrics(estimate, truth, alignment=alignment)
        second = pose_metrics(motion.apply(estimate), truth, alignment=alignment)
        for name in ("ate_m", "rpe_m", "rpe_deg"):
            assert getattr(second, name) == pytest.approx(getattr(first, name), rel=1e-6)


def test_known_errors_come_out() -> None:
    stamps = np.arange(11, dtype=np.int64) * 10**9
    forward = np.outer(np.arange(11.0), [1.0, 0.0, 0.0])
    level = np.tile([0.0, 0.0, 0.0, 1.0], (11, 1))
    truth = Trajectory(stamps, forward, level)
    longer = Trajectory(stamps, 1.1 * forward, level)
    unaligned = pose_metrics(longer, truth, alignment="none")
    assert unaligned.rpe_m == pytest.approx(0.1)
    assert unaligned.ate_m == pytest.approx(np.sqrt(np.mean((0.1 * np.arange(11)) ** 2)))
    assert pose_metrics(longer, truth, alignment="sim3").ate_m == pytest.approx(0.0, abs=1e-9)
    assert pose_metrics(longer, truth, alignment="sim3").scale == pytest.approx(1 / 1.1)
    turning = Rotation.from_euler("z", 2.0 * np.arange(11)[:, None], degrees=True).as_quat()
    turned = pose_metrics(Trajectory(stamps, forward, turning), truth, alignment="none")
    assert turned.rpe_deg == pytest.approx(2.0)
    assert truth.path_length() == pytest.approx(10.0)


def test_scale_drift() -> None:
    stamps = np.arange(101, dtype=np.int64)
    level = np.tile([0.0, 0.0, 0.0, 1.0], (101, 1))
    steps = np.ones(100)
    truth = Trajectory(stamps, np.outer(np.r_[0, np.cumsum(steps)], [0, 0, 1.0]), level)
    steps[75:] = 0.5  # what the estimate believes to be half a metre is one
    drifting = Trajectory(stamps, np.outer(np.r_[0, np.cumsum(steps)], [0, 0, 1.0]), level)
    assert scale_drift_percent(drifting, truth) == pytest.approx(100.0)
    assert scale_drift_percent(truth, truth) == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(scale_drift_percent(static_trajectory(stamps), truth))


def test_tracked_counts_frames_and_a_truth_that_covers_a_part_is_used_for_that_part() -> None:
    truth = walk(100)
    estimate = truth[np.arange(0, 100, 2)]
    metrics = pose_metrics(estimate, truth[:60], frames=100, alignment="se3")
    assert metrics.tracked_percent == 50.0
    assert metrics.matched == 30


def test_clocks_that_do_not_meet_are_reported() -> None:
    truth = walk()
    late = Trajectory(truth.stamps_ns + 10**12, truth.translations, truth.quaternions)
    with pytest.raises(TrajectoryError, match="clocks"):
        match(late, truth)
    with pytest.raises(TrajectoryError, match="too few"):
        pose_metrics(truth[:3], truth, delta=5)


# -- against evo ----------------------------------------------------------------------------------


def evo(program: str, folder: Path, *options: str) -> dict[str, float]:
    """Run an evo program on truth.txt and estimate.txt; its statistics at full precision."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (pip install evo): no agreement was checked")
    result = folder / "result.zip"
    result.unlink(missing_ok=True)
    subprocess.run(
        [program, "tum", "truth.txt", "estimate.txt", "--t_max_diff", "0.02",
         "--save_results", str(result), "--no_warnings", *options],
        cwd=folder, check=True, capture_output=True,
        env={**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    with zipfile.ZipFile(result) as archive:
        return json.loads(archive.read("stats.json"))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Trajectory, Trajectory]:
    folder = tmp_path_factory.mktemp("evo")
    truth = walk()
    estimate = disturbed(truth)[np.delete(np.arange(len(truth)), [5, 6, 40])]
    write_tum(folder / "truth.txt", truth)
    write_tum(folder / "estimate.txt", estimate)
    return folder, estimate, truth


@pytest.mark.parametrize(("alignment", "flags"), [("sim3", ["-as"]), ("se3", ["-a"]), ("none", [])])
def test_ate_agrees_with_evo(files, alignment, flags) -> None:
    folder, estimate, truth = files
    ours = pose_metrics(estimate, truth, alignment=alignment)
    theirs = evo("evo_ape", folder, "-r", "trans_part", *flags)
    assert ours.ate_m == pytest.approx(theirs["rmse"], abs=1e-6)


@pytest.mark.parametrize("delta", [1, 10])
def test_rpe_agrees_with_evo(files, delta: int) -> None:
    folder, estimate, truth = files
    ours = pose_metrics(estimate, truth, alignment="sim3", delta=delta)
    common = ("-as", "--delta", str(delta), "--delta_unit", "f", "--all_pairs")
    translation = evo("evo_rpe", folder, "-r", "trans_part", *common)
    rotation = evo("evo_rpe", folder, "-r", "angle_deg", *common)
    assert ours.rpe_m == pytest.approx(translation["rmse"], abs=1e-6)
    assert ours.rpe_deg == pytest.approx(rotation["rmse"], abs=1e-6)
