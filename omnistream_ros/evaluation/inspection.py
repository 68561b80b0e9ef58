# SPDX-License-Identifier: Apache-2.0
"""``omnistream inspect``: what a recording holds, in words, before anything is measured with it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np

from omnistream_ros.evaluation.image_files import FileRecording
from omnistream_ros.evaluation.recordings import DepthFrame, Recording, RecordingError

_DEPTHS = 8  # depth images that are looked at
_READ = 200  # of a recording that can only be read from its beginning: a second or so


def describe(recording: Recording) -> str:
    """Everything known about a recording, as lines of text.

    Ground-truth poses are read (they may be wrong, and this is the place to say so); of the images
    only the first, of the depth a few, whose range shows a wrong unit.
    """
    info = recording.info()
    size = f"{info.width}x{info.height}" if info.width else "unknown"
    lines = [
        f"recording   {recording.path}",
        f"layout      {info.layout}",
        f"images      {info.images}  ({_count(info.frames)}, {size})",
        f"camera      {_camera(recording)}",
        *_depth(recording),
        f"poses       {_poses(recording)}",
    ]
    if info.duration_s is not None:
        rate = (info.frames - 1) / info.duration_s if info.frames and info.duration_s else None
        lines.append(f"duration    {info.duration_s:.2f} s" + (f" ({rate:.1f}/s)" if rate else ""))
    notes = [*info.notes, *getattr(recording, "pose_notes", [])]
    lines += [f"note        {note}" for note in notes]
    if info.contents:
        lines += ["contents", *(f"  {line}" for line in info.contents)]
    return "\n".join(lines)


def _count(number: int | None) -> str:
    return "number unknown" if number is None else f"{number} frames"


def _camera(recording: Recording) -> str:
    camera = recording.info().intrinsics
    if camera is None:
        return "unknown"
    horizontal, vertical = (math.degrees(angle) for angle in camera.fov())
    return (
        f"fx {camera.fx:.2f} fy {camera.fy:.2f} cx {camera.cx:.2f} cy {camera.cy:.2f} "
        f"({horizontal:.0f} x {vertical:.0f} degrees)"
    )


def _depth(recording: Recording) -> list[str]:
    """A line about the depth images and one about what is in them."""
    info = recording.info()
    try:
        depths = [frame.depth for frame in _some_depths(recording, info.depths or 0)]
    except RecordingError as error:
        return [f"depth       cannot be used: {error}"]
    if not depths:
        return ["depth       none"]
    height, width = depths[0].shape
    valid = 100.0 * float((depths[0] > 0).mean())
    return [
        f"depth       {info.depth}  ({info.depths} frames, {width}x{height}, first {valid:.0f} % "
        "valid)",
        f"depth range {_range(depths)}",
    ]


def _some_depths(recording: Recording, count: int) -> Iterator[DepthFrame]:
    """Up to eight of `count` depth images: over the whole recording where they are files, else over
    the first 200, because a bag is decoded from its beginning."""
    if isinstance(recording, FileRecording):
        layout = recording.layout
        chosen = np.unique(np.linspace(0, len(layout.depths) - 1, _DEPTHS).round().astype(int))
        few = [layout.depths[i] for i in chosen] if layout.depths else []
        return FileRecording(recording.path, dataclasses.replace(layout, depths=few)).depths()
    step = max(1, min(_READ, count) // _DEPTHS)
    return itertools.islice(recording.depths(), 0, step * (_DEPTHS - 1) + 1, step)


def _range(depths: list[np.ndarray]) -> str:
    """Median and 5 to 95 % of depth images, each (H, W) metres; every fourth row and column."""
    metres = np.concatenate([depth[::4, ::4].ravel() for depth in depths])
    metres = metres[np.isfinite(metres) & (metres > 0)].astype(np.float64)
    if not len(metres):
        return f"no valid pixel in {len(depths)} depth images"
    low, middle, high = (
        np.format_float_positional(value, precision=3, fractional=False, trim="-")
        for value in np.percentile(metres, [5, 50, 95])
    )
    return f"median {middle} m, 5 to 95 % {low} to {high} m  (of {len(depths)} depth images)"


def _poses(recording: Recording) -> str:
    try:
        trajectory = recording.trajectory()
    except RecordingError as error:
        return f"cannot be used: {error}"
    if trajectory is None:
        return "none"
    source = recording.info().poses
    return f"{source}  ({len(trajectory)} poses, {trajectory.path_length():.2f} m of path)"
