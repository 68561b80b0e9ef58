# SPDX-License-Identifier: Apache-2.0
"""Camera paths: the way people carry cameras and robots drive, without touching anything.

A path is camera-to-world matrices (T, 4, 4) in optical axes. Motions (`motions`) are sums of smooth
random functions of time with the speeds seen in hand-held recordings; a path that comes too near to
a wall or an object is made smaller or drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnistream_ros.training.motions import WAYS, Surroundings, smooth_noise
from omnistream_ros.training.render import look_at
from omnistream_ros.training.scenes import Scene
from omnistream_ros.training.textures import Rng

_CLEARANCE = 0.22  # metres between camera and walls or boxes around objects

# Metres above the floor. A network learns how far the floor is from how high cameras are: where it
# saw as many at the hip as at the eye, it takes what a person sees for smaller than it is.
_HELD, _DRIVEN = (1.15, 1.85), (0.2, 1.3)  # from the chest to the eye; by a robot

# Kinds of motion (`motions`) and how often they occur.
MOTIONS = {
    "walk": 2.0,
    "wander": 3.0,
    "orbit": 2.0,
    "rotate": 1.5,
    "drive": 1.5,
    "sway": 1.0,
    "tour": 1.0,
    "inspect": 2.0,
    "survey": 3.0,
    "loop": 0.0,  # only when asked for: long, and made to see its start again
}


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
        free = np.minimum(free, box_distances(points, boxes).min(axis=1))
    return free


def box_distances(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Distance of each of the (N, 3) points to each of the boxes (B, 7) of `obstacles`; (N, B)."""
    to = points[:, None] - boxes[None, :, :3]  # (N, B, 3)
    c, s = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    local = np.stack(
        [c * to[..., 0] + s * to[..., 1], c * to[..., 1] - s * to[..., 0], to[..., 2]], -1
    )
    outside = np.maximum(np.abs(local) - boxes[:, 3:6], 0)
    return np.asarray(np.linalg.norm(outside, axis=-1))


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
        target = _across(scene, rng, start) if chosen == "survey" else _aim(scene, rng, start)
        roll = np.radians(rng.choice([1.0, 4.0, 10.0], p=[0.5, 0.4, 0.1]))
        roll = roll * smooth_noise(rng, stamps, 1.5, 1)[:, 0]
        middle = scene.room.corners.mean(axis=0)
        way = WAYS[chosen](Surroundings(rng, stamps, start, target, middle, size))
        shake = rng.choice([0.0, 0.4, 1.0]) if chosen != "drive" else 0.25
        positions = way.positions + shake * 0.006 * smooth_noise(rng, stamps, 0.25, 3)
        if clearance(scene, positions).min() < _CLEARANCE * (1 if attempt < 40 else 0.7):
            continue
        poses = np.stack([look_at(p, q) for p, q in zip(positions, way.targets, strict=True)])
        jitter = shake * np.radians(0.35) * smooth_noise(rng, stamps, 0.2, 3)
        jitter[:, 2] += way.roll * roll
        poses[:, :3, :3] = poses[:, :3, :3] @ _rotations(jitter)
        return CameraPath(chosen, stamps, poses)
    raise PathError(f"no free path for motion {chosen!r} in scene {scene.seed}")


def _start(scene: Scene, rng: Rng, motion: str) -> np.ndarray | None:
    if motion == "inspect":
        return _beside_something(scene, rng)
    if motion == "survey":
        return _at_the_edge(scene, rng)
    low, high = scene.room.corners.min(axis=0), scene.room.corners.max(axis=0)
    heights = _DRIVEN if motion == "drive" else _HELD
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


def _at_the_edge(scene: Scene, rng: Rng) -> np.ndarray | None:
    """A free place near a wall, from where most of the room is in sight."""
    low, high = scene.room.corners.min(axis=0), scene.room.corners.max(axis=0)
    points = np.column_stack([rng.uniform(low, high, (200, 2)), rng.uniform(*_HELD, 200)])
    points = points[clearance(scene, points) > _CLEARANCE + 0.05]
    if not len(points):
        return None
    nearest = np.argsort(scene.room.wall_distance(points[:, :2]))
    return points[nearest[0]]


def _across(scene: Scene, rng: Rng, start: np.ndarray) -> np.ndarray:
    """One of the places in the room that are furthest away."""
    low, high = scene.room.corners.min(axis=0), scene.room.corners.max(axis=0)
    places = rng.uniform(low, high, (20, 2))
    far = np.argsort(np.linalg.norm(places - start[:2], axis=1))
    return np.array([*places[far[-rng.integers(1, 6)]], rng.uniform(0.3, 1.5)])


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


def _rotations(vectors: np.ndarray) -> np.ndarray:
    """Rotation matrices (T, 3, 3) of rotation vectors (T, 3)."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    axis = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    x, y, z = axis.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
