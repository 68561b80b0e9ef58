# SPDX-License-Identifier: Apache-2.0
"""Where things stand: what follows from the boxes of a room about pairs of them, and about walls.

Only what holds from every side is told (on, under, at, beside; never left, right or behind), so
that it holds for all frames of a clip and for its mirror image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omnistream_ros.training.room import Room

# Metres.
_NEAR = 0.5  # gap between things beside each other
_FLOOR = 0.03  # feet below this stand on the floor
_FLAT = 0.06  # what rises no higher lies flat on the floor
_LIFTED = 0.1  # feet above this are clearly off the floor
_REST = 0.015  # how far above a top a foot still stands on it
_EDGE = 0.01  # how far a foot may reach over an edge
_TABLE = 0.6  # tops from here on are sat at; at a lower one a chair stands beside it
_AT_WALL = 0.12  # furniture at a wall leaves up to a tenth and stands a little askew
_HUNG = 0.02  # what hangs on a wall or from the ceiling touches it but for this

_SPREAD = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 2), -1).reshape(-1, 2)
# Points of a footprint in halves of its sides, its corners first: (25, 2).
_GRID = _SPREAD[np.argsort(-np.abs(_SPREAD).sum(axis=1), kind="stable")]


@dataclass(frozen=True)
class Places:
    """How N things stand. Pairs (N, N) bool tell whether the first (row) is so to the second:

    on: stands on it or in its shelves, off the floor; under: a rug that bears half of its foot or
    more; at: a chair at a table; beside: both on the floor with little between, the second larger.
    Alone, (N,) bool: at_wall: with one side along a wall, on the floor; on_wall: hung there;
    from_ceiling: hung from the ceiling.
    """

    on: NDArray[np.bool_]
    under: NDArray[np.bool_]
    at: NDArray[np.bool_]
    beside: NDArray[np.bool_]
    at_wall: NDArray[np.bool_]
    on_wall: NDArray[np.bool_]
    from_ceiling: NDArray[np.bool_]


def places(boxes: NDArray[np.float64], classes: Sequence[str], room: Room) -> Places:
    """How boxes (N, 7) stand in their room, as `Annotation` has them, given their N classes."""
    foot, top = boxes[:, 2], boxes[:, 2] + boxes[:, 6]
    floor = (foot < _FLOOR) & (top > _FLAT)
    lifted = foot > _LIFTED
    from_ceiling = lifted & (np.abs(room.height - top) < _HUNG)
    rug, chair, table = (
        np.array([c == k for c in classes], bool) for k in ("rug", "chair", "table")
    )

    points = _footprints(boxes)
    gaps = _gaps(points, boxes)
    inside = gaps[:, :4].max(axis=1) < _EDGE
    on = inside & (lifted & ~from_ceiling)[:, None] & floor & (foot[:, None] < top + _REST)
    # A chair pushed under a table has the things at the table's edge above its foot as well: prefer
    # what ends just under them, among equals the larger.
    area = boxes[:, 4] * boxes[:, 5]
    fits = (np.abs(foot[:, None] - top) < _REST) + area / (1 + area)
    fits = np.where(on, fits, -1.0)
    on &= fits == fits.max(axis=1, keepdims=True, initial=-1.0)

    share = (gaps < _EDGE).mean(axis=1)  # of the first's foot that is over the second's
    under = (rug & (top <= _FLAT))[:, None] & (floor & ~rug) & (share.T >= 0.5)

    nearest = gaps.min(axis=1)
    pair = floor[:, None] & floor & (np.minimum(nearest, nearest.T) < _NEAR)
    at = pair & chair[:, None] & (table & (top >= _TABLE))
    volume = boxes[:, 4:].prod(axis=1)
    beside = pair & (volume[:, None] < volume) & ~at & ~at.T

    # The second nearest corner: a whole side is as near as that.
    from_wall = np.abs(room.wall_distance(points[:, :4].reshape(-1, 2))).reshape(-1, 4)
    side = np.sort(from_wall, axis=1)[:, 1]
    on_wall = lifted & (side < _HUNG) & ~from_ceiling & ~on.any(axis=1)
    return Places(on, under, at, beside, floor & (side < _AT_WALL), on_wall, from_ceiling)


def _footprints(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points spread over each footprint (N, 25, 2), its four corners first."""
    local = _GRID * boxes[:, None, 4:6] / 2
    c, s = np.cos(boxes[:, 3, None]), np.sin(boxes[:, 3, None])
    x, y = local[..., 0], local[..., 1]
    return np.stack([c * x - s * y, s * x + c * y], -1) + boxes[:, None, :2]


def _gaps(points: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each of the points (N, P, 2) lies outside each footprint (N, P, M), 0 within."""
    to = points[:, :, None] - boxes[:, :2]
    c, s = np.cos(boxes[:, 3]), np.sin(boxes[:, 3])
    local = np.stack([c * to[..., 0] + s * to[..., 1], c * to[..., 1] - s * to[..., 0]], -1)
    outside: NDArray[np.float64] = np.maximum(np.abs(local) - boxes[:, 4:6] / 2, 0.0)
    return np.hypot(outside[..., 0], outside[..., 1])
