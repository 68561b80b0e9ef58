# SPDX-License-Identifier: Apache-2.0
"""The plan of a room: its outline, height, and where doors and windows are; `shell` builds it.

Corners run counter-clockwise (x, y) in metres; the floor is z = 0. Wall i goes from corner i to
corner i + 1, and its frame has x along the wall, y into the room, z up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnistream_ros.training.textures import Rng

RADIATOR_DEPTH = 0.14  # at most, from the wall


@dataclass(frozen=True)
class Opening:
    """A hole in a wall from s0 to s1 along it and z0 to z1: "door", "passage" or "window".

    Under a window there may be a radiator.
    """

    wall: int
    s0: float
    s1: float
    z0: float
    z1: float
    kind: str
    radiator: bool = False


@dataclass(frozen=True)
class Room:
    """corners (N, 2) float64 counter-clockwise, height in metres, openings."""

    kind: str
    corners: np.ndarray
    height: float
    openings: tuple[Opening, ...]

    @property
    def walls(self) -> int:
        return len(self.corners)

    def length(self, wall: int) -> float:
        return float(np.linalg.norm(self.corners[(wall + 1) % self.walls] - self.corners[wall]))

    def frame(self, wall: int) -> np.ndarray:
        """Wall frame to world (4, 4)."""
        start, end = self.corners[wall], self.corners[(wall + 1) % self.walls]
        along = (end - start) / np.linalg.norm(end - start)
        axes = np.eye(4)
        axes[:2, 0] = along
        axes[:2, 1] = (-along[1], along[0])
        axes[:2, 3] = start
        return axes

    def wall_distance(self, points: np.ndarray) -> np.ndarray:
        """Distance of (N, 2) points to the nearest wall, negative outside the room; (N,)."""
        start = self.corners
        edge = np.roll(start, -1, axis=0) - start  # (W, 2)
        to = points[:, None] - start[None]  # (N, W, 2)
        t = np.clip((to * edge).sum(-1) / (edge * edge).sum(-1), 0, 1)
        distance = np.linalg.norm(to - t[..., None] * edge, axis=-1).min(axis=1)
        end_y = start[:, 1] + edge[:, 1]
        crosses = (start[:, 1] > points[:, 1:2]) != (end_y > points[:, 1:2])
        slope = edge[:, 0] / np.where(edge[:, 1] == 0, 1e-12, edge[:, 1])
        left = points[:, 0:1] < start[:, 0] + (points[:, 1:2] - start[:, 1]) * slope
        inside = (crosses & left).sum(axis=1) % 2 == 1
        return np.where(inside, distance, -distance)

    def outer(self, wall: int) -> bool:
        """Whether the wall bounds the room's convex hull, so that outside is free space."""
        inward = self.frame(wall)[:2, 1]
        return bool(((self.corners - self.corners[wall]) @ inward > -1e-6).all())


# Floor area (m^2) and height (m) by kind of room; corridors are long and narrow.
SIZES = {
    "living room": ((14, 60), (2.4, 3.2)),
    "bedroom": ((9, 30), (2.3, 2.9)),
    "kitchen": ((7, 32), (2.3, 2.9)),
    "office": ((9, 110), (2.4, 3.4)),
    "bathroom": ((3.5, 12), (2.2, 2.8)),
    "dining room": ((10, 45), (2.4, 3.2)),
    "corridor": ((7, 40), (2.3, 3.0)),
    "storage room": ((6, 60), (2.2, 4.0)),
    "classroom": ((30, 120), (2.6, 4.0)),
}


def make_room(kind: str, rng: Rng) -> Room:
    """A random outline of the kind's size: rectangle, L, cut corner or slightly skewed."""
    (small, large), heights = SIZES[kind]
    area = np.exp(rng.uniform(np.log(small), np.log(large)))
    ratio = rng.uniform(3.0, 7.0) if kind == "corridor" else rng.uniform(1.0, 1.9)
    width, depth = np.sqrt(area * ratio), np.sqrt(area / ratio)
    if kind == "corridor":
        depth = float(np.clip(depth, 1.3, 2.6))
    corners = np.array([[0, 0], [width, 0], [width, depth], [0, depth]], np.float64)
    shape = rng.random()
    if kind != "corridor":
        if shape < 0.2:
            cut = rng.uniform(0.25, 0.5, 2) * (width, depth)
            corners = np.array(
                [
                    [width - cut[0], depth - cut[1]],  # the reflex corner first: fans start there
                    [width - cut[0], depth],
                    [0, depth],
                    [0, 0],
                    [width, 0],
                    [width, depth - cut[1]],
                ]
            )
        elif shape < 0.3:
            cut = rng.uniform(0.15, 0.35, 2) * (width, depth)
            corners = np.array(
                [[0, 0], [width, 0], [width, depth - cut[1]], [width - cut[0], depth], [0, depth]]
            )
        elif shape < 0.45:
            corners += rng.uniform(-0.08, 0.08, (4, 2)) * (width, depth)
    room = Room(kind, corners - corners.mean(axis=0), rng.uniform(*heights), ())
    return Room(room.kind, room.corners, room.height, tuple(_openings(room, rng)))


def _openings(room: Room, rng: Rng) -> list[Opening]:
    openings: list[Opening] = []

    def add(kind: str, width: float, z0: float, z1: float) -> None:
        walls = [w for w in range(room.walls) if room.outer(w) and room.length(w) > width + 0.5]
        for _ in range(8):
            if not walls:
                return
            wall = int(rng.choice(walls))
            s0 = rng.uniform(0.2, room.length(wall) - width - 0.2)
            taken = [o for o in openings if o.wall == wall]
            if all(s0 + width + 0.15 < o.s0 or s0 > o.s1 + 0.15 for o in taken):
                warm = kind == "window" and z0 > 0.5 and rng.random() < 0.4
                openings.append(Opening(wall, s0, s0 + width, z0, z1, kind, warm))
                return

    for _ in range(int(rng.integers(1, 4 if room.kind == "corridor" else 3))):
        kind = "passage" if rng.random() < 0.3 else "door"
        wide = rng.uniform(0.75, 1.0) if rng.random() < 0.8 else rng.uniform(1.2, 1.8)
        add(kind, wide, 0.0, rng.uniform(1.95, 2.1))
    for _ in range(int(rng.choice([0, 1, 1, 2, 2, 3]))):
        sill = rng.choice([rng.uniform(0.7, 1.1), 0.15], p=[0.85, 0.15])
        add("window", rng.uniform(0.6, 2.2), sill, min(room.height - 0.15, rng.uniform(1.8, 2.3)))
    return openings
