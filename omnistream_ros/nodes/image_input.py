# SPDX-License-Identifier: Apache-2.0
"""What one camera sends: subscriptions, checks, and which lens belongs to which image.

Receiving never waits for inference: the subscription callback checks a message, leaves it in the
inbox, and counts what it replaces there.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import (
    QoSProfile,
    QoSReliabilityPolicy,
    qos_policy_name_from_kind,
    qos_profile_sensor_data,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo

from omnistream_ros.nodes.image_checks import (
    BadImageError,
    Drop,
    Source,
    SourceGate,
    check_stamp,
)
from omnistream_ros.nodes.inbox import Inbox, PendingImage
from omnistream_ros.nodes.lenses import Lens, Lenses
from omnistream_ros.nodes.silence import explain_silence
from omnistream_ros.nodes.statistics import StreamStatistics
from omnistream_ros.nodes.transports import TRANSPORTS
from omnistream_ros.stream.calibration import CalibrationError

# A message about the same kind of fault comes at most this often; the counts never miss one.
_REPEAT_S = 5.0
QOS_PROFILES = {
    "sensor_data": qos_profile_sensor_data,
    "reliable": QoSProfile(depth=5, reliability=QoSReliabilityPolicy.RELIABLE),
}


@dataclasses.dataclass(frozen=True)
class InputSettings:
    """The parameters that the input depends on, as they are for one image.

    Attributes:
        transport, qos: names of a `Transport` and of a profile; for the life of the input.
        rectified: the images are undistorted.
        rectify: undistort them if not.
        stamps: "header", or "receipt" for drivers that set none.
        camera_info_timeout: seconds that the first image waits for its camera_info.
        source_timeout: seconds of silence after which another camera may take the topic over.
    """

    transport: str
    qos: str
    rectified: bool
    rectify: bool
    stamps: str
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
        wish = settings()
        self.transport = TRANSPORTS[wish.transport]
        self._lenses = Lenses(rectified=wish.rectified, rectify=wish.rectify)
        self._info_topic = node.resolve_topic_name(topics[1])
        self._waiting_since_s: float | None = None
        self._patient = True
        self.paused = False  # count images, use none
        self._subscriptions: list[Subscription] = []
        try:
            # A suffix belongs to what the name is remapped to, as in image_transport.
            image = node.resolve_topic_name(topics[0]) + self.transport.suffix
            profile = QOS_PROFILES[wish.qos]
            self._subscribe(self.transport.kind, image, profile, self._on_image)
            self._subscribe(CameraInfo, topics[1], profile, self._on_camera_info)
        except Exception:
            self.close()
            raise

    def _subscribe(
        self, kind: type, topic: str, profile: QoSProfile, callback: Callable[..., None]
    ) -> None:
        events = SubscriptionEventCallbacks(
            incompatible_qos=self._incompatible_qos(self._node.resolve_topic_name(topic))
        )
        subscription = self._node.create_subscription(
            kind,
            topic,
            callback,
            profile,
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

    def explain_silence(self) -> str:
        """Why no image comes, and what to change."""
        asked = self._subscriptions[0].qos_profile
        return explain_silence(self._node, self.topic, self.transport, asked)

    def lens_of(self, image: PendingImage) -> Lens:
        """What is known of the lens of an image."""
        return self._lenses.of(image.width, image.height)

    def patience(self, image: PendingImage) -> float:
        """Seconds that an image should still wait for its camera_info; only at the start."""
        if not self._patient or self._waiting_since_s is None:
            return 0.0
        if self._lenses.knows(image.width, image.height):
            self._patient = False
            return 0.0
        waited = time.monotonic() - self._waiting_since_s
        patience = self._settings().camera_info_timeout - waited
        if patience <= 0.0:
            self._patient = False
            self._node.get_logger().warning(
                f"no camera_info for the {image.width}x{image.height} images on "
                f"'{self._info_topic}' ({self._why_no_camera_info()}): the field of view is "
                "estimated and depth is not metric; remap `camera_info` to the camera's own"
            )
        return patience

    def _why_no_camera_info(self) -> str:
        if sizes := self._lenses.known_sizes():
            return f"only one for {sizes}"
        some = self._node.count_publishers(self._info_topic)
        return "nothing came yet" if some else "nobody publishes it"

    def refuse(self, error: BadImageError) -> None:
        """Count and explain an image that cannot be used. Any thread."""
        count = self._statistics.image_dropped(error.reason.value)
        self._complain(error.reason.value, str(error), count)

    def close(self) -> None:
        """Stop receiving. Executor's thread only."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        if self._inbox.empty(self._camera):
            self._statistics.image_dropped(Drop.DEACTIVATED.value)

    def _on_image(self, message: Any) -> None:
        receipt_s = time.monotonic()
        self._statistics.image_received()
        if self.paused:
            self._statistics.image_dropped(Drop.PAUSED.value)
            return
        settings = self._settings()
        stamp = message.header.stamp
        if settings.stamps == "receipt":
            message.header.stamp = stamp = self._node.get_clock().now().to_msg()
        stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        try:
            width, height = self.transport.check(message)
            check_stamp(stamp_ns)
            source = Source(width, height, message.header.frame_id)
            self._gate.admit(source, stamp_ns, receipt_s, settings.source_timeout)
        except BadImageError as error:
            self.refuse(error)
            return
        if self._waiting_since_s is None:
            self._waiting_since_s = receipt_s
        pending = PendingImage(message, width, height, stamp_ns, receipt_s)
        if self._inbox.put(self._camera, pending):
            self._statistics.image_dropped(Drop.SUPERSEDED.value)

    def _on_camera_info(self, info: CameraInfo) -> None:
        try:
            remark = self._lenses.learn(info)
        except CalibrationError as error:
            # The last good one, if there was one, stays in force.
            count = self._statistics.camera_info_refused()
            self._complain("camera_info", str(error), count)
            return
        if remark:
            self._complain(remark, remark, 1)
        if self._patient:
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
