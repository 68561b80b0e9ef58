# SPDX-License-Identifier: Apache-2.0
"""/diagnostics of the action node: its status, in words."""

from __future__ import annotations

from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType

from omnistream_ros.msg import ActionStatus
from omnistream_ros.nodes.lifecycle import ManagedNode, Phase


class ActionDiagnostics:
    """Publishes periodically, in every lifecycle state."""

    def __init__(
        self, node: ManagedNode, period_s: float, status: Callable[[], ActionStatus]
    ) -> None:
        self._node = node
        self._status = status
        self._drops_before = 0
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        node.create_timer(period_s, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def publish(self) -> None:
        """Publish the present state now."""
        status = self._status()
        level, words = self._judge(status)
        name = f"{self._node.get_fully_qualified_name()}: actions"
        entry = DiagnosticStatus(level=level, name=name, message=words)
        entry.values = [KeyValue(key=k, value=v) for k, v in self._values(status).items()]
        array = DiagnosticArray(status=[entry])
        array.header = status.header
        self._publisher.publish(array)

    def _judge(self, status: ActionStatus) -> tuple[bytes, str]:
        """Level and one sentence; the worst thing first."""
        drops = sum(status.drop_counts)
        fresh, self._drops_before = drops - self._drops_before, drops
        if status.emergency_stop:
            return DiagnosticStatus.ERROR, f"emergency stop: {status.emergency_stop_source}"
        if self._node.phase is not Phase.ACTIVE:
            if self._node.last_error:
                words = f"{self._node.phase.value} after: {self._node.last_error}"
                return DiagnosticStatus.ERROR, words
            return DiagnosticStatus.OK, self._node.phase.value
        if status.state != ActionStatus.EXECUTING:
            return DiagnosticStatus.WARN, status.detail
        words = "dry run" if status.dry_run else "executing"
        if fresh > 0:
            return DiagnosticStatus.WARN, f"{words}; {fresh} inputs or answers were not used"
        return DiagnosticStatus.OK, words

    def _values(self, status: ActionStatus) -> dict[str, str]:
        values = {"state": self._node.phase.value, "dry run": str(status.dry_run).lower()}
        if status.policy_name:
            values["policy"] = status.policy_name
            values["policy sha256"] = status.policy_sha256
        for name, age in zip(status.input_names, status.input_ages, strict=True):
            values[f"age of {name}"] = f"{age:.3f} s" if age == age else "never came"
        values["commands"] = str(status.commands)
        values["chunks"] = str(status.chunks)
        values["inference"] = f"{status.inference_ms:.1f} ms"
        for group in ("clamp", "drop", "hold"):
            kinds, counts = getattr(status, f"{group}_kinds"), getattr(status, f"{group}_counts")
            values.update({f"{group}: {k}": str(n) for k, n in zip(kinds, counts, strict=True)})
        if self._node.last_error:
            values["last error"] = self._node.last_error
        return values
