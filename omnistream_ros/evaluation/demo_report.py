# SPDX-License-Identifier: Apache-2.0
"""The result of a live run in numbers: what the demo measures, and the table that it prints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omnistream_ros.evaluation.depth_metrics import (
    DepthMetrics,
    constant_baseline,
    evaluate_depth,
)
from omnistream_ros.evaluation.depth_pairs import DepthPairs, check_same_camera
from omnistream_ros.evaluation.node_bag import NodeBag, NodeRun, percentiles
from omnistream_ros.evaluation.pose_metrics import (
    PoseMetrics,
    pose_metrics,
    static_trajectory,
)
from omnistream_ros.evaluation.recordings import (
    DepthFrame,
    Recording,
    RecordingError,
    with_depth,
)
from omnistream_ros.evaluation.trajectory import Trajectory, TrajectoryError
from omnistream_ros.stream.frame import Frame

#: Rows of the picture.
_EXAMPLES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One processed frame, to look at."""

    frame: Frame
    prediction: np.ndarray  # (h, w) float32 metres
    truth: np.ndarray | None  # (H, W) float32 metres, NaN unknown


@dataclasses.dataclass(frozen=True, eq=False)
class DemoResult:
    """Everything that the demo's table and picture show; None where there is no ground truth.

    Attributes:
        sent: images that the player published.
        played_hz: rate at which the player published them.
        depth: errors of the depth as published; ``scaled_depth`` after one factor for the sequence;
            ``constant_depth`` of the same depth everywhere.
        pose: errors of the pose as published (rigid alignment); ``scaled_pose`` after Sim(3);
            ``static_pose`` of a camera that stands still.
        notes: why something is missing.
    """

    name: str
    sent: int
    played_hz: float
    run: NodeRun
    published: int
    depth: DepthMetrics | None
    scaled_depth: DepthMetrics | None
    constant_depth: DepthMetrics | None
    pose: PoseMetrics | None
    scaled_pose: PoseMetrics | None
    static_pose: PoseMetrics | None
    trajectory: Trajectory | None
    true_trajectory: Trajectory | None
    examples: list[Example]
    notes: list[str]


def measure(recording: Recording, node_bag: Path, played: dict[str, Any]) -> DemoResult:
    """Compare what a node published with the recording that was played to it.

    Args:
        played: the player's report, of which ``frames`` and ``duration_s`` are used.

    Raises:
        RecordingError: the node's bag holds no processed frame, or a file is damaged.
    """
    bag = NodeBag(node_bag)
    run = bag.run()
    notes: list[str] = []
    chosen = _spread([frame.stamp_ns for frame in run.frames], _EXAMPLES)
    examples: list[Example] = []
    pairs = DepthPairs()
    try:
        for frame, prediction, truth in _together(recording, bag, notes):
            if prediction is None:
                continue
            if truth is not None:
                pairs.add(frame.stamp_ns, prediction.depth, truth.depth, recording.depth_limits)
            if frame.stamp_ns in chosen:
                true_depth = None if truth is None else truth.depth
                examples.append(Example(frame, prediction.depth, true_depth))
        depth = scaled = constant = None
        if pairs.pixels:
            depth = evaluate_depth(pairs, "metric").metrics
            scaled = evaluate_depth(pairs, "scale").metrics
            constant = constant_baseline(pairs)
        else:
            notes.append("no ground-truth depth: depth was not measured")
    finally:
        pairs.close()
    estimate, truth_path = _trajectories(recording, bag, notes)
    sent, span = int(played["frames"]), float(played["duration_s"])
    poses = _measure_poses(estimate, truth_path, sent, notes)
    return DemoResult(
        name=recording.name,
        sent=sent,
        played_hz=(sent - 1) / span if span else math.nan,
        run=run,
        published=bag.count("depth/image"),
        depth=depth,
        scaled_depth=scaled,
        constant_depth=constant,
        pose=poses[0],
        scaled_pose=poses[1],
        static_pose=poses[2],
        trajectory=estimate,
        true_trajectory=truth_path,
        examples=examples,
        notes=notes,
    )


def _together(
    recording: Recording, bag: NodeBag, notes: list[str]
) -> Iterator[tuple[Frame, DepthFrame | None, DepthFrame | None]]:
    """Every frame of the recording with the depth published for it and the true depth."""
    published = iter(bag.depths())
    waiting = next(published, None)
    for frame, truth in _with_truth(recording, notes):
        while waiting is not None and waiting.stamp_ns < frame.stamp_ns:
            waiting = next(published, None)
        exact = waiting is not None and waiting.stamp_ns == frame.stamp_ns
        yield frame, waiting if exact else None, truth


def _with_truth(
    recording: Recording, notes: list[str]
) -> Iterator[tuple[Frame, DepthFrame | None]]:
    """Frames with true depth, or without it (and a note) where the truth cannot be used."""
    try:
        first = next(with_depth(recording.frames(), recording.depths()), None)
        if first is not None and first[1] is not None:
            check_same_camera(first[0], first[1])
        depths = recording.depths()
    except RecordingError as error:
        notes.append(f"ground-truth depth not used: {error}")
        depths = iter(())
    yield from with_depth(recording.frames(), depths)


def _trajectories(
    recording: Recording, bag: NodeBag, notes: list[str]
) -> tuple[Trajectory | None, Trajectory | None]:
    """Estimated and true poses; a note for each that cannot be used."""
    paths: list[Trajectory | None] = []
    for what, source in (("published", bag), ("ground-truth", recording)):
        path = None
        try:
            path = source.trajectory()
            if path is None:
                notes.append(f"no {what} pose")
        except RecordingError as error:
            notes.append(f"{what} pose not used: {error}")
        paths.append(path)
    return paths[0], paths[1]


def _measure_poses(
    estimate: Trajectory | None, truth: Trajectory | None, frames: int, notes: list[str]
) -> tuple[PoseMetrics | None, PoseMetrics | None, PoseMetrics | None]:
    """Rigidly aligned, with scale, and of a static camera at the same instants."""
    if estimate is None or truth is None:
        return None, None, None
    static = static_trajectory(estimate.stamps_ns)
    try:
        return (
            pose_metrics(estimate, truth, frames=frames, alignment="se3"),
            pose_metrics(estimate, truth, frames=frames, alignment="sim3"),
            pose_metrics(static, truth, frames=frames, alignment="se3"),
        )
    except TrajectoryError as error:
        notes.append(f"pose was not measured: {error}")
        return None, None, None


def _spread(stamps: list[int], count: int) -> set[int]:
    """Up to ``count`` of the stamps, evenly spread over the time from first to last."""
    all_stamps = np.array(stamps)
    step = (all_stamps[-1] - all_stamps[0]) / count
    wanted = all_stamps[0] + step * (np.arange(count) + 0.5)
    return {int(all_stamps[np.argmin(np.abs(all_stamps - time))]) for time in wanted}


# -- the table ------------------------------------------------------------------------------------


def table(result: DemoResult) -> str:
    """The demo's table, for a terminal of 80 columns."""
    run = result.run
    scale = "metres" if run.metric else "up to scale"
    lines = [
        f"{result.name}: {run.model_name} ({run.weights_sha256[:12]}), depth in {scale}",
        "",
        "Frames",
        _row("sent by the player", f"{result.sent}"),
        _row("received by the node", f"{run.received}", _percent(run.received, result.sent)),
        _row("processed", f"{run.processed}", _percent(run.processed, result.sent)),
        _row("depth images recorded", f"{result.published}"),
        _row("lost on the way", f"{max(result.sent - run.received, 0)}"),
    ]
    lines += [_row(f"dropped: {reason}", f"{n}") for reason, n in run.drops.items() if n]
    if not any(run.drops.values()):
        lines.append(_row("dropped by the node", "0"))
    lines.append(_row("rate", f"{run.rate_hz:.1f} Hz", f"of {result.played_hz:.1f} Hz"))
    lines += ["", _row("Latency (ms)", "median", "p95")]
    for stage, values in run.stages().items():
        lines.append(_row(stage, *(f"{value:.1f}" for value in percentiles(values))))
    totals = percentiles([frame.latency_ms for frame in run.frames])
    lines.append(_row("receipt to publish", *(f"{value:.1f}" for value in totals)))
    if result.depth and result.scaled_depth and result.constant_depth:
        lines += ["", _row("Depth against truth", "AbsRel", "d < 1.25")]
        for name, depth in (
            ("as published", result.depth),
            ("with one scale", result.scaled_depth),
            ("constant depth (baseline)", result.constant_depth),
        ):
            lines.append(_row(name, f"{depth.abs_rel:.3f}", f"{100 * depth.delta1:.1f} %"))
    if result.pose and result.scaled_pose and result.static_pose:
        lines += ["", _row("Pose against truth", "ATE", "RPE", "RPE rotation")]
        for name, pose in (
            ("as published", result.pose),
            ("with one scale", result.scaled_pose),
            ("camera standing still", result.static_pose),
        ):
            lines.append(
                _row(name, f"{pose.ate_m:.3f} m", f"{pose.rpe_m:.4f} m", f"{pose.rpe_deg:.2f} deg")
            )
        lines.append(_row("way travelled", f"{result.pose.path_m:.2f} m"))
    if result.notes:
        lines += ["", *(f"Note: {note}" for note in result.notes)]
    return "\n".join(lines)


def _row(name: str, *values: str) -> str:
    return f"  {name:<26}" + "".join(f"{value:>14}" for value in values)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else ""
