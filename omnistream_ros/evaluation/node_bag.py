# SPDX-License-Identifier: Apache-2.0
"""What a running perception node published, read back from the bag of a recorder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omnistream_ros.evaluation import ros_images
from omnistream_ros.evaluation.bag_messages import CAMERA_INFO, IMAGE, ODOMETRY, TF, stamp_of
from omnistream_ros.evaluation.bag_poses import read_poses
from omnistream_ros.evaluation.bag_reader import BagReader
from omnistream_ros.evaluation.recordings import DepthFrame, RecordingError
from omnistream_ros.evaluation.trajectory import Trajectory, TrajectoryError

_STATUS = "omnistream_ros/msg/StreamStatus"
_STREAMING = 2  # StreamStatus.STREAMING


@dataclasses.dataclass(frozen=True)
class FrameStatus:
    """One processed frame as the node reported it (``StreamStatus``)."""

    stamp_ns: int
    received_ns: int
    epoch: int
    frame_index: int
    context_frames: int
    stages_ms: dict[str, float]
    latency_ms: float


@dataclasses.dataclass(frozen=True)
class NodeRun:
    """The node's own account of a run.

    Attributes:
        frames: every processed frame whose status was recorded, in order.
        received, processed: counts of the last status.
        drops: images received but not used, by reason.
        model_name, weights_sha256, metric: of the last frame.
        context_capacity, cache_bytes: of the last frame.
    """

    frames: list[FrameStatus]
    received: int
    processed: int
    drops: dict[str, int]
    model_name: str
    weights_sha256: str
    metric: bool
    context_capacity: int
    cache_bytes: int

    @property
    def rate_hz(self) -> float:
        """Processed frames per second between the first and the last, NaN with fewer than two."""
        if len(self.frames) < 2:
            return float("nan")
        span = self.frames[-1].received_ns - self.frames[0].received_ns
        return (len(self.frames) - 1) * 1e9 / span if span else float("nan")

    def stages(self) -> dict[str, list[float]]:
        """Milliseconds of every frame by stage, in the node's order."""
        table: dict[str, list[float]] = {}
        for frame in self.frames:
            for name, value in frame.stages_ms.items():
                table.setdefault(name, []).append(value)
        return table


class NodeBag:
    """A bag with the topics of one perception node.

    Raises:
        RecordingError: not a bag, or no (or two) StreamStatus topics in it.
    """

    def __init__(self, path: Path) -> None:
        self._bag = BagReader(path)
        names = [n for n, (kind, _) in self._bag.topics.items() if kind == _STATUS]
        if len(names) != 1:
            raise RecordingError(
                f"{path} needs one topic of type {_STATUS}, it has "
                f"{', '.join(names or sorted(self._bag.topics)) or 'nothing'}"
            )
        self._status_topic = names[0]
        self._prefix = names[0].rpartition("/")[0]

    def run(self) -> NodeRun:
        """The node's account.

        Raises:
            RecordingError: not one frame was processed.
        """
        frames: list[FrameStatus] = []
        last = None
        for _, received_ns, status in self._bag.messages([self._status_topic]):
            last = status
            if status.state == _STREAMING:
                frames.append(
                    FrameStatus(
                        stamp_of(status.header),
                        received_ns,
                        status.epoch,
                        status.frame_index,
                        status.context_frames,
                        dict(zip(status.stage_names, map(float, status.stage_ms), strict=True)),
                        float(status.latency_ms),
                    )
                )
        if last is None or not frames:
            raise RecordingError(
                f"the node processed no frame ({'no status' if last is None else 'no image'} "
                f"recorded on {self._status_topic}); see the node's log"
            )
        return NodeRun(
            frames=frames,
            received=int(last.frames_received),
            processed=int(last.frames_processed),
            drops=dict(zip(last.drop_reasons, map(int, last.drop_counts), strict=True)),
            model_name=last.model_name,
            weights_sha256=last.weights_sha256,
            metric=bool(last.metric),
            context_capacity=int(last.context_capacity),
            cache_bytes=int(last.cache_bytes),
        )

    def depths(self) -> Iterator[DepthFrame]:
        """Published depth images in order; nothing when there is no such topic."""
        topic = f"{self._prefix}/depth/image"
        if self._bag.topics.get(topic, ("", 0))[0] != IMAGE:
            return
        for _, _, message in self._bag.messages([topic]):
            yield DepthFrame(stamp_of(message.header), ros_images.depth_image(message))

    def count(self, suffix: str) -> int:
        """Messages on one of the node's topics, such as ``depth/image``."""
        return self._bag.topics.get(f"{self._prefix}/{suffix}", ("", 0))[1]

    def trajectory(self) -> Trajectory | None:
        """Published camera poses: from the odometry where it is of the camera, else from TF.

        Raises:
            RecordingError: the poses cannot be used; the message says why.
        """
        camera = self._camera_frame()
        odometry = f"{self._prefix}/odometry"
        problems = []
        for topic, kind in ((odometry, ODOMETRY), ("/tf", TF)):
            if self._bag.topics.get(topic, ("", 0))[0] != kind or not self._bag.topics[topic][1]:
                continue
            try:
                trajectory, _ = read_poses(self._bag, topic, camera)
            except TrajectoryError as error:
                problems.append(f"{topic}: {error}")
                continue
            if trajectory is not None:
                return trajectory
        if problems:
            raise RecordingError("; ".join(problems))
        return None

    def _camera_frame(self) -> str:
        """Frame of the camera: that of the published camera_info or, without it, of the status."""
        info = f"{self._prefix}/depth/camera_info"
        has_info = self._bag.topics.get(info, ("", 0))[0] == CAMERA_INFO
        first = self._bag.first(info if has_info else self._status_topic)
        return "" if first is None else first.header.frame_id


def percentiles(values: list[float]) -> tuple[float, float]:
    """Median and 95th percentile, NaN without values."""
    if not values:
        return float("nan"), float("nan")
    median, late = np.percentile(values, [50, 95])
    return float(median), float(late)
