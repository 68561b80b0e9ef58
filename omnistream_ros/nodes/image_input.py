# SPDX-License-Identifier: Apache-2.0
"""What one camera sends: subscriptions, checks, and which lens belongs to which image.

Receiving never waits for inference: the subscription callback checks a message, leaves it in the
inbox, and counts what it replaces there.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import qos_policy_name_from_kind, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image

from omnistream_ros.nodes.image_checks import (
    BadImageError,
    Drop,
    Source,
    SourceGate,
    check_image,
    intrinsics_of,
)
from omnistream_ros.nodes.inbox import Inbox, PendingImage
from omnistream_ros.nodes.statistics import StreamStatistics
from omnistream_ros.stream.calibration import CalibrationError
from omnistream_ros.stream.frame import Intrinsics

# A message about the same kind of fault comes at most this often; the counts never miss one.
_REPEAT_S = 5.0
# Cameras of different image size remembered at a time; two publishers on one topic are a mistake.
_MAX_CAMERAS = 8


@dataclasses.dataclass(frozen=True)
class InputSettings:
    """The parameters that the input depends on, as they are for one image.

    Attributes:
        rectified: the images are undistorted.
        camera_info_timeout: seconds that the first image waits for its camera_info.
        source_timeout: seconds of silence after which another camera may take the topic over.
    """

    rectified: bool
    camera_info_timeout: float
    source_timeout: float


class ImageInput:
    """The subscriptions of one camera of an active node; made on activation, closed after it.

    Args:
        camera: its name, also in the inbox.
        topics: of its images and of their camera_info.
    """

    def __init__(
        self,
        node: Node,
        camera: str,
        topics: tuple[str, str],
        inbox: Inbox,
        statistics: StreamStatistics,
        settings: Callable[[], InputSettings],
    ) -> None:
        self._node = node
        self._camera = camera
        self._inbox = inbox
        self._statistics = statistics
        self._settings = settings
        self._gate = SourceGate()
        self._said: dict[str, float] = {}
        # By image size. Written by the executor's thread, one assignment each; read by both.
        self._calibrations: dict[tuple[int, int], tuple[CameraInfo, Intrinsics | None]] = {}
        self._info_topic = node.resolve_topic_name(topics[1])
        self._waiting_since_s: float | None = None
        self._patient = True
        self._subscriptions: list[Subscription] = []
        try:
            self._subscribe(Image, topics[0], self._on_image)
            self._subscribe(CameraInfo, topics[1], self._on_camera_info)
        except Exception:
            self.close()
            raise

    def _subscribe(self, kind: type, topic: str, callback: Callable[..., None]) -> None:
        events = SubscriptionEventCallbacks(
            incompatible_qos=self._incompatible_qos(self._node.resolve_topic_name(topic))
        )
        subscription = self._node.create_subscription(
            kind,
            topic,
            callback,
            qos_profile_sensor_data,
            event_callbacks=events,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._subscriptions.append(subscription)

    @property
    def topic(self) -> str:
        """Name of the image topic after remapping."""
        return self._subscriptions[0].topic_name

    def publishers(self) -> int:
        """Publishers on the image topic now."""
        return self._node.count_publishers(self.topic)

    def calibration(self, image: Image) -> tuple[CameraInfo | None, Intrinsics | None]:
        """The newest good camera_info for images of this size, and its pinhole if calibrated."""
        return self._calibrations.get((image.width, image.height), (None, None))

    def patience(self, image: Image) -> float:
        """Seconds that an image should still wait for its camera_info; only at the start."""
        if not self._patient or self._waiting_since_s is None:
            return 0.0
        if (image.width, image.height) in self._calibrations:
            self._patient = False
            return 0.0
        waited = time.monotonic() - self._waiting_since_s
        patience = self._settings().camera_info_timeout - waited
        if patience <= 0.0:
            self._patient = False
            sizes = ", ".join(f"{width}x{height}" for width, height in list(self._calibrations))
            found = f"only one for {sizes}" if sizes else "none"
            self._node.get_logger().warning(
                f"no camera_info for the {image.width}x{image.height} images on "
                f"'{self._info_topic}' ({found}): the field of view is estimated and depth is not "
                "metric; remap `camera_info` to the camera's own"
            )
        return patience

    def close(self) -> None:
        """Stop receiving. Executor's thread only."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        if self._inbox.empty(self._camera):
            self._statistics.image_dropped(Drop.DEACTIVATED.value)

    def _on_image(self, message: Image) -> None:
        receipt_s = time.monotonic()
        self._statistics.image_received()
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        try:
            check_image(message)
            self._gate.admit(
                Source(message.width, message.height, message.header.frame_id),
                stamp_ns,
                receipt_s,
                self._settings().source_timeout,
            )
        except BadImageError as error:
            count = self._statistics.image_dropped(error.reason.value)
            self._complain(error.reason.value, str(error), count)
            return
        if self._waiting_since_s is None:
            self._waiting_since_s = receipt_s
        if self._inbox.put(self._camera, PendingImage(message, stamp_ns, receipt_s)):
            self._statistics.image_dropped(Drop.SUPERSEDED.value)

    def _on_camera_info(self, info: CameraInfo) -> None:
        try:
            camera = intrinsics_of(info, rectified=self._settings().rectified)
        except CalibrationError as error:
            # The last good one, if there was one, stays in force.
            count = self._statistics.camera_info_refused()
            self._complain("camera_info", str(error), count)
            return
        if camera is None:
            self._complain(
                "uncalibrated",
                "camera_info says that the camera is not calibrated (K is zero): the field of view "
                "is estimated and depth is not metric; calibrate it with camera_calibration",
                1,
            )
        size = (camera.width, camera.height) if camera else (info.width, info.height)
        if size not in self._calibrations and len(self._calibrations) >= _MAX_CAMERAS:
            self._calibrations = {}
        self._calibrations[size] = (info, camera)
        self._inbox.wake()

    def _incompatible_qos(self, topic: str) -> Callable[[object], None]:
        def tell(event: object) -> None:
            policy = qos_policy_name_from_kind(event.last_policy_kind).lower()  # type: ignore[attr-defined]
            self._node.get_logger().warning(
                f"a publisher on '{topic}' offers another {policy} than this node asks for, so "
                f"none of its messages arrive: set the parameter "
                f"'qos_overrides.{topic}.subscription.{policy}' to what it offers "
                f"(ros2 topic info -v {topic} shows both sides)"
            )

        return tell

    def _complain(self, kind: str, text: str, count: int) -> None:
        """One message per kind of fault and ``_REPEAT_S``, with the number of times so far."""
        now = time.monotonic()
        if now - self._said.get(kind, -_REPEAT_S) >= _REPEAT_S:
            self._said[kind] = now
            times = f" ({count} times so far)" if count > 1 else ""
            self._node.get_logger().warning(f"{text}{times}")
