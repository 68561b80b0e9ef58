# SPDX-License-Identifier: Apache-2.0
"""Replay: every frame of a recording in order, none lost, measured against the truth.

The same input gives the same numbers, bit for bit: nothing here depends on time or on chance, and
only the timings and the memory of a frame are measured rather than computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from omnistream_ros.evaluation.collector import Collector, Scoring
from omnistream_ros.evaluation.depth_pairs import DepthPairs
from omnistream_ros.evaluation.predictors import Predictor
from omnistream_ros.evaluation.protocols import FrameRange
from omnistream_ros.evaluation.recordings import (
    FAULTS,
    Recording,
    RecordingError,
    RecordingInfo,
    with_depth,
)
from omnistream_ros.evaluation.sequence_result import SequenceResult
from omnistream_ros.evaluation.trajectory import Trajectory


def replay(
    recording: Recording,
    predictor: Predictor,
    scoring: Scoring,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> SequenceResult:
    """Run a recording through a predictor and measure what comes out.

    Ctrl-C ends the replay; what was done until then is measured, and the result says so.

    Args:
        progress: called after every frame with the number done and the total, if known.

    Returns:
        The result; ``failed`` where the recording or the truth turned out to be broken, or the
        predictor cannot work with its images.
    """
    result = SequenceResult(recording.name, str(recording.path), "ok")
    pairs = DepthPairs()
    try:
        result.info = recording.info()
        truth = _true_trajectory(recording, result)
        collector = Collector(result, pairs, truth, scoring, recording.depth_limits)
        try:
            _run(recording, predictor, scoring, collector, progress)
        except KeyboardInterrupt:
            result.status = "partial"
            result.notes.append(f"interrupted after {len(result.rows)} frames")
        result.model, result.sha256 = predictor.name, predictor.sha256
        result.metric = predictor.metric
        result.context_capacity = predictor.context_capacity
        result.memory = predictor.memory
        collector.finish(predictor.trajectory())
    except FAULTS as error:
        return SequenceResult(
            recording.name, str(recording.path), "failed", error=str(error), info=result.info
        )
    finally:
        pairs.close()
    return result


def _true_trajectory(recording: Recording, result: SequenceResult) -> Trajectory | None:
    truth = recording.trajectory()
    result.notes += getattr(recording, "pose_notes", [])
    if truth is None:
        result.notes.append("no ground-truth pose")
    return truth


def _run(
    recording: Recording,
    predictor: Predictor,
    scoring: Scoring,
    collector: Collector,
    progress: Callable[[int, int | None], None],
) -> None:
    total = _total(collector.result.info, scoring.frames)
    numbered = zip(itertools.count(), with_depth(recording.frames(), recording.depths()))
    done = 0
    for number, (frame, truth) in scoring.frames.of(numbered):
        collector.add(number, frame, predictor.predict(number, frame), truth)
        done += 1
        progress(done, total)
    if not done:
        raise RecordingError(f"{recording.path} has no frame in the range {scoring.frames}")


def _total(info: RecordingInfo | None, frames: FrameRange) -> int | None:
    if info is None or info.frames is None:
        return None
    return frames.count(info.frames)
