# SPDX-License-Identifier: Apache-2.0
"""The publishers of a configured action node: commands to the robot or, in a dry run, beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geometry_msgs.msg import TwistStamped
from rclpy.duration import Duration
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.time import Time
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from omnistream_ros.action.drive import Command
from omnistream_ros.action.spaces import ActionSpec
from omnistream_ros.msg import ActionChunk, ActionStatus
from omnistream_ros.nodes import action_messages
from omnistream_ros.nodes.lifecycle import ManagedNode

_QOS_DEPTH = 10
_FLUSH = Duration(seconds=0.2)
_KINDS = {"joint_trajectory": JointTrajectory, "joint_state": JointState, "twist": TwistStamped}


class ActionOutputs:
    """Publishes every command on one topic per part of the robot: its joints, its motion.

    Args:
        joint_output: message for joints, see the parameter.
        robot_names: the robot's name of each joint by the policy's.
        period_s: of the control loop.
    """

    def __init__(
        self,
        node: ManagedNode,
        spec: ActionSpec,
        robot_names: Mapping[str, str],
        joint_output: str,
        period_s: float,
    ) -> None:
        self._node = node
        self._spec = spec
        self._period_s = period_s
        self._joint_names = [robot_names[spec.names[column]] for column in spec.joints]
        self._made: list[Any] = []
        self.commands = 0
        outputs = [joint_output] if spec.joints else []
        outputs += ["twist"] if spec.motion else []
        try:
            self.status = self._create(ActionStatus, "~/status")
            self.chunks = self._create(ActionChunk, "~/chunk")
            self._robot = {
                name: self._create(_KINDS[name], f"~/command/{name}") for name in outputs
            }
            self._dry_run = {
                name: self._create(_KINDS[name], f"~/dry_run/{name}") for name in outputs
            }
        except Exception:
            self.destroy()
            raise

    def command(self, command: Command, now: Time, *, dry_run: bool) -> None:
        """Publish a command."""
        self.commands += 1
        for name, publisher in (self._dry_run if dry_run else self._robot).items():
            publisher.publish(self._message(name, command, now))

    def flush(self) -> None:
        """Wait until reliable subscribers have what was published last, but not for ever.

        A publisher that is destroyed takes along what has not arrived; the last command has to.
        """
        for publisher in self._made:
            publisher.wait_for_all_acked(_FLUSH)

    def destroy(self) -> None:
        """Take all publishers off the node."""
        while self._made:
            self._node.destroy_lifecycle_publisher(self._made.pop())

    def _message(self, name: str, command: Command, now: Time) -> Any:
        if name == "joint_trajectory":
            return action_messages.trajectory(command, self._joint_names, self._period_s)
        if name == "joint_state":
            return action_messages.joint_state(command, self._joint_names, now)
        return action_messages.twist(command, self._spec, now)

    def _create(self, kind: type, topic: str) -> Any:
        publisher: Any = self._node.create_lifecycle_publisher(
            kind,
            topic,
            QoSProfile(depth=_QOS_DEPTH, reliability=QoSReliabilityPolicy.RELIABLE),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._made.append(publisher)
        return publisher
