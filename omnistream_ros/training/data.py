# SPDX-License-Identifier: Apache-2.0
"""Clips as training data: choosing frames and batching.

What goes into a step is a pure function of the seed, the step number and the list of clips, so
training that was killed goes on with exactly the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnistream_ros.model import PIXEL_MEAN, PIXEL_STD
from omnistream_ros.training.augment import AugmentSettings, augment
from omnistream_ros.training.clip_files import (
    Clip,
    ClipError,
    NoDepthError,
    TooShortError,
    find_clips,
    is_validation,
    read_clip,
)
from omnistream_ros.training.words import Words, describe

_DRAWS = 1000  # of a clip, before it is said that none will do


@dataclass(frozen=True)
class Batch:
    """Clips of one length: pixels (B, T, 3, H, W) normalised, depth (B, T, H, W) metres with NaN
    for unknown, poses (B, T, 4, 4) relative to the first frame, intrinsics (B, T, 4) in pixels;
    words, where asked for, of each clip that knows what it shows."""

    pixels: Tensor
    depth: Tensor
    poses: Tensor
    intrinsics: Tensor
    words: list[Words | None] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The batch by name, for saving."""
        return {
            "pixels": self.pixels,
            "depth": self.depth,
            "poses": self.poses,
            "intrinsics": self.intrinsics,
        }


def collate(clips: list[Clip]) -> Batch:
    """Stacks clips of equal length and size; poses become relative to each clip's first frame."""
    rgb = np.stack([clip.rgb for clip in clips]).astype(np.float32)  # (B, T, H, W, 3)
    mean, std = np.array(PIXEL_MEAN, np.float32), np.array(PIXEL_STD, np.float32)
    pixels = (rgb / 255 - mean) / std
    poses = np.stack([np.linalg.inv(clip.poses[0]) @ clip.poses for clip in clips])
    intrinsics = np.stack([np.tile(clip.intrinsics, (len(clip), 1)) for clip in clips])
    return Batch(
        pixels=torch.from_numpy(pixels).permute(0, 1, 4, 2, 3),
        depth=torch.from_numpy(np.stack([clip.depth for clip in clips])),
        poses=torch.from_numpy(poses.astype(np.float32)),
        intrinsics=torch.from_numpy(intrinsics.astype(np.float32)),
    )


class ClipSampler:
    """Draws the batch of a step.

    Every step holds about `frames_per_step` frames as clips of one length drawn from `lengths`:
    many short clips show many rooms, some long ones teach the use of the past. A clip comes from
    `recorded` with the probability `recorded_share`, else from `folder`. With `to_and_fro` takes
    are walked forwards and backwards until they are long enough, with `described` batches carry
    words. `names` is the list of training
    clips and part of the resumable state; it grows while rendering goes on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        frames_per_step: int,
        lengths: dict[int, float],
        settings: AugmentSettings,
        recorded: Path | None = None,
        recorded_share: float = 0.0,
        to_and_fro: bool = False,
        described: bool = False,
    ) -> None:
        self.folder = folder
        self.described = described
        self.to_and_fro = to_and_fro
        self.recorded = recorded
        self.recorded_share = recorded_share if recorded is not None else 0.0
        self.seed = seed
        self.frames_per_step = frames_per_step
        self.lengths = np.array(sorted(lengths))
        weights = np.array([lengths[int(length)] for length in self.lengths], np.float64)
        if (
            len(weights) == 0
            or (self.lengths < 1).any()
            or (weights < 0).any()
            or not weights.sum()
        ):
            raise ValueError(f"clip lengths need positive sizes and weights, got {lengths}")
        if not 0 <= self.recorded_share < 1:
            raise ValueError(f"recorded_share must be from 0 to below 1, got {recorded_share}")
        self.weights = weights / weights.sum()
        self.settings = settings
        self.names: list[str] = []
        self._own_size: tuple[int, int] | None = None
        self.refused: dict[str, str] = {}
        self.recorded_names = [] if recorded is None else find_clips(recorded)
        if recorded is not None and not self.recorded_names:
            raise ClipError(f"no clip in {recorded}: make some from recordings (omnistream clips)")

    def refresh(self) -> None:
        """Looks for clips rendered since the last call."""
        self.names = [
            name
            for name in find_clips(self.folder)
            if not is_validation(name) and name not in self.refused
        ]
        if not self.names:
            raise ClipError(
                f"no training clip in {self.folder}: render some first (omnistream render --help)"
            )

    def batch(
        self, step: int, sizes: Sequence[tuple[int, int]] = (), part: tuple[int, int] = (0, 1)
    ) -> Batch:
        """The batch of this step, at one of `sizes` (width, height); without, at that of the clips.

        `part` (k, n) gives the k-th of n equal shares of a step n times as large. Clips are drawn
        independently of each other, so that shares together are what one process would have drawn.
        A clip that cannot be read is left out from the next step on.
        """
        rng = np.random.default_rng((self.seed, step))
        length = int(rng.choice(self.lengths, p=self.weights))
        size = sizes[int(rng.integers(len(sizes)))] if sizes else self._rendered_size()
        count = max(1, self.frames_per_step // length)
        share, shares = part
        numbers = range(share * count, (share + 1) * count)
        assert 0 <= share < shares
        names = list(self.names)
        drawn = [
            self._draw(np.random.default_rng((self.seed, step, number)), names, length, size)
            for number in numbers
        ]
        self.leave_out(self.refused)
        batch = collate([clip for clip, _ in drawn])
        return replace(batch, words=[words for _, words in drawn]) if self.described else batch

    def _rendered_size(self) -> tuple[int, int] | None:
        """Width and height of the rendered clips; None where nothing else is mixed in."""
        if self.recorded is None:
            return None
        while self._own_size is None:
            name = self.names[0]
            try:
                height, width = read_clip(self.folder / name).rgb.shape[1:3]
            except ClipError as error:
                self.leave_out({name: str(error)})
            else:
                self._own_size = (width, height)
        return self._own_size

    def leave_out(self, refused: dict[str, str]) -> None:
        """Takes clips out of the training; each with the reason.

        Raises:
            ClipError: none is left.
        """
        self.refused |= refused
        self.names = [name for name in self.names if name not in self.refused]
        if not self.names:
            reason = next(iter(self.refused.values()))
            raise ClipError(f"no readable clip is left; the first: {reason}")

    def _draw(
        self,
        rng: np.random.Generator,
        rendered: list[str],
        length: int,
        size: tuple[int, int] | None,
    ) -> tuple[Clip, Words | None]:
        recorded = rng.random() < self.recorded_share
        choose = walk_to_and_fro if self.to_and_fro else choose_frames
        empty = 0
        for _ in range(_DRAWS):
            names = self.recorded_names if recorded else rendered
            name = names[int(rng.integers(len(names)))]
            folder = self.recorded if recorded and self.recorded is not None else self.folder
            take, frames = 0, np.zeros(0, np.int64)

            def wanted(bounds: NDArray[np.int64]) -> NDArray[np.int64]:
                nonlocal take, frames
                indices = choose(rng, bounds, length)
                take = int(np.searchsorted(bounds, indices[0], side="right")) - 1
                frames = indices - bounds[take]
                return indices

            try:
                clip = read_clip(folder / name, wanted)
            except TooShortError:
                continue
            except NoDepthError:
                empty += 1
                continue
            except ClipError as error:
                if recorded:
                    raise  # few and made on purpose: to leave one out would change the training
                self.refused[name] = str(error)
                if all(other in self.refused for other in rendered):
                    raise ClipError(f"no readable clip is left; the last: {error}") from error
                continue
            augmented = augment(clip, rng, self.settings, size)
            words = None
            if self.described:
                words = describe(folder / name, take, frames, clip, augmented)
            return augmented, words
        raise ClipError(
            f"{_DRAWS} clips drawn, none with a take of {length} frames and depth in one of them "
            f"({_DRAWS - empty} too short, {empty} without depth): make longer ones, train on "
            "shorter ones, or leave out those with little depth"
        )


def choose_frames(
    rng: np.random.Generator, bounds: NDArray[np.int64], length: int
) -> NDArray[np.int64]:
    """A random run of `length` frames of one take at a random stride, sometimes backwards.

    `bounds`: the first frame of every take, then the number of frames. Raises TooShortError when no
    take has as many.
    """
    takes = np.flatnonzero(np.diff(bounds) >= length)
    if not len(takes):
        raise TooShortError(
            f"takes of {np.diff(bounds).max()} frames at most where {length} are wanted"
        )
    take = takes[int(rng.integers(len(takes)))]
    available = int(bounds[take + 1] - bounds[take])
    most = (available - 1) // (length - 1) if length > 1 else 1
    stride = int(rng.integers(1, min(most, 4) + 1))
    start = int(bounds[take] + rng.integers(available - (length - 1) * stride))
    indices = start + stride * np.arange(length)
    return indices[::-1].copy() if rng.random() < 0.5 else indices


def walk_to_and_fro(
    rng: np.random.Generator, bounds: NDArray[np.int64], length: int
) -> NDArray[np.int64]:
    """A run of `length` frames of one take, turning round at its ends: a stream of any length.

    `bounds` as in `choose_frames`; longer takes are preferred. Raises TooShortError when no take
    has two frames.
    """
    sizes = np.diff(bounds)
    if sizes.max() < 2:
        raise TooShortError("no take of two frames to walk to and fro in")
    take = int(rng.choice(len(sizes), p=np.where(sizes > 1, sizes, 0) / sizes[sizes > 1].sum()))
    last = int(sizes[take]) - 1
    walked = int(rng.integers(2 * last)) + np.arange(length)
    return np.asarray(bounds[take] + last - np.abs(walked % (2 * last) - last))
