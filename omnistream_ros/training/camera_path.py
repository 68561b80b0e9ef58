# SPDX-License-Identifier: Apache-2.0
"""Camera paths: the way people carry cameras and robots drive, without touching anything.

A path is camera-to-world matrices (T, 4, 4) in optical axes. Motions are sums of smooth random
functions of time with the speeds seen in hand-held recordings; a path that comes too near to a wall
or an object is made smaller or drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnistream_ros.training.render import look_at
from omnistream_ros.training.scenes import Scene
from omnistream_ros.training.textures import Rng

_CLEARANCE = 0.22  # metres between camera and walls or boxes around objects

# Kinds of motion and how often they occur.
MOTIONS = {
    "walk": 2.0,
    "wander": 3.0,
    "orbit": 2.0,
    "rotate": 1.5,
    "drive": 1.5,
    "sway": 1.0,
    "tour": 1.0,
    "inspect": 3.0,
    "loop": 0.0,  # only when asked for: long, and made to see its start again
}

_LAPS = 1.25  # of a loop: the last fifth passes where the first did


class PathError(RuntimeError):
    """No collision-free path was found; another scene or seed will do."""


@dataclass(frozen=True)
class CameraPath:
    """motion, stamps (T,) seconds, poses (T, 4, 4) camera-to-world in optical axes."""

    motion: str
    stamps: np.ndarray
    poses: np.ndarray


def clearance(scene: Scene, points: np.ndarray) -> np.ndarray:
    """Distance of (N, 3) points to the nearest wall, floor, ceiling or object box; (N,)."""
    points = np.asarray(points, np.float64)
    free = scene.room.wall_distance(points[:, :2])
    free = np.minimum(free, np.minimum(points[:, 2], scene.room.height - points[:, 2]))
    boxes = scene.obstacles()
    if len(boxes):
        to = points[:, None] - boxes[None, :, :3]  # (N, B, 3)
        c, s = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
        local = np.stack(
            [c * to[..., 0] + s * to[..., 1], c * to[..., 1] - s * to[..., 0], to[..., 2]], -1
        )
        outside = np.maximum(np.abs(local) - boxes[:, 3:6], 0)
        free = np.minimum(free, np.linalg.norm(outside, axis=-1).min(axis=1))
    return free


def smooth_noise(rng: Rng, t: np.ndarray, period: float, channels: int) -> np.ndarray:
    """Smooth random functions of time (T, channels), deviation about 1, slower than `period`."""
    terms = 6
    rate = 2 * np.pi / (period * rng.uniform(1.0, 4.0, (terms, channels)))
    phase = rng.uniform(0, 2 * np.pi, (terms, channels))
    weight = rng.standard_normal((terms, channels)) / np.sqrt(terms / 2)
    return (weight * np.sin(t[:, None, None] * rate + phase)).sum(axis=1)


def make_path(
    scene: Scene, rng: Rng, frames: int, rate: float, motion: str | None = None
) -> CameraPath:
    """A random path of `frames` frames at `rate` Hz through a scene.

    Raises PathError when none fits, ValueError for an unknown motion.
    """
    names, weights = list(MOTIONS), np.array(list(MOTIONS.values()))
    chosen = motion or str(rng.choice(names, p=weights / weights.sum()))
    if chosen not in MOTIONS:
        raise ValueError(f"no motion {chosen!r}: use one of {', '.join(MOTIONS)}")
    stamps = np.arange(frames) / rate
    for attempt in range(60):
        size = 0.97**attempt
        start = _start(scene, rng, chosen)
        if start is None:
            continue
        positions, targets, roll = _motion(chosen, scene, rng, stamps, start, size)
        shake = rng.choice([0.0, 0.4, 1.0]) if chosen != "drive" else 0.25
        positions = positions + shake * 0.006 * smooth_noise(rng, stamps, 0.25, 3)
        if clearance(scene, positions).min() < _CLEARANCE * (1 if attempt < 40 else 0.7):
            continue
        poses = np.stack([look_at(p, q) for p, q in zip(positions, targets, strict=True)])
        jitter = shake * np.radians(0.35) * smooth_noise(rng, stamps, 0.2, 3)
        jitter[:, 2] += roll
        poses[:, :3, :3] = poses[:, :3, :3] @ _rotations(jitter)
        return CameraPath(chosen, stamps, poses)
    raise PathError(f"no free path for motion {chosen!r} in scene {scene.seed}")


def _start(scene: Scene, rng: Rng, motion: str) -> np.ndarray | None:
    if motion == "inspect":
        return _beside_something(scene, rng)
    low, high = scene.room.corners.min(axis=0), scene.room.corners.max(axis=0)
    heights = {"walk": (1.2, 1.75), "drive": (0.2, 1.3), "orbit": (0.7, 1.8)}.get(
        motion, (0.7, 1.8)
    )
    points = np.column_stack(
        [
            rng.uniform(low, high, (40, 2)),
            rng.uniform(*heights, 40).clip(max=scene.room.height - 0.4),
        ]
    )
    free = np.flatnonzero(clearance(scene, points) > _CLEARANCE + 0.05)
    return points[free[0]] if len(free) else None


def _beside_something(scene: Scene, rng: Rng) -> np.ndarray | None:
    """A place an arm's length from an object and above it: a table is looked down upon."""
    boxes = scene.obstacles()
    boxes = boxes[(boxes[:, 2] + boxes[:, 5] < 1.3) & (boxes[:, 3:5].max(axis=1) > 0.15)]
    if not len(boxes):
        return None
    box = boxes[rng.choice(len(boxes), size=40)]
    angle = rng.uniform(0, 2 * np.pi, 40)
    reach = 0.7 * box[:, 3:5].max(axis=1) + rng.uniform(0.1, 1.0, 40)
    points = box[:, :3] + np.stack([reach * np.cos(angle), reach * np.sin(angle), 0 * reach], 1)
    points[:, 2] = (box[:, 2] + box[:, 5] + rng.uniform(0.25, 1.0, 40)).clip(0.5, 1.9)
    free = np.flatnonzero(clearance(scene, points) > _CLEARANCE + 0.05)
    return points[free[0]] if len(free) else None


def _aim(scene: Scene, rng: Rng, start: np.ndarray) -> np.ndarray:
    """Something to look at: an object not far away, or a place in the room."""
    if scene.items and rng.random() < 0.8:
        centres = scene.obstacles()[:, :3]
        distance = np.linalg.norm(centres - start, axis=1)
        weight = np.where((distance > 0.5) & (centres[:, 2] < 2.0), np.exp(-distance / 2.0), 1e-6)
        target = centres[rng.choice(len(centres), p=weight / weight.sum())]
    else:
        low, high = scene.room.corners.min(axis=0), scene.room.corners.max(axis=0)
        target = np.array([*rng.uniform(low, high), rng.uniform(0.2, 1.6)])
    if np.linalg.norm(target[:2] - start[:2]) < 0.3:  # not straight down
        target = target + np.array([0.6, 0.3, 0.0])
    return target


def _motion(
    name: str, scene: Scene, rng: Rng, t: np.ndarray, start: np.ndarray, size: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (T, 3), points looked at (T, 3), roll (T,) in radians; `size` scales the extent."""
    target = _aim(scene, rng, start)
    roll = (
        np.radians(rng.choice([1.0, 4.0, 10.0], p=[0.5, 0.4, 0.1]))
        * smooth_noise(rng, t, 1.5, 1)[:, 0]
    )
    duration = max(float(t[-1]), 1e-3)
    if name == "rotate":
        positions = start + 0.03 * size * smooth_noise(rng, t, 1.0, 3)
        speed = np.radians(rng.uniform(8, 60))
        heading = np.arctan2(*(target - start)[[1, 0]])
        swing = smooth_noise(rng, t, 1.2, 2)
        yaw = heading + rng.choice([-1, 1]) * speed * (t - duration / 2) * rng.integers(0, 2)
        yaw = yaw + 0.35 * speed * swing[:, 0]
        pitch = np.clip(rng.normal(-0.25, 0.2) + 0.2 * speed * swing[:, 1], -0.9, 0.5)
        return positions, positions + _directions(yaw, pitch), roll
    if name == "orbit":
        radius = float(np.clip(np.linalg.norm((start - target)[:2]), 0.5, 2.5))
        first = np.arctan2(*(start - target)[[1, 0]])
        speed = rng.uniform(0.1, 0.6) * size / radius * rng.choice([-1, 1])
        angle = first + speed * (t + 0.2 * smooth_noise(rng, t, 1.5, 1)[:, 0])
        ring = radius * (1 + 0.06 * smooth_noise(rng, t, 2.0, 1)[:, 0])
        positions = target + np.stack([ring * np.cos(angle), ring * np.sin(angle), 0 * t], 1)
        positions[:, 2] = start[2] + 0.08 * size * smooth_noise(rng, t, 2.0, 1)[:, 0]
        wander = 0.12 * smooth_noise(rng, t, 2.0, 3)
        return positions, target + wander, roll
    if name == "tour":
        # Sidestepping on an arc while turning along it, so that the whole room passes by.
        speed = np.radians(rng.uniform(9, 22)) * size * rng.choice([-1, 1])
        middle = scene.room.corners.mean(axis=0) - start[:2]
        yaw = np.arctan2(middle[1], middle[0]) + speed * (t - duration / 2)
        yaw = yaw + np.radians(3) * smooth_noise(rng, t, 2.5, 1)[:, 0]
        side = -np.pi / 2 if speed > 0 else np.pi / 2
        radius = rng.uniform(0.5, 1.2) * size
        positions = start + radius * (
            _directions(yaw + side, 0 * t) - _directions(yaw + side, 0 * t).mean(axis=0)
        )
        positions[:, 2] += 0.03 * smooth_noise(rng, t, 2.0, 1)[:, 0]
        pitch = rng.uniform(-0.35, -0.1) + 0.04 * smooth_noise(rng, t, 2.5, 1)[:, 0]
        return positions, positions + _directions(yaw, pitch), 0.3 * roll
    if name == "loop":
        # Round and round while looking ahead and outwards; the same way again after one lap.
        angle = np.arctan2(*(target - start)[[1, 0]]) + 2 * np.pi * _LAPS * t / duration
        radius = 0.9 * size
        positions = start + radius * (_directions(angle, 0 * t) - _directions(angle[:1], 0 * t[:1]))
        yaw = angle + np.radians(60)
        pitch = np.full_like(t, -0.15)
        return positions, positions + _directions(yaw, pitch), 0 * t
    if name in ("walk", "drive"):
        speed = rng.uniform(0.2, 1.2 if name == "walk" else 0.9) * size
        heading = np.arctan2(*(target - start)[[1, 0]])
        turn = np.radians(rng.uniform(0, 45)) * smooth_noise(rng, t, 2.0, 1)[:, 0]
        turn = turn - turn[0]
        step = np.gradient(t)[:, None] * speed * _directions(heading + turn, 0 * t)
        positions = start + np.cumsum(step, axis=0)
        if name == "drive":
            pitch = np.full_like(t, rng.uniform(-0.4, 0.1))
            look = np.zeros_like(t) if rng.random() < 0.7 else np.full_like(t, rng.uniform(0, 6.28))
            return positions, positions + _directions(heading + turn + look, pitch), 0.1 * roll
        # A walker's head bobs twice a second and does not always look where the feet go.
        beat = 2 * np.pi * rng.uniform(1.6, 2.1) * t
        positions[:, 2] += 0.02 * np.sin(beat)
        glance = np.radians(rng.uniform(0, 35)) * smooth_noise(rng, t, 1.5, 1)[:, 0]
        aside = rng.choice([0.0, rng.uniform(-1.5, 1.5)])
        pitch = rng.uniform(-0.6, 0.05) + 0.1 * smooth_noise(rng, t, 1.5, 1)[:, 0]
        return positions, positions + _directions(heading + turn + glance + aside, pitch), roll
    # wander, sway and inspect: a hand moves freely while the eyes stay near something
    largest = {"wander": (0.1, 0.7), "sway": (0.05, 0.25), "inspect": (0.05, 0.5)}[name]
    extent = size * rng.uniform(*largest)
    noise = smooth_noise(rng, t, 0.8 if name == "sway" else 1.6, 3)
    positions = start + extent * 0.6 * (noise - noise[0]) * [1, 1, 0.6]
    return positions, target + rng.uniform(0.02, 0.3) * smooth_noise(rng, t, 1.5, 3), roll


def _directions(yaw: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Unit vectors (T, 3); positive pitch looks up."""
    return np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)


def _rotations(vectors: np.ndarray) -> np.ndarray:
    """Rotation matrices (T, 3, 3) of rotation vectors (T, 3)."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    axis = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    x, y, z = axis.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
