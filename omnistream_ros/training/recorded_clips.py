# SPDX-License-Identifier: Apache-2.0
"""Clips out of recordings: a posed RGB-D recording cut into the files that training reads.

Real cameras have what no renderer has. A recording gives few rooms, though, and is mixed into the
rendered clips at a share (`omnistream train --recorded`).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from omnistream_ros.evaluation.recordings import RecordingError, open_recording
from omnistream_ros.evaluation.rotations import quaternions_of
from omnistream_ros.training.augment import zoom
from omnistream_ros.training.data import Clip
from omnistream_ros.training.recorded_streams import Cut, recorded_streams

#: Larger than what the network sees, so that zooming into a clip finds real detail.
SIZE = (256, 192)  # width, height
_FRAMES = 24  # in a file


def write_recorded_clips(recordings: list[Path], folder: Path, stride: int = 1) -> int:
    """Cut recordings into clips of up to 24 frames, every `stride`-th one; returns how many.

    Images of another shape are cut about their middle. Files are numbered on from those already in
    the folder.

    Raises:
        RecordingError: a recording that cannot be read, or without depth, poses or calibration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.stem.removeprefix("clip_")) for path in folder.glob("clip_*.npz")]
    first = number = 1 + max(numbers, default=-1)
    cut = Cut(pixels=SIZE[0] * SIZE[1], patch=1, frames=_FRAMES, stride=stride)
    for path in recordings:
        recording = open_recording(path)
        for stream in recorded_streams(recording, cut):
            if not stream.posed:
                raise RecordingError(f"{path}: no camera poses, which training needs")
            clip = _in_shape(stream.clip)
            if np.isfinite(clip.depth).any():  # one without teaches nothing, and is refused
                _write(folder / f"clip_{number:06d}.npz", clip, recording.name)
                number += 1
    return number - first


def recordings_of(folder: Path) -> list[str]:
    """Names of the recordings that the clips of a folder were cut from, for the model card."""
    names = set()
    for path in folder.glob("clip_*.npz"):
        with np.load(path, allow_pickle=False) as clip:
            info = json.loads(bytes(clip["info"])) if "info" in clip else {}
        names.add(str(info.get("recording", path.stem)))
    return sorted(names)


def _in_shape(clip: Clip) -> Clip:
    """The middle of the images in the shape of SIZE, at that size."""
    height, width = clip.rgb.shape[1:3]
    wide = min(width, round(height * SIZE[0] / SIZE[1]))
    high = min(height, round(wide * SIZE[1] / SIZE[0]))
    return zoom(clip, ((width - wide) // 2, (height - high) // 2, wide, high), SIZE)


def _write(path: Path, clip: Clip, recording: str) -> None:
    poses = np.hstack([clip.poses[:, :3, 3], quaternions_of(clip.poses[:, :3, :3])])
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(
                file,
                rgb=clip.rgb,
                depth=clip.depth.astype(np.float16),
                poses=poses.astype(np.float32),
                intrinsics=clip.intrinsics.astype(np.float32),
                info=np.frombuffer(json.dumps({"recording": recording}).encode(), np.uint8),
            )
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
