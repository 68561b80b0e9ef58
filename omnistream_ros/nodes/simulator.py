# SPDX-License-Identifier: Apache-2.0
"""The node ``omnistream_simulator``: a robot and its camera, simulated, on real topics.

It publishes what a robot's drivers publish - image and camera_info, joint_states, /clock - and
applies the joint positions that it is told. Between attempts it takes the action node out of
service, puts the world back, lets the stream begin anew and tells the instruction: what a person
would do who resets a table. Each attempt is printed as one line of JSON, the rates at the end.

Simulated time stands still while the table is reset, and goes at `speed` otherwise. Rendering
happens in the main thread, which OpenGL asks for; ROS is served by another one.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory

from omnistream_ros.nodes.lifecycle import Phase
from omnistream_ros.nodes.parameters import ParameterSet
from omnistream_ros.nodes.player import camera_info_message, image_message
from omnistream_ros.nodes.process import RefusedToStartError, ignore_stop_signals, tune_allocator
from omnistream_ros.nodes.simulator_assistants import Assistants
from omnistream_ros.nodes.simulator_parameters import SimulatorParameters
from omnistream_ros.simulation.environment import (
    STEPS_PER_FRAME,
    Environment,
    Observation,
    SimulationError,
)
from omnistream_ros.simulation.episodes import frames_of
from omnistream_ros.simulation.success import Attempt, rates, table
from omnistream_ros.simulation.tasks import make_environment
from omnistream_ros.stream.frame import Intrinsics

NODE_NAME = "omnistream_simulator"
_STEPS_PER_JOINT_STATE = 2
_BEGIN_NS = 1_000_000_000  # zero means "no time" to ROS
# Simulated time between two attempts, so that nothing of the last one passes for new.
_PAUSE_NS = 5_000_000_000


@dataclasses.dataclass(frozen=True)
class Result:
    """How an attempt ended. `commands` is how many were applied."""

    task: str
    seed: int
    success: bool
    seconds: float
    commands: int


class SimulatorNode(Node):
    """Topics and simulated time; the attempts are made by `make_attempts`."""

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        self.options = ParameterSet(self, SimulatorParameters, phase=lambda: Phase.ACTIVE)
        reliable = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE)
        self._clock_topic = self.create_publisher(Clock, "/clock", reliable)
        self._image = self.create_publisher(Image, "image", reliable)
        self._info = self.create_publisher(CameraInfo, "camera_info", reliable)
        self._joints = self.create_publisher(JointState, "joint_states", reliable)
        self.create_subscription(
            JointTrajectory, "command/joint_trajectory", self._on_trajectory, reliable
        )
        self.create_subscription(JointState, "command/joint_state", self._on_joint_state, reliable)
        self._lock = threading.Lock()
        self._axes: list[str] = []  # of the robot, from the first attempt on
        self._told: dict[str, float] = {}
        self._commands = 0
        self.now_ns = _BEGIN_NS
        self.stopped = threading.Event()
        self.assistants = Assistants(self, self.options.values, self.stopped)

    # --- an attempt ---

    def attempt(self, env: Environment, seed: int) -> Result:
        """Simulate one attempt, in simulated time that goes at `speed`."""
        env.reset(seed)
        names = [axis.name for axis in env.axes]
        self.now_ns += _PAUSE_NS
        self._publish_time()
        with self._lock:
            self._axes, self._told, self._commands = names, {}, 0
        self.assistants.begin(self.options.values.instruction or env.task.instructions[0])
        command = env.positions()
        step_ns = round(1e9 * env.step_s)
        frames, frame = frames_of(env.task, env.step_s), 0
        due = time.monotonic()
        for step in range(frames * STEPS_PER_FRAME):
            if step % _STEPS_PER_JOINT_STATE == 0:
                self._publish_joints(names, env.positions())
            if step % STEPS_PER_FRAME == 0:
                if env.success or self.stopped.is_set():
                    break
                self._publish_image(env, env.observe())
                frame += 1
            with self._lock:
                told = dict(self._told)
            for name, position in told.items():
                command[names.index(name)] = position
            env.advance(command)
            self.now_ns += step_ns
            self._publish_time()
            # A step that came late is not made up for: simulated time is what counts.
            due = max(due + env.step_s / self.options.values.speed, time.monotonic() - 0.1)
            self.stopped.wait(max(0.0, due - time.monotonic()))
        self.assistants.end()
        seconds = frame * STEPS_PER_FRAME * env.step_s
        return Result(env.task.name, seed, env.success, round(seconds, 3), self._commands)

    # --- topics ---

    def _publish_time(self) -> None:
        self._clock_topic.publish(Clock(clock=Time(nanoseconds=self.now_ns).to_msg()))

    def _header(self, frame_id: str = "") -> Header:
        return Header(stamp=Time(nanoseconds=self.now_ns).to_msg(), frame_id=frame_id)

    def _publish_joints(self, names: list[str], positions: NDArray[np.float64]) -> None:
        self._joints.publish(
            JointState(header=self._header(), name=names, position=positions.tolist())
        )

    def _publish_image(self, env: Environment, seen: Observation) -> None:
        header = self._header(self.options.values.frame_id)
        height, width = seen.image.shape[:2]
        camera = Intrinsics.from_fov(*env.field_of_view, width, height)
        self._info.publish(camera_info_message(camera, header))
        self._image.publish(image_message(seen.image, header))

    def _on_trajectory(self, message: JointTrajectory) -> None:
        if message.points:
            self._take(message.joint_names, message.points[-1].positions)

    def _on_joint_state(self, message: JointState) -> None:
        self._take(message.name, message.position)

    def _take(self, names: Sequence[str], positions: Sequence[float]) -> None:
        """A command; one that no robot could follow is left out with a word."""
        told = dict(zip(names, positions, strict=False))
        if len(names) != len(positions) or not np.isfinite(list(told.values())).all():
            self.get_logger().warning(
                f"a command of {len(names)} names and {len(positions)} positions that are not all "
                "finite numbers was not followed",
                throttle_duration_sec=5.0,
            )
            return
        with self._lock:
            known = self._axes
            if set(told) <= set(known):
                self._told.update(told)
                self._commands += 1
                return
        if known:
            self.get_logger().warning(
                f"a command for {', '.join(told)} was not followed: the robot has "
                f"{', '.join(known)}",
                throttle_duration_sec=5.0,
            )


def make_attempts(node: SimulatorNode) -> list[Attempt]:
    """All attempts, each printed as a line of JSON.

    Raises:
        SimulationError: the simulator cannot run here.
        RefusedToStartError: a node did not answer; says which.
    """
    wish, made = node.options.values, []
    node.assistants.wait()
    for task in wish.tasks:
        env = make_environment(task)
        try:
            seed = wish.first_seed
            while not node.stopped.is_set() and not (
                wish.attempts and seed >= wish.first_seed + wish.attempts
            ):
                result = node.attempt(env, seed)
                if node.stopped.is_set():
                    break  # it was cut short
                print(json.dumps(dataclasses.asdict(result)), flush=True)
                made.append(Attempt(task, seed, result.success, result.seconds))
                seed += 1
        finally:
            env.close()
    return made


def main(args: Sequence[str] | None = None) -> int:
    """Run until all attempts are made, or until a signal; returns the exit status."""
    tune_allocator()
    rclpy.init(
        args=None if args is None else list(args), signal_handler_options=SignalHandlerOptions.NO
    )
    try:
        node = SimulatorNode()
    except RefusedToStartError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        rclpy.shutdown()
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: node.stopped.set())
    served = threading.Event()
    serving = threading.Thread(target=_serve, args=(node, served), name="ros")
    serving.start()
    try:
        made = make_attempts(node)
        if made:
            print(table({"success": rates(made)}), flush=True)
        if not node.stopped.is_set():
            print(json.dumps({"finished": True}), flush=True)
        return 0
    except (SimulationError, RefusedToStartError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    finally:
        served.set()
        serving.join(timeout=2.0)
        node.destroy_node()
        rclpy.try_shutdown()
        ignore_stop_signals()


def _serve(node: SimulatorNode, served: threading.Event) -> None:
    """Callbacks, until nobody needs them any more; an executor that spins cannot be ended."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not served.is_set():
        executor.spin_once(timeout_sec=0.1)
    executor.remove_node(node)
    executor.shutdown(timeout_sec=1.0)


if __name__ == "__main__":
    sys.exit(main())
