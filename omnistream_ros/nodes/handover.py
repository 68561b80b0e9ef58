# SPDX-License-Identifier: Apache-2.0
"""Feature tensors from one node to another of the same process by reference, without DDS.

rclpy has no intra-process communication: between two nodes of one process a message is copied into
bytes, sent, received and copied out again. Where a listener of this process has asked for a topic,
the publisher gives it the message without the tensor's bytes, and the tensor itself. What the
listener does happens in the publisher's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from omnistream_ros.msg import FeatureTensor

Listener = Callable[[FeatureTensor, Any], None]

_lock = threading.Lock()
_local_nodes: set[str] = set()
_listeners: dict[str, tuple[Listener, ...]] = {}


def announce(node: str) -> None:
    """Features of this node (its full name) are handed over to listeners in this process."""
    with _lock:
        _local_nodes.add(node)


def is_local(topic: str) -> bool:
    """Whether a topic (its full name) is one of a node that was announced."""
    return any(topic.startswith(f"{node}/") for node in _local_nodes)


def listen(topic: str, listener: Listener) -> Callable[[], None]:
    """Be given what is published on a topic; returns how to end it."""
    with _lock:
        _listeners[topic] = (*_listeners.get(topic, ()), listener)

    def end() -> None:
        with _lock:
            left = tuple(known for known in _listeners.get(topic, ()) if known is not listener)
            if left:
                _listeners[topic] = left
            else:
                _listeners.pop(topic, None)

    return end


def listeners(topic: str) -> tuple[Listener, ...]:
    """Who wants to be given what is published on a topic."""
    return _listeners.get(topic, ())
