# SPDX-License-Identifier: Apache-2.0
"""Clips out of recordings: a posed RGB-D recording cut into the files that training reads.

Real cameras have what no renderer has. A recording gives few rooms, though, and is mixed into the
rendered clips at a share (`omnistream train --recorded`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from omnistream_ros.evaluation.recordings import Recording, RecordingError, open_recording
from omnistream_ros.evaluation.rotations import quaternions_of
from omnistream_ros.training.augment import zoom
from omnistream_ros.training.clip_files import Clip, ClipError
from omnistream_ros.training.depth_scale import DepthScaleCheck
from omnistream_ros.training.licences import NOT_STATED, collected
from omnistream_ros.training.recorded_streams import Cut, recorded_streams

#: Larger than what the network sees, so that zooming into a clip finds real detail.
SIZE = (256, 192)  # width, height
_FRAMES = 24  # in a file
_CHECKED = 64  # in a piece whose depth is checked: at 30 Hz a camera hardly moves in 24


def write_recorded_clips(
    recordings: list[Path], folder: Path, stride: int = 1, licence: str = NOT_STATED
) -> int:
    """Cut recordings into clips of up to 24 frames, every `stride`-th one; returns how many.

    Images of another shape are cut about their middle. Clips that the folder already has of a
    recording are replaced; the new ones are numbered on from those of others. A recording is read
    once before anything is changed, so one that is refused leaves the folder as it is. The clips
    tell the `licence` of the recordings, which cards of weights trained on them repeat.

    Raises:
        RecordingError: a recording that cannot be read, without depth, poses or calibration, or
            with depth of another scale than its poses.
        ClipError: a file in the folder that is no clip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cut = Cut(pixels=SIZE[0] * SIZE[1], patch=1, frames=_FRAMES, stride=stride)
    written = 0
    for path in recordings:
        recording = open_recording(path)
        scale = DepthScaleCheck()
        # All frames, whatever is kept of them: neighbours must see the same.
        for clip in _clips(recording, replace(cut, frames=_CHECKED, stride=1)):
            scale.add(clip)
        scale.judge(recording.path)
        for old in _clips_of(recording, folder):
            old.unlink()
        numbers = [int(file.stem.removeprefix("clip_")) for file in folder.glob("clip_*.npz")]
        number = 1 + max(numbers, default=-1)
        for clip in map(_in_shape, _clips(recording, cut)):
            if np.isfinite(clip.depth).any():  # one without teaches nothing, and is refused
                _write(folder / f"clip_{number:06d}.npz", clip, recording, licence)
                number += 1
                written += 1
    return written


def recordings_of(folder: Path) -> dict[str, str]:
    """Names of the recordings that the clips of a folder were cut from, each with its licence."""
    told = {path.stem: _info(path) for path in folder.glob("clip_*.npz")}
    return collected(
        (str(info.get("recording", stem)), str(info.get("licence", NOT_STATED)))
        for stem, info in told.items()
    )


def _clips(recording: Recording, cut: Cut) -> Iterator[Clip]:
    for stream in recorded_streams(recording, cut):
        if not stream.posed:
            raise RecordingError(f"{recording.path}: no camera poses, which training needs")
        yield stream.clip


def _clips_of(recording: Recording, folder: Path) -> list[Path]:
    """Files that were cut from this recording; by its name where they do not tell its path."""
    found = []
    for path in sorted(folder.glob("clip_*.npz")):
        info = _info(path)
        same_path = info.get("path") == str(recording.path.resolve())
        if same_path or ("path" not in info and info.get("recording") == recording.name):
            found.append(path)
    return found


def _info(path: Path) -> dict[str, Any]:
    """What a clip file says of where it comes from; other files may say nothing."""
    try:
        with np.load(path, allow_pickle=False) as clip:
            return dict(json.loads(bytes(clip["info"]))) if "info" in clip else {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ClipError(f"{path}: not a readable clip ({error}); delete it") from error


def _in_shape(clip: Clip) -> Clip:
    """The middle of the images in the shape of SIZE, at that size."""
    height, width = clip.rgb.shape[1:3]
    wide = min(width, round(height * SIZE[0] / SIZE[1]))
    high = min(height, round(wide * SIZE[1] / SIZE[0]))
    return zoom(clip, ((width - wide) // 2, (height - high) // 2, wide, high), SIZE)


def _write(path: Path, clip: Clip, recording: Recording, licence: str) -> None:
    poses = np.hstack([clip.poses[:, :3, 3], quaternions_of(clip.poses[:, :3, :3])])
    info = {
        "recording": recording.name,
        "path": str(recording.path.resolve()),
        "licence": licence,
    }
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(
                file,
                rgb=clip.rgb,
                depth=clip.depth.astype(np.float16),
                poses=poses.astype(np.float32),
                intrinsics=clip.intrinsics.astype(np.float32),
                info=np.frombuffer(json.dumps(info).encode(), np.uint8),
            )
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
