# SPDX-License-Identifier: Apache-2.0
"""What is known of a clip of a batch, after the same augmentation as its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omnistream_ros.training.annotations import label, read_annotation
from omnistream_ros.training.movement import movement

if TYPE_CHECKING:
    from omnistream_ros.training.clip_files import Clip

PATCH = 16


@dataclass(frozen=True)
class Words:
    """What is known of a clip of a batch: its caption, the names of its objects, and of the middle
    four pixels of every patch the class (T, 2h, 2w) uint8 (UNKNOWN where not known) and the object
    (T, 2h, 2w) int16 or -1."""

    caption: str
    names: tuple[str, ...]
    classes: NDArray[np.uint8]
    objects: NDArray[np.int16]


def describe(
    path: Path, take: int, frames: NDArray[np.int64], clip: Clip, augmented: Clip
) -> Words | None:
    """The words for frames of a take of the clip file at `path`, or None where it has none.

    `frames` are counted from the first of the take, `clip` holds them as they are in the file,
    `augmented` what became of them. Zoom and roll leave the world where it was; a mirror at x = 0,
    the middle of the room, is told by where the camera has gone: to the other side.
    """
    annotation = read_annotation(path)
    if annotation is None:
        return None
    before, after = clip.poses[0, 0, 3], augmented.poses[0, 0, 3]
    if abs(before + after) < abs(before - after):
        annotation = annotation.mirrored()
    boxes = annotation.boxes_in(take, frames)
    labels = label(annotation, augmented.depth, augmented.poses, augmented.intrinsics, PATCH, boxes)
    motion = annotation.motions[min(take, len(annotation.motions) - 1)]
    moving = {}
    for mover in annotation.movers(take):
        seen = (labels.objects == mover.index).any(axis=(1, 2))
        if how := movement(boxes[seen, mover.index], augmented.poses[0]):
            moving[mover.index] = how
    picture = len(augmented) == 1
    caption = annotation.caption(labels.visible(), None if picture else motion, boxes[0], moving)
    return Words(caption, annotation.names, labels.classes, labels.objects)
