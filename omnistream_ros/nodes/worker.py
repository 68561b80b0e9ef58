# SPDX-License-Identifier: Apache-2.0
"""The one thread of an active node that runs the model, from a received image to its outputs."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from std_msgs.msg import Header

from omnistream_ros.msg import StreamStatus
from omnistream_ros.nodes.distribution import message_to_rgb8
from omnistream_ros.nodes.frames import OdometryFrame
from omnistream_ros.nodes.image_input import ImageInput, ReceivedImage
from omnistream_ros.nodes.outputs import ModelFacts, OutputPublishers, OutputSettings, SourceFacts
from omnistream_ros.nodes.statistics import StreamStatistics
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.result import Pose, StreamResult
from omnistream_ros.stream.session import StreamSession

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
    tracked: bool | None = None  # None while no pose is wanted


class StreamWorker:
    """Takes images from an input, steps the session, publishes. Lives from activate to deactivate.

    Args:
        session: a fresh stream; from now on only this thread touches it.
        settings: asked once per frame, so that a frame never mixes old and new parameters.
        rectified, stream_id: see the parameters of the same names.
        on_fault: told about an exception; the thread has then ended.
        tell: told in words what the reader of a log wants to know, such as a new epoch.
    """

    def __init__(
        self,
        session: StreamSession,
        images: ImageInput,
        publishers: OutputPublishers,
        odometry: OdometryFrame,
        statistics: StreamStatistics,
        model: ModelFacts,
        *,
        settings: Callable[[], OutputSettings],
        rectified: bool,
        stream_id: str,
        on_fault: Callable[[BaseException], None],
        tell: Callable[[str], None],
    ) -> None:
        self._session = session
        self._images = images
        self._publishers = publishers
        self._odometry = odometry
        self._statistics = statistics
        self._model = model
        self._settings = settings
        self._rectified = rectified
        self._stream_id = stream_id
        self._on_fault = on_fault
        self._tell = tell
        self._lost_told_s = -_REPEAT_S
        self._reset = threading.Event()
        self.place = StreamPlace()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    def request_reset(self) -> None:
        """Let the next image begin a new epoch. Any thread."""
        self._reset.set()

    def join(self) -> None:
        """Wait for the thread's end; the input must be closed before."""
        self._thread.join()

    def publish_state(self, state: int) -> None:
        """Publish a StreamStatus that belongs to no frame."""
        self._publishers.status.publish(self._status(state, {}, 0.0))

    def _run(self) -> None:
        try:
            while (image := self._images.take()) is not None:
                self._process(image)
        except Exception as error:  # the node logs it and goes to error processing
            self._on_fault(error)

    def _process(self, image: ReceivedImage) -> None:
        begin = time.monotonic()
        settings = self._settings()
        if self._reset.is_set():
            self._reset.clear()
            self._session.reset()
        pixels = message_to_rgb8(image.message)  # (H, W, 3) uint8
        converted = time.monotonic()
        frame = Frame(pixels, image.stamp_ns, image.intrinsics)
        result = self._session.step(frame, self._publishers.wanted(settings))
        stepped = time.monotonic()
        self._remember(image, result)
        source = SourceFacts(
            header=image.message.header,
            pixels=pixels,
            camera_info=image.camera_info,
            rectified=self._rectified,
            stream_id=self._stream_id,
            dropped_since_last=self._statistics.dropped_since_last(),
        )
        self._publishers.publish(result, source, settings, self._odometry)
        end = time.monotonic()
        timings = {
            "wait": begin - image.receipt_s,
            "convert": converted - begin,
            **result.timings,
            "publish": end - stepped,
        }
        timings_ms = {stage: 1e3 * seconds for stage, seconds in timings.items()}
        latency_ms = 1e3 * (end - image.receipt_s)
        self._statistics.image_processed({**timings_ms, "latency": latency_ms})
        status = self._status(StreamStatus.STREAMING, timings_ms, latency_ms)
        self._publishers.status.publish(status)

    def _remember(self, image: ReceivedImage, result: StreamResult) -> None:
        reason = self.place.epoch_reason
        if result.epoch_reason is not None:
            reason = result.epoch_reason.value
            self._tell(f"epoch {result.epoch} begins ({reason.replace('_', ' ')})")
        self.place = StreamPlace(
            header=image.message.header,
            epoch=result.epoch,
            frame_index=result.frame_index,
            epoch_reason=reason,
            context_frames=result.context_frames,
            metric=result.metric,
            tracked=self._tracked(result.pose),
        )

    def _tracked(self, pose: Pose | None) -> bool | None:
        """Whether the camera's motion could be followed; says so when not, but not all the time."""
        if pose is None or pose.tracked:
            return None if pose is None else True
        now = time.monotonic()
        if self.place.tracked and now - self._lost_told_s > _REPEAT_S:
            self._lost_told_s = now
            self._tell(
                "the camera's motion cannot be followed (no texture, blur, or something in front "
                "of the lens): the pose is a guess until it can"
            )
        return False

    def _status(self, state: int, timings_ms: dict[str, float], latency_ms: float) -> StreamStatus:
        place = self.place
        received, processed, drops = self._statistics.counts()
        return StreamStatus(
            header=place.header,
            stream_id=self._stream_id,
            state=state,
            epoch=place.epoch,
            frame_index=place.frame_index,
            epoch_reason=place.epoch_reason,
            context_frames=place.context_frames,
            context_capacity=self._session.context_capacity,
            cache_bytes=self._session.cache_bytes,
            frames_received=received,
            frames_processed=processed,
            drop_reasons=list(drops),
            drop_counts=list(drops.values()),
            stage_names=list(timings_ms),
            stage_ms=list(timings_ms.values()),
            latency_ms=latency_ms,
            metric=bool(place.metric),
            model_name=self._model.name,
            weights_sha256=self._model.sha256,
        )
