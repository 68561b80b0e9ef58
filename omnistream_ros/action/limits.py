# SPDX-License-Identifier: Apache-2.0
"""Limits on what is commanded: range, step, velocity and acceleration, all kept at once.

For a joint at q that moves with v, a velocity is allowed only if the joint can still be stopped
before the end of its range: v dt + v^2 / 2a <= distance. Whoever keeps that in every tick can keep
it in the next one by braking with no more than a, whatever the length of the ticks; so position,
velocity and acceleration never have to be traded against each other.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

_TOLERANCE = 1e-9  # what rounding does is no intervention


class Clamp(str, enum.Enum):
    """Why a command is not what the policy wanted."""

    RANGE = "range"  # outside of low and high of the policy
    POSITION = "position"  # outside of the joint's limits, or it could not be stopped before them
    STEP = "step"  # too far from where the joint is, or too large a single motion
    VELOCITY = "velocity"
    ACCELERATION = "acceleration"


@dataclasses.dataclass(frozen=True)
class Limits:
    """One entry per number of an action, in the policy's order.

    Attributes:
        low, high: positions; infinite for motion along axes.
        velocity, acceleration: largest magnitudes, in the unit of the number per s and s^2.
        step: joints: how far a command may lie from the measured position. Motion: the largest
            single ``end_effector_delta``; infinite for a twist.
        endless: bool, joints that turn without end: radians that come round again, low and high
            infinite. Default: none.

    Raises:
        ValueError: a limit that is not positive, low above high, or an endless joint with an end.
    """

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    step: np.ndarray
    endless: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        if not self.endless.size:
            object.__setattr__(self, "endless", np.zeros(len(self.low), bool))
        if np.isfinite([self.low[self.endless], self.high[self.endless]]).any():
            raise ValueError("a joint that turns without end has no position limits")
        for name in ("velocity", "acceleration", "step"):
            if not (getattr(self, name) > 0.0).all():
                raise ValueError(f"every {name} limit must be positive")
        if not (self.low < self.high).all():
            raise ValueError("every position limit must be low < high")

    def of(self, columns: tuple[int, ...]) -> Limits:
        """Those of some columns."""
        at = list(columns)
        return Limits(*(getattr(self, field.name)[at] for field in dataclasses.fields(self)))


class JointLimiter:
    """Leads commanded joint positions to where the policy wants them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.position: np.ndarray | None = None  # last command (n,)
        self.velocity: np.ndarray = np.zeros(len(limits.low))
        self._target: np.ndarray | None = None

    def start(self, position: np.ndarray) -> None:
        """At rest here; a joint that is outside of its range may only move back into it."""
        self.position = position.astype(np.float64)
        self.velocity = np.zeros_like(self.position)
        self._target = None

    def follow(
        self, target: np.ndarray, measured: np.ndarray, seconds: float, clamps: set[Clamp]
    ) -> np.ndarray:
        """One tick towards positions; `measured` is NaN where a joint cannot be read.

        The speed of the target is followed without lag; what distance remains is closed as fast as
        can be braked, so that a target that stands is never passed.
        """
        assert self.position is not None
        limits, dt = self._limits, seconds
        wanted = np.clip(target, limits.low, limits.high)
        _note(clamps, Clamp.POSITION, wanted, target)
        wanted = self._near(wanted, measured, clamps)
        before = wanted if self._target is None else self._target
        rate = np.clip((wanted - before) / dt, -limits.velocity, limits.velocity)
        self._target = wanted
        gap = wanted - rate * dt - self.position
        closing = np.sign(gap) * _brake(np.abs(gap), limits.acceleration, dt)
        return self._advance(rate + closing, dt, clamps)

    def drive(
        self, velocity: np.ndarray, measured: np.ndarray, seconds: float, clamps: set[Clamp]
    ) -> np.ndarray:
        """One tick at a speed, as far as the measured positions allow."""
        assert self.position is not None
        self._target = None
        wanted = self.position + velocity * seconds
        near = self._near(wanted, measured, clamps)
        return self._advance((near - self.position) / seconds, seconds, clamps)

    def hold(self) -> np.ndarray:
        """The last command again, at rest."""
        assert self.position is not None
        self.velocity = np.zeros_like(self.position)
        self._target = None
        return self.position.copy()

    def ramp(self, seconds: float) -> np.ndarray:
        """One tick of braking as hard as is allowed."""
        assert self.position is not None
        self._target = None
        slower = self._limits.acceleration * seconds
        self.velocity = self.velocity - np.clip(self.velocity, -slower, slower)
        self.position = self.position + self.velocity * seconds
        return self.position.copy()

    def _near(self, wanted: np.ndarray, measured: np.ndarray, clamps: set[Clamp]) -> np.ndarray:
        step = self._limits.step
        near = np.where(
            np.isnan(measured), wanted, np.clip(wanted, measured - step, measured + step)
        )
        _note(clamps, Clamp.STEP, near, wanted)
        return near

    def _advance(self, velocity: np.ndarray, dt: float, clamps: set[Clamp]) -> np.ndarray:
        assert self.position is not None
        limits, here = self._limits, self.position
        bounded = np.clip(velocity, -limits.velocity, limits.velocity)
        _note(clamps, Clamp.VELOCITY, bounded, velocity)
        change = limits.acceleration * dt
        reachable = np.clip(bounded, self.velocity - change, self.velocity + change)
        _note(clamps, Clamp.ACCELERATION, reachable, bounded)
        up = _brake(np.maximum(limits.high, here) - here, limits.acceleration, dt)
        down = _brake(here - np.minimum(limits.low, here), limits.acceleration, dt)
        allowed = np.clip(reachable, -down, up)
        _note(clamps, Clamp.POSITION, allowed, reachable)
        self.velocity = allowed
        self.position = here + allowed * dt
        return self.position.copy()


class MotionLimiter:
    """Leads commanded velocities along axes to those that the policy wants."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.velocity: np.ndarray = np.zeros(len(limits.velocity))

    def follow(self, wanted: np.ndarray, seconds: float, clamps: set[Clamp]) -> np.ndarray:
        """One tick towards velocities (n,)."""
        limits = self._limits
        bounded = np.clip(wanted, -limits.velocity, limits.velocity)
        _note(clamps, Clamp.VELOCITY, bounded, wanted)
        change = limits.acceleration * seconds
        allowed = np.clip(bounded, self.velocity - change, self.velocity + change)
        _note(clamps, Clamp.ACCELERATION, allowed, bounded)
        self.velocity = allowed
        return allowed.copy()

    def hold(self) -> np.ndarray:
        """Stand still, at once."""
        self.velocity = np.zeros_like(self.velocity)
        return self.velocity.copy()

    def ramp(self, seconds: float) -> np.ndarray:
        """One tick of braking as hard as is allowed."""
        return self.follow(np.zeros_like(self.velocity), seconds, set())


def _brake(distance: np.ndarray, acceleration: np.ndarray, dt: float) -> np.ndarray:
    """The largest v with v dt + v^2 / 2a <= distance."""
    return acceleration * (np.sqrt(dt * dt + 2.0 * distance / acceleration) - dt)


def _note(clamps: set[Clamp], kind: Clamp, allowed: np.ndarray, wanted: np.ndarray) -> None:
    scale = 1.0 + np.abs(wanted)
    if (np.abs(allowed - wanted) > _TOLERANCE * scale).any():
        clamps.add(kind)
