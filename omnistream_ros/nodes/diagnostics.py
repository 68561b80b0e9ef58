# SPDX-License-Identifier: Apache-2.0
"""/diagnostics: what the node is doing, in numbers, and in one sentence what is wrong."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable, Sequence

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType

from omnistream_ros.nodes import distribution
from omnistream_ros.nodes.image_checks import Drop
from omnistream_ros.nodes.lifecycle import ManagedNode, Phase
from omnistream_ros.nodes.statistics import Snapshot

# Reasons that are normal in live use: the node is slower than the camera, or was switched off.
_EXPECTED_DROPS = {Drop.SUPERSEDED.value, Drop.DEACTIVATED.value}


@dataclasses.dataclass(frozen=True)
class Report:
    """What the node knows of one camera; None where it does not apply now.

    Attributes:
        camera: its name; empty for the only one.
    """

    camera: str
    statistics: Snapshot | None
    image_topic: str
    publishers: int
    silence: str
    model_name: str
    weights_sha256: str
    device: str
    engine: str
    engine_remark: str
    metric: bool | None
    tracked: bool | None
    context_frames: int
    context_capacity: int
    cache_bytes: int
    stall_timeout: float


class Diagnostics:
    """Publishes the node's diagnostics periodically, in every lifecycle state.

    Args:
        reports: what the node knows of each camera; empty while it is not configured.
        before: called first, in the same period.
    """

    def __init__(
        self,
        node: ManagedNode,
        period_s: float,
        reports: Callable[[], Sequence[Report]],
        before: Callable[[], None],
    ) -> None:
        self._node = node
        self._reports = reports
        self._before = before
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._bad_before: dict[str, dict[str, int]] = {}  # by camera
        # Steady: with use_sim_time and a bag on pause, the node's own clock stands still.
        node.create_timer(period_s, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def publish(self) -> None:
        """Publish the present state now."""
        self._before()
        array = DiagnosticArray()
        array.header.stamp = self._node.get_clock().now().to_msg()
        array.status = [self._status(report) for report in self._reports() or [None]]
        self._publisher.publish(array)

    def _status(self, report: Report | None) -> DiagnosticStatus:
        """The present state of one camera, or of a node that is not configured."""
        level, message = self._judge(report)
        status = DiagnosticStatus(
            level=level,
            name=f"{self._node.get_fully_qualified_name()}: "
            + (report.camera if report is not None and report.camera else "stream"),
            message=message,
        )
        values = {"state": self._node.phase.value}
        if report is not None:
            status.hardware_id = report.device
            values.update(_values(report))
        if self._node.last_error:
            values["last error"] = self._node.last_error
        values["distribution packages in use"] = (
            ", ".join(name for name, used in distribution.in_use().items() if used) or "none"
        )
        values["process memory"] = _resident_mib()
        status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
        return status

    def _judge(self, report: Report | None) -> tuple[bytes, str]:
        """Level and one sentence; the worst thing first."""
        phase = self._node.phase
        if phase is not Phase.ACTIVE or report is None or report.statistics is None:
            self._bad_before.clear()
            if self._node.last_error:
                return DiagnosticStatus.ERROR, f"{phase.value} after: {self._node.last_error}"
            return DiagnosticStatus.OK, phase.value
        now = report.statistics
        bad = {reason: n for reason, n in now.drops.items() if reason not in _EXPECTED_DROPS}
        before = self._bad_before.get(report.camera, {})
        fresh = {r: n - before.get(r, 0) for r, n in bad.items()}
        fresh = {reason: n for reason, n in fresh.items() if n > 0}
        self._bad_before[report.camera] = bad
        if now.received == 0:
            if report.silence:
                text = f"no image on '{report.image_topic}': {report.silence}"
            elif report.publishers == 0:
                text = f"no publisher on '{report.image_topic}'"
            else:
                text = (
                    f"no image yet from {report.publishers} publisher(s) on '{report.image_topic}':"
                    " check QoS and, for large images, the Fast DDS profile"
                )
            return DiagnosticStatus.WARN, text
        if fresh:
            listed = ", ".join(f"{n} {reason}" for reason, n in fresh.items())
            return DiagnosticStatus.WARN, f"images not usable: {listed}"
        if now.idle_s > report.stall_timeout:
            why = f": {report.silence}" if report.silence else ""
            return DiagnosticStatus.WARN, f"no usable image for {now.idle_s:.0f} s{why}"
        if report.tracked is False:
            text = f"{now.output_hz:.1f} Hz, but the camera's motion cannot be followed"
            return DiagnosticStatus.WARN, text
        if report.engine_remark:
            return DiagnosticStatus.WARN, f"{now.output_hz:.1f} Hz; engine: {report.engine_remark}"
        if report.metric is False:
            return DiagnosticStatus.OK, f"{now.output_hz:.1f} Hz, depth up to scale"
        return DiagnosticStatus.OK, f"{now.output_hz:.1f} Hz"


def _values(report: Report) -> dict[str, str]:
    values = {
        "model": report.model_name,
        "weights sha256": report.weights_sha256,
        "device": report.device,
        "engine": report.engine,
        "context": f"{report.context_frames} of {report.context_capacity} frames",
        "cache": f"{report.cache_bytes / 2**20:.1f} MiB",
    }
    if report.engine_remark:
        values["engine remark"] = report.engine_remark
    if report.metric is not None:
        values["scale"] = "metric" if report.metric else "up_to_scale"
    if report.tracked is not None:
        values["tracking"] = "ok" if report.tracked else "lost"
    if report.device.startswith("cuda"):
        values["device memory"] = f"{torch.cuda.memory_allocated(report.device) / 2**20:.0f} MiB"
    if report.statistics is not None:
        now = report.statistics
        values["image topic"] = f"{report.image_topic} ({report.publishers} publishers)"
        values["input rate"] = f"{now.input_hz:.1f} Hz"
        values["output rate"] = f"{now.output_hz:.1f} Hz"
        values["images received"] = str(now.received)
        values["images processed"] = str(now.processed)
        values["images dropped"] = str(sum(now.drops.values()))
        values.update({f"dropped: {reason}": str(n) for reason, n in now.drops.items()})
        values["camera_info refused"] = str(now.camera_info_faults)
        for stage, (median, late) in now.latency_ms.items():
            values[f"{stage} median / p95"] = f"{median:.1f} / {late:.1f} ms"
    return values


def _resident_mib() -> str:
    """Memory of this process that is in RAM now (Linux; elsewhere nothing is said)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
    except OSError:
        return "unknown"
    return f"{pages * resource.getpagesize() / 2**20:.0f} MiB"
