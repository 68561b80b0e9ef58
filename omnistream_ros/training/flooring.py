# SPDX-License-Identifier: Apache-2.0
"""Floors of two kinds in one room: boards beside carpet, tiles by a stove, a strip to walk on."""

from __future__ import annotations

import numpy as np

from omnistream_ros.training.mesh import MeshBuilder, Paint
from omnistream_ros.training.room import Room
from omnistream_ros.training.textures import Rng

TWO_FLOORS = 0.35  # of the rooms


def second_floor(ground: MeshBuilder, room: Room, paint: Paint, rng: Rng) -> None:
    """A strip from wall to wall, or a part of one, laid with something else.

    Where it ends there is an edge, often a strong one, and no depth.
    """
    axes = room.frame(int(rng.integers(room.walls)))
    local = (room.corners - axes[:2, 3]) @ axes[:2, :2]
    low, high = local.min(axis=0), local.max(axis=0)
    width = (high[1] - low[1]) * rng.uniform(0.15, 0.7)
    near = low[1] if rng.random() < 0.6 else rng.uniform(low[1], high[1] - width)
    start, end = low[0], high[0]
    if rng.random() < 0.4:
        start, end = np.sort(rng.uniform(low[0], high[0], 2))
    turn = np.radians(rng.normal(0, 15)) if rng.random() < 0.2 else 0.0
    corners = np.array([[start, near], [end, near], [end, near + width], [start, near + width]])
    middle = corners.mean(axis=0)
    c, s = np.cos(turn), np.sin(turn)
    corners = np.clip((corners - middle) @ [[c, s], [-s, c]] + middle, low, high)
    # A millimetre above, so that it hides what is below.
    flat = np.hstack([corners, np.full((4, 1), 0.001), np.ones((4, 1))])
    ground.polygon((flat @ axes.T)[:, :3], paint)
