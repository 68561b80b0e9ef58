# SPDX-License-Identifier: Apache-2.0
"""How things move in a take, whatever the camera does, in words for captions.

Boxes (7,) are those of `Annotation`: the middle of the foot x, y, z, yaw, width, depth, height.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Less is not told: metres, as a share of the distance from the camera, radians.
_SHIFT, _SHIFT_SEEN = 0.05, 0.02
_TURN = np.radians(5)


@dataclass(frozen=True)
class Mover:
    """A thing that moves in a take: its `index` among the objects, its box in each frame (T, 7)."""

    index: int
    boxes: NDArray[np.float64]

    def mirrored(self) -> Mover:
        """In a mirror at x = 0."""
        return Mover(self.index, self.boxes * [-1, 1, 1, -1, 1, 1, 1])


def movement(boxes: NDArray[np.float64], view: NDArray[np.float64]) -> str:
    """What a thing does whose boxes (T, 7) these are in the frames that show it; "" for too little.

    Left, right, towards and away are those of the camera whose pose (4, 4) in optical axes is
    `view`; its own motion has no part in them.
    """
    if len(boxes) < 2:
        return ""
    places = boxes[:, :3]
    least = max(_SHIFT, _SHIFT_SEEN * float(np.linalg.norm(places[0] - view[:3, 3])))
    furthest = float(np.linalg.norm(places - places[0], axis=1).max())
    if furthest < least:
        turned = float(np.abs(boxes[:, 3] - boxes[0, 3]).max())
        return "turning" if turned > _TURN else ""
    way = places[-1] - places[0]
    length = float(np.linalg.norm(way))
    if length < max(least, furthest / 2):  # to and fro
        return "moving"
    if abs(way[2]) > np.sqrt(0.5) * length:
        return "moving up" if way[2] > 0 else "moving down"
    # On the floor plan, so that a camera that looks straight down has an ahead as well.
    right = view[:2, 0] / np.linalg.norm(view[:2, 0])
    aside, ahead = float(right @ way[:2]), float(right[0] * way[1] - right[1] * way[0])
    if abs(aside) > abs(ahead):
        return "moving to the right" if aside > 0 else "moving to the left"
    return "moving away from the camera" if ahead > 0 else "moving towards the camera"
