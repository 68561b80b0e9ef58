# SPDX-License-Identifier: Apache-2.0
"""One camera of the perception node: its topics, its numbers, and what becomes of its frames.

Made at configure with its publishers; between activate and deactivate it has an input as well. The
executor's thread starts, stops and asks it; the thread that runs the model hands it frames.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from omnistream_ros.msg import StreamStatus
from omnistream_ros.nodes.frames import OdometryFrame
from omnistream_ros.nodes.image_checks import BadImageError
from omnistream_ros.nodes.image_input import ImageInput, InputSettings
from omnistream_ros.nodes.inbox import Inbox, PendingImage
from omnistream_ros.nodes.lifecycle import ManagedNode
from omnistream_ros.nodes.output_messages import ModelFacts, SourceFacts
from omnistream_ros.nodes.outputs import OutputPublishers, OutputSettings
from omnistream_ros.nodes.perception_parameters import PerceptionParameters
from omnistream_ros.nodes.point_clouds import CloudSettings
from omnistream_ros.nodes.scale_inputs import ScaleInputs
from omnistream_ros.nodes.statistics import Snapshot, StreamStatistics
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.metric_scale import MetricScale, ScaleState
from omnistream_ros.stream.result import Outputs, Pose, StreamResult, Tracking
from omnistream_ros.stream.streams import Streams

_REPEAT_S = 5.0
_LOOK_AGAIN_S = 1.0


@dataclasses.dataclass(frozen=True)
class CameraSettings:
    """The parameters of one camera, as they are for one frame."""

    input: InputSettings
    output: OutputSettings
    camera_height: float
    target_rate: float
    stall_timeout: float


def camera_settings(wish: PerceptionParameters) -> CameraSettings:
    """The settings that parameters ask for."""
    return CameraSettings(
        input=InputSettings(
            transport=wish.input_transport,
            qos=wish.image_qos,
            rectified=wish.rectified,
            rectify=wish.rectify,
            stamps=wish.stamps,
            camera_info_timeout=wish.camera_info_timeout,
            source_timeout=wish.source_timeout,
        ),
        output=OutputSettings(
            depth_encoding=wish.depth_encoding,
            cloud=CloudSettings(
                stride=wish.points_stride,
                max_range=wish.points_max_range,
                min_confidence=wish.points_min_confidence,
                organized=wish.points_organized,
            ),
            publish_tf=wish.publish_tf,
            path_length=wish.path_length,
            features=wish.feature_keys,
            feature_dtype=wish.feature_dtype,
        ),
        camera_height=wish.camera_height,
        target_rate=wish.target_rate,
        stall_timeout=wish.stall_timeout,
    )


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


@dataclasses.dataclass(frozen=True)
class Work:
    """A frame on its way through the model, with what is needed to publish its result.

    Attributes:
        source: facts of the image.
        receipt_s, begin_s, converted_s: monotonic times of receipt, of the first line of the work,
            and of the pixels being there.
    """

    frame: Frame
    source: SourceFacts
    settings: CameraSettings
    receipt_s: float
    begin_s: float
    converted_s: float


class Camera:
    """One camera of a configured node.

    Args:
        name: as in the parameter `cameras`; empty for the only one of a node without names, whose
            topics are `image` and `~/depth/image`, not `NAME/image` and `~/NAME/depth/image`.
        stream_id: its name in messages.
        settings: asked once per frame, so that a frame never mixes old and new parameters.
        scale: of the stream; one for depth and pose.
        scale_inputs: of all cameras.
        modes: of the outputs, see `OutputPublishers`.
        on_tf: whether it may place frames on /tf; of several cameras one does.
    """

    def __init__(
        self,
        node: ManagedNode,
        name: str,
        stream_id: str,
        model: ModelFacts,
        streams: Streams,
        settings: Callable[[], CameraSettings],
        scale: MetricScale,
        scale_inputs: ScaleInputs,
        *,
        modes: Mapping[str, str],
        on_tf: bool,
    ) -> None:
        self.name = name
        self.stream_id = stream_id
        self._node = node
        self._model = model
        self._streams = streams
        self._settings = settings
        self._scale = scale
        self._scale_inputs = scale_inputs
        self._publishers = OutputPublishers(
            node, model, f"~/{name}/" if name else "~/", modes, on_tf=on_tf
        )
        self._reset = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self.place = StreamPlace()
        self._input: ImageInput | None = None
        self._statistics = StreamStatistics()
        self._odometry: OdometryFrame | None = None
        self._lost_told_s = -_REPEAT_S
        self.silence = ""  # why no usable image comes, in words, while none does
        self._explained_s = 0.0
        self._reset.clear()

    # --- from the node ---

    def start(self, inbox: Inbox, odometry: OdometryFrame) -> None:
        """Subscribe; everything about the stream before is forgotten."""
        self._begin()
        self._scale.restart()
        self._odometry = odometry
        self._publishers.restart()
        prefix = f"{self.name}/" if self.name else ""
        self._input = ImageInput(
            self._node,
            self.name,
            (f"{prefix}image", f"{prefix}camera_info"),
            inbox,
            self._statistics,
            lambda: self._settings().input,
        )

    def close_input(self) -> None:
        """Stop receiving."""
        if self._input is not None:
            self._input.close()

    def stop(self, state: int) -> None:
        """The stream has ended, in this state of StreamStatus; no frame is in work any more."""
        if self._input is not None:
            self.publish_state(state)
        self._input = None

    def destroy(self) -> None:
        """Take the publishers off the node."""
        self._publishers.destroy()

    def request_reset(self) -> None:
        """Let the next image begin a new epoch. Any thread."""
        self._reset.set()

    def pause(self, paused: bool) -> None:
        """Count images and use none, until called again with False or activated anew."""
        if self._input is not None:
            self._input.paused = paused
            if paused:
                self.publish_state(StreamStatus.PAUSED)

    @property
    def paused(self) -> bool:
        """Whether images are counted and not used."""
        return self._input is not None and self._input.paused

    @property
    def settings(self) -> CameraSettings:
        """The parameters of this camera as they are now."""
        return self._settings()

    def scale_state(self) -> ScaleState:
        """How the scale stands at the newest frame."""
        stamp = self.place.header.stamp
        return self._scale.state(stamp.sec * 1_000_000_000 + stamp.nanosec)

    @property
    def scale_fault(self) -> str:
        """Why other sensors cannot say anything about the scale, in words."""
        return self._scale_inputs.fault

    def hear_tf(self, message: TFMessage) -> None:
        """A message of /tf came: who else places which frame?"""
        if self._odometry is not None:
            self._odometry.hear(message)

    @property
    def topic(self) -> str:
        """Name of the image topic after remapping; empty while not active."""
        return self._input.topic if self._input is not None else ""

    def publishers(self) -> int:
        """Publishers on the image topic now."""
        return self._input.publishers() if self._input is not None else 0

    def statistics(self) -> Snapshot | None:
        """Counts, rates and times of the stream; None while not active."""
        return self._statistics.snapshot() if self._input is not None else None

    @property
    def stall_timeout(self) -> float:
        """The parameter of that name."""
        return self._settings().stall_timeout

    def watch_for_silence(self, *, busy: bool) -> None:
        """Say so while no image comes; frames tell of themselves.

        Args:
            busy: the model is at work on some image; then a lack of results is no lack of images.
        """
        if self._input is None:
            return
        if self.paused:
            self.publish_state(StreamStatus.PAUSED)
            return
        idle_s = self._statistics.idle_s()
        arriving = self._statistics.silent_s() <= self.stall_timeout
        silent = not (busy and arriving) and idle_s > self.stall_timeout
        if self._statistics.counts()[1] == 0:
            self.publish_state(StreamStatus.WAITING)
        elif silent:
            self.publish_state(StreamStatus.STALLED)
        if silent:
            self._explain(self._input, idle_s)
        else:
            self.silence = ""

    def _explain(self, images: ImageInput, idle_s: float) -> None:
        """Say why no usable image comes; again when the reason changes."""
        now = time.monotonic()
        if now - self._explained_s < _LOOK_AGAIN_S:
            return  # looking through a large graph takes its time
        self._explained_s = now
        if self._statistics.silent_s() > self.stall_timeout:
            why = images.explain_silence()
        else:
            why = "images arrive and none can be used: the reasons are in the log and in ~/status"
        if why != self.silence:
            self.silence = why
            self._node.get_logger().warning(
                f"no usable image on '{images.topic}' for {idle_s:.1f} s: {why}"
            )

    def publish_state(self, state: int) -> None:
        """Publish a StreamStatus that belongs to no frame."""
        self._publishers.publish_status(self._status(state, {}, 0.0))

    # --- between frames ---

    def set_scale(self, factor: float) -> None:
        """Metres in one unit of the model from now on; 0: as the parameters ask for.

        Raises:
            ValueError: the factor is outside of what the parameter `scale_factor` may be.
        """
        if factor == 0.0:
            self._scale.unfix()
        elif 0.001 <= factor <= 1000.0:  # NaN is in no range
            self._scale.fix(factor)
        else:
            raise ValueError(f"the factor must be 0.001 to 1000, or 0, got {factor:g}")

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next frame depends on."""
        return {
            "stream": self._streams.state_dict(self.name),
            "scale": self._scale.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken; ValueError if it belongs to another stream."""
        self._scale.load_state_dict(state["scale"])
        self._streams.load_state_dict(self.name, state["stream"])

    # --- from the thread that runs the model ---

    def patience(self, image: PendingImage) -> float:
        """Seconds that an image should still wait for its camera_info."""
        return self._input.patience(image) if self._input is not None else 0.0

    def open(self, image: PendingImage) -> Work | None:
        """The frame of an image that was taken from the inbox; None when it cannot be read."""
        begin = time.monotonic()
        assert self._input is not None
        settings = self._settings()
        if self._reset.is_set():
            self._reset.clear()
            self._streams.reset(self.name)
        try:
            pixels = self._input.transport.pixels(image.message)  # (H, W, 3) uint8
        except BadImageError as error:
            self._input.refuse(error)
            return None
        lens = self._input.lens_of(image)
        converted = time.monotonic()
        source = SourceFacts(
            header=image.message.header,
            pixels=pixels,
            camera_info=lens.info,
            rectified=settings.input.rectified or lens.undistorter is not None,
            lens=lens.undistorter,
            stream_id=self.stream_id,
            dropped_since_last=self._statistics.dropped_since_last(),
        )
        frame = Frame(pixels, image.stamp_ns, lens.intrinsics, lens.undistorter)
        return Work(frame, source, settings, image.receipt_s, begin, converted)

    def wanted(self, work: Work) -> Outputs:
        """What somebody wants from a frame."""
        wanted = self._publishers.wanted(work.settings.output)
        return dataclasses.replace(
            wanted,
            depth=wanted.depth
            or (self._model.has_depth and self._scale.needs_depth(work.frame.stamp_ns)),
            pose=wanted.pose or (self._model.has_pose and self._scale.needs_pose),
        )

    def finish(self, work: Work, result: StreamResult) -> None:
        """Publish the result of a frame, and what it took."""
        stepped = time.monotonic()
        assert self._odometry is not None
        evidence = self._scale_inputs.evidence(
            self._scale.source,
            work.source.header.frame_id.lstrip("/"),
            result.stamp_ns,
            work.settings.camera_height,
        )
        result = self._scale.apply(result, evidence)
        self._remember(work.source.header, result)
        self._publishers.publish(result, work.source, work.settings.output, self._odometry)
        end = time.monotonic()
        timings = {
            "wait": work.begin_s - work.receipt_s,
            "convert": work.converted_s - work.begin_s,
            **result.timings,
            "publish": end - stepped,
        }
        timings_ms = {stage: 1e3 * seconds for stage, seconds in timings.items()}
        latency_ms = 1e3 * (end - work.receipt_s)
        self._statistics.image_processed({**timings_ms, "latency": latency_ms})
        self._publishers.publish_status(
            self._status(StreamStatus.STREAMING, timings_ms, latency_ms)
        )

    def _remember(self, header: Header, result: StreamResult) -> None:
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

    def _tell(self, text: str) -> None:
        whose = f"{self.name}: " if self.name else ""
        self._node.get_logger().info(whose + text)

    def _status(self, state: int, timings_ms: dict[str, float], latency_ms: float) -> StreamStatus:
        place = self.place
        received, processed, drops = self._statistics.counts()
        scale = self.scale_state()
        return StreamStatus(
            header=place.header,
            stream_id=self.stream_id,
            state=state,
            epoch=place.epoch,
            frame_index=place.frame_index,
            epoch_reason=place.epoch_reason,
            tracking=place.tracking.value if place.tracking is not None else "",
            context_frames=place.context_frames,
            context_capacity=self._streams.context_capacity,
            cache_bytes=self._streams.cache_bytes(self.name),
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
            model_name=self._model.name,
            weights_sha256=self._model.sha256,
        )
