# SPDX-License-Identifier: Apache-2.0
"""Clips as training data: reading, choosing and batching.

A clip is one uncompressed npz as `omnistream render` writes it, or `omnistream clips` from a
recording: `rgb`, `depth`, `poses` (camera-to-world: translation, then quaternion x y z w),
`intrinsics` (fx fy cx cy), and `cuts`, the first frames of the takes it consists of (one take where
it is missing). What goes into a step is a pure function of the seed, the step number and the list
of clips, so training that was killed goes on with exactly the batches it would have seen.
"""

from __future__ import annotations

import itertools
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnistream_ros.model import PIXEL_MEAN, PIXEL_STD
from omnistream_ros.stream.geometry import quaternion_to_matrix
from omnistream_ros.training.augment import AugmentSettings, augment
from omnistream_ros.training.words import Words, describe

VALIDATION_PERIOD = 50  # rendered clips whose number is a multiple of this are never trained on
#: Metres at which depth counts as unknown. The renderer puts the view from a window at 60 m; taken
#: for a poster it costs more than all errors in the room, and a sensor sees nothing there anyway.
SKY = 50.0
_DRAWS = 1000  # of a clip, before it is said that none will do
_CLIP_NAME = re.compile(r"clip_(\d+)\.npz")


class ClipError(ValueError):
    """A clip file that cannot be used; the message names the file and says what is wrong."""


class TooShortError(ClipError):
    """No take of the clip is as long as wanted; a shorter run of frames would be there."""


class NoDepthError(ClipError):
    """None of the frames chosen has depth; others of the clip do."""


@dataclass(frozen=True)
class Clip:
    """One moving camera: rgb (T, H, W, 3) uint8, depth (T, H, W) float32 metres (NaN unknown),
    poses (T, 4, 4) float64 camera-to-world in optical axes, intrinsics (4,) float64 fx fy cx cy."""

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    poses: NDArray[np.float64]
    intrinsics: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rgb)

    def frames(self, indices: NDArray[np.int64]) -> Clip:
        """The clip made of these frames, in this order."""
        return Clip(self.rgb[indices], self.depth[indices], self.poses[indices], self.intrinsics)


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


def read_clip(
    path: Path, choose: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None
) -> Clip:
    """Reads and checks one clip file; raises ClipError naming it when anything is off.

    `choose` maps the first frames of the takes, and the number of frames behind them, to the
    indices wanted; the others are not even converted, which is most of the cost of a short clip out
    of a long file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rgb, depth, poses, intrinsics = (
                arrays[key] for key in ("rgb", "depth", "poses", "intrinsics")
            )
            cuts = arrays["cuts"] if "cuts" in arrays else np.zeros(1, np.int64)
    except KeyError as error:
        raise ClipError(f"{path}: array missing: {error.args[0]}; render the clip again") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ClipError(f"{path}: not a readable clip ({error}); delete or render it") from error
    frames = len(rgb) if rgb.ndim else 0
    if rgb.dtype != np.uint8 or rgb.ndim != 4 or rgb.shape[3] != 3 or frames == 0:
        raise ClipError(
            f"{path}: rgb must be uint8 (T, H, W, 3) with T > 0, is {rgb.dtype} {rgb.shape}"
        )
    if depth.shape != rgb.shape[:3] or depth.dtype.kind != "f":
        raise ClipError(
            f"{path}: depth must be floating {rgb.shape[:3]}, is {depth.dtype} {depth.shape}"
        )
    if poses.shape != (frames, 7) or not np.isfinite(poses).all():
        raise ClipError(f"{path}: poses must be finite ({frames}, 7), shape is {poses.shape}")
    if not np.allclose(np.linalg.norm(poses[:, 3:], axis=1), 1, atol=1e-2):
        raise ClipError(f"{path}: poses carry quaternions that are not of unit length")
    if intrinsics.shape != (4,) or not np.isfinite(intrinsics).all() or (intrinsics[:2] <= 0).any():
        raise ClipError(f"{path}: intrinsics must be fx fy cx cy with positive focal lengths")
    bounds = np.append(cuts, frames)
    if cuts.dtype.kind != "i" or cuts.ndim != 1 or bounds[0] != 0 or (np.diff(bounds) < 1).any():
        raise ClipError(f"{path}: cuts must rise from 0 and stay below {frames}, are {cuts}")
    whole = depth
    if choose is not None:
        wanted = choose(bounds)
        rgb, depth, poses = rgb[wanted], depth[wanted], poses[wanted]
    matrices = np.tile(np.eye(4), (len(rgb), 1, 1))
    matrices[:, :3, :3] = quaternion_to_matrix(poses[:, 3:])
    matrices[:, :3, 3] = poses[:, :3]
    metres = _valid_depth(depth)
    if np.isnan(metres).all():
        if not np.isnan(_valid_depth(whole)).all():
            raise NoDepthError(f"{path}: not one pixel of the frames chosen has a valid depth")
        raise ClipError(f"{path}: not one pixel has a valid depth")
    return Clip(rgb, metres, matrices, intrinsics.astype(np.float64))


def _valid_depth(depth: NDArray[np.floating]) -> NDArray[np.float32]:
    """Metres, with NaN for what is none."""
    metres = depth.astype(np.float32)
    metres[~(np.isfinite(metres) & (metres > 0) & (metres < SKY))] = np.nan
    return metres


def find_clips(folder: Path) -> list[str]:
    """Names of the clip files in `folder`, in the order of their numbers."""
    if not folder.is_dir():
        raise ClipError(
            f"no folder {folder}: render clips first (omnistream render), or cut them from "
            "recordings (omnistream clips)"
        )
    numbered = [
        (int(m[1]), p.name) for p in folder.iterdir() if (m := _CLIP_NAME.fullmatch(p.name))
    ]
    return [name for _, name in sorted(numbered)]


def is_validation(name: str) -> bool:
    """Whether the clip belongs to the held-out set (decided by its number alone)."""
    match = _CLIP_NAME.fullmatch(name)
    return match is not None and int(match[1]) % VALIDATION_PERIOD == 0


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


def validation_clips(folder: Path, *, limit: int, length: int) -> dict[str, Clip]:
    """By name up to `limit` held-out takes of at least `length` frames, cut to that, unaugmented.

    Evenly spread over the held-out clips that are there, for a folder may have several generations
    of rooms. A clip that cannot be read or is too short is passed over for its neighbour: it would
    be missing from every judgement alike.
    """
    held_out = list(filter(is_validation, find_clips(folder)))
    found: dict[str, Clip] = {}
    names = held_out
    while names and len(found) < limit:
        bounds = np.linspace(0, len(names), limit - len(found) + 1).astype(int)
        left: set[str] = set()  # for where other parts have none
        for first, end in itertools.pairwise(bounds):
            middle = (first + end) // 2
            part = names[middle:end] + names[first:middle]
            for number, name in enumerate(part):
                try:
                    clip = read_clip(folder / name, lambda bounds: _first_take(bounds, length))
                except ClipError:
                    continue
                found[name] = clip
                left.update(part[number + 1 :])
                break
        names = [name for name in names if name in left]
    return {name: found[name] for name in held_out if name in found}


def _first_take(bounds: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    long_enough = np.flatnonzero(np.diff(bounds) >= length)
    if not len(long_enough):
        raise TooShortError(f"no take of {length} frames")
    return np.asarray(bounds[long_enough[0]] + np.arange(length))
