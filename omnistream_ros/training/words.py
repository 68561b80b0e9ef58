# SPDX-License-Identifier: Apache-2.0
"""What is known of a clip of a batch, after the same augmentation as its pictures."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omnistream_ros.training.annotations import (
    CLASSES,
    UNKNOWN,
    Labels,
    class_of,
    label,
    read_annotation,
)
from omnistream_ros.training.augment import AugmentSettings, augment

if TYPE_CHECKING:
    from omnistream_ros.training.data import Clip

_STRUCTURE = 10_000  # beyond every index of an object


@dataclass(frozen=True)
class Words:
    """What is known of a clip of a batch: its caption, the names of its objects, and of every pixel
    the class (T, H, W) uint8 (UNKNOWN where not known) and the object (T, H, W) int16 or -1."""

    caption: str
    names: tuple[str, ...]
    classes: NDArray[np.uint8]
    objects: NDArray[np.int16]


def describe(
    path: Path,
    take: int,
    clip: Clip,
    rng: np.random.Generator,
    settings: AugmentSettings,
    size: tuple[int, int] | None,
) -> Words | None:
    """The words for frames of a take of the clip file at `path`, or None where it has none.

    `clip` holds those frames unchanged; they will be augmented by the generator `rng`, which is
    left as it is here: labels go the same way, in the place of depth.
    """
    annotation = read_annotation(path)
    if annotation is None:
        return None
    labels = label(annotation, clip.depth, clip.poses, clip.intrinsics)
    # One number says both: the object, or what the structure is.
    both = np.where(labels.objects >= 0, labels.objects, _STRUCTURE + labels.classes.astype(int))
    plane = both.astype(np.float32)
    plane[labels.classes == UNKNOWN] = np.nan
    carrier = type(clip)(clip.rgb, plane, clip.poses, clip.intrinsics)
    geometry = replace(settings, photometric=False)
    moved = augment(carrier, copy.deepcopy(rng), geometry, size).depth
    known = np.isfinite(moved)
    number = np.where(known, moved, -1).astype(np.int64)
    is_object = (number >= 0) & (number < _STRUCTURE)
    objects = np.where(is_object, number, -1).astype(np.int16)
    of_object = np.array([CLASSES.index(class_of(n)) for n in annotation.names] or [0], np.int64)
    classes = np.where(is_object, of_object[objects], number - _STRUCTURE)
    classes = np.where(known, classes, UNKNOWN).astype(np.uint8)
    visible = Labels(classes, objects).visible()
    motion = annotation.motions[min(take, len(annotation.motions) - 1)]
    caption = annotation.caption(visible, motion if len(clip) > 1 else None)
    return Words(caption, annotation.names, classes, objects)
