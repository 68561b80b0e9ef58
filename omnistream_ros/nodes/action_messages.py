# SPDX-License-Identifier: Apache-2.0
"""Commands, chunks and the state of the action node as ROS messages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.duration import Duration
from rclpy.time import Time
from sensor_msgs.msg import JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from omnistream_ros.action.chunk import Chunk
from omnistream_ros.action.drive import Command
from omnistream_ros.action.policy import Policy
from omnistream_ros.action.safety import Drop, Reason, State
from omnistream_ros.action.spaces import ActionSpec, Space
from omnistream_ros.msg import ActionChunk, ActionStatus

STATES = {state: getattr(ActionStatus, state.name) for state in State}
REASONS = {reason: getattr(ActionStatus, reason.name) for reason in Reason}
SPACES = {space: getattr(ActionChunk, space.name) for space in Space}
_AXES = {
    "x": ("linear", "x"),
    "y": ("linear", "y"),
    "z": ("linear", "z"),
    "rx": ("angular", "x"),
    "ry": ("angular", "y"),
    "rz": ("angular", "z"),
}


def trajectory(command: Command, names: Sequence[str], period_s: float) -> JointTrajectory:
    """One point, to be reached at the next tick. Stamp zero: from whenever it arrives.

    Without velocities: a controller would refuse a trajectory that does not end at rest, and this
    one may be the last.
    """
    point = JointTrajectoryPoint(
        positions=command.positions.tolist(),
        time_from_start=Duration(nanoseconds=round(period_s * 1e9)).to_msg(),
    )
    return JointTrajectory(joint_names=list(names), points=[point])


def joint_state(command: Command, names: Sequence[str], now: Time) -> JointState:
    """Positions and the velocities at which they change."""
    return JointState(
        header=Header(stamp=now.to_msg()),
        name=list(names),
        position=command.positions.tolist(),
        velocity=command.velocities.tolist(),
    )


def twist(command: Command, spec: ActionSpec, now: Time) -> TwistStamped:
    """Velocities along and about the axes of the policy's frame."""
    message = TwistStamped(header=Header(stamp=now.to_msg(), frame_id=spec.frame))
    for column, speed in zip(spec.motion, command.motion.tolist(), strict=True):
        part, axis = _AXES[spec.names[column]]
        setattr(getattr(message.twist, part), axis, speed)
    return message


def chunk_message(
    chunk: Chunk, policy: Policy, instruction: str, t0_ns: int, refused: Drop | None
) -> ActionChunk:
    """A chunk with everything it was computed from."""
    spec = policy.spec
    message = ActionChunk(
        stream_ids=[origin.stream_id for origin in chunk.origins],
        epochs=[origin.epoch for origin in chunk.origins],
        frame_indices=[origin.frame_index for origin in chunk.origins],
        instruction=instruction,
        chunk_id=chunk.chunk_id,
        t0=Time(nanoseconds=t0_ns).to_msg(),
        dt=spec.dt,
        horizon=spec.horizon,
        names=list(spec.names),
        units=list(spec.units),
        space=SPACES[spec.space],
        policy_name=policy.name,
        policy_sha256=policy.sha256,
        age_ms=1e3 * chunk.age_s,
        inference_ms=1e3 * chunk.inference_s,
        refused=refused.value if refused else "",
    )
    message.header = Header(stamp=Time(nanoseconds=chunk.stamp_ns).to_msg(), frame_id=spec.frame)
    if chunk.data.dtype.kind in "fiu":
        with np.errstate(over="ignore"):  # what does not fit in float32 is refused, as infinity
            message.data = chunk.data.astype(np.float32).reshape(-1)
    return message


def counted(counts: dict[str, int]) -> tuple[list[str], list[int]]:
    """Two arrays of the same length."""
    return list(counts), list(counts.values())


def age_or_nan(age_s: float | None) -> float:
    """NaN stands for what never came."""
    return math.nan if age_s is None else age_s
