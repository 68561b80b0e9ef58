# SPDX-License-Identifier: Apache-2.0
"""Where a stream stands after its newest frame: what its status says, and what is worth a word."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from std_msgs.msg import Header

from omnistream_ros.msg import StreamStatus
from omnistream_ros.nodes.output_messages import ModelFacts
from omnistream_ros.stream.metric_scale import ScaleState
from omnistream_ros.stream.result import Pose, StreamResult, Tracking

_REPEAT_S = 5.0


@dataclasses.dataclass(frozen=True)
class StreamPlace:
    """Where the stream stands after its newest frame."""

    header: Header = dataclasses.field(default_factory=Header)
    epoch: int = 0
    frame_index: int = 0
    epoch_reason: str = ""
    context_frames: int = 0
    metric: bool | None = None
    tracking: Tracking | None = None  # None while no pose is wanted


class PlaceKeeper:
    """Keeps the place of one stream up to date, and tells when something about it changes.

    Args:
        tell: takes a sentence for people.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.restart()

    def restart(self) -> None:
        """The stream begins anew, nothing has been processed."""
        self.place = StreamPlace()
        self._lost_told_s = -_REPEAT_S

    def restored(self) -> None:
        """The next frame goes on in the epoch of a saved stream."""
        self.place = dataclasses.replace(self.place, epoch_reason="restore")

    def move(self, header: Header, result: StreamResult) -> None:
        """The result of a frame is there; ``header`` is that of its image."""
        reason = self.place.epoch_reason
        if result.epoch_reason is not None:
            reason = result.epoch_reason.value
            self._tell(f"epoch {result.epoch} begins ({reason.replace('_', ' ')})")
        self.place = StreamPlace(
            header=header,
            epoch=result.epoch,
            frame_index=result.frame_index,
            epoch_reason=reason,
            context_frames=result.context_frames,
            metric=result.metric,
            tracking=self._tracking(result.pose),
        )

    def _tracking(self, pose: Pose | None) -> Tracking | None:
        """How the camera could be followed; says so when not at all, but not all the time."""
        if pose is None or pose.tracked:
            return None if pose is None else pose.tracking
        now = time.monotonic()
        if self.place.tracking is not Tracking.LOST and now - self._lost_told_s > _REPEAT_S:
            self._lost_told_s = now
            self._tell(
                "the camera's motion cannot be followed (no texture, blur, or something in front "
                "of the lens): the pose is a guess until it can"
            )
        return Tracking.LOST


def status_message(
    stream_id: str,
    state: int,
    place: StreamPlace,
    counts: tuple[int, int, dict[str, int]],
    timings_ms: dict[str, float],
    latency_ms: float,
    model: ModelFacts,
    scale: ScaleState,
    *,
    context_capacity: int,
    cache_bytes: int,
) -> StreamStatus:
    """The message of a stream in this state.

    Args:
        counts: images received and processed, and dropped by reason.
        timings_ms: by stage, of the frame that was just processed; empty if none was.
    """
    received, processed, drops = counts
    return StreamStatus(
        header=place.header,
        stream_id=stream_id,
        state=state,
        epoch=place.epoch,
        frame_index=place.frame_index,
        epoch_reason=place.epoch_reason,
        tracking=place.tracking.value if place.tracking is not None else "",
        context_frames=place.context_frames,
        context_capacity=context_capacity,
        cache_bytes=cache_bytes,
        frames_received=received,
        frames_processed=processed,
        drop_reasons=list(drops),
        drop_counts=list(drops.values()),
        stage_names=list(timings_ms),
        stage_ms=list(timings_ms.values()),
        latency_ms=latency_ms,
        metric=bool(place.metric),
        scale_source=scale.source,
        scale_status=scale.status.value,
        scale_factor=scale.factor,
        model_name=model.name,
        weights_sha256=model.sha256,
    )
