# SPDX-License-Identifier: Apache-2.0
"""A live run beside the deterministic replay of the same recording: what only real time shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from omnistream_ros.evaluation.evaluate import Options
from omnistream_ros.evaluation.live import run_live
from omnistream_ros.evaluation.node_bag import NodeBag, percentiles
from omnistream_ros.evaluation.pose_metrics import absolute_errors, align, match
from omnistream_ros.evaluation.predictors import ModelPredictor
from omnistream_ros.evaluation.recordings import open_recording
from omnistream_ros.evaluation.trajectory import Trajectory
from omnistream_ros.stream.frame import Frame


@dataclasses.dataclass(frozen=True)
class LiveMeasures:
    """What the live run of one recording came to.

    Attributes:
        played, received, processed: frames that left the player, reached the node, went through.
        played_hz, rate_hz: rates of playing and of processing.
        dropped: frames received but not used, by reason.
        latency_median_ms, latency_p95_ms: from receipt of an image to its last output.
        stages_ms: median and 95th percentile by stage, as text.
        same_frames: frames whose live depth was compared with a replay of just these frames.
        depth_difference: largest relative difference of depth found there.
        position_difference_m: largest distance between the node's position and the replay's, with
            one path laid onto the other as a rigid body; NaN without poses.
    """

    played: int
    received: int
    processed: int
    played_hz: float
    rate_hz: float
    dropped: dict[str, int]
    latency_median_ms: float
    latency_p95_ms: float
    stages_ms: dict[str, str]
    same_frames: int
    depth_difference: float
    position_difference_m: float

    def __str__(self) -> str:
        return (
            f"{self.processed} of {self.played} frames at {self.rate_hz:.1f} Hz (played at "
            f"{self.played_hz:.1f} Hz); receipt to last output {self.latency_median_ms:.0f} ms "
            f"median, {self.latency_p95_ms:.0f} ms p95; largest difference from a replay: "
            f"depth {self.depth_difference:.1e}, position {self.position_difference_m:.1e} m"
        )


def measure_live(
    path: Path, options: Options, out: Path, say: Callable[[str], None]
) -> LiveMeasures:
    """Play a recording to a node, then replay exactly the frames that the node used.

    The replay gets the same frames in the same order, so whatever differs beyond rounding is an
    error of the way there: transport, conversion, or the node.

    Raises:
        ChildError: a process failed.
        RecordingError: the recording cannot be read, or the node processed nothing.
    """
    live = run_live(
        path,
        out,
        selection=options.selection,
        parameters={
            "model": options.model,
            "device": options.device,
            "sink": str(options.sink),
            "window": str(options.window),
            "memory": options.memory,
            "keyframes": str(options.keyframes),
            "keyframe_cell": str(options.keyframe_cell),
        },
        say=say,
    )
    bag = NodeBag(live.bag)
    run = bag.run()
    median, late = percentiles([frame.latency_ms for frame in run.frames])
    used = {frame.stamp_ns for frame in run.frames}
    recording = open_recording(path, options.selection)
    frames = (frame for frame in recording.frames() if frame.stamp_ns in used)
    compared, depth, position = _compare(bag, frames, options)
    played_s = float(live.played["duration_s"])
    sent = int(live.played["frames"])
    return LiveMeasures(
        played=sent,
        received=run.received,
        processed=run.processed,
        played_hz=(sent - 1) / played_s if played_s else math.nan,
        rate_hz=run.rate_hz,
        dropped={reason: count for reason, count in run.drops.items() if count},
        latency_median_ms=median,
        latency_p95_ms=late,
        stages_ms={
            stage: "{:.1f} / {:.1f}".format(*percentiles(values))
            for stage, values in run.stages().items()
        },
        same_frames=compared,
        depth_difference=depth,
        position_difference_m=position,
    )


def _compare(bag: NodeBag, frames: Iterable[Frame], options: Options) -> tuple[int, float, float]:
    """How many depth images were compared, and the largest differences of depth and position."""
    import torch

    torch.set_num_threads(options.threads)
    predictor = ModelPredictor(options.model, device=options.device, policy=options.policy)
    published = bag.depths()
    compared, worst = 0, 0.0
    waiting = next(published, None)
    poses = []
    for number, frame in enumerate(frames):
        expected = predictor.predict(number, frame)
        if expected.translation is not None and expected.quaternion is not None:
            poses.append((frame.stamp_ns, expected.translation, expected.quaternion))
        while waiting is not None and waiting.stamp_ns < frame.stamp_ns:
            waiting = next(published, None)
        if waiting is None or waiting.stamp_ns != frame.stamp_ns or expected.depth is None:
            continue
        difference = np.abs(waiting.depth - expected.depth) / expected.depth
        worst = max(worst, float(np.nanmax(difference)))
        compared += 1
    return compared, worst if compared else math.nan, _position_difference(bag, poses)


def _position_difference(bag: NodeBag, poses: list[tuple[int, np.ndarray, np.ndarray]]) -> float:
    live = bag.trajectory()
    if live is None or len(poses) < 2:
        return math.nan
    stamps, translations, quaternions = zip(*poses, strict=True)
    replayed = Trajectory(np.array(stamps), np.stack(translations), np.stack(quaternions))
    first, second = match(live, replayed, tolerance_ns=0)
    moved = align(first, second, "se3").apply(first)
    return float(absolute_errors(moved, second).max())
