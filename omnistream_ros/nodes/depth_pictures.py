# SPDX-License-Identifier: Apache-2.0
"""Depth as a picture for people: colours for distances, always the same ones."""

from __future__ import annotations

import cv2
import numpy as np

# Metres. Fixed, so that a colour keeps its meaning from frame to frame.
NEAREST, FARTHEST = 0.3, 10.0


def colour_depth(depth: np.ndarray) -> np.ndarray:
    """Depth (H, W) in metres as BGR (H, W, 3) uint8: red is near, blue is far, black is unknown.

    Colours follow 1 / depth, as disparity does: near things, which matter most, get most of them.
    """
    known = np.isfinite(depth) & (depth > 0)
    nearness = 1 / np.where(known, depth, FARTHEST).clip(NEAREST, FARTHEST)
    share = (nearness - 1 / FARTHEST) / (1 / NEAREST - 1 / FARTHEST)
    # The square root spreads the range of a room over the scale.
    picture = cv2.applyColorMap(np.rint(255 * np.sqrt(share)).astype(np.uint8), cv2.COLORMAP_TURBO)
    picture[~known] = 0
    return np.asarray(picture)
