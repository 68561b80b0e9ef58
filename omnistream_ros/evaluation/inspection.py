# SPDX-License-Identifier: Apache-2.0
"""``omnistream inspect``: what a recording holds, in words, before anything is measured with it."""

from __future__ import annotations

import math

from omnistream_ros.evaluation.recordings import Recording, RecordingError


def describe(recording: Recording) -> str:
    """Everything known about a recording, as lines of text.

    Ground-truth poses are read (they may be wrong, and this is the place to say so); of the images
    and the depth only the first.
    """
    info = recording.info()
    size = f"{info.width}x{info.height}" if info.width else "unknown"
    lines = [
        f"recording   {recording.path}",
        f"layout      {info.layout}",
        f"images      {info.images}  ({_count(info.frames)}, {size})",
        f"camera      {_camera(recording)}",
        f"depth       {_depth(recording)}",
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


def _depth(recording: Recording) -> str:
    info = recording.info()
    try:
        first = next(iter(recording.depths()), None)
    except RecordingError as error:
        return f"cannot be used: {error}"
    if first is None:
        return "none"
    height, width = first.depth.shape
    valid = 100.0 * float((first.depth > 0).mean())
    return f"{info.depth}  ({info.depths} frames, {width}x{height}, first {valid:.0f} % valid)"


def _poses(recording: Recording) -> str:
    try:
        trajectory = recording.trajectory()
    except RecordingError as error:
        return f"cannot be used: {error}"
    if trajectory is None:
        return "none"
    source = recording.info().poses
    return f"{source}  ({len(trajectory)} poses, {trajectory.path_length():.2f} m of path)"
