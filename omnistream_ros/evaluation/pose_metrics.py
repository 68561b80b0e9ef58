# SPDX-License-Identifier: Apache-2.0
"""How far an estimated trajectory is from the true one: ATE, RPE and scale drift.

Definitions follow Sturm et al., "A benchmark for the evaluation of RGB-D SLAM systems" (IROS 2012)
with the alignment of Umeyama (PAMI 1991); they agree with the `evo` command line tools.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from omnistream_ros.evaluation.rotations import rotation_angles
from omnistream_ros.evaluation.trajectory import (
    Trajectory,
    TrajectoryError,
    associate,
)

#: Estimated and true poses belong together when their stamps differ by no more than this.
POSE_TOLERANCE_NS = 20_000_000

Alignment = Literal["sim3", "se3", "none"]


@dataclasses.dataclass(frozen=True)
class Similarity:
    """``y = scale * rotation @ x + translation``."""

    scale: float
    rotation: np.ndarray  # (3, 3)
    translation: np.ndarray  # (3,)

    def apply(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory moved as a whole: positions scaled, every pose turned."""
        matrices = trajectory.matrices()
        matrices[:, :3, 3] = self.points(trajectory.translations)
        matrices[:, :3, :3] = self.rotation @ matrices[:, :3, :3]
        return Trajectory.from_matrices(trajectory.stamps_ns, matrices)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) moved."""
        return self.scale * points @ self.rotation.T + self.translation


@dataclasses.dataclass(frozen=True)
class PoseMetrics:
    """One estimated trajectory against the truth.

    Attributes:
        alignment: how the estimate was moved onto the truth before measuring.
        matched: pairs of poses that were compared.
        tracked_percent: of the frames that the recording has, those with an estimated pose.
        ate_m: root mean square distance of positions after alignment, metres.
        rpe_m: root mean square translation error of the motion from one pose to the next, metres.
        rpe_deg: root mean square rotation error of that motion, degrees.
        scale: factor that the alignment applied to the estimate (1 for ``se3`` and ``none``).
        scale_drift_percent: change of the local scale from the first to the last quarter of the
            way; NaN where a quarter does not move.
        path_m: length of the true path through the matched poses, metres.
    """

    alignment: Alignment
    matched: int
    tracked_percent: float
    ate_m: float
    rpe_m: float
    rpe_deg: float
    scale: float
    scale_drift_percent: float
    path_m: float


def umeyama(source: np.ndarray, target: np.ndarray, *, with_scale: bool) -> Similarity:
    """The similarity (or rigid motion) that brings ``source`` closest to ``target`` in least
    squares.

    Where the points do not determine a rotation (all on a line, or all the same), one of the
    equally good ones is returned; a source without extent gets scale 1.

    Args:
        source, target: (N, 3) points, N >= 1.

    Raises:
        ValueError: shapes differ, no points, or a number is not finite.
    """
    source = np.asarray(source, dtype=np.float64)
    target = np.asarray(target, dtype=np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3 or not len(source):
        raise ValueError(
            f"need two equal sets of points (N, 3), got {source.shape}, {target.shape}"
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("points must be finite")
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    x, y = source - source_mean, target - target_mean
    u, singular, vt = np.linalg.svd(y.T @ x / len(x))
    sign = np.ones(3)
    if np.linalg.det(u) * np.linalg.det(vt) < 0:
        sign[2] = -1.0  # the best rotation, where the best orthogonal matrix is a reflection
    rotation = (u * sign) @ vt
    variance = (x * x).sum() / len(x)
    extent = np.abs(source).max() ** 2
    scale = 1.0
    if with_scale and variance > 1e-24 * max(extent, 1e-300):
        scale = float((singular * sign).sum() / variance)
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def align(
    estimate: Trajectory,
    truth: Trajectory,
    alignment: Alignment,
) -> Similarity:
    """The motion that aligns an estimate to the truth; both have one pose for each other's."""
    if alignment == "none":
        return Similarity(1.0, np.eye(3), np.zeros(3))
    return umeyama(estimate.translations, truth.translations, with_scale=alignment == "sim3")


def match(
    estimate: Trajectory, truth: Trajectory, tolerance_ns: int = POSE_TOLERANCE_NS
) -> tuple[Trajectory, Trajectory]:
    """The poses of both that belong together in time, pair by pair.

    Raises:
        TrajectoryError: fewer than two pairs.
    """
    left, right = associate(estimate.stamps_ns, truth.stamps_ns, tolerance_ns)
    if len(left) < 2:
        raise TrajectoryError(
            f"{len(left)} of {len(estimate)} estimated and {len(truth)} true poses are within "
            f"{tolerance_ns / 1e9:g} s of each other; at least 2 are needed. "
            "Are their clocks the same?"
        )
    return estimate[left], truth[right]


def absolute_errors(estimate: Trajectory, truth: Trajectory) -> np.ndarray:
    """Distances (N,) in metres between the positions of matched trajectories, without alignment."""
    return np.linalg.norm(estimate.translations - truth.translations, axis=1)


def relative_errors(
    estimate: Trajectory, truth: Trajectory, delta: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the motion over ``delta`` poses, all pairs (i, i + delta), of matched trajectories.

    Returns:
        (N - delta,) metres and (N - delta,) degrees.
    """
    e, t = estimate.matrices(), truth.matrices()
    motion_e = _inverse(e[:-delta]) @ e[delta:]
    motion_t = _inverse(t[:-delta]) @ t[delta:]
    error = _inverse(motion_t) @ motion_e
    return (
        np.linalg.norm(error[:, :3, 3], axis=1),
        np.degrees(rotation_angles(error[:, :3, :3])),
    )


def pose_metrics(
    estimate: Trajectory,
    truth: Trajectory,
    *,
    frames: int | None = None,
    tracked: int | None = None,
    alignment: Alignment = "sim3",
    tolerance_ns: int = POSE_TOLERANCE_NS,
    delta: int = 1,
) -> PoseMetrics:
    """Measure an estimated trajectory.

    Args:
        frames: how many images the recording has; by default every true pose stands for one.
        tracked: in how many of them the camera was followed; by default all that have a pose.
        alignment: ``sim3`` for the protocol of MonST3R and CUT3R, ``se3`` to measure metres as they
            were estimated, ``none`` to compare in the same world.
        delta: frames between the poses of an RPE pair.

    Raises:
        TrajectoryError: fewer than ``delta`` + 1 pairs in time.
    """
    matched, true = match(estimate, truth, tolerance_ns)
    if len(matched) <= delta:
        raise TrajectoryError(f"{len(matched)} matched poses are too few for RPE over {delta}")
    motion = align(matched, true, alignment)
    aligned = motion.apply(matched)
    translation, rotation = relative_errors(aligned, true, delta)
    return PoseMetrics(
        alignment=alignment,
        matched=len(matched),
        tracked_percent=100.0
        * (len(estimate) if tracked is None else tracked)
        / (len(truth) if frames is None else frames),
        ate_m=rms(absolute_errors(aligned, true)),
        rpe_m=rms(translation),
        rpe_deg=rms(rotation),
        scale=motion.scale,
        scale_drift_percent=scale_drift_percent(matched, true),
        path_m=true.path_length(),
    )


def scale_drift_percent(estimate: Trajectory, truth: Trajectory) -> float:
    """How much the scale of matched trajectories changes from the first to the last quarter.

    The local scale is the true length of way over the estimated one.
    """
    true_steps = np.linalg.norm(np.diff(truth.translations, axis=0), axis=1)
    steps = np.linalg.norm(np.diff(estimate.translations, axis=0), axis=1)
    quarter = max(len(steps) // 4, 1)
    first = (true_steps[:quarter].sum(), steps[:quarter].sum())
    last = (true_steps[-quarter:].sum(), steps[-quarter:].sum())
    if min(*first, *last) <= 1e-9:
        return math.nan
    return float(100.0 * ((last[0] / last[1]) / (first[0] / first[1]) - 1.0))


def static_trajectory(stamps_ns: np.ndarray) -> Trajectory:
    """The camera that never moves: the baseline that every pose estimate has to beat."""
    count = len(stamps_ns)
    return Trajectory(stamps_ns, np.zeros((count, 3)), np.tile([0.0, 0.0, 0.0, 1.0], (count, 1)))


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def _inverse(matrices: np.ndarray) -> np.ndarray:
    """Inverses of rigid motions (N, 4, 4), by transposing instead of solving."""
    out = np.tile(np.eye(4), (len(matrices), 1, 1))
    rotation = matrices[:, :3, :3].transpose(0, 2, 1)
    out[:, :3, :3] = rotation
    out[:, :3, 3] = -(rotation @ matrices[:, :3, 3:])[:, :, 0]
    return out
