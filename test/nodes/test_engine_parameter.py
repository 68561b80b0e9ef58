# SPDX-License-Identifier: Apache-2.0
"""The parameter `engine`: refusals with numbers, a compiler that fails, a device that is lost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from omnistream_ros.msg import StreamStatus
from ros_processes import NODE, NodeStarter, User

from omnistream_ros.nodes import perception
from omnistream_ros.stream.engines import TorchEngine


def without_compiler(arguments: list[str]) -> int:
    """The node on a machine where torch.compile finds no compiler."""

    def compile_nothing(*_: object, **__: object) -> Callable[..., None]:
        def call(*_: object) -> None:
            raise RuntimeError("No working C++ compiler found\nCXX=...")

        return call

    torch.compile = compile_nothing  # type: ignore[assignment]
    return perception.main(arguments)


def losing_its_device(arguments: list[str]) -> int:
    """The node with an engine whose device is lost at the third frame, once."""
    step, frames = TorchEngine.step, 0

    def lose(self: TorchEngine, *given: object, **wanted: object) -> object:
        nonlocal frames
        frames += 1
        if frames == 2 + 3:  # after the two of the warm-up
            raise RuntimeError("CUDA error: unspecified launch failure\nmore advice")
        return step(self, *given, **wanted)  # type: ignore[arg-type]

    TorchEngine.step = lose  # type: ignore[method-assign, assignment]
    return perception.main(arguments)


def foreign_step(path: Path, sha256: str) -> Path:
    """An ONNX file that says it was exported from other weights."""
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install '.[onnx]'")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[onnx]'")
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "ab"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["a"], ["b"])], "step", value[:1], value[1:]
    )
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    config = {"name": "other", "width": 16, "depth": 1, "heads": 2, "taps": [0] * 4}
    facts = {
        "format": "omnistream-step-1",
        "model": "other",
        "sha256": sha256,
        "config": {**config, "model_pixels": 256},
        "height": 48,
        "width": 64,
        "tokens": 1,
        "dtype": "float32",
    }
    onnx.helper.set_model_props(model, {"omnistream": json.dumps(facts)})
    onnx.save(model, path)
    return path


def test_an_onnx_file_of_another_model_refuses_to_configure(
    user: User, start_node: NodeStarter, weights: Path, tmp_path: Path
) -> None:
    other = "0f" * 32
    node = start_node(engine="onnx", engine_file=foreign_step(tmp_path / "other.onnx", other))
    assert not user.change("configure")
    line = node.wait_for("cannot configure")
    assert other in line
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in line
    assert "omnistream export" in line
    assert user.state() == "unconfigured"
    assert user.set_parameter("engine", "eager").successful
    assert user.change("configure")
    assert "engine eager" in node.wait_for("engine eager")


def test_a_failing_compiler_is_told_and_survived(user: User, start_node: NodeStarter) -> None:
    arguments = start_node.arguments(autostart=True, engine="compiled")
    node = start_node.fork(without_compiler, arguments)
    assert "No working C++ compiler found" in node.wait_for("the model runs eagerly")
    status = user.collect(StreamStatus, f"{NODE}/status")
    arrays = user.collect(DiagnosticArray, "/diagnostics")
    send = user.camera()
    user.wait_until(lambda: status)
    assert user.process(send, status).frames_processed == 1

    def diagnosis() -> DiagnosticStatus:
        return arrays[-1].status[0]

    user.wait_until(lambda: arrays and "engine:" in diagnosis().message, "the remark")
    assert diagnosis().level == DiagnosticStatus.WARN
    values = {pair.key: pair.value for pair in diagnosis().values}
    assert values["engine"] == "eager"
    assert "No working C++ compiler found" in values["engine remark"]


def test_a_device_lost_in_mid_stream_recovers(user: User, start_node: NodeStarter) -> None:
    arguments = start_node.arguments(autostart=True, engine="eager")
    node = start_node.fork(losing_its_device, arguments)
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images")
    send = user.camera()
    user.wait_until(lambda: status)
    assert [user.process(send, status).frame_index for _ in range(2)] == [0, 1]
    send()
    node.wait_for("recovered to unconfigured after: RuntimeError: CUDA error")
    user.wait_until(lambda: status[-1].state == StreamStatus.FAULT)
    assert user.state() == "unconfigured"
    user.wait_until(lambda: user.node.count_subscribers("/image") == 0)
    assert user.change("configure", "activate")
    send = user.camera()
    user.wait_until(lambda: status[-1].state == StreamStatus.WAITING)
    frame = user.process(send, status)
    assert (frame.epoch, frame.frame_index, frame.frames_processed) == (0, 0, 1)


@pytest.mark.parametrize("engine", ["eager", "fast"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_engines_run_in_the_node(
    user: User, start_node: NodeStarter, engine: str, precision: str
) -> None:
    node = start_node(autostart=True, engine=engine, precision=precision)
    node.wait_for(f"engine {engine}")
    status = user.collect(StreamStatus, f"{NODE}/status")
    send = user.camera()
    user.wait_until(lambda: status)
    assert user.process(send, status).frame_index == 0
