# SPDX-License-Identifier: Apache-2.0
"""What every simulated robot looks like from outside: axes that are told positions, one camera.

A robot has named axes. A command is one position per axis; the robot moves there as fast as it can
and keeps pressing when something is in the way, as a position-controlled arm does. Time goes on in
steps of `step_s`, and a frame of the camera belongs to every `STEPS_PER_FRAME`-th of them.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

STEPS_PER_FRAME = 8


class SimulationError(RuntimeError):
    """The simulator cannot run here, or was asked for what it does not have; says what to do."""


class UnknownTaskError(SimulationError, ValueError):
    """A name that is none of a task; the message has those that are."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One number that a robot can be told.

    Attributes:
        name: as in joint states and commands.
        unit: m, rad or 1.
        low, high: commands outside are clamped.
    """

    name: str
    unit: str
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to be done.

    Attributes:
        name: one word for tables and options.
        instructions: ways of asking for it; the first is used where nothing else is said.
        scene: what is on the table; tasks of one scene differ by their instruction alone.
        seconds: after which an attempt counts as failed.
    """

    name: str
    instructions: tuple[str, ...]
    scene: str
    seconds: float = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class Observation:
    """What the robot knows about itself and sees at one moment.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        positions: (axes,) float64, measured.
        time_s: since the episode began.
    """

    image: NDArray[np.uint8]
    positions: NDArray[np.float64]
    time_s: float


class Environment(Protocol):
    """A robot with a task; not thread-safe."""

    @property
    def task(self) -> Task:
        """What is to be done."""
        ...

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What can be commanded, in order."""
        ...

    @property
    def step_s(self) -> float:
        """Simulated seconds of one step."""
        ...

    @property
    def field_of_view(self) -> tuple[float, float]:
        """Of the camera: horizontal and vertical, radians."""
        ...

    @property
    def success(self) -> bool:
        """Whether the task was done at any moment since the episode began."""
        ...

    def reset(self, seed: int) -> None:
        """Begin an episode; the same seed gives the same one, whatever was before."""
        ...

    def positions(self) -> NDArray[np.float64]:
        """Measured position of every axis, (axes,)."""
        ...

    def observe(self) -> Observation:
        """Positions and a new image."""
        ...

    def advance(self, command: NDArray[np.float64]) -> None:
        """One step towards a position per axis, (axes,); ValueError unless all are finite."""
        ...

    def expert(self) -> NDArray[np.float64]:
        """What a scripted expert, who sees everything, would command now, (axes,)."""
        ...

    def close(self) -> None:
        """Give back what the environment holds of the machine."""
        ...


def checked(command: NDArray[np.float64], axes: tuple[Axis, ...]) -> NDArray[np.float64]:
    """A command inside of the ranges of its axes.

    Raises:
        ValueError: another number of positions, or one that is not finite.
    """
    command = np.asarray(command, float)
    if command.shape != (len(axes),) or not np.isfinite(command).all():
        raise ValueError(
            f"a command is {len(axes)} finite positions ({', '.join(a.name for a in axes)}), "
            f"got {command}"
        )
    return np.clip(command, [axis.low for axis in axes], [axis.high for axis in axes])
