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

from tf2_msgs.msg import TFMessage

from omnistream_ros.msg import StreamStatus
from omnistream_ros.nodes.camera_settings import CameraSettings
from omnistream_ros.nodes.frames import OdometryFrame
from omnistream_ros.nodes.image_checks import BadImageError
from omnistream_ros.nodes.image_input import ImageInput
from omnistream_ros.nodes.inbox import Inbox, PendingImage
from omnistream_ros.nodes.lasting import LastingFault
from omnistream_ros.nodes.lifecycle import ManagedNode
from omnistream_ros.nodes.output_messages import ModelFacts, SourceFacts
from omnistream_ros.nodes.outputs import OutputPublishers
from omnistream_ros.nodes.scale_inputs import ScaleInputs
from omnistream_ros.nodes.silence_watch import SilenceWatch
from omnistream_ros.nodes.statistics import Snapshot, StreamStatistics
from omnistream_ros.nodes.stream_place import PlaceKeeper, StreamPlace, status_message
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.metric_scale import MetricScale, ScaleState
from omnistream_ros.stream.result import Outputs, StreamResult
from omnistream_ros.stream.streams import Streams


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
        self._whose = f"{name}: " if name else ""  # in front of what the log says
        self._keeper = PlaceKeeper(self._tell)
        self._reset = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self._keeper.restart()
        self._input: ImageInput | None = None
        self._silence: SilenceWatch | None = None
        self._statistics = StreamStatistics()
        self._odometry: OdometryFrame | None = None
        self._scale_watch = LastingFault(self._warn)
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
        self._silence = SilenceWatch(self._input, self._statistics, self._warn)

    def close_input(self) -> None:
        """Stop receiving."""
        if self._input is not None:
            self._input.close()

    def stop(self, state: int) -> None:
        """The stream has ended, in this state of StreamStatus; no frame is in work any more."""
        if self._input is not None:
            self.publish_state(state)
        self._input = self._silence = None

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
    def place(self) -> StreamPlace:
        """Where the stream stands after its newest frame."""
        return self._keeper.place

    @property
    def silence(self) -> str:
        """Why no usable image comes, in words, while none does."""
        return self._silence.reason if self._silence is not None else ""

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
        frame = self.place.header.frame_id.lstrip("/")
        return self._scale_inputs.trouble(self._scale.source, frame)

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

    def watch(self, *, busy: bool) -> None:
        """Say so while no image comes, or no scale; frames tell of themselves.

        Args:
            busy: the model is at work on some image; then a lack of results is no lack of images.
        """
        if self._silence is None:
            return
        if self.paused:
            self.publish_state(StreamStatus.PAUSED)
            return
        trouble = "" if self._scale.known else self.scale_fault
        self._scale_watch.look(
            trouble and f"{self._whose}no scale from {self._scale.source}: {trouble}",
            self.stall_timeout,
        )
        state = self._silence.look(self.stall_timeout, busy=busy)
        if state is not None:
            self.publish_state(state)

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

    def restored(self) -> None:
        """The stream goes on from a state that was saved; between frames."""
        self._keeper.restored()

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
        self._keeper.move(work.source.header, result)
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

    def _tell(self, text: str) -> None:
        self._node.get_logger().info(self._whose + text)

    def _warn(self, text: str) -> None:
        self._node.get_logger().warning(text)

    def _status(self, state: int, timings_ms: dict[str, float], latency_ms: float) -> StreamStatus:
        return status_message(
            self.stream_id,
            state,
            self.place,
            self._statistics.counts(),
            timings_ms,
            latency_ms,
            self._model,
            self.scale_state(),
            context_capacity=self._streams.context_capacity,
            cache_bytes=self._streams.cache_bytes(self.name),
        )
