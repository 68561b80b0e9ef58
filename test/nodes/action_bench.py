# SPDX-License-Identifier: Apache-2.0
"""A robot with two joints and a camera, as the action node sees them: real topics, real DDS.

The robot lives while the test waits for something: 50 times a second it says where its joints are,
every second time also what its camera sees. Tests spoil what it says, and watch what it is told.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from omnistream_ros.msg import ActionChunk, ActionStatus, FeatureTensor
from omnistream_ros.srv import SetInstruction
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from ros_processes import TRANSITIONS, NodeProcess, NodeStarter, User
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from omnistream_ros.nodes import action
from omnistream_ros.nodes.feature_messages import set_tensor

NODE = "/omnistream_action"
FEATURES = "/omnistream_perception/features"
JOINTS = ("shoulder", "elbow")
SHA256 = "0123456789abcdef" * 4
PERIOD_S = 0.02
SCRIPTED = {
    "policy": "scripted",
    "action_names": list(JOINTS),
    "proprioception": list(JOINTS),
    "features": ["camera: 3:patch:normed"],
    "action_range": ["*: -1.0 1.0"],
    "horizon": 16,
    "joint_output": "joint_state",
    "dry_run": False,
    # A test machine is slow, and a test that fails because of that says nothing.
    "features_timeout": 1.0,
    "proprioception_timeout": 1.0,
    "watchdog_timeout": 2.0,
    "status_period": 0.05,
}


def arguments(**parameters: object) -> list[str]:
    """The node's command line."""
    line = ["--ros-args"]
    for name, value in parameters.items():
        if isinstance(value, list):
            value = "[" + ", ".join(f'"{entry}"' for entry in value) + "]"
        text = str(value).lower() if isinstance(value, bool) else str(value)
        line += ["-p", f"{name}:={text or chr(39) * 2}"]
    return line


class Robot:
    """The joints, the camera and the features of it, in the user's node."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.positions = dict(zip(JOINTS, (0.1, -0.2), strict=True))
        self.epoch = self.frame = 0
        self.spoil_features: Callable[[FeatureTensor], FeatureTensor | None] = lambda m: m
        self.spoil_joints: Callable[[JointState], JointState | None] = lambda m: m
        self.commands: list[Any] = []
        self._follows = True
        node = user.node
        self._features = node.create_publisher(FeatureTensor, FEATURES, 5)
        self._joints = node.create_publisher(JointState, "/joint_states", 10)
        self.button = node.create_publisher(Bool, f"{NODE}/emergency_stop", 10)
        self.instruction = node.create_publisher(String, "/instruction", 10)
        node.create_subscription(JointState, f"{NODE}/command/joint_state", self._obey, 50)
        self._turn = itertools.count()
        node.create_timer(PERIOD_S, self._live)

    def now(self) -> Any:
        return self.user.node.get_clock().now()

    def features(self) -> FeatureTensor:
        """The next frame's."""
        self.frame += 1
        message = FeatureTensor(
            stream_id="camera",
            epoch=self.epoch,
            frame_index=self.frame,
            model_name="tiny",
            weights_sha256=SHA256,
            layer=3,
            kind=FeatureTensor.PATCH,
            normed=True,
        )
        message.header.stamp = self.now().to_msg()
        set_tensor(message, np.full((2, 3, 4), 0.25, np.float16))
        return message

    def joints(self) -> JointState:
        """As they are now."""
        message = JointState(name=list(self.positions), position=list(self.positions.values()))
        message.header.stamp = self.now().to_msg()
        return message

    def say(self, message: FeatureTensor) -> None:
        """Publish features."""
        self._features.publish(message)

    def _live(self) -> None:
        joints = self.spoil_joints(self.joints())
        if joints is not None:
            self._joints.publish(joints)
        if next(self._turn) % 2 == 0:
            features = self.spoil_features(self.features())
            if features is not None:
                self._features.publish(features)

    def _obey(self, message: JointState) -> None:
        self.commands.append(message)
        if self._follows:
            self.positions.update(zip(message.name, message.position, strict=True))


class Bench:
    """One action node and its robot."""

    def __init__(self, user: User, node: NodeProcess, name: str = NODE) -> None:
        self.user, self.node, self.name = user, node, name
        self.robot = Robot(user)
        self.status: list[ActionStatus] = user.collect(ActionStatus, f"{name}/status")
        self.chunks: list[ActionChunk] = user.collect(ActionChunk, f"{name}/chunk")

    @property
    def last(self) -> ActionStatus:
        return self.status[-1]

    def wait_for(self, state: int, reason: int | None = None, words: str = "") -> ActionStatus:
        """Wait for a status that comes from now on."""
        del self.status[:]

        def there() -> bool:
            return any(
                s.state == state and (reason is None or s.reason == reason) and words in s.detail
                for s in self.status
            )

        try:
            self.user.wait_until(there, f"state {state}, reason {reason}, {words!r}")
        except AssertionError as error:
            seen = {(s.state, s.reason, s.detail) for s in self.status[-50:]}
            raise AssertionError(f"{error}; seen {seen}; log:\n{self.node.log}") from None
        return next(
            s for s in self.status if s.state == state and (reason is None or s.reason == reason)
        )

    def executes(self) -> ActionStatus:
        """Wait until it executes, and the robot hears of it."""
        status = self.wait_for(ActionStatus.EXECUTING)
        before = len(self.robot.commands)
        self.user.wait_until(lambda: len(self.robot.commands) > before + 2, "commands")
        return status

    def moves_no_more(self, ticks: int = 10) -> None:
        """The commands of the next ticks are all the same, or there are none."""
        del self.robot.commands[:]
        seen = len(self.status)
        self.user.wait_until(
            lambda: len(self.robot.commands) >= ticks or len(self.status) > seen + 5, "ticks"
        )
        positions = {tuple(c.position) for c in self.robot.commands}
        assert len(positions) <= 1, positions
        assert all(v == 0.0 for c in self.robot.commands for v in c.velocity)

    def ended_with_a_hold(self) -> None:
        """The last command of all repeats the one before, at rest."""
        commands = self.robot.commands
        self.user.wait_until(lambda: not any(commands[-1].velocity), "a command at rest")
        assert list(commands[-1].position) == list(commands[-2].position)

    def drops(self, kind: str) -> int:
        """Count of a kind in the newest status."""
        return dict(zip(self.last.drop_kinds, self.last.drop_counts, strict=True)).get(kind, 0)

    def holds(self, kind: str) -> int:
        """Count of a reason in the newest status."""
        return dict(zip(self.last.hold_kinds, self.last.hold_counts, strict=True)).get(kind, 0)

    def change(self, *names: str) -> bool:
        """Lifecycle transitions in a row; returns whether all succeeded."""
        for name in names:
            request = ChangeState.Request(transition=Transition(id=TRANSITIONS[name]))
            if not self.user.call(ChangeState, f"{self.name}/change_state", request).success:
                return False
        return True

    def state(self) -> str:
        """Lifecycle state of the node."""
        answer = self.user.call(GetState, f"{self.name}/get_state", GetState.Request())
        return answer.current_state.label

    def set_parameter(self, name: str, value: object) -> bool:
        """Set one parameter of the node."""
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        return (
            self.user.call(SetParameters, f"{self.name}/set_parameters", request)
            .results[0]
            .successful
        )

    def trigger(self, service: str) -> Trigger.Response:
        """Call one of the node's services without arguments."""
        return self.user.call(Trigger, f"{self.name}/{service}", Trigger.Request())

    def instruct(self, text: str) -> SetInstruction.Response:
        """Say what to do."""
        request = SetInstruction.Request(instruction=text)
        return self.user.call(SetInstruction, f"{self.name}/set_instruction", request)


def benches(domain: int, weights: Any, **parameters: object) -> Iterator[Bench]:
    """For fixtures: a node that executes, with its robot."""
    with User(domain) as user, NodeStarter(domain, weights) as start:
        line = arguments(**{**SCRIPTED, "autostart": True, **parameters})
        yield Bench(user, start.fork(action.main, line))


def largest_speed(commands: list[JointState]) -> float:
    """Between commands, by their stamps."""
    speeds = [0.0]
    for before, after in itertools.pairwise(commands):
        seconds = (after.header.stamp.sec - before.header.stamp.sec) + 1e-9 * (
            after.header.stamp.nanosec - before.header.stamp.nanosec
        )
        moved = np.abs(np.array(after.position) - np.array(before.position)).max()
        speeds.append(float(moved) / seconds if seconds > 0 else math.inf)
    return max(speeds)
