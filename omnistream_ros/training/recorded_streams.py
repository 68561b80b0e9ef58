# SPDX-License-Identifier: Apache-2.0
"""Recordings (bags, TUM folders, ...) as the streams a frozen model will see, truth beside them.

Every frame is kept, at the size of the model, with depth where there is some: a frame without truth
is still part of the past. A stream ends where a robot's would begin anew: at a gap in time, or
where the truth has no pose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from omnistream_ros.evaluation.depth_pairs import check_same_camera
from omnistream_ros.evaluation.recordings import (
    DepthFrame,
    Recording,
    RecordingError,
    with_depth,
)
from omnistream_ros.evaluation.trajectory import Trajectory, interpolate
from omnistream_ros.stream.frame import Frame, Intrinsics
from omnistream_ros.stream.preprocess import model_size
from omnistream_ros.training.clip_files import Clip

_LONGEST_GAP_NS = 1_000_000_000  # between frames of one clip
_POSE_REACH_NS = 100_000_000  # a frame has a pose if the truth has one this near on both sides


@dataclass(frozen=True)
class Cut:
    """How recordings are cut: `frames` to a clip, every `stride`-th frame, about `pixels` pixels
    in an image whose sides are multiples of `patch`."""

    pixels: int
    patch: int
    frames: int = 64
    stride: int = 1

    def __post_init__(self) -> None:
        if self.frames < 2 or self.stride < 1:
            raise ValueError(
                "a clip needs two frames or more and a stride of at least 1, "
                f"got {self.frames} and {self.stride}"
            )


@dataclass(frozen=True)
class RecordedStream:
    """A piece of a recording; where `posed` is false its poses are placeholders."""

    name: str
    clip: Clip
    posed: bool


def recorded_streams(recording: Recording, cut: Cut) -> Iterator[RecordedStream]:
    """The clips of a recording in order; what is left of fewer than two frames is dropped.

    Raises:
        RecordingError: no depth or no calibration, or depth of another camera.
    """
    truth = recording.trajectory()
    posed = truth is not None and len(truth) > 0
    kept: list[tuple[Frame, DepthFrame | None, NDArray[np.float64]]] = []
    number, any_depth = 0, False
    pairs = with_depth(recording.frames(), recording.depths())
    for index, (frame, depth) in enumerate(pairs):
        if index % cut.stride:
            continue
        pose = _pose_at(truth, frame.stamp_ns) if truth is not None and posed else np.eye(4)
        gap = kept and frame.stamp_ns - kept[-1][0].stamp_ns > _LONGEST_GAP_NS * cut.stride
        if kept and (pose is None or gap or len(kept) == cut.frames):
            if len(kept) > 1:
                yield _clip(recording, number, kept, cut, posed)
                number += 1
            kept = []
        if pose is None:
            continue
        if depth is not None:
            check_same_camera(frame, depth)
            any_depth = True
        kept.append((frame, depth, pose))
    if len(kept) > 1:
        yield _clip(recording, number, kept, cut, posed)
    if not any_depth:
        raise RecordingError(
            f"{recording.path}: no depth image belongs to any image (within 0.02 s), so there is "
            "nothing to train on; record registered depth as well"
        )


def _pose_at(truth: Trajectory, stamp_ns: int) -> NDArray[np.float64] | None:
    right = int(np.searchsorted(truth.stamps_ns, stamp_ns))
    near = truth.stamps_ns[max(0, right - 1) : right + 1]
    exact = right < len(truth) and truth.stamps_ns[right] == stamp_ns
    if not exact and (len(near) < 2 or right == 0):
        return None
    if not exact and np.abs(near - stamp_ns).max() > _POSE_REACH_NS:
        return None
    return interpolate(truth, np.array([stamp_ns])).matrices()[0]


def _clip(
    recording: Recording,
    number: int,
    kept: list[tuple[Frame, DepthFrame | None, NDArray[np.float64]]],
    cut: Cut,
    posed: bool,
) -> RecordedStream:
    first = kept[0][0]
    height, width = model_size(first.height, first.width, cut.pixels, cut.patch)
    camera = _camera(recording, kept).resized(width, height)
    rgb, depth = [], []
    for frame, true, _ in kept:
        rgb.append(resize_image(frame.image, (height, width)))
        plane = np.full((height, width), np.nan, np.float32)
        if true is not None:
            # The nearest: a mean across an edge is a place where nothing is.
            plane = cv2.resize(true.depth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        plane = np.where(np.isfinite(plane) & (plane > 0), plane, np.float32(np.nan))
        depth.append(plane.astype(np.float32))
    clip = Clip(
        np.stack(rgb),
        np.stack(depth),
        np.stack([pose for _, _, pose in kept]),
        np.array([camera.fx, camera.fy, camera.cx, camera.cy]),
    )
    return RecordedStream(f"{recording.name} {number}", clip, posed)


def _camera(
    recording: Recording, kept: list[tuple[Frame, DepthFrame | None, NDArray[np.float64]]]
) -> Intrinsics:
    for frame, depth, _ in kept:
        found = frame.intrinsics or (depth and depth.intrinsics)
        if found:
            return found
    raise RecordingError(
        f"{recording.path}: the camera's calibration is not known (no camera_info, no calibration "
        "file); depth in metres cannot be learned without"
    )


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) to `size` (height, width) just as a stream does it, to one grey level."""
    if image.shape[:2] == size:
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    small = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).numpy()
