# SPDX-License-Identifier: Apache-2.0
"""Measuring a sequence while it passes: takes frame after frame, and measures at the end."""

from __future__ import annotations

import dataclasses
import math
import resource

import cv2
import numpy as np

from omnistream_ros.evaluation.depth_alignment import AlignmentError, Mode, Way
from omnistream_ros.evaluation.depth_metrics import (
    DepthView,
    constant_baseline,
    evaluate_depth,
    mean_of,
    temporal_change,
)
from omnistream_ros.evaluation.depth_pairs import DepthPairs, check_same_camera, resize_prediction
from omnistream_ros.evaluation.pose_metrics import (
    POSE_TOLERANCE_NS,
    Alignment,
    pose_metrics,
    static_trajectory,
)
from omnistream_ros.evaluation.predictors import FramePrediction
from omnistream_ros.evaluation.protocols import ALL_FRAMES, FrameRange
from omnistream_ros.evaluation.recordings import DepthFrame
from omnistream_ros.evaluation.sequence_result import Example, FrameRow, SequenceResult
from omnistream_ros.evaluation.trajectory import Trajectory
from omnistream_ros.stream.frame import Frame

#: The alignments of every report: (mode, way).
ALIGNMENTS: tuple[tuple[Mode, Way], ...] = (
    ("metric", "protocol"),
    ("scale", "protocol"),
    ("median", "protocol"),
    ("scale", "exact"),
    ("scale_shift", "exact"),
)
#: Those whose errors are kept frame by frame.
_BY_FRAME = ("metric", "scale")

_EXAMPLES = 6
_EXAMPLE_WIDTH = 480  # pixels; examples are to be looked at


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How a sequence is measured.

    Attributes:
        frames: which frames of the recording are used.
        depth_limits: true depth that counts; None for the recording's own.
        depth_clip: aligned predictions are cut to this.
        per_frame: one alignment per frame instead of one per sequence.
    """

    frames: FrameRange = ALL_FRAMES
    depth_limits: tuple[float, float] | None = None
    depth_clip: float | None = None
    per_frame: bool = False


def alignment_name(mode: Mode, way: Way) -> str:
    """How an alignment is called in tables."""
    return f"{mode} (exact)" if way == "exact" and mode == "scale" else mode


class Collector:
    """Takes frame after frame and keeps what the measures need, and no more."""

    def __init__(
        self,
        result: SequenceResult,
        pairs: DepthPairs,
        truth: Trajectory | None,
        scoring: Scoring,
        own_limits: tuple[float, float],
    ) -> None:
        self.result = result
        self._pairs = pairs
        self._truth = truth
        self._scoring = scoring
        self._limits = scoring.depth_limits or own_limits
        self._last_view: DepthView | None = None
        self._poses: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._example_step = 1
        self._with_truth = 0  # frames that have true depth

    def add(
        self, number: int, frame: Frame, prediction: FramePrediction, truth: DepthFrame | None
    ) -> None:
        """Take one frame with its prediction and its true depth, if there is one."""
        change = math.nan
        self._with_truth += truth is not None
        if truth is not None and prediction.depth is not None:
            check_same_camera(frame, truth)
            self._pairs.add(frame.stamp_ns, prediction.depth, truth.depth, self._limits)
            change = self._temporal_change(frame, prediction.depth, truth)
        else:
            self._last_view = None
            if truth is not None:
                self._pairs.add_missing(truth.depth, self._limits)
        if prediction.translation is not None and prediction.quaternion is not None:
            self._poses.append((frame.stamp_ns, prediction.translation, prediction.quaternion))
        self._keep_example(number, frame, prediction.depth, truth)
        timings = {stage: 1000.0 * seconds for stage, seconds in prediction.timings_s.items()}
        self.result.rows.append(
            FrameRow(
                number=number,
                stamp_ns=frame.stamp_ns,
                epoch=prediction.epoch,
                frame_index=prediction.frame_index,
                epoch_reason=prediction.epoch_reason or "",
                context_frames=prediction.context_frames,
                timings_ms=timings,
                memory_mib=resident_mib(),
                tracked=prediction.tracked,
                temporal_change=change,
            )
        )

    def _temporal_change(self, frame: Frame, depth: np.ndarray, truth: DepthFrame) -> float:
        camera = truth.intrinsics or frame.intrinsics
        pose = self._pose_at(frame.stamp_ns)
        before, self._last_view = self._last_view, None
        if camera is None or pose is None:
            return math.nan
        height, width = truth.depth.shape
        self._last_view = DepthView(
            resize_prediction(depth, truth.depth.shape),
            truth.depth,
            camera.resized(width, height),
            pose,
        )
        return math.nan if before is None else temporal_change(before, self._last_view)

    def _pose_at(self, stamp_ns: int) -> np.ndarray | None:
        """The true pose (4, 4) nearest in time, None when none is near."""
        if self._truth is None or not len(self._truth):
            return None
        index = int(np.argmin(np.abs(self._truth.stamps_ns - stamp_ns)))
        if abs(int(self._truth.stamps_ns[index]) - stamp_ns) > POSE_TOLERANCE_NS:
            return None
        return self._truth[index : index + 1].matrices()[0]

    def _keep_example(
        self, number: int, frame: Frame, depth: np.ndarray | None, truth: DepthFrame | None
    ) -> None:
        """Keep a few frames, evenly spread over a length that is not known beforehand."""
        if depth is None or len(self.result.rows) % self._example_step:
            return
        examples = self.result.examples
        examples.append(
            Example(
                number,
                frame.stamp_ns,
                _reduced(frame.image),
                _reduced(depth),
                None if truth is None else _reduced(truth.depth),
            )
        )
        if len(examples) >= 2 * _EXAMPLES:
            del examples[1::2]
            self._example_step *= 2

    def finish(self, poses: Trajectory | None) -> None:
        """Measure. ``poses`` replace those that came with the frames."""
        result, scoring = self.result, self._scoring
        if self._pairs.pixels:
            for mode, way in ALIGNMENTS:
                depth = evaluate_depth(
                    self._pairs, mode, way, per_frame=scoring.per_frame, clip=scoring.depth_clip
                )
                name = alignment_name(mode, way)
                if name not in _BY_FRAME:
                    depth = dataclasses.replace(depth, per_frame=[])
                result.depth[name] = depth
            result.depth_stamps = list(self._pairs.stamps_ns)
            result.constant_depth = constant_baseline(self._pairs)
            result.temporal_change = mean_of(row.temporal_change for row in result.rows)
            self._note_coverage("true depth", self._with_truth)
            if len(self._pairs) < self._with_truth:
                self._note_coverage("predicted depth", len(self._pairs), self._with_truth)
            if self._pairs.every > 1:
                result.notes.append(
                    f"depth: one in {self._pairs.every} of {self._pairs.compared:,} valid pixels "
                    "was compared, evenly spread over every frame, to bound memory and time"
                )
        elif self._pairs.stamps_ns:
            raise AlignmentError("no pixel has both a valid true depth and a prediction")
        elif self._with_truth:
            result.notes.append("no predicted depth")
        else:
            result.notes.append("no ground-truth depth")
        self._finish_poses(poses)

    def _note_coverage(self, what: str, has: int, of: int | None = None) -> None:
        """Say so when only a part of the frames could be measured."""
        frames = len(self.result.rows) if of is None else of
        if has < frames:
            whole = "frames" if of is None else "frames that have true depth"
            self.result.notes.append(f"{what} for {has} of {frames} {whole}: only these count")

    def _finish_poses(self, poses: Trajectory | None) -> None:
        result, frames = self.result, len(self.result.rows)
        if poses is None and self._poses:
            stamps, translations, quaternions = zip(*self._poses, strict=True)
            poses = Trajectory(np.array(stamps), np.stack(translations), np.stack(quaternions))
        result.trajectory, result.truth = poses, self._truth
        if poses is None:
            result.notes.append("no predicted pose")
            return
        if self._truth is None:
            return
        tracked = sum(row.tracked for row in result.rows) if self._poses else None
        alignments: tuple[Alignment, ...] = ("sim3", "se3")
        for alignment in alignments:
            result.pose[alignment] = pose_metrics(
                poses, self._truth, frames=frames, tracked=tracked, alignment=alignment
            )
        matched = result.pose["sim3"].matched
        if matched < len(poses):
            result.notes.append(
                f"true pose for {matched} of {len(poses)} estimated poses: only these count"
            )
        still = static_trajectory(poses.stamps_ns)
        result.pose["static"] = pose_metrics(still, self._truth, frames=frames, alignment="se3")


def _reduced(image: np.ndarray) -> np.ndarray:
    """At most ``_EXAMPLE_WIDTH`` pixels wide; depth keeps its values, not their means."""
    width = image.shape[1]
    if width <= _EXAMPLE_WIDTH:
        return image
    size = (_EXAMPLE_WIDTH, round(image.shape[0] * _EXAMPLE_WIDTH / width))
    how = cv2.INTER_AREA if image.dtype == np.uint8 else cv2.INTER_NEAREST
    return cv2.resize(image, size, interpolation=how)


def resident_mib() -> float:
    """Memory of this process in RAM, MiB; NaN where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return math.nan
