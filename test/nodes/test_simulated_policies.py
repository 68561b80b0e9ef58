# SPDX-License-Identifier: Apache-2.0
"""Every kind of policy drives the simulated robot to where it was told to go.

Processes of their own and real DDS, as `omnistream simulate` starts them. The robot is the toy one;
each policy really solves its tasks: an ONNX file reads from features of the shipped model where the
disc is, an openpi server looks for the disc in the camera's image, and a script leads the pen round
all places where a disc may lie.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")
pytest.importorskip("omnistream_ros.msg", reason="needs the built messages: run scripts/test")

sys.path.append(str(Path(__file__).resolve().parents[1] / "action"))

from omnistream_ros.evaluation.live_simulation import SimulationRun, simulate
from omnistream_ros.evaluation.stream_features import StreamFeatures
from omnistream_ros.model.sentence_encoder import SentenceEncoderError, installed_encoder
from omnistream_ros.simulation.success import Rate
from omnistream_ros.simulation.tasks import make_environment, task_named

TASKS = ("toy-red", "toy-blue")
KEY = "7:patch:normed"
HORIZON = 8


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulationRun:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return SimulationRun("", TASKS, 2, tmp_path, horizon=HORIZON)


def test_a_script_drives_it(run: SimulationRun) -> None:
    """Half a circle takes less than the time of an attempt; where it leads is known beforehand."""
    turn = [f"{0.3 * i}: {0.19 * math.cos(i / 4)} {0.19 * math.sin(i / 4)}" for i in range(13)]
    found = simulate(dataclasses.replace(run, policy="scripted", script=tuple(turn), speed=2.0))
    wanted = {task: sum(_passes(task, seed) for seed in range(10**6, 10**6 + 2)) for task in TASKS}
    assert sum(wanted.values()) in (1, 2, 3)  # it is the way that decides
    assert found == {task: Rate(2, wanted[task]) for task in TASKS}


def _passes(task: str, seed: int) -> bool:
    """Whether half a circle comes near the goal of a task."""
    env = make_environment(task)
    env.reset(seed)
    x, y = env.expert()
    return y > 0.0 and abs(math.hypot(x, y) - 0.19) < 0.04


def test_an_openpi_server_drives_it(run: SimulationRun) -> None:
    pytest.importorskip("msgpack", reason="needs the extra 'openpi'")
    pytest.importorskip("websockets", reason="needs the extra 'openpi'")
    from openpi_server import OpenPiServer

    with OpenPiServer(_point_at_the_disc) as server:
        found = simulate(dataclasses.replace(run, policy=server.uri, speed=2.0))
    assert found == {task: Rate(2, 2) for task in TASKS}
    question = server.questions[-1]
    assert question["prompt"] == "move to the blue disc"
    assert question["observation/image"].shape == (224, 224, 3)
    assert question["observation/state"].shape == (2,)


def _point_at_the_disc(question: dict, _: object) -> dict:
    """Where the pixels of the colour in the prompt are, in metres."""
    image = question["observation/image"].astype(int)  # (224, 224, 3), 192 x 144 between bars
    red, blue = image[..., 0], image[..., 2]
    more = red - blue if "red" in question["prompt"] else blue - red
    rows, columns = np.nonzero(more > 60)
    metre = 224 / 192 * 144 / (2 * 1.2 * 0.3)  # pixels
    place = np.array([columns.mean() - 111.5, 111.5 - rows.mean()]) / metre
    return {"actions": np.tile(place, (HORIZON, 1)).astype(np.float32)}


def test_an_onnx_policy_on_features_drives_it(run: SimulationRun) -> None:
    pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    try:
        installed_encoder()
    except SentenceEncoderError as error:
        pytest.skip(str(error))
    policy = run.out / "toy.onnx"
    _write_policy(policy)
    found = simulate(dataclasses.replace(run, policy=str(policy)))
    assert found == {task: Rate(2, 2) for task in TASKS}


def _write_policy(path: Path) -> None:
    """A file that goes where the features say the disc is that the instruction names."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from omnistream_ros.action.policy_facts import FeatureInput, InstructionInput, PolicyFacts
    from omnistream_ros.action.policy_file import write_policy_facts
    from omnistream_ros.action.spaces import ActionSpec, Space

    weights, bias, places, sha256 = _probe()
    said = installed_encoder()([task_named(task).instructions[0] for task in TASKS]).numpy()
    axes = make_environment(TASKS[0]).axes
    rows, columns, channels = 9, 12, len(weights)
    facts = PolicyFacts(
        "toy",
        "Apache-2.0",
        sha256,
        (FeatureInput("camera", KEY, (rows, columns, channels), "features"),),
        None,
        InstructionInput("words"),
        "commands",
        ActionSpec(
            Space.JOINT_POSITION,
            tuple(axis.name for axis in axes),
            tuple(axis.unit for axis in axes),
            "",
            HORIZON,
            0.1,
            tuple(axis.low for axis in axes),
            tuple(axis.high for axis in axes),
        ),
    )
    constants = {
        "weights": weights,
        "bias": bias,
        "places": places,
        "said": said.T,
        "sharpness": np.array(60.0),
        "patches": np.array([1, rows * columns, 2]),
        "size": np.array([1, HORIZON, 2]),
        "last": np.array([-1]),
        "second": np.array([1]),
    }
    nodes = [  # how much each patch looks like each disc; its middle; the disc that is meant
        ("MatMul", ["features", "weights"], "matched"),
        ("Add", ["matched", "bias"], "likeness"),
        ("Relu", ["likeness"], "likely"),
        ("Reshape", ["likely", "patches"], "map"),
        ("Transpose", ["map"], "maps"),
        ("MatMul", ["maps", "places"], "moments"),
        ("ReduceSum", ["maps", "last"], "sums"),
        ("Div", ["moments", "sums"], "discs"),
        ("MatMul", ["words", "said"], "near"),
        ("Mul", ["near", "sharpness"], "nearer"),
        ("Softmax", ["nearer"], "meant"),
        ("Unsqueeze", ["meant", "second"], "choice"),
        ("MatMul", ["choice", "discs"], "goal"),
        ("Expand", ["goal", "size"], "commands"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node(
                kind, inputs, [output], **({"perm": [0, 2, 1]} if kind == "Transpose" else {})
            )
            for kind, inputs, output in nodes
        ],
        "toy",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in facts.inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in facts.outputs.items()],
        [
            numpy_helper.from_array(
                value.astype(np.int64 if value.dtype.kind == "i" else np.float32), name
            )
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    write_policy_facts(path, facts)


def _probe() -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """By ridge regression on some scenes: what makes a patch look like the red disc and the blue.

    Returns weights (C, 2), bias (2,), where each patch is in metres (P, 2), and the model's hash.
    """
    red, blue = (make_environment(task) for task in TASKS)
    eyes = StreamFeatures("omnistream-nano", (KEY,), (144, 192), red.field_of_view)
    tokens, wanted = [], []
    y, x = np.mgrid[0:9, 0:12]
    places = np.stack(((x - 5.5) * 16, (4 - y) * 16), -1).reshape(-1, 2) * (0.72 / 144)  # (P, 2)
    for seed in range(16):
        red.reset(seed)
        blue.reset(seed)
        eyes.reset()
        for frame in range(4):
            tokens.append(eyes.look(red.observe().image, 0.1 * frame)[KEY].reshape(108, -1))
            discs = np.stack([red.expert(), blue.expert()])  # (2, xy)
            away = np.abs(places[:, None] - discs) / (16 * 0.72 / 144)  # (P, 2, xy) in patches
            wanted.append(np.clip(1.0 - away, 0.0, None).prod(-1))  # shares of the four around it
            for _ in range(8):
                red.advance((red, blue)[seed % 2].expert())
    a, b = np.concatenate(tokens), np.concatenate(wanted)
    a, mean = a - a.mean(0), a.mean(0)
    weights = np.linalg.solve(a.T @ a + 10.0 * np.eye(a.shape[1]), a.T @ (b - b.mean(0)))
    # What is less than a little is nothing.
    return weights, b.mean(0) - mean @ weights - 0.1, places, eyes.sha256
