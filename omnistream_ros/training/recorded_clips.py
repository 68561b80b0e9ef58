# SPDX-License-Identifier: Apache-2.0
"""Clips out of recordings: a posed RGB-D recording cut into the files that training reads.

Real cameras have what no renderer has. A recording gives few rooms, though, and is mixed into the
rendered clips at a share (`omnistream train --recorded`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from omnistream_ros.evaluation.recordings import (
    DepthFrame,
    Recording,
    RecordingError,
    open_recording,
    with_depth,
)
from omnistream_ros.evaluation.trajectory import Trajectory, interpolate
from omnistream_ros.stream.frame import Frame, Intrinsics

#: Larger than what the network sees, so that zooming into a clip finds real detail.
SIZE = (256, 192)  # width, height
_FRAMES = 24  # in a file
_LARGEST_GAP = 3  # times the period, and a take ends


def recordings_of(folder: Path) -> list[str]:
    """Names of the recordings that the clips of a folder were cut from, for the model card."""
    names = set()
    for path in folder.glob("clip_*.npz"):
        with np.load(path, allow_pickle=False) as clip:
            info = json.loads(bytes(clip["info"])) if "info" in clip else {}
        names.add(str(info.get("recording", path.stem)))
    return sorted(names)


@dataclass(frozen=True)
class _Shot:
    """A frame with its truth at SIZE: rgb (H, W, 3), depth (H, W) float16 metres, NaN unknown."""

    stamp_ns: int
    rgb: NDArray[np.uint8]
    depth: NDArray[np.float16]
    intrinsics: NDArray[np.float64]


def write_recorded_clips(recordings: list[Path], folder: Path, rate: float = 10.0) -> int:
    """Cut recordings into clips of up to 24 frames at about `rate` Hz; returns how many.

    A frame without true depth or pose is left out, and a take ends at a gap. Files are numbered on
    from those already in the folder.

    Raises:
        RecordingError: a recording that cannot be read, or with no frame that has depth and pose.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.stem.removeprefix("clip_")) for path in folder.glob("clip_*.npz")]
    first = 1 + max(numbers, default=-1)
    number = first
    for path in recordings:
        recording = open_recording(path)
        truth = recording.trajectory()
        if truth is None or not len(truth):
            raise RecordingError(f"{path}: no camera poses, which training needs")
        shots = _shots(recording, truth, rate)
        before = number
        while part := list(itertools.islice(shots, _FRAMES)):
            _write(folder / f"clip_{number:06d}.npz", part, truth, rate, recording.name)
            number += 1
        if number == before:
            raise RecordingError(
                f"{path}: no frame with true depth, a pose and a known camera; "
                "`omnistream inspect` lists what is in it"
            )
    return number - first


def _shots(recording: Recording, truth: Trajectory, rate: float) -> Iterator[_Shot]:
    period_ns, last = 1e9 / rate, -(10**18)
    begin, end = truth.stamps_ns[0], truth.stamps_ns[-1]
    for frame, depth in with_depth(recording.frames(), recording.depths()):
        # A tenth early is in time: a camera of exactly this rate keeps all its frames.
        if frame.stamp_ns - last < 0.9 * period_ns or not begin <= frame.stamp_ns <= end:
            continue
        if depth is not None and frame.intrinsics is not None:
            last = frame.stamp_ns
            yield _shrink(frame, frame.intrinsics, depth)


def _shrink(frame: Frame, camera: Intrinsics, truth: DepthFrame) -> _Shot:
    """Cut to the shape of SIZE about the middle, then resize; depth from the nearest pixel."""
    width, height = SIZE
    window_w = min(frame.width, round(frame.height * width / height))
    window_h = min(frame.height, round(window_w * height / width))
    x, y = (frame.width - window_w) // 2, (frame.height - window_h) // 2
    rgb = frame.image[y : y + window_h, x : x + window_w]
    depth = cv2.resize(
        truth.depth, (frame.width, frame.height), interpolation=cv2.INTER_NEAREST_EXACT
    )[y : y + window_h, x : x + window_w]
    cut = Intrinsics(camera.fx, camera.fy, camera.cx - x, camera.cy - y, window_w, window_h)
    small = cut.resized(width, height)
    smoothly = cv2.INTER_AREA if window_w > width else cv2.INTER_LINEAR
    return _Shot(
        frame.stamp_ns,
        np.asarray(cv2.resize(rgb, SIZE, interpolation=smoothly), np.uint8),
        cv2.resize(depth, SIZE, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.float16),
        np.array([small.fx, small.fy, small.cx, small.cy]),
    )


def _write(path: Path, shots: list[_Shot], truth: Trajectory, rate: float, recording: str) -> None:
    stamps = np.array([shot.stamp_ns for shot in shots], np.int64)
    poses = interpolate(truth, stamps)
    late = np.flatnonzero(np.diff(stamps) > _LARGEST_GAP * 1e9 / rate) + 1
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(
                file,
                rgb=np.stack([shot.rgb for shot in shots]),
                depth=np.stack([shot.depth for shot in shots]),
                poses=np.hstack([poses.translations, poses.quaternions]).astype(np.float32),
                intrinsics=shots[0].intrinsics.astype(np.float32),
                stamps=(stamps - stamps[0]) / 1e9,
                cuts=np.append(0, late).astype(np.int64),
                info=np.frombuffer(json.dumps({"recording": recording}).encode(), np.uint8),
            )
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
