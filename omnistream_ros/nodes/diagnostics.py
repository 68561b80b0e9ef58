# SPDX-License-Identifier: Apache-2.0
"""/diagnostics: what the node is doing, in numbers, and in one sentence what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType

from omnistream_ros.nodes import distribution
from omnistream_ros.nodes.image_checks import Drop
from omnistream_ros.nodes.lifecycle import ManagedNode, Phase
from omnistream_ros.nodes.machine import Machine, read_machine
from omnistream_ros.nodes.statistics import Snapshot
from omnistream_ros.stream.metric_scale import ScaleState
from omnistream_ros.stream.result import Tracking
from omnistream_ros.stream.scale_estimate import ScaleStatus

# Reasons that are normal in live use: the node is slower than the camera, or was switched off.
_EXPECTED_DROPS = {Drop.SUPERSEDED.value, Drop.DEACTIVATED.value, Drop.PAUSED.value}
# Of the target rate: less is a warning, less than the second an error.
_RATE_SLACK, _RATE_HALF = 0.9, 0.5
# Frames before the rate means something.
_RATE_FRAMES = 10
# Share of the GPU's memory in use, and degrees at which processors begin to slow down.
_MEMORY_FULL = 0.95
_HOT = 95.0
_SCALE_TROUBLE = {
    ScaleStatus.NONE: "nothing observed yet",
    ScaleStatus.SETTLING: "not enough observed yet",
    ScaleStatus.DISAGREEING: "observations contradict each other; the last good one holds",
    ScaleStatus.FROZEN: "frozen, nothing observed for some time",
}


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
    tracking: Tracking | None
    context_frames: int
    context_capacity: int
    cache_bytes: int
    stall_timeout: float
    target_rate: float
    paused: bool
    scale: ScaleState | None
    scale_fault: str
    busy_s: float


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
        reports = list(self._reports())
        array.status = [self._status(report) for report in reports or [None]]
        array.status.append(self._machine(reports[0].device if reports else ""))
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
        status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
        return status

    def _machine(self, device: str) -> DiagnosticStatus:
        """Memory and temperature; also what the process found to work with."""
        machine = read_machine(device)
        level, message = judge_machine(machine)
        status = DiagnosticStatus(
            level=level,
            name=f"{self._node.get_fully_qualified_name()}: machine",
            message=message,
            hardware_id=device,
        )
        packages = ", ".join(name for name, used in distribution.in_use().items() if used)
        values = {**machine_values(machine), "distribution packages in use": packages or "none"}
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
        if report.paused:
            return DiagnosticStatus.OK, "paused"
        now = report.statistics
        if report.busy_s > report.stall_timeout:
            text = f"the model has been at work on one image for {report.busy_s:.0f} s"
            return DiagnosticStatus.ERROR, text
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
        if report.target_rate and now.processed >= _RATE_FRAMES:
            share = now.output_hz / report.target_rate
            text = f"{now.output_hz:.1f} Hz, {report.target_rate:g} are wanted{_slow_stage(now)}"
            if share < _RATE_HALF:
                return DiagnosticStatus.ERROR, text
            if share < _RATE_SLACK:
                return DiagnosticStatus.WARN, text
        if report.tracking is Tracking.LOST:
            text = f"{now.output_hz:.1f} Hz, but the camera's motion cannot be followed"
            return DiagnosticStatus.WARN, text
        if report.engine_remark:
            return DiagnosticStatus.WARN, f"{now.output_hz:.1f} Hz; engine: {report.engine_remark}"
        if report.scale is not None and report.scale.status in _SCALE_TROUBLE:
            why = report.scale_fault or _SCALE_TROUBLE[report.scale.status]
            text = f"{now.output_hz:.1f} Hz; scale from {report.scale.source}: {why}"
            return DiagnosticStatus.WARN, text
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
    if (scale := report.scale) is not None:
        values["scale source"] = scale.source
        values["scale status"] = scale.status.value
        values["scale factor"] = f"{scale.factor:.4g}"
        if scale.spread is not None:
            values["scale spread"] = f"{100 * scale.spread:.1f} %"
        values["scale observations"] = f"{scale.observations} used, {scale.refused} refused"
        if report.scale_fault:
            values["scale fault"] = report.scale_fault
    if report.tracking is not None:
        values["tracking"] = report.tracking.value
    if report.statistics is not None:
        now = report.statistics
        values["image topic"] = f"{report.image_topic} ({report.publishers} publishers)"
        values["input rate"] = f"{now.input_hz:.1f} Hz"
        values["output rate"] = f"{now.output_hz:.1f} Hz"
        values["target rate"] = f"{report.target_rate:g} Hz" if report.target_rate else "any"
        values["images received"] = str(now.received)
        values["images processed"] = str(now.processed)
        values["images dropped"] = str(sum(now.drops.values()))
        values.update({f"dropped: {reason}": str(n) for reason, n in now.drops.items()})
        values["camera_info refused"] = str(now.camera_info_faults)
        for stage, (median, late) in now.latency_ms.items():
            values[f"{stage} median / p95"] = f"{median:.1f} / {late:.1f} ms"
    return values


def _slow_stage(now: Snapshot) -> str:
    """Which stage takes the most of a frame, in words, when anything is known."""
    stages = {name: ms[0] for name, ms in now.latency_ms.items() if name not in ("latency", "wait")}
    if not stages:
        return ""
    slowest = max(stages, key=stages.__getitem__)
    return f": {slowest} takes {stages[slowest]:.0f} ms of {sum(stages.values()):.0f}"


def judge_machine(machine: Machine) -> tuple[bytes, str]:
    """Level and one sentence."""
    if machine.device_total and machine.device_free is not None:
        used = 1 - machine.device_free / machine.device_total
        if used > _MEMORY_FULL:
            return DiagnosticStatus.WARN, f"the GPU's memory is {100 * used:.0f} % full"
    if machine.temperatures:
        sensor = max(machine.temperatures, key=machine.temperatures.__getitem__)
        degrees = machine.temperatures[sensor]
        if degrees >= _HOT:
            return DiagnosticStatus.WARN, f"{sensor} has {degrees:.0f} °C and may slow down"
        return DiagnosticStatus.OK, f"{degrees:.0f} °C"
    return DiagnosticStatus.OK, "ok"


def machine_values(machine: Machine) -> dict[str, str]:
    """The readings as texts."""

    def mib(number: int | None) -> str:
        return "unknown" if number is None else f"{number / 2**20:.0f} MiB"

    values = {"process memory": mib(machine.process_bytes)}
    if machine.device_total is not None:
        values["device memory"] = mib(machine.device_own)
        values["device memory free"] = f"{mib(machine.device_free)} of {mib(machine.device_total)}"
    for sensor, degrees in machine.temperatures.items():
        values[f"temperature {sensor}"] = f"{degrees:.1f} °C"
    return values
