# SPDX-License-Identifier: Apache-2.0
"""The node's half of a bond with nav2's lifecycle manager: heartbeats while the node is active.

nav2_lifecycle_manager watches each node it has activated by the protocol of `bondcpp`: both sides
publish `bond/msg/Status` on the topic `bond`, under the node's name. A node that falls silent for
the manager's `bond_timeout` is taken for dead, and the manager brings everything down. What counts
is the manager's view, so heartbeats are all that is needed here; as nav2's own nodes do, a manager
that dies changes nothing.

Where the package `bond` is not installed there is no type to send: the manager then needs
`bond_timeout: 0.0`.
"""

from __future__ import annotations

import uuid
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile

try:
    from bond.msg import Status
except ImportError:
    Status = None

# Of bondcpp: how long each side may be silent, and how often a broken bond is announced.
_TIMEOUT_S = 4.0
_DEPTH = 5


def installed() -> bool:
    """Whether this machine has the message type."""
    return Status is not None


class Bond:
    """Heartbeats from now until `break_off`.

    Args:
        period_s: between two of them.
    """

    def __init__(self, node: Node, period_s: float) -> None:
        self._node = node
        self._period_s = period_s
        self._instance = str(uuid.uuid4())
        self._publisher: Any = node.create_publisher(Status, "bond", QoSProfile(depth=_DEPTH))
        # Steady: the manager's patience does not depend on simulated time either.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(period_s, self._beat, clock=clock)
        self._beat()

    def break_off(self) -> None:
        """Say that this was not an accident, and stop."""
        self._node.destroy_timer(self._timer)
        self._beat(active=False)
        self._node.destroy_publisher(self._publisher)

    def _beat(self, *, active: bool = True) -> None:
        status = Status(
            id=self._node.get_name(),
            instance_id=self._instance,
            active=active,
            heartbeat_timeout=_TIMEOUT_S,
            heartbeat_period=self._period_s,
        )
        status.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(status)
