# SPDX-License-Identifier: Apache-2.0
"""What /diagnostics says in which situation, and what it can read of the machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from omnistream_ros.nodes.diagnostics import Diagnostics, Report, judge_machine, machine_values
from omnistream_ros.nodes.lifecycle import Phase
from omnistream_ros.nodes.machine import Machine, read_machine
from omnistream_ros.nodes.statistics import Snapshot
from omnistream_ros.stream.metric_scale import ScaleState
from omnistream_ros.stream.result import Tracking
from omnistream_ros.stream.scale_estimate import ScaleStatus

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
SNAPSHOT = Snapshot(
    received=100,
    processed=90,
    drops={"superseded": 10},
    camera_info_faults=0,
    input_hz=15.0,
    output_hz=9.0,
    latency_ms={"wait": (1.0, 2.0), "backbone": (40.0, 50.0), "heads": (10.0, 20.0)},
    idle_s=0.1,
)
REPORT = Report(
    camera="",
    statistics=SNAPSHOT,
    image_topic="/image",
    silence="",
    publishers=1,
    model_name="tiny",
    weights_sha256="ab" * 32,
    device="cpu",
    engine="eager",
    engine_remark="",
    metric=True,
    tracking=Tracking.GOOD,
    busy_s=0.0,
    context_frames=17,
    context_capacity=17,
    cache_bytes=2 << 20,
    stall_timeout=3.0,
    target_rate=0.0,
    paused=False,
    scale=ScaleState("model", ScaleStatus.KNOWN, 1.0, None, 0, 0),
    scale_fault="",
)


class Node:
    """What of a node the diagnostics use."""

    phase = Phase.ACTIVE
    last_error = ""

    def get_fully_qualified_name(self) -> str:
        return "/eye"

    def create_publisher(self, *_: Any) -> None:
        return None

    def create_timer(self, *_: Any, **__: Any) -> None:
        return None


def said(node: Node | None = None, **changes: Any) -> tuple[bytes, str, dict[str, str]]:
    """Level, sentence and values for a report with these changes."""
    numbers = {key: changes.pop(key) for key in list(changes) if hasattr(SNAPSHOT, key)}
    statistics = dataclasses.replace(SNAPSHOT, **numbers)
    report = dataclasses.replace(REPORT, **{"statistics": statistics, **changes})
    diagnostics = Diagnostics(node or Node(), 1.0, lambda: [report], before=lambda: None)  # type: ignore[arg-type]
    status = diagnostics._status(report)
    return status.level, status.message, {v.key: v.value for v in status.values}


def scale(source: str, status: ScaleStatus) -> ScaleState:
    return ScaleState(source, status, 0.41, 0.05, 12, 3)


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, OK, "9.0 Hz"),
        ({"metric": False}, OK, "up to scale"),
        ({"paused": True, "idle_s": 100.0}, OK, "paused"),
        ({"target_rate": 9.5}, OK, "9.0 Hz"),
        ({"target_rate": 12.0}, WARN, "12 are wanted: backbone takes 40 ms of 50"),
        ({"target_rate": 30.0}, ERROR, "30 are wanted"),
        ({"target_rate": 30.0, "processed": 3}, OK, "9.0 Hz"),
        ({"idle_s": 5.0}, WARN, "no usable image for 5 s"),
        ({"drops": {"short_data": 2}}, WARN, "2 short_data"),
        ({"drops": {"superseded": 50, "paused": 9, "deactivated": 1}}, OK, "9.0 Hz"),
        ({"received": 0, "publishers": 0}, WARN, "no publisher on '/image'"),
        ({"tracking": Tracking.LOST}, WARN, "cannot be followed"),
        ({"engine_remark": "eager instead"}, WARN, "eager instead"),
        ({"scale": scale("range", ScaleStatus.KNOWN)}, OK, "9.0 Hz"),
        ({"scale": scale("range", ScaleStatus.NONE)}, WARN, "scale from range: nothing observed"),
        ({"scale": scale("height", ScaleStatus.FROZEN)}, WARN, "frozen"),
        ({"scale": scale("odometry", ScaleStatus.DISAGREEING)}, WARN, "contradict"),
        (
            {"scale": scale("range", ScaleStatus.NONE), "scale_fault": "no transform to 'laser'"},
            WARN,
            "'laser'",
        ),
    ],
)
def test_levels_mean_something(changes: dict[str, Any], level: bytes, words: str) -> None:
    said_level, message, _ = said(**changes)
    assert (said_level, words in message) == (level, True), message


def test_an_error_that_ended_the_stream_is_an_error() -> None:
    node = Node()
    node.phase, node.last_error = Phase.UNCONFIGURED, "RuntimeError: the GPU is gone"
    level, message, values = said(node)
    assert level == ERROR
    assert "the GPU is gone" in message
    assert values["last error"] == node.last_error


def test_everything_that_was_promised_is_in_the_values() -> None:
    _, _, values = said(target_rate=12.0, scale=scale("range", ScaleStatus.KNOWN))
    assert values["output rate"] == "9.0 Hz"
    assert values["target rate"] == "12 Hz"
    assert values["backbone median / p95"] == "40.0 / 50.0 ms"
    assert values["dropped: superseded"] == "10"
    assert values["context"] == "17 of 17 frames"
    assert values["cache"] == "2.0 MiB"
    assert values["scale"] == "metric"
    assert values["scale source"] == "range"
    assert values["scale status"] == "known"
    assert values["scale factor"] == "0.41"
    assert values["scale spread"] == "5.0 %"
    assert values["scale observations"] == "12 used, 3 refused"


def machine(**changes: Any) -> Machine:
    return dataclasses.replace(Machine(100 << 20, None, None, None, {}), **changes)


def test_a_full_or_hot_machine_is_a_warning() -> None:
    assert judge_machine(machine()) == (OK, "ok")
    assert judge_machine(machine(temperatures={"soc": 60.0, "gpu": 71.4})) == (OK, "71 °C")
    level, text = judge_machine(machine(temperatures={"soc": 97.0}))
    assert (level, "soc" in text) == (WARN, True)
    full = machine(device_free=1 << 30, device_total=64 << 30, device_own=3 << 30)
    level, text = judge_machine(full)
    assert (level, "98 %" in text) == (WARN, True)
    values = machine_values(full)
    assert values["device memory"] == "3072 MiB"
    assert values["device memory free"] == "1024 MiB of 65536 MiB"


def test_thermal_zones_are_read_as_far_as_they_can_be(tmp_path: Path) -> None:
    zones = [("cpu", "41000"), ("cpu", "55500"), ("gpu", "-256000"), ("soc", "nonsense")]
    for i, (kind, value) in enumerate(zones):
        zone = tmp_path / f"thermal_zone{i}"
        zone.mkdir()
        (zone / "type").write_text(f"{kind}\n")
        (zone / "temp").write_text(f"{value}\n")
    (tmp_path / "thermal_zone9").mkdir()
    read = read_machine("cpu", thermal=tmp_path)
    assert read.temperatures == {"cpu": 55.5}
    assert read.process_bytes is None or read.process_bytes > 10 << 20
    assert read_machine("", thermal=tmp_path / "nowhere").temperatures == {}


def test_the_aggregator_finds_our_names() -> None:
    yaml = pytest.importorskip("yaml")
    text = (Path(__file__).parents[2] / "config" / "diagnostic_aggregator.yaml").read_text(
        encoding="utf-8"
    )
    analyzers = yaml.safe_load(text)["analyzers"]["ros__parameters"]
    patterns = analyzers["perception"]["contains"]
    names = ("/omnistream_perception: stream", "/robot/omnistream_perception: front")
    assert all(any(pattern in name for pattern in patterns) for name in names)
