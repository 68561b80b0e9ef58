# SPDX-License-Identifier: Apache-2.0
"""Clips on disk: reading them, checking them, and which of them are never trained on.

A clip is one uncompressed npz as `omnistream render` writes it, or `omnistream clips` from a
recording: `rgb`, `depth`, `poses` (camera-to-world: translation, then quaternion x y z w),
`intrinsics` (fx fy cx cy), and `cuts`, the first frames of the takes it consists of (one take where
it is missing).
"""

from __future__ import annotations

import itertools
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omnistream_ros.stream.geometry import quaternion_to_matrix

VALIDATION_PERIOD = 50  # rendered clips whose number is a multiple of this are never trained on
#: Metres at which depth counts as unknown. The renderer puts the view from a window at 60 m; taken
#: for a poster it costs more than all errors in the room, and a sensor sees nothing there anyway.
SKY = 50.0
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
