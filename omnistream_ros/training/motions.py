# SPDX-License-Identifier: Apache-2.0
"""How a camera moves through a room: one function for each kind of motion.

Each gives where the camera is, what it looks at and how much of a random roll it takes part in, as
smooth functions of time; whether the way is free is for others to find out (`camera_path`).
T stamps, lengths in metres, the world has z up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from omnistream_ros.training.textures import Rng

_LAPS = 1.25  # of a loop: the last fifth passes where the first did


@dataclass(frozen=True)
class Surroundings:
    """What a motion is made from.

    Attributes:
        rng: draws whatever is left open.
        t: (T,) seconds.
        start: (3,) where it begins.
        target: (3,) what there is to look at.
        middle: (2,) of the room.
        size: scales its extent, 1 or less.
    """

    rng: Rng
    t: np.ndarray
    start: np.ndarray
    target: np.ndarray
    middle: np.ndarray
    size: float

    @property
    def heading(self) -> float:
        """From start to target, radians about z."""
        return float(np.arctan2(*(self.target - self.start)[[1, 0]]))

    @property
    def duration(self) -> float:
        """Seconds."""
        return max(float(self.t[-1]), 1e-3)

    def noise(self, period: float, channels: int) -> np.ndarray:
        """(T, channels), see `smooth_noise`."""
        return smooth_noise(self.rng, self.t, period, channels)


@dataclass(frozen=True)
class Way:
    """positions (T, 3), the points looked at (T, 3), share of the roll that it takes part in."""

    positions: np.ndarray
    targets: np.ndarray
    roll: float = 1.0


def smooth_noise(rng: Rng, t: np.ndarray, period: float, channels: int) -> np.ndarray:
    """Smooth random functions of time (T, channels), deviation about 1, slower than `period`."""
    terms = 6
    rate = 2 * np.pi / (period * rng.uniform(1.0, 4.0, (terms, channels)))
    phase = rng.uniform(0, 2 * np.pi, (terms, channels))
    weight = rng.standard_normal((terms, channels)) / np.sqrt(terms / 2)
    return (weight * np.sin(t[:, None, None] * rate + phase)).sum(axis=1)


def rotate(s: Surroundings) -> Way:
    """Somebody stands and looks around."""
    positions = s.start + 0.03 * s.size * s.noise(1.0, 3)
    speed = np.radians(s.rng.uniform(8, 60))
    swing = s.noise(1.2, 2)
    turn = s.rng.choice([-1, 1]) * speed * (s.t - s.duration / 2)
    yaw = s.heading + turn * s.rng.integers(0, 2)  # or only to and fro
    yaw = yaw + 0.35 * speed * swing[:, 0]
    pitch = np.clip(s.rng.normal(-0.25, 0.2) + 0.2 * speed * swing[:, 1], -0.9, 0.5)
    return Way(positions, positions + _directions(yaw, pitch))


def orbit(s: Surroundings) -> Way:
    """Around something, looking at it."""
    away = s.start - s.target
    radius = float(np.clip(np.linalg.norm(away[:2]), 0.5, 2.5))
    first = np.arctan2(*away[[1, 0]])
    speed = s.rng.uniform(0.1, 0.6) * s.size / radius * s.rng.choice([-1, 1])
    angle = first + speed * (s.t + 0.2 * s.noise(1.5, 1)[:, 0])
    ring = radius * (1 + 0.06 * s.noise(2.0, 1)[:, 0])
    positions = s.target + np.stack([ring * np.cos(angle), ring * np.sin(angle), 0 * s.t], 1)
    positions[:, 2] = s.start[2] + 0.08 * s.size * s.noise(2.0, 1)[:, 0]
    return Way(positions, s.target + 0.12 * s.noise(2.0, 3))


def tour(s: Surroundings) -> Way:
    """Sidestepping on an arc while turning along it, so that the whole room passes by."""
    speed = np.radians(s.rng.uniform(9, 22)) * s.size * s.rng.choice([-1, 1])
    middle = s.middle - s.start[:2]
    yaw = np.arctan2(middle[1], middle[0]) + speed * (s.t - s.duration / 2)
    yaw = yaw + np.radians(3) * s.noise(2.5, 1)[:, 0]
    side = -np.pi / 2 if speed > 0 else np.pi / 2
    arc = _directions(yaw + side, 0 * s.t)
    positions = s.start + s.rng.uniform(0.5, 1.2) * s.size * (arc - arc.mean(axis=0))
    positions[:, 2] += 0.03 * s.noise(2.0, 1)[:, 0]
    pitch = s.rng.uniform(-0.35, -0.1) + 0.04 * s.noise(2.5, 1)[:, 0]
    return Way(positions, positions + _directions(yaw, pitch), roll=0.3)


def loop(s: Surroundings) -> Way:
    """Round and round while looking ahead and outwards; the same way again after one lap."""
    angle = s.heading + 2 * np.pi * _LAPS * s.t / s.duration
    circle = _directions(angle, 0 * s.t)
    positions = s.start + 0.9 * s.size * (circle - circle[:1])
    ahead = _directions(angle + np.radians(60), np.full_like(s.t, -0.15))
    return Way(positions, positions + ahead, roll=0.0)


def walk(s: Surroundings) -> Way:
    """A walker's head bobs twice a second and does not always look where the feet go."""
    positions, course = _advance(s, fastest=1.2)
    beat = 2 * np.pi * s.rng.uniform(1.6, 2.1) * s.t
    positions[:, 2] += 0.02 * np.sin(beat)
    glance = np.radians(s.rng.uniform(0, 35)) * s.noise(1.5, 1)[:, 0]
    aside = s.rng.choice([0.0, s.rng.uniform(-1.5, 1.5)])
    pitch = s.rng.uniform(-0.6, 0.05) + 0.1 * s.noise(1.5, 1)[:, 0]
    return Way(positions, positions + _directions(course + glance + aside, pitch))


def drive(s: Surroundings) -> Way:
    """A robot on wheels; its camera looks ahead or is mounted at an angle."""
    positions, course = _advance(s, fastest=0.9)
    pitch = np.full_like(s.t, s.rng.uniform(-0.4, 0.1))
    look = 0.0 if s.rng.random() < 0.7 else s.rng.uniform(0, 6.28)
    return Way(positions, positions + _directions(course + look, pitch), roll=0.1)


def wander(s: Surroundings) -> Way:
    """A hand moves freely while the eyes stay near something."""
    return _by_hand(s, (0.1, 0.7), period=1.6)


def sway(s: Surroundings) -> Way:
    """A hand that wants to be still."""
    return _by_hand(s, (0.05, 0.25), period=0.8)


def inspect(s: Surroundings) -> Way:
    """A hand moves about something close."""
    return _by_hand(s, (0.05, 0.5), period=1.6)


def survey(s: Surroundings) -> Way:
    """Somebody at the edge of a room looks across it, moving slowly and turning a little."""
    positions = s.start + 0.15 * s.size * (s.noise(2.5, 3) * [1, 1, 0.4])
    yaw = s.heading + np.radians(s.rng.uniform(0, 25)) * s.noise(2.0, 1)[:, 0]
    pitch = s.rng.uniform(-0.3, 0.0) + 0.05 * s.noise(2.0, 1)[:, 0]
    return Way(positions, positions + _directions(yaw, pitch), roll=0.5)


WAYS: dict[str, Callable[[Surroundings], Way]] = {
    motion.__name__: motion
    for motion in (walk, wander, orbit, rotate, drive, sway, tour, inspect, survey, loop)
}


def _advance(s: Surroundings, fastest: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions (T, 3) and heading (T,) of who goes forward on a winding course."""
    speed = s.rng.uniform(0.2, fastest) * s.size
    turn = np.radians(s.rng.uniform(0, 45)) * s.noise(2.0, 1)[:, 0]
    course = s.heading + (turn - turn[0])
    step = np.gradient(s.t)[:, None] * speed * _directions(course, 0 * s.t)
    return s.start + np.cumsum(step, axis=0), course


def _by_hand(s: Surroundings, extents: tuple[float, float], period: float) -> Way:
    extent = s.size * s.rng.uniform(*extents)
    noise = s.noise(period, 3)
    positions = s.start + extent * 0.6 * (noise - noise[0]) * [1, 1, 0.6]
    return Way(positions, s.target + s.rng.uniform(0.02, 0.3) * s.noise(1.5, 3))


def _directions(yaw: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Unit vectors (T, 3); positive pitch looks up."""
    return np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)
