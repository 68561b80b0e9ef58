# SPDX-License-Identifier: Apache-2.0
"""The simulator as a robot over real DDS: what it publishes, what it follows, and how it counts."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from omnistream_ros.nodes import simulator
from omnistream_ros.nodes.process import RefusedToStartError
from omnistream_ros.nodes.simulator import SimulatorNode, make_attempts
from omnistream_ros.nodes.simulator_parameters import SimulatorParameters
from omnistream_ros.simulation.tasks import make_environment


@pytest.fixture
def ros() -> Iterator[None]:
    yield
    rclpy.try_shutdown()


def _node(*parameters: str) -> SimulatorNode:
    defaults = ("tasks:=[toy-red]", "perception:=''", "action:=''", "speed:=10.0")
    words = [word for value in (*defaults, *parameters) for word in ("-p", value)]
    rclpy.init(args=["--ros-args", *words])
    return SimulatorNode()


class Driver:
    """Someone who steers by what it hears, as an action node would."""

    def __init__(self, wanted: list[float] | None, names: tuple[str, ...] = ("x", "y")) -> None:
        self.node = rclpy.create_node("driver")
        self.images: list[Image] = []
        self.infos: list[CameraInfo] = []
        self.joints: list[JointState] = []
        self.times: list[int] = []
        self._wanted, self._names = wanted, names
        self._publisher = self.node.create_publisher(
            JointTrajectory, "command/joint_trajectory", 10
        )
        self.node.create_subscription(Image, "image", self.images.append, 10)
        self.node.create_subscription(CameraInfo, "camera_info", self.infos.append, 10)
        self.node.create_subscription(JointState, "joint_states", self._on_joints, 10)
        self.node.create_subscription(
            Clock,
            "/clock",
            lambda m: self.times.append(m.clock.sec * 10**9 + m.clock.nanosec),
            100,
        )

    def _on_joints(self, message: JointState) -> None:
        self.joints.append(message)
        if self._wanted is not None:
            point = JointTrajectoryPoint(positions=self._wanted)
            self._publisher.publish(JointTrajectory(joint_names=list(self._names), points=[point]))

    def connected(self) -> bool:
        return self._publisher.get_subscription_count() > 0


def _run(node: SimulatorNode, driver: Driver) -> list:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    executor.add_node(driver.node)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            executor.spin_once(timeout_sec=0.05)

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        while not driver.connected():
            node.stopped.wait(0.01)
        return make_attempts(node)
    finally:
        over.set()
        serving.join()
        executor.shutdown()
        driver.node.destroy_node()
        node.destroy_node()


def _goal(task: str, seed: int) -> list[float]:
    env = make_environment(task)
    env.reset(seed)
    return env.expert().tolist()


def test_it_follows_commands_and_says_how_it_went(
    ros: None, capsys: pytest.CaptureFixture[str]
) -> None:
    node = _node("attempts:=1", "first_seed:=7")
    driver = Driver(_goal("toy-red", 7))
    (attempt,) = _run(node, driver)
    assert attempt.success
    assert attempt.seed == 7
    record = json.loads(capsys.readouterr().out.splitlines()[0])
    assert record["success"] is True
    assert record["commands"] > 0
    image, info = driver.images[0], driver.infos[0]
    assert (image.width, image.height, image.encoding) == (192, 144, "rgb8")
    assert image.header.frame_id == info.header.frame_id == "simulated_camera"
    assert info.header.stamp == image.header.stamp
    assert info.k[0] == pytest.approx(192 / 2 / np.tan(np.radians(30)), rel=1e-3)
    assert driver.joints[0].name == ["x", "y"]


def test_time_goes_on_in_steps_and_never_back(ros: None) -> None:
    node = _node("attempts:=2")
    driver = Driver(None)
    attempts = _run(node, driver)
    assert [attempt.success for attempt in attempts] == [False, False]
    steps = np.diff(driver.times)
    assert (steps > 0).all()
    pauses = steps[steps > 100_000_000]
    assert len(pauses) >= 1  # between the attempts
    assert np.median(steps) == 12_500_000


@pytest.mark.parametrize(
    ("wanted", "names", "words"),
    [
        ([0.2, 0.2], ("elbow", "wrist"), "a command for elbow, wrist was not followed"),
        ([0.2, 0.2], ("x", "wrist"), "the robot has x, y"),
        ([float("nan"), 0.2], ("x", "y"), "not all finite numbers"),
    ],
)
def test_commands_for_others_or_of_nonsense_do_not_move_it(
    ros: None,
    capfd: pytest.CaptureFixture[str],
    wanted: list[float],
    names: tuple[str, ...],
    words: str,
) -> None:
    node = _node("attempts:=1")
    driver = Driver(wanted, names)
    _run(node, driver)
    places = np.array([message.position for message in driver.joints])
    np.testing.assert_array_equal(places, np.tile(places[0], (len(places), 1)))
    said = capfd.readouterr()
    assert words in said.err
    assert json.loads(said.out.splitlines()[0])["commands"] == 0


@pytest.mark.parametrize("wrong", ["tasks:=[toy-green]", "speed:=0.0", "attempts:=-1"])
def test_wrong_parameters_are_refused(ros: None, wrong: str) -> None:
    with pytest.raises(RefusedToStartError, match=wrong.partition(":")[0]):
        _node(wrong)


def test_nodes_that_are_not_there_are_named(ros: None) -> None:
    node = _node("action:=/omnistream_action", "patience:=1.0")
    driver = Driver(None)
    with pytest.raises(RefusedToStartError, match="/omnistream_action/get_state"):
        _run(node, driver)


def test_the_program_says_what_is_wrong_in_a_line(
    ros: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulator.main(["--ros-args", "-p", "tasks:=[nothing]"]) == 2
    assert "error: parameter 'tasks'" in capsys.readouterr().err


def test_the_page_names_all_parameters() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "closed_loop.md").read_text("utf-8")
    rows = page.split("| parameter | default |")[1].split("\n\n")[0]
    named = re.findall(r"`([a-z_]+)`", "".join(row.split("|")[1] for row in rows.splitlines()[2:]))
    assert named == [field.name for field in dataclasses.fields(SimulatorParameters)]
