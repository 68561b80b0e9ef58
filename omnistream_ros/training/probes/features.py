# SPDX-License-Identifier: Apache-2.0
"""Frozen features of clips for probes, from every model that is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnistream_ros.model import OmniStream
from omnistream_ros.model.trunk import EfficientNetLite0Trunk
from omnistream_ros.training.annotations import Annotation, Labels, label, read_annotation
from omnistream_ros.training.clip_files import Clip, ClipError, find_clips, read_clip
from omnistream_ros.training.data import collate

PATCH = 16

#: Normalised pixels (T, 3, H, W) to tokens (T, P, C) of patches of 16, row by row.
Extractor = Callable[[Tensor], Tensor]


def streamed(model: OmniStream, window: int = 16) -> Extractor:
    """Tokens of the model as a stream with a cache of this window has them."""

    @torch.no_grad()
    def run(pixels: Tensor) -> Tensor:
        return model.backbone.forward_clip(pixels[None], context=(1, window)).patches[0]

    return run


def single_frames(model: OmniStream) -> Extractor:
    """Tokens of the model when every frame is the first of its stream: no cache."""

    @torch.no_grad()
    def run(pixels: Tensor) -> Tensor:
        parts = [model.backbone.forward_clip(p[:, None]).patches[:, 0] for p in pixels.split(8)]
        return torch.cat(parts)

    return run


def trunk_alone(trunk: EfficientNetLite0Trunk) -> Extractor:
    """The last features of the convolutional trunk, which see one frame."""

    @torch.no_grad()
    def run(pixels: Tensor) -> Tensor:
        maps = torch.cat([trunk(p)[PATCH] for p in pixels.split(8)])  # (T, 112, h, w)
        return maps.flatten(2).transpose(1, 2)

    return run


@dataclass(frozen=True)
class ProbeClip:
    """The first take of a rendered clip that knows what it shows; `tested` clips train no probe."""

    name: str
    clip: Clip
    annotation: Annotation
    tested: bool

    @property
    def motion(self) -> str:
        """How the camera moves."""
        return self.annotation.motions[0]

    def pixels(self) -> Tensor:
        """Normalised, (T, 3, H, W)."""
        return collate([self.clip]).pixels[0]

    def labels(self, frame: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        """Classes (H, W) and objects (H, W) of one frame."""
        found = self.labels_of([frame])
        return found.classes[0], found.objects[0]

    def labels_of(self, frames: Sequence[int], patch: int | None = None) -> Labels:
        """Labels of frames, of whole images or with `patch` of the middles of patches."""
        c, chosen = self.clip, np.array(frames)
        boxes = self.annotation.boxes_in(0, chosen)
        return label(self.annotation, c.depth[chosen], c.poses[chosen], c.intrinsics, patch, boxes)


def probe_clips(folder: Path, limit: int, frames: int = 16) -> Iterator[ProbeClip]:
    """Up to `limit` clips with boxes, their first `frames` frames; every fifth is for testing.

    Raises:
        ClipError: none of the clips knows what it shows.
    """
    count = 0
    for name in find_clips(folder):
        annotation = read_annotation(folder / name)
        if annotation is None:
            continue

        def first(bounds: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.arange(min(bounds[1], frames))

        try:
            clip = read_clip(folder / name, first)
        except ClipError:
            continue
        if len(clip) == frames:
            yield ProbeClip(name, clip, annotation, tested=count % 5 == 4)
            count += 1
        if count == limit:
            return
    if count < 10:
        raise ClipError(
            f"{folder}: {count} clips of {frames} frames that know their objects, probes need 10 "
            "or more: render some (omnistream render --clips)"
        )
