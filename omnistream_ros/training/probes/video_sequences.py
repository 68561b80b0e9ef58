# SPDX-License-Identifier: Apache-2.0
"""Video object segmentation: sequences with a mask of every object in every frame.

The layout of DAVIS 2017 (Pont-Tuset et al., arXiv:1704.00675), and a small set rendered here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from omnistream_ros.training.probes.features import ProbeClip


class SequenceError(ValueError):
    """A folder that is not laid out as DAVIS is; says what is missing."""


@dataclass(frozen=True)
class VideoSequence:
    """images (T, H, W, 3) uint8 RGB; masks (T, H, W) uint8: 0 background, 1 .. n objects."""

    name: str
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]


def davis_sequences(
    root: Path, split: str = "val", resolution: str = "480p"
) -> Iterator[VideoSequence]:
    """The sequences of a split of DAVIS 2017 at `root`.

    Reads ImageSets/2017/SPLIT.txt, JPEGImages/RESOLUTION/NAME/*.jpg and
    Annotations/RESOLUTION/NAME/*.png (palette or grey).

    Raises:
        SequenceError: a file or folder is missing or inconsistent; names it.
    """
    listing = root / "ImageSets" / "2017" / f"{split}.txt"
    if not listing.is_file():
        raise SequenceError(f"{listing} is missing: give the folder DAVIS of the 2017 release")
    for name in listing.read_text().split():
        images = sorted((root / "JPEGImages" / resolution / name).glob("*.jpg"))
        masks = sorted((root / "Annotations" / resolution / name).glob("*.png"))
        if not images or [p.stem for p in images] != [p.stem for p in masks]:
            raise SequenceError(
                f"{root}: {name} has {len(images)} images and {len(masks)} masks at {resolution}; "
                "they must correspond"
            )
        yield VideoSequence(
            name,
            np.stack([_read_image(path) for path in images]),
            np.stack([read_mask(path) for path in masks]),
        )


def _read_image(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise SequenceError(f"{path}: not a readable image")
    return np.ascontiguousarray(image[..., ::-1]).astype(np.uint8)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Numbers of objects (H, W) of a mask: grey levels, or colours of the palette of PASCAL VOC.

    Raises:
        SequenceError: not readable, or a colour that is not of that palette.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise SequenceError(f"{path}: not a readable image")
    if image.ndim == 2:
        return image.astype(np.uint8)
    b, g, r = (image[..., i].astype(np.int64) for i in range(3))
    codes = r << 16 | g << 8 | b
    numbers = {int(r) << 16 | int(g) << 8 | int(b): n for n, (r, g, b) in enumerate(palette())}
    found, where = np.unique(codes, return_inverse=True)
    unknown = [f"#{code:06x}" for code in found.tolist() if code not in numbers]
    if unknown:
        raise SequenceError(f"{path}: colours {unknown[:3]} are not of the palette of DAVIS")
    table = np.array([numbers[code] for code in found.tolist()], np.uint8)
    return table[where.reshape(codes.shape)]


def palette() -> NDArray[np.uint8]:
    """The 256 colours (256, 3) RGB by which PASCAL VOC and DAVIS number objects."""
    colours = np.zeros((256, 3), np.uint8)
    for number in range(256):
        for bit in range(8):
            for channel in range(3):
                on = number >> (3 * bit + channel) & 1
                colours[number, channel] |= on << (7 - bit)
    return colours


def rendered_sequences(
    clips: Iterable[ProbeClip], objects: int = 3, smallest: float = 0.015
) -> Iterator[VideoSequence]:
    """Clips with masks of the largest objects in their first frame; the structure is background.

    Clips in which no object covers `smallest` of the first frame are left out.
    """
    for clip in clips:
        found = np.stack([clip.labels(t)[1] for t in range(len(clip.clip))])
        numbers, counts = np.unique(found[0][found[0] >= 0], return_counts=True)
        order = np.argsort(-counts)
        order = order[counts[order] >= smallest * found[0].size][:objects]
        if not len(order):
            continue
        masks = np.zeros(found.shape, np.uint8)
        for number, chosen in enumerate(numbers[order], start=1):
            masks[found == chosen] = number
        yield VideoSequence(clip.name, clip.clip.rgb, masks)
