# SPDX-License-Identifier: Apache-2.0
"""Fifty random sequences of transitions, images and faults on one process, without leak or crash.

A model of the node - its lifecycle state and what must be refused in it - goes through the same
steps. All sequences drive one process, so that whatever one of them leaves behind meets the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from omnistream_ros.msg import StreamStatus
from ros_processes import NODE, NodeStarter, User
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from omnistream_ros.nodes import perception
from omnistream_ros.stream.session import StreamSession

SEQUENCES, STEPS = 50, 6
FAULT_WIDTH = 80  # an image of this width makes the model fail
NEXT = {
    ("unconfigured", "configure"): "inactive",
    ("inactive", "activate"): "active",
    ("active", "deactivate"): "inactive",
    ("inactive", "cleanup"): "unconfigured",
}
BACK = {"active": ["deactivate", "cleanup"], "inactive": ["cleanup"], "unconfigured": []}


def faulty_main(arguments: list[str]) -> int:
    step = StreamSession.step

    def fail(self: StreamSession, frame, *others):
        if frame.width == FAULT_WIDTH:
            raise RuntimeError("device lost")
        return step(self, frame, *others)

    StreamSession.step = fail  # type: ignore[method-assign]
    return perception.main(arguments)


class Robot:
    """The one process, and a user beside it."""

    def __init__(self, user: User, start: NodeStarter, weights: Path) -> None:
        self.user, self.weights = user, weights
        arguments = start.arguments(engine="eager", source_timeout=0.0, diagnostics_period=0.1)
        self.node = start.fork(faulty_main, arguments)
        self.status = user.collect(StreamStatus, f"{NODE}/status")
        user.collect(Image, f"{NODE}/depth/image")
        self.memory: list[float] = []
        self.threads: list[int] = []

    def active_camera(self):
        """A camera that the node of this activation listens to."""
        send = self.user.camera()
        self.user.wait_until(lambda: self.status and self.status[-1].state != 0, "a state")
        return send


ROBOT: list[Robot] = []


class Sequence(RuleBasedStateMachine):
    """One sequence; before it the process is unconfigured."""

    @initialize(way=st.sampled_from([["configure", "activate"], ["configure", "activate"], []]))
    def begin(self, way: list[str]) -> None:
        self.robot = ROBOT[0]
        self.state = "unconfigured"
        assert self.robot.user.state() == self.state
        for name in way:
            self.change(name)

    @rule(name=st.sampled_from(["configure", "activate", "deactivate", "cleanup"]))
    def change(self, name: str) -> None:
        self.robot.status.clear()
        allowed = (self.state, name) in NEXT
        assert self.robot.user.change(name) == allowed
        self.state = NEXT.get((self.state, name), self.state)
        assert self.robot.user.state() == self.state

    @precondition(lambda self: self.state == "unconfigured")
    @rule()
    def no_model(self) -> None:
        """Configure refuses, and works again with the right one."""
        user = self.robot.user
        assert user.set_parameter("model", "/nowhere").successful
        assert not user.change("configure")
        assert user.set_parameter("model", str(self.robot.weights)).successful
        assert user.state() == "unconfigured"

    @precondition(lambda self: self.state == "active")
    @rule(count=st.integers(1, 3))
    def images(self, count: int) -> None:
        send = self.robot.active_camera()
        for _ in range(count):
            last = self.robot.user.process(send, self.robot.status)
        assert last.frames_processed >= count

    @precondition(lambda self: self.state == "active")
    @rule()
    def bad_image(self) -> None:
        send = self.robot.active_camera()
        self.robot.user.process(send, self.robot.status)
        broken = self.robot.user.picture()
        broken.step = 1
        send(broken)
        last = self.robot.user.process(send, self.robot.status)
        assert "wrong_step" in last.drop_reasons

    @precondition(lambda self: self.state == "active")
    @rule()
    def fault(self) -> None:
        """The model fails: error processing, and unconfigured."""
        send = self.robot.active_camera()
        self.robot.user.process(send, self.robot.status)
        send(width=FAULT_WIDTH)
        self.robot.user.wait_until(lambda: self.robot.user.state() == "unconfigured", "recovery")
        self.state = "unconfigured"

    @rule()
    def reset(self) -> None:
        answer = self.robot.user.call(Trigger, f"{NODE}/reset", Trigger.Request())
        assert answer.success == (self.state == "active")

    @rule(value=st.integers(-1, 20))
    def parameter(self, value: int) -> None:
        allowed = self.state == "unconfigured" and value >= 1
        assert self.robot.user.set_parameter("window", value).successful == allowed

    def teardown(self) -> None:
        assert self.robot.user.change(*BACK[self.state])
        assert self.robot.node.alive
        self.robot.memory.append(self.robot.node.resident_mib())
        self.robot.threads.append(self.robot.node.threads())


@pytest.fixture(scope="module")
def robot(module_domain: int, weights: Path) -> Iterator[Robot]:
    with User(module_domain) as user, NodeStarter(module_domain, weights) as start:
        ROBOT[:] = [Robot(user, start, weights)]
        yield ROBOT[0]


def test_fifty_random_sequences(robot: Robot) -> None:
    Sequence.TestCase.settings = settings(
        max_examples=SEQUENCES,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    Sequence.TestCase().runTest()
    assert len(robot.memory) >= SEQUENCES
    # Every fault was meant; nothing else was raised.
    faults = robot.node.count("fault while active: RuntimeError: device lost")
    assert robot.node.count("recovered to unconfigured after: RuntimeError") == faults > 0
    assert robot.node.count("Traceback") == faults
    assert robot.threads[-1] <= max(robot.threads[:10])
    print("resident MiB:", [round(m, 1) for m in robot.memory])
    assert robot.memory[-1] - robot.memory[len(robot.memory) // 4] < 6.0, robot.memory
