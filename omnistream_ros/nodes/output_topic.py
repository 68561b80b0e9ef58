# SPDX-License-Identifier: Apache-2.0
"""One output topic, which is there always, while somebody listens, or not at all."""

from __future__ import annotations

from typing import Any

from rclpy.event_handler import PublisherEventCallbacks
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

from omnistream_ros.nodes.lifecycle import ManagedNode

# No "off" and "on": those are booleans in YAML.
MODES = ("lazy", "always", "never")
_DEPTH = 5


class OutputTopic:
    """A lifecycle publisher and the wish for it.

    Args:
        mode: "lazy" computes and publishes while somebody subscribes, "always" also when nobody
            does (for even load, and for subscribers that come late), "never" makes no publisher.
    """

    def __init__(self, node: ManagedNode, kind: type, topic: str, mode: str = "lazy") -> None:
        self._node = node
        self._always = mode == "always"
        self._publisher: Any = None
        if mode != "never":
            self._publisher = node.create_lifecycle_publisher(
                kind,
                topic,
                QoSProfile(depth=_DEPTH, reliability=QoSReliabilityPolicy.RELIABLE),
                # A subscriber of another type or policy is told by its own side. Being told here as
                # well makes every wake-up of the executor longer: two events for each publisher.
                event_callbacks=PublisherEventCallbacks(use_default_callbacks=False),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )

    @property
    def wanted(self) -> bool:
        """Whether a message is to be made."""
        return self._publisher is not None and (
            self._always or self._publisher.get_subscription_count() > 0
        )

    def publish(self, message: Any) -> None:
        """Send a message; only while `wanted`."""
        self._publisher.publish(message)

    def destroy(self) -> None:
        """Take the publisher off the node."""
        if self._publisher is not None:
            self._node.destroy_lifecycle_publisher(self._publisher)
            self._publisher = None
