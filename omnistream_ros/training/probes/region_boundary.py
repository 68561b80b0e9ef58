# SPDX-License-Identifier: Apache-2.0
"""J and F of DAVIS (Perazzi et al., CVPR 2016): how well a mask covers, and follows its outline."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
_TOLERANCE = 0.008  # of the image's diagonal


def region(found: Mask, true: Mask) -> float:
    """J: intersection over union of masks (H, W); 1 where both are empty."""
    union = np.count_nonzero(found | true)
    return np.count_nonzero(found & true) / union if union else 1.0


def boundary(found: Mask, true: Mask) -> float:
    """F: harmonic mean of precision and recall of the outline, within 0.8 % of the diagonal."""
    reach = int(np.ceil(_TOLERANCE * np.hypot(*found.shape)))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= reach**2).astype(np.uint8)
    one, other = _outline(found), _outline(true)
    near_one, near_other = (cv2.dilate(o.astype(np.uint8), disk).astype(bool) for o in (one, other))
    n, m = np.count_nonzero(one), np.count_nonzero(other)
    if n == 0 or m == 0:
        return float(n == m)
    precision = np.count_nonzero(one & near_other) / n
    recall = np.count_nonzero(other & near_one) / m
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _outline(mask: Mask) -> Mask:
    """Pixels that differ from the one to the right, below, or both, as the official code has it."""
    east = np.pad(mask, ((0, 0), (0, 1)), mode="edge")[:, 1:]
    south = np.pad(mask, ((0, 1), (0, 0)), mode="edge")[1:]
    both = np.pad(mask, ((0, 1), (0, 1)), mode="edge")[1:, 1:]
    edge = (mask ^ east) | (mask ^ south) | (mask ^ both)
    edge[-1] = mask[-1] ^ east[-1]
    edge[:, -1] = mask[:, -1] ^ south[:, -1]
    edge[-1, -1] = False
    return np.asarray(edge, bool)


@dataclass(frozen=True)
class SequenceScore:
    """Means over the objects of sequences, each over its frames but the first and the last."""

    j: float
    f: float
    objects: int

    @property
    def j_and_f(self) -> float:
        """The mean of both."""
        return (self.j + self.f) / 2


def score(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> SequenceScore:
    """Of (found, true) masks (T, H, W) of sequences; every object counts the same.

    The first frame is given and, as in the official evaluation, the last is left out.
    """
    js, fs = [], []
    for found, true in pairs:
        for number in range(1, int(true[0].max()) + 1):
            frames = range(1, len(true) - 1)
            js.append(np.mean([region(found[t] == number, true[t] == number) for t in frames]))
            fs.append(np.mean([boundary(found[t] == number, true[t] == number) for t in frames]))
    return SequenceScore(float(np.mean(js)), float(np.mean(fs)), len(js))
