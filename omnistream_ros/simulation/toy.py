# SPDX-License-Identifier: Apache-2.0
"""A robot of a few lines: a pen over a sheet with a red and a blue disc, to be moved onto one.

It needs neither a physics engine nor a renderer, so that everything around a simulator can be tried
and tested anywhere in a second. Two axes, a camera straight above.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from omnistream_ros.simulation.environment import Axis, Observation, Task, checked

TASKS = tuple(
    Task(f"toy-{colour}", (f"move to the {colour} disc", f"go to {colour}"), "toy", seconds=4.0)
    for colour in ("red", "blue")
)
_COLOURS = {"red": (200, 40, 40), "blue": (40, 60, 200)}
_SIDE = 0.3  # m, half of the sheet's width that the pen can reach
_NEAR = 0.04  # m
_SPEED = 0.5  # m/s
_MARGIN = 1.2  # of the image around what the pen can reach


class ToyEnvironment:
    """The sheet, seen from above; x to the right, y up."""

    axes = (Axis("x", "m", -_SIDE, _SIDE), Axis("y", "m", -_SIDE, _SIDE))
    step_s = 0.0125
    field_of_view = (math.radians(60.0), math.radians(46.8))

    def __init__(self, task: Task, width: int = 192, height: int = 144) -> None:
        self.task = task
        self._size = width, height
        self.reset(0)

    @property
    def success(self) -> bool:
        return self._success

    def reset(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._pen = rng.uniform(-0.1, 0.1, 2)
        angle = rng.uniform(0, 2 * math.pi)
        side = np.array([math.cos(angle), math.sin(angle)])
        self._discs = {
            colour: sign * rng.uniform(0.14, 0.24) * side
            for colour, sign in zip(_COLOURS, (1, -1), strict=True)
        }
        self._steps = 0
        self._success = False

    def positions(self) -> NDArray[np.float64]:
        return self._pen.copy()

    def observe(self) -> Observation:
        width, height = self._size
        image = np.full((height, width, 3), 210, np.uint8)
        scale = min(width, height) / (2 * _MARGIN * _SIDE)

        def disc(place: NDArray[np.float64], radius: float, colour: tuple[int, int, int]) -> None:
            at = (round(width / 2 + scale * place[0]), round(height / 2 - scale * place[1]))
            cv2.circle(image, at, round(scale * radius), colour, -1, cv2.LINE_AA)

        for name, place in self._discs.items():
            disc(place, 0.03, _COLOURS[name])
        disc(self._pen, 0.02, (20, 20, 20))
        return Observation(image, self.positions(), self._steps * self.step_s)

    def advance(self, command: NDArray[np.float64]) -> None:
        way = checked(command, self.axes) - self._pen
        longest = _SPEED * self.step_s
        self._pen = self._pen + way * min(1.0, longest / max(float(np.linalg.norm(way)), 1e-9))
        self._steps += 1
        self._success |= bool(np.linalg.norm(self.expert() - self._pen) < _NEAR)

    def expert(self) -> NDArray[np.float64]:
        return self._discs[self.task.name.removeprefix("toy-")].copy()

    def close(self) -> None:
        pass
