# SPDX-License-Identifier: Apache-2.0
"""How far the picture has moved as a whole, when nothing is known about the motion.

The window in which a place is looked for reaches 20 pixels. A camera that turns fast, or comes back
after a gap, has moved further: its descriptors are averaged to half resolution and compared with
the keyframe's at every shift up to half of the image.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from omnistream_ros.stream import geometry

_POOL = 2
_MIN_OVERLAP = 0.2  # share of the image; fewer cells agree by chance


def turned(key: Tensor, current: Tensor, camera: np.ndarray) -> np.ndarray:
    """The rotation current_from_key (4, 4) that shifts one picture onto the other best.

    Args:
        key, current: unit descriptors (1, C, h, w).
        camera: (4,) fx, fy, cx, cy in cells.
    """
    a, b = (F.avg_pool2d(d, _POOL) for d in (key, current))
    # What all places share says nothing about where they are.
    a, b = (d - d.mean((2, 3), keepdim=True) for d in (a, b))
    height, width = a.shape[-2:]
    reach = (height // 2, width // 2)
    score = F.conv2d(b, a, padding=reach)[0, 0]  # (2 h/2 + 1, 2 w/2 + 1), by shift
    inside = F.conv2d(
        b.new_ones(1, 1, height, width), b.new_ones(1, 1, height, width), padding=reach
    )
    share = inside[0, 0] / (height * width)
    score = (score / inside[0, 0]).masked_fill(share < _MIN_OVERLAP, -np.inf)
    row, column = divmod(int(score.argmax()), score.shape[1])
    shift = np.array([column - reach[1], row - reach[0]]) * _POOL  # cells, current - key
    x, y = shift / camera[:2]
    # Content that moves right by x has turned about the y axis: a point ahead goes to (x, y, 1).
    vector = np.array([-np.arctan(y), np.arctan(x), 0.0])
    return geometry.rigid(geometry.rotation_from_vector(vector), np.zeros(3))
