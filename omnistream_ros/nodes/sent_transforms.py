# SPDX-License-Identifier: Apache-2.0
"""What a node has put on /tf, where it hears its own transforms among those of others."""

from __future__ import annotations

import threading

from geometry_msgs.msg import TransformStamped

# As many of our own may be on their way; a subscription of /tf holds a few at most.
_MAX_SENT = 1000


class SentTransforms:
    """What a node has put on /tf, to tell it from what others put there. Any thread.

    A transform is known by its frames and its stamp. Each comes back once: a second copy of the
    node, which gets the same images, sends the same stamps.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, int, int], int] = {}
        self._lock = threading.Lock()

    def add(self, transform: TransformStamped) -> None:
        """Remember a transform that is about to be published."""
        key = _edge_and_stamp(transform)
        with self._lock:
            self._counts[key] = self._counts.pop(key, 0) + 1
            while len(self._counts) > _MAX_SENT:  # the oldest was lost on the way
                del self._counts[next(iter(self._counts))]

    def take(self, transform: TransformStamped) -> bool:
        """Whether a transform that was heard is one of those; it is then forgotten."""
        key = _edge_and_stamp(transform)
        with self._lock:
            count = self._counts.pop(key, 0)
            if count > 1:
                self._counts[key] = count - 1
        return count > 0


def _edge_and_stamp(transform: TransformStamped) -> tuple[str, str, int, int]:
    stamp = transform.header.stamp
    parent, child = transform.header.frame_id.lstrip("/"), transform.child_frame_id.lstrip("/")
    return parent, child, stamp.sec, stamp.nanosec
