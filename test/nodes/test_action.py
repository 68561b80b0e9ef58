# SPDX-License-Identifier: Apache-2.0
"""The action node as a robot meets it: lifecycle, dry run, outputs, emergency stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from action_bench import JOINTS, NODE, SCRIPTED, Bench, arguments, benches, largest_speed
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from omnistream_ros.msg import ActionChunk, ActionStatus
from rcl_interfaces.srv import ListParameters
from ros_processes import NodeStarter, User
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from trajectory_msgs.msg import JointTrajectory

from omnistream_ros.action.safety import Reason, State
from omnistream_ros.nodes import action
from omnistream_ros.nodes.action_messages import REASONS, STATES


@pytest.fixture(scope="module")
def bench(module_domain: int, weights: Path) -> Iterator[Bench]:
    yield from benches(module_domain, weights)


def test_from_features_to_commands(bench: Bench) -> None:
    status = bench.executes()
    assert (status.policy_name, status.dry_run, status.emergency_stop) == ("scripted", False, False)
    bench.user.wait_until(lambda: len(bench.chunks) > 3)
    chunk = bench.chunks[-1]
    assert (list(chunk.names), list(chunk.units)) == (list(JOINTS), ["rad", "rad"])
    assert (chunk.horizon, chunk.dt, chunk.space) == (16, 0.05, ActionChunk.JOINT_POSITION)
    assert len(chunk.data) == 32
    assert (list(chunk.stream_ids), list(chunk.epochs)) == (["camera"], [0])
    assert 0 < chunk.frame_indices[0] <= bench.robot.frame
    assert chunk.refused == ""
    assert list(bench.robot.commands[-1].name) == list(JOINTS)
    ids = [c.chunk_id for c in bench.chunks]
    assert ids == sorted(set(ids))
    ages = dict(zip(status.input_names, status.input_ages, strict=True))
    assert 0.0 <= ages["camera"] < 1.0
    assert 0.0 <= ages["joint_states"] < 1.0
    assert np.isnan(ages["instruction"])  # this policy reads none


def test_limits_hold_on_the_wire(bench: Bench) -> None:
    bench.executes()
    del bench.robot.commands[:]
    bench.user.wait_until(lambda: len(bench.robot.commands) > 100)
    assert 0.05 < largest_speed(bench.robot.commands) <= 0.5 + 1e-6


def test_emergency_stop_by_topic_latches(bench: Bench) -> None:
    bench.executes()
    bench.user.wait_until(lambda: bench.robot.button.get_subscription_count() > 0)
    bench.robot.button.publish(Bool(data=True))
    status = bench.wait_for(ActionStatus.STOPPED, ActionStatus.EMERGENCY_STOP, "topic")
    assert status.emergency_stop
    bench.moves_no_more()
    refused = bench.trigger("clear_emergency_stop")
    assert not refused.success
    assert "still down" in refused.message
    bench.robot.button.publish(Bool(data=False))
    bench.moves_no_more()
    assert bench.last.state == ActionStatus.STOPPED
    bench.user.wait_until(lambda: bench.trigger("clear_emergency_stop").success)
    bench.executes()
    assert bench.trigger("clear_emergency_stop").message == "it was not set"


def test_emergency_stop_by_service_outlives_the_lifecycle(bench: Bench) -> None:
    bench.executes()
    assert bench.trigger("trigger_emergency_stop").success
    bench.wait_for(ActionStatus.STOPPED, words="service")
    assert bench.change("deactivate", "cleanup", "configure", "activate")
    status = bench.wait_for(ActionStatus.STOPPED, ActionStatus.EMERGENCY_STOP)
    assert status.commands == 0  # nothing was commanded since configure, so nothing is
    assert bench.trigger("clear_emergency_stop").message.startswith("cleared")
    bench.executes()


def test_a_clock_that_jumps_neither_silences_the_button_nor_hides_its_silence(
    domain: int, weights: Path, user: User, start_node: NodeStarter
) -> None:
    line = arguments(**{**SCRIPTED, "autostart": True, "use_sim_time": True, "stop_heartbeat": 2.0})
    bench = Bench(user, start_node.fork(action.main, line))
    clocks = user.node.create_publisher(Clock, "/clock", 1)
    second, step, button = 5000.0, 0.02, False
    pressed_by_itself = "no word from the button for more than 2 s"

    def live() -> None:
        nonlocal second
        if button:
            bench.robot.button.publish(Bool(data=False))
        second += step
        message = Clock()
        message.clock.sec, message.clock.nanosec = int(second), int(second % 1 * 1e9)
        clocks.publish(message)

    user.node.create_timer(0.02, live)
    bench.wait_for(ActionStatus.STOPPED, words=pressed_by_itself)
    button = True
    user.wait_until(lambda: bench.trigger("clear_emergency_stop").success)
    step = 100.0
    bench.wait_for(ActionStatus.WAITING)
    user.wait_until(lambda: bench.last.header.stamp.sec > 10_000)
    assert not bench.last.emergency_stop
    step, button = 0.02, False
    silent = second + 0.3  # nothing that was said before is on its way any more
    user.wait_until(
        lambda: bench.last.header.stamp.sec + 1e-9 * bench.last.header.stamp.nanosec > silent
    )
    second = 3000.0
    status = bench.wait_for(ActionStatus.STOPPED, words=pressed_by_itself)
    assert status.header.stamp.sec < 5000


def _tells_its_clocks(args: list[str]) -> int:
    start = action.ActionNode.start

    def told(self: action.ActionNode) -> None:
        start(self)
        print("timers:", *{timer.clock.clock_type.name for timer in self.timers}, "end")

    action.ActionNode.start = told  # type: ignore[method-assign]
    return action.main(args)


def test_no_timer_stands_still_while_the_clock_of_the_system_is_set_back(
    user: User, start_node: NodeStarter
) -> None:
    node = start_node.fork(_tells_its_clocks, arguments(**{**SCRIPTED, "autostart": True}))
    node.wait_for("^timers: STEADY_TIME end$")


def test_dry_run_keeps_the_robot_out_of_it(bench: Bench) -> None:
    bench.executes()
    would: list[JointState] = bench.user.collect(JointState, f"{NODE}/dry_run/joint_state")
    assert bench.set_parameter("dry_run", True)
    bench.user.wait_until(lambda: len(would) > 10, "what would be commanded")
    del bench.robot.commands[:]
    seen = len(would)
    bench.user.wait_until(lambda: len(would) > seen + 20)
    assert bench.robot.commands == []
    assert bench.last.dry_run
    assert bench.set_parameter("dry_run", False)
    here = list(bench.robot.positions.values())
    bench.user.wait_until(lambda: len(bench.robot.commands) > 3)
    assert bench.robot.commands[0].position == pytest.approx(here, abs=0.02)
    assert bench.node.count("the robot may move") >= 2


def test_the_last_command_before_deactivation_is_a_hold(bench: Bench) -> None:
    bench.executes()
    assert bench.change("deactivate")
    bench.user.wait_until(lambda: bench.last.state == ActionStatus.INACTIVE)
    bench.ended_with_a_hold()
    count = len(bench.robot.commands)
    assert bench.instruct("go").success is False
    bench.user.wait_until(lambda: bench.state() == "inactive")
    assert len(bench.robot.commands) == count
    assert bench.change("activate")
    bench.executes()


def test_a_policy_without_words_says_so(bench: Bench) -> None:
    bench.executes()
    answer = bench.instruct("lean forward")
    assert (answer.success, answer.message) == (False, "this policy reads no instruction")
    bench.executes()


def test_diagnostics_say_what_happens(bench: Bench) -> None:
    heard: list[DiagnosticArray] = bench.user.collect(DiagnosticArray, "/diagnostics")
    bench.executes()
    bench.user.wait_until(lambda: heard and heard[-1].status[0].message.startswith("executing"))
    values = {v.key: v.value for v in heard[-1].status[0].values}
    assert values["policy"] == "scripted"
    assert values["age of camera"].endswith(" s")


def test_the_words_of_the_message_are_those_of_the_code() -> None:
    assert sorted(STATES.values()) == [0, 1, 2, 3, 4]
    assert [REASONS[reason] for reason in Reason] == list(range(len(Reason)))
    assert len(STATES) == len(State)


def test_other_outputs_and_the_end_of_the_process(
    domain: int, weights: Path, user: User, start_node: NodeStarter
) -> None:
    """A base with a gripper: a twist and a trajectory; SIGTERM leaves it standing."""
    line = arguments(
        **{
            **SCRIPTED,
            "autostart": True,
            "action_space": "twist",
            "action_names": ["x", "rz", "grip"],
            "action_frame": "base_link",
            "action_units": ["grip: 1"],
            "joint_names": ["grip: left_finger"],
            "proprioception": [""],
            "joint_output": "joint_trajectory",
        }
    )
    bench = Bench(user, start_node.fork(action.main, line))
    twists: list[TwistStamped] = user.collect(TwistStamped, f"{NODE}/command/twist")
    points: list[JointTrajectory] = user.collect(
        JointTrajectory, f"{NODE}/command/joint_trajectory"
    )
    user.wait_until(lambda: any(t.twist.linear.x > 0.05 for t in twists) and points)
    assert twists[-1].header.frame_id == "base_link"
    assert twists[-1].twist.linear.y == 0.0
    assert list(points[-1].joint_names) == ["left_finger"]
    (point,) = points[-1].points
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (0, 20_000_000)
    assert list(point.velocities) == []  # a controller refuses to end in motion
    assert (points[-1].header.stamp.sec, points[-1].header.stamp.nanosec) == (0, 0)
    user.wait_until(lambda: abs(twists[-1].twist.linear.x) > 0.05)
    assert bench.node.end() == 0
    seen = len(twists)
    user.wait_until(lambda: len(twists) >= seen and twists[-1].twist.linear.x == 0.0)
    assert (twists[-1].twist.angular.z, twists[-1].twist.linear.x) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy": ""}, "no policy is given"),
        ({"policy": "nowhere.onnx"}, "there is no such file"),
        ({"policy": "ws://127.0.0.1:9"}, "no connection"),
        ({"action_names": [""]}, "'action_names' is empty"),
        ({"max_velocity": ["wrist: 1.0"]}, "'wrist'"),
        ({"joint_names": ["wrist: a"]}, "'wrist'"),
        ({"action_space": "joint_delta"}, "'position_limits' is empty"),
        ({"action_space": "twist"}, "needs one of the names"),
        ({"action_range": ["shoulder: -1 1"]}, "no value for ['elbow']"),
        ({"streams": ["depth: /x"]}, "no value for ['camera']"),
        ({"watchdog_timeout": 0.03}, "less than two turns of a control loop at 50 Hz"),
    ],
)
def test_parameters_that_cannot_work_refuse_to_configure(
    refusals: Bench, changes: dict[str, object], words: str
) -> None:
    before = {name: SCRIPTED.get(name, _DEFAULTS.get(name)) for name in changes}
    for name, value in changes.items():
        assert refusals.set_parameter(name, value)
    seen = refusals.node.count("cannot configure")
    assert not refusals.change("configure")
    refusals.user.wait_until(lambda: refusals.node.count("cannot configure") > seen)
    line = [text for text in refusals.node.lines if "cannot configure" in text][-1]
    assert words in line
    assert refusals.state() == "unconfigured"
    for name, value in before.items():
        assert refusals.set_parameter(name, value)


_DEFAULTS = {
    "max_velocity": ["*: 0.5"],
    "joint_names": [""],
    "action_space": "joint_position",
    "streams": ["*: omnistream_perception/features"],
}


@pytest.fixture(scope="module")
def refusals(module_domain: int, weights: Path) -> Iterator[Bench]:
    """A node under another name beside the one that executes."""
    with User(module_domain) as user, NodeStarter(module_domain, weights) as start:
        line = [*arguments(**SCRIPTED), "-r", "__node:=refusals"]
        yield Bench(user, start.fork(action.main, line), "/refusals")


def test_wrong_values_are_refused_at_once(refusals: Bench) -> None:
    for name, value in (
        ("max_step", ["*: 0"]),
        ("max_step", ["0.1"]),
        ("action_range", ["*: 1 -1"]),
        ("features", ["camera: -1:patch"]),
        ("images", ["cam: /bad topic"]),
        ("images", ["cam: a//b"]),
        ("streams", ["camera: 9lives"]),
        ("blending", "average"),
        ("control_rate", 0.0),
        ("features_timeout", float("nan")),
    ):
        assert not refusals.set_parameter(name, value)
    names = refusals.user.call(
        ListParameters, "/refusals/list_parameters", ListParameters.Request()
    ).result.names
    assert "dry_run" in names
