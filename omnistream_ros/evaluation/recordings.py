# SPDX-License-Identifier: Apache-2.0
"""Recordings: one interface over everything that holds a camera's images and, perhaps, the truth.

`open_recording` looks at a path and returns the reader that fits. Readers stream: at any moment a
few images are in memory, never the whole recording. Ground truth has stamps of its own;
`with_depth` puts the nearest depth beside each frame.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from omnistream_ros.evaluation.trajectory import Trajectory, format_stamp
from omnistream_ros.stream.frame import Frame, Intrinsics

#: Depth belongs to a frame when their stamps differ by no more than this (the TUM tools' 0.02 s).
DEPTH_TOLERANCE_NS = 20_000_000


class RecordingError(ValueError):
    """A recording that cannot be read as asked; the message says what is missing and what to do."""


#: What one recording in work can raise and the next one need not: the errors of this package about
#: it, which are ValueErrors, and what the system and libraries say of it.
FAULTS = (ValueError, OSError, RuntimeError)


@dataclasses.dataclass(frozen=True, eq=False)
class DepthFrame:
    """Ground-truth depth of one instant.

    Attributes:
        stamp_ns: nanoseconds, on the clock of the frames.
        depth: (H, W) float32, metres along the optical axis, NaN where unknown.
        intrinsics: the camera at the size of ``depth``, or None when unknown.
    """

    stamp_ns: int
    depth: np.ndarray
    intrinsics: Intrinsics | None = None


@dataclasses.dataclass(frozen=True)
class RecordingInfo:
    """What is in a recording, found without decoding it whole; None means unknown or absent.

    Attributes:
        layout: name of the layout, such as ``rosbag2 (mcap)`` or ``TUM folder``.
        images, depth, poses: where each comes from (topic or file), in words.
        frames, depths: how many there are, where the container says so.
        duration_s: from the stamp of the first image to that of the last.
        width, height: size of the first image.
        intrinsics: of the first image.
        notes: what a user should know, such as distortion or a topic that was ignored.
        contents: lines that list everything (all topics of a bag).
    """

    layout: str
    images: str
    depth: str | None = None
    poses: str | None = None
    frames: int | None = None
    depths: int | None = None
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    intrinsics: Intrinsics | None = None
    notes: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Selection:
    """What the caller names instead of leaving it to be found; None means find it.

    Attributes:
        image_topic, info_topic, depth_topic, pose_topic: topics of a bag.
        camera_frame: TF frame of the camera; else the frame id of the images.
        layout: name of a layout in `LAYOUTS`, when the folder alone does not tell.
    """

    image_topic: str | None = None
    info_topic: str | None = None
    depth_topic: str | None = None
    pose_topic: str | None = None
    camera_frame: str | None = None
    layout: str | None = None


class Recording(abc.ABC):
    """A recording of one camera. Every iterator reads from the beginning, as often as asked."""

    #: Valid ground-truth depth in metres, exclusive on both sides, by the data set's protocol.
    depth_limits: tuple[float, float] = (0.0, float("inf"))

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """A short name for tables."""
        return self.path.resolve().name

    @abc.abstractmethod
    def info(self) -> RecordingInfo:
        """What is in it."""

    @abc.abstractmethod
    def frames(self) -> Iterator[Frame]:
        """All images in the order in which they were recorded."""

    def depths(self) -> Iterator[DepthFrame]:
        """All ground-truth depth images, in order; nothing where there are none."""
        return iter(())

    def trajectory(self) -> Trajectory | None:
        """Ground-truth camera poses, or None where there are none."""
        return None


def open_recording(path: str | Path, selection: Selection | None = None) -> Recording:
    """Open whatever lies at ``path``.

    Args:
        path: a rosbag2 folder or its .mcap / .db3 file, a folder of a known data set layout, a
            video file, or a folder of images.
        selection: topics and layout, where they should not be found by themselves.

    Raises:
        RecordingError: nothing there, or nothing that can be read.
    """
    from omnistream_ros.evaluation import layouts  # the readers import this module

    path = Path(path)
    if not path.exists():
        raise RecordingError(
            f"no recording at {path}: expected a rosbag2 folder, a data set folder or a video file"
        )
    return layouts.open_layout(path, selection or Selection())


def with_depth(
    frames: Iterable[Frame],
    depths: Iterable[DepthFrame],
    tolerance_ns: int = DEPTH_TOLERANCE_NS,
) -> Iterator[tuple[Frame, DepthFrame | None]]:
    """Each frame with the depth nearest in time, or None when none is within the tolerance.

    Both streams are read once, in step, holding only the depths within the tolerance of one frame.

    Raises:
        RecordingError: the stamps of a stream go back, so that "nearest in time" has no one answer.
    """
    source = in_order(depths, "depth")
    waiting = next(source, None)
    near: collections.deque[DepthFrame] = collections.deque()
    for frame in in_order(frames, "images"):
        while waiting is not None and waiting.stamp_ns <= frame.stamp_ns + tolerance_ns:
            if waiting.stamp_ns >= frame.stamp_ns - tolerance_ns:
                near.append(waiting)
            waiting = next(source, None)
        while near and near[0].stamp_ns < frame.stamp_ns - tolerance_ns:
            near.popleft()
        yield frame, min(near, key=lambda d: abs(d.stamp_ns - frame.stamp_ns), default=None)


Stamped = TypeVar("Stamped", Frame, DepthFrame)


def in_order(stream: Iterable[Stamped], what: str) -> Iterator[Stamped]:
    """The same stream, refused where its stamps do not increase.

    Raises:
        RecordingError: two stamps are equal or go back; the message says where.
    """
    last: int | None = None
    for number, item in enumerate(stream):
        if last is not None and item.stamp_ns <= last:
            raise RecordingError(
                f"{what}: stamps must increase, but number {number} is at "
                f"{format_stamp(item.stamp_ns)} s after {format_stamp(last)} s; cut the recording "
                "where its clock jumps and evaluate the parts"
            )
        last = item.stamp_ns
        yield item
