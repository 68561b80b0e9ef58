# SPDX-License-Identifier: Apache-2.0
"""Records topics into a rosbag2, without a ROS distribution: messages stay serialized throughout.

``ros2 bag record`` does this on a machine with a distribution; the wheels do not have it.
"""

from __future__ import annotations

import functools
import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ament_index_python.packages import get_package_share_directory
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.timer import Timer
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from omnistream_ros.nodes.process import RefusedToStartError, run

_DISCOVERY_S = 0.1
_QUEUE = 200
_BAG_VERSION: Literal[9] = 9


class NothingToRecordError(Exception):
    """Topics that nobody published in time; the message names them."""


class Recorder(Node):
    """Subscribes to each topic as soon as somebody publishes it.

    Prints one line of JSON when all topics are connected, ``{"recording": [...]}``, and one at
    the end, ``{"recorded": {topic: messages}}``.

    Args:
        wait_s: how long all topics may take to be there; None: for ever.

    Raises:
        RefusedToStartError: the bag exists already or cannot be written.
        NothingToRecordError: from a callback, when that time is over.
    """

    def __init__(self, path: Path, topics: Sequence[str], wait_s: float | None = None) -> None:
        self._bag = _open_bag(path)
        super().__init__("omnistream_recorder")
        self._types = get_typestore(Stores.LATEST)
        self._missing = {self.resolve_topic_name(topic) for topic in topics}
        self._unmatched: set[str] = set()
        self._sources: list[tuple[Subscription, Connection]] = []
        self._counts = dict.fromkeys(sorted(self._missing), 0)
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._discovery = self.create_timer(_DISCOVERY_S, self._discover, clock=clock)
        self._wait_s = wait_s
        self._limit: Timer | None = None
        if wait_s is not None:
            self._limit = self.create_timer(wait_s, self._give_up, clock=clock)

    def destroy_node(self) -> None:
        """Complete the bag, then destroy the node."""
        if self._bag.storage is not None:
            self._write_waiting()
            self._bag.close()
            print(json.dumps({"recorded": self._counts}), flush=True)
        super().destroy_node()

    def _discover(self) -> None:
        for topic in sorted(self._missing):
            publishers = self.get_publishers_info_by_topic(topic)
            if not publishers:
                continue
            self._missing.remove(topic)
            self._unmatched.add(topic)
            kind = publishers[0].topic_type
            connection = self._bag.add_connection(topic, kind, typestore=self._typestore_of(kind))
            subscription = self.create_subscription(
                _message_class(kind),
                topic,
                functools.partial(self._write, connection),
                _matching_qos([publisher.qos_profile for publisher in publishers]),
                raw=True,
                event_callbacks=SubscriptionEventCallbacks(
                    matched=functools.partial(self._matched, topic)
                ),
            )
            self._sources.append((subscription, connection))
        if not self._missing:
            self.destroy_timer(self._discovery)

    def _matched(self, topic: str, _: object) -> None:
        """The middleware has connected a subscription: from here on nothing of it is missed."""
        if topic not in self._unmatched:
            return
        self._unmatched.remove(topic)
        if not self._unmatched and not self._missing:
            if self._limit is not None:
                self.destroy_timer(self._limit)
            print(json.dumps({"recording": list(self._counts)}), flush=True)

    def _give_up(self) -> None:
        waited_for = ", ".join(sorted(self._missing | self._unmatched))
        raise NothingToRecordError(
            f"nobody published {waited_for} within {self._wait_s:g} s: does the node say why?"
        )

    def _write(self, connection: Connection, data: bytes) -> None:
        self._bag.write(connection, time.time_ns(), data)
        self._counts[connection.topic] += 1

    def _write_waiting(self) -> None:
        """Write what has arrived but was not served yet, such as the end of a run."""
        for subscription, connection in self._sources:
            with subscription.handle:
                take = functools.partial(
                    subscription.handle.take_message, subscription.msg_type, True
                )
                while (taken := take()) is not None:
                    self._write(connection, taken[0])

    def _typestore_of(self, kind: str) -> Any:
        """The known types, with ``kind`` among them: the bag must explain its messages."""
        package, _, name = kind.split("/")
        if kind not in self._types.types:
            text = Path(get_package_share_directory(package), "msg", f"{name}.msg").read_text()
            self._types.register(get_types_from_msg(text, kind))
        return self._types


def _open_bag(path: Path) -> Writer:
    try:
        bag = Writer(path, version=_BAG_VERSION, storage_plugin=StoragePlugin.MCAP)
        bag.open()
    except (WriterError, OSError) as error:
        raise RefusedToStartError(f"cannot record into {path}: {error}") from error
    return bag


def _message_class(kind: str) -> type:
    package, _, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def _matching_qos(offered: Sequence[QoSProfile]) -> QoSProfile:
    """The strongest request that every one of the publishers can serve."""
    reliable = all(qos.reliability == QoSReliabilityPolicy.RELIABLE for qos in offered)
    latched = all(qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL for qos in offered)
    return QoSProfile(
        depth=_QUEUE,
        reliability=QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT,
        durability=QoSDurabilityPolicy.TRANSIENT_LOCAL if latched else QoSDurabilityPolicy.VOLATILE,
    )


def record(
    path: Path,
    topics: Sequence[str],
    ros_args: Sequence[str] | None = None,
    *,
    wait_s: float | None = None,
) -> int:
    """Record until SIGINT or SIGTERM, then complete the bag. Returns the exit status.

    Raises:
        NothingToRecordError: not all topics were there after ``wait_s`` seconds.
    """
    return run(lambda: Recorder(path, topics, wait_s), ros_args)
