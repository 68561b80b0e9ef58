# SPDX-License-Identifier: Apache-2.0
"""A robot driven by an openpi server over a real websocket, and by one that fails in every way."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("msgpack", reason="needs the extra 'openpi'")
pytest.importorskip("websockets", reason="needs the extra 'openpi'")
pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

sys.path.append(str(Path(__file__).resolve().parents[1] / "action"))

from action_bench import JOINTS, Bench, benches
from omnistream_ros.msg import ActionStatus
from openpi_server import OpenPiServer, lean
from sensor_msgs.msg import Image
from std_msgs.msg import String

HOLDING = ActionStatus.HOLDING
# Long enough that the robot moves on while the test machine is busy with something else.
HORIZON = 40


def _lean(*_: object) -> dict:
    return {"actions": np.full((HORIZON, 2), 0.25, np.float32)}


@pytest.fixture(scope="module")
def server() -> Iterator[OpenPiServer]:
    with OpenPiServer(_lean) as running:
        yield running


@pytest.fixture(scope="module")
def remote(module_domain: int, weights: Path, server: OpenPiServer) -> Iterator[Bench]:
    """A node whose policy reads features, a camera, joints and the instruction as text."""
    parameters = {
        "policy": server.uri,
        "instruction": "lean forward",
        "horizon": HORIZON,
        "replan_actions": 2.0,
        "inference_timeout": 1.0,
        "images": ["observation/image: /camera/image"],
        "features_timeout": 3.0,
    }
    for bench in benches(module_domain, weights, **parameters):
        camera = bench.user.node.create_publisher(Image, "/camera/image", 1)

        def look(bench: Bench = bench, camera: Any = camera) -> None:
            image = bench.user.picture()
            image.header.stamp = bench.robot.now().to_msg()
            camera.publish(image)

        bench.user.node.create_timer(0.1, look)
        yield bench


def test_openpi_drives_the_robot(remote: Bench, server: OpenPiServer) -> None:
    remote.executes()
    goal = dict.fromkeys(JOINTS, 0.25)
    remote.user.wait_until(
        lambda: all(abs(remote.robot.positions[n] - goal[n]) < 0.02 for n in goal), "the pose"
    )
    question = server.questions[-1]
    assert question["prompt"] == "lean forward"
    assert question["observation/image"].shape == (224, 224, 3)
    assert question["observation/state"].shape == (2,)
    assert question["features/camera/3:patch:normed"].shape == (2, 3, 4)


def test_an_image_that_lies_about_its_size(remote: Bench) -> None:
    remote.executes()
    image = remote.user.picture()
    image.step -= 1
    twin = remote.user.node.create_publisher(Image, "/camera/image", 1)

    def refused() -> bool:
        image.header.stamp = remote.robot.now().to_msg()
        twin.publish(image)
        return remote.drops("bad_image") > 0

    remote.user.wait_until(refused, "refusal of the image")
    remote.user.node.destroy_publisher(twin)
    remote.executes()


def _gone(_: dict, connection: Any) -> None:
    connection.close_socket()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_gone, "the server is gone"),
        (lambda *_: b"\xc1", "garbage"),
        (lambda *_: "Traceback\nValueError: no such robot", "ValueError: no such robot"),
        (lambda *_: None, "no answer within 1 s"),
        (lambda *_: {"actions": np.full((HORIZON, 2), np.nan)}, "chunk_not_finite"),
        (lambda *_: {"actions": np.full((HORIZON, 2), 1e300)}, ""),
        (lean, "the parameters say [40, 2]"),
    ],
    ids=["gone_mid_call", "garbage", "error", "no_answer", "nan", "absurd", "other_horizon"],
)
def test_a_server_that_fails(
    remote: Bench, server: OpenPiServer, answer: Callable[..., Any], words: str
) -> None:
    remote.executes()
    server.answer = answer
    if words:
        remote.wait_for(HOLDING, ActionStatus.POLICY_FAILED, words)
        remote.moves_no_more()
    else:  # clamped: the robot goes to the end of its range and no further
        remote.user.wait_until(lambda: remote.robot.positions["elbow"] > 0.9)
        remote.executes()
        assert max(remote.robot.positions.values()) <= 1.0 + 1e-9
    server.answer = _lean
    remote.executes()


def test_a_late_answer_is_never_carried_out(remote: Bench, server: OpenPiServer) -> None:
    remote.executes()
    let_go = threading.Event()

    def late(*_: object) -> dict:
        began = time.monotonic()
        let_go.wait(30.0)
        over = time.monotonic() - began > 1.0  # then nobody waits for it any more
        return {"actions": np.full((HORIZON, 2), -1.0 if over else 0.25, np.float32)}

    server.answer = late
    remote.wait_for(HOLDING, ActionStatus.POLICY_FAILED, "no answer")
    server.answer = _lean
    let_go.set()
    remote.executes()
    remote.user.wait_until(lambda: remote.robot.positions["elbow"] > 0.2)
    assert min(c.data[0] for c in remote.chunks if not c.refused) > -0.5


def test_a_policy_slower_than_its_horizon(remote: Bench, server: OpenPiServer) -> None:
    remote.executes()
    assert remote.change("deactivate", "cleanup")
    assert remote.set_parameter("horizon", 4)
    gate = threading.Semaphore(0)

    def slow(*_: object) -> dict:
        gate.acquire(timeout=0.8)  # four actions of 0.05 s are long over
        return {"actions": np.full((4, 2), 0.1, np.float32)}

    server.answer = slow
    assert remote.change("configure", "activate")
    remote.executes()
    remote.wait_for(HOLDING, ActionStatus.CHUNK_USED_UP, "slower than its horizon")
    server.answer = lambda *_: {"actions": np.full((4, 2), 0.1, np.float32)}
    gate.release(10)
    remote.executes()
    assert remote.change("deactivate", "cleanup")
    server.answer = _lean
    assert remote.set_parameter("horizon", HORIZON)
    assert remote.change("configure", "activate")
    remote.executes()


@pytest.mark.parametrize("text", ["", "x" * 100_000, "pick\x07up"], ids=["empty", "100kB", "bell"])
def test_an_instruction_that_cannot_be_followed(remote: Bench, text: str) -> None:
    remote.executes()
    publisher = remote.robot.instruction
    remote.user.wait_until(lambda: publisher.get_subscription_count() > 0)
    publisher.publish(String(data=text))
    remote.wait_for(HOLDING, ActionStatus.INSTRUCTION_REFUSED, "the instruction")
    remote.moves_no_more()
    answer = remote.instruct(text)
    assert not answer.success
    assert "the robot holds until a good one comes" in answer.message
    publisher.publish(String(data="lean back"))
    remote.executes()
    assert remote.last.instruction == "lean back"


def test_another_instruction_reaches_the_policy(remote: Bench, server: OpenPiServer) -> None:
    remote.executes()
    answer = remote.instruct("lean to the side")
    assert (answer.success, answer.message) == (True, "following: lean to the side")
    remote.user.wait_until(lambda: remote.chunks[-1].instruction == "lean to the side")
    assert server.questions[-1]["prompt"] == "lean to the side"


def test_deactivation_does_not_wait_for_a_server_that_is_silent(
    remote: Bench, server: OpenPiServer
) -> None:
    remote.executes()
    server.answer = lambda *_: None
    asked = len(server.questions)
    remote.user.wait_until(lambda: len(server.questions) > asked)
    assert remote.change("deactivate")
    server.answer = _lean
    assert remote.change("activate")
    remote.executes()


def test_everything_was_survived(remote: Bench) -> None:
    assert remote.node.alive
    assert remote.node.count("Traceback") == 0
