# SPDX-License-Identifier: Apache-2.0
"""``omnistream_container``: perception and action node in one process.

Features go from one to the other by reference (see `handover`); everything else is as in two
processes, with the same topics, parameters and services. Each node has a thread of its own for its
callbacks: loading a model in one holds up the control loop of the other only while Python's lock is
held.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

from rclpy.executors import SingleThreadedExecutor

from omnistream_ros.nodes import handover
from omnistream_ros.nodes.action import ActionNode
from omnistream_ros.nodes.perception import PerceptionNode
from omnistream_ros.nodes.process import RefusedToStartError, run

_LISTEN_S = 0.1  # the longest wait for a callback before the end is looked for


class _Guest:
    """The action node, served by a thread until the process ends."""

    def __init__(self) -> None:
        self._node = ActionNode()
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="action", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End in order: the robot gets its last command."""
        self._closing.set()
        self._thread.join()
        self._executor.remove_node(self._node)
        self._node.destroy_node()
        self._executor.shutdown(timeout_sec=1.0)

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                self._executor.spin_once(timeout_sec=_LISTEN_S)
            except Exception as error:  # of a callback; the node deals with it
                self._node.report_fault(error)


class ContainerNode(PerceptionNode):
    """The perception node, with the action node as its guest."""

    def __init__(self) -> None:
        self._guest: _Guest | None = None
        super().__init__()
        handover.announce(self.get_fully_qualified_name())
        try:
            self._guest = _Guest()
        except RefusedToStartError:
            self.destroy_node()
            raise

    def destroy_node(self) -> None:
        # The robot first: perception may be in the middle of a frame.
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()
        super().destroy_node()


def main(args: Sequence[str] | None = None) -> int:
    """Run both nodes until a signal; returns the exit status."""
    return run(ContainerNode, args)


if __name__ == "__main__":
    sys.exit(main())
