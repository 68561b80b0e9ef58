# SPDX-License-Identifier: Apache-2.0
"""From the action that is due to the command that may be given: ranges, limits, and how to rest."""

from __future__ import annotations

import dataclasses

import numpy as np

from omnistream_ros.action import rotations
from omnistream_ros.action.limits import Clamp, JointLimiter, Limits, MotionLimiter
from omnistream_ros.action.spaces import ActionSpec, Space

_TOLERANCE = 1e-9
_SETTLED_S = 1.0  # of rest, after which a robot that follows has arrived


@dataclasses.dataclass(frozen=True, eq=False)
class Command:
    """What the robot shall do until the next tick.

    Attributes:
        positions, velocities: of the joints in `ActionSpec.joints`, in that order.
        motion: velocities of `ActionSpec.motion`, in that order.
    """

    positions: np.ndarray
    velocities: np.ndarray
    motion: np.ndarray


class Drive:
    """Remembers what was commanded, and goes on from there within the limits.

    A joint that turns without end goes the shorter way round. It is told the angle by as many whole
    turns as it was measured at: a robot that counts them is never made to unwind.
    """

    def __init__(self, spec: ActionSpec, limits: Limits) -> None:
        self.joint_names = tuple(spec.names[column] for column in spec.joints)
        self._spec = spec
        self._joints, self._motion = list(spec.joints), list(spec.motion)
        self._joint_limits = limits.of(spec.joints)
        self._motion_limits = limits.of(spec.motion)
        self._free = limits.endless & (spec.space is not Space.JOINT_DELTA)  # of the policy's range
        self.start_over()

    def start_over(self) -> None:
        """Nothing was commanded yet."""
        self.commanded = False
        self._moving = False
        self._rested_s = 0.0
        self._joint_limiter = JointLimiter(self._joint_limits)
        self._motion_limiter = MotionLimiter(self._motion_limits)
        # From the limiter's angles to the robot's.
        self._turns: np.ndarray = np.zeros(len(self._joints))

    def execute(
        self, due: np.ndarray, measured: np.ndarray, seconds: float, clamps: set[Clamp]
    ) -> Command:
        """One tick of an action (n,); `measured` are the joints, NaN where unknown."""
        spec = self._spec
        value = np.where(self._free, due, np.clip(due, spec.low, spec.high))
        if (np.abs(value - due) > _TOLERANCE * (1.0 + np.abs(due))).any():
            clamps.add(Clamp.RANGE)
        told, measured = measured, self._near(measured)
        if not self._moving:
            self._take_up(measured, value[self._joints])
        if spec.space is Space.JOINT_DELTA:
            speed = value[self._joints] / spec.dt
            positions = self._joint_limiter.drive(speed, measured, seconds, clamps)
        else:
            wanted = self._near(value[self._joints])
            positions = self._joint_limiter.follow(wanted, measured, seconds, clamps)
        speeds = self._speeds(value[self._motion], clamps)
        motion = self._motion_limiter.follow(speeds, seconds, clamps)
        self.commanded = self._moving = True
        self._rested_s = 0.0
        known = self._joint_limits.endless & ~np.isnan(told)
        self._turns = np.where(known, rotations.near(positions, told) - positions, self._turns)
        return Command(positions + self._turns, self._joint_limiter.velocity.copy(), motion)

    def rest(self, seconds: float, *, ramp: bool) -> Command | None:
        """One tick without an action: brake within the limits, or stand at once.

        None: nothing was ever commanded, so somebody else may be in charge of the robot.
        """
        self._moving = False
        self._rested_s += seconds
        if not self.commanded:
            return None
        joints, motion = self._joint_limiter, self._motion_limiter
        positions = joints.ramp(seconds) if ramp else joints.hold()
        speeds = motion.ramp(seconds) if ramp else motion.hold()
        return Command(positions + self._turns, joints.velocity.copy(), speeds)

    def _near(self, angles: np.ndarray) -> np.ndarray:
        """Positions of joints, those that turn without end as near as can be to the last ones."""
        here = self._joint_limiter.position
        if here is None:
            return angles
        return np.where(self._joint_limits.endless, rotations.near(angles, here), angles)

    def _speeds(self, wanted: np.ndarray, clamps: set[Clamp]) -> np.ndarray:
        """Motion of an action as velocities."""
        if self._spec.space is not Space.END_EFFECTOR_DELTA:
            return wanted
        step = self._motion_limits.step
        near = np.clip(wanted, -step, step)
        if (near != wanted).any():
            clamps.add(Clamp.STEP)
        return near / self._spec.dt

    def _take_up(self, measured: np.ndarray, wanted: np.ndarray) -> None:
        """Begin to move: the first time from where the robot is, later from the last command.

        What is measured lags behind what was commanded, so a command that jumped to it after a
        short pause would throw the arm back. Only when the robot has had time to arrive and is
        still more than a step away, it was moved by somebody else, and is taken up where it is. A
        smaller sag is left alone: taking it over would let the arm sink a little at every pause.
        """
        limiter, here = self._joint_limiter, self._joint_limiter.position
        moved = (
            here is not None
            and self._rested_s > _SETTLED_S
            and bool((np.abs(here - measured) > self._joint_limits.step).any())
        )
        if here is None or moved:
            unknown = np.clip(wanted, self._joint_limits.low, self._joint_limits.high)
            limiter.start(np.where(np.isnan(measured), unknown, measured))
