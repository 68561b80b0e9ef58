# SPDX-License-Identifier: Apache-2.0
"""What an evaluation knows about one recording: status, numbers, a row per frame, pictures."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from omnistream_ros.evaluation.depth_metrics import DepthMetrics, SequenceDepth
from omnistream_ros.evaluation.pose_metrics import PoseMetrics
from omnistream_ros.evaluation.recordings import RecordingInfo
from omnistream_ros.evaluation.trajectory import Trajectory


@dataclasses.dataclass(frozen=True, slots=True)
class FrameRow:
    """One line of the per-frame table."""

    number: int
    stamp_ns: int
    epoch: int
    frame_index: int
    epoch_reason: str
    context_frames: int
    timings_ms: dict[str, float]
    memory_mib: float
    tracked: bool
    temporal_change: float


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One frame to look at: RGB, prediction and truth, reduced in size."""

    number: int
    stamp_ns: int
    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray | None


@dataclasses.dataclass(eq=False)
class SequenceResult:
    """Everything measured on one recording.

    Attributes:
        status: ``ok``; ``partial`` when interrupted, with numbers of the frames that were done;
            ``failed``, with ``error`` and without numbers.
        memory: what the stream remembered, see `describe_policy`; empty when unknown.
        depth: by alignment, named ``mode`` or ``mode (exact)``; empty without ground truth.
        depth_stamps: frames of the depth's per-frame values.
        pose: by alignment; ``static`` is the camera that stands still.
        temporal_change: mean change of the depth error along the true motion, as |log ratio|.
    """

    name: str
    path: str
    status: str
    error: str = ""
    info: RecordingInfo | None = None
    model: str = ""
    sha256: str = ""
    metric: bool | None = None
    context_capacity: int = 0
    memory: dict[str, str | int] = dataclasses.field(default_factory=dict)
    rows: list[FrameRow] = dataclasses.field(default_factory=list)
    depth: dict[str, SequenceDepth] = dataclasses.field(default_factory=dict)
    depth_stamps: list[int] = dataclasses.field(default_factory=list)
    constant_depth: DepthMetrics | None = None
    pose: dict[str, PoseMetrics] = dataclasses.field(default_factory=dict)
    trajectory: Trajectory | None = None
    truth: Trajectory | None = None
    temporal_change: float = math.nan
    examples: list[Example] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    live: Any = None
