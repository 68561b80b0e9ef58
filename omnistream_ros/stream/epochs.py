# SPDX-License-Identifier: Apache-2.0
"""When a stream must forget its past: the epoch rules of a camera stream, without any tensor.

Inside an epoch the frames come from one camera in order of time and may be related to each other.
Whatever breaks that begins a new epoch, with a reason that is told to whoever reads the results.
"""

from __future__ import annotations

import dataclasses
import enum

from omnistream_ros.stream.frame import Frame, Intrinsics

# Focal length and principal point may differ by this fraction of the image size before we speak of
# another camera: some drivers publish intrinsics that follow the focus of the lens.
_CAMERA_TOLERANCE = 1e-3


class EpochReason(str, enum.Enum):
    """Why an epoch began. The values are stable names, fit for messages and logs."""

    START = "start"
    REQUEST = "request"
    IMAGE_SIZE = "image_size"
    CAMERA_CHANGE = "camera_change"
    TIME_JUMP_BACK = "time_jump_back"
    GAP = "gap"
    CONTEXT_FULL = "context_full"  # a cache that keeps every frame holds no more
    OUT_OF_MEMORY = "out_of_memory"  # the epoch before ended because the device had no memory left


class EpochRules:
    """Decides frame by frame whether a new epoch begins.

    ``check`` only looks; ``accept`` remembers the frame once it has really been used, so that a
    frame that failed half-way leaves no trace here.

    Args:
        max_gap_s: largest time between consecutive frames of one epoch, in seconds.

    Raises:
        ValueError: ``max_gap_s`` is not positive (``float("inf")`` switches the rule off).
    """

    def __init__(self, max_gap_s: float) -> None:
        if not max_gap_s > 0.0:
            raise ValueError(f"max_gap_s must be positive seconds, got {max_gap_s}")
        self.max_gap_s = float(max_gap_s)
        self._pending = EpochReason.START
        self._fresh = True  # the next frame opens an epoch for the pending reason
        self._last_stamp_ns = 0
        self._size = (0, 0)
        self._camera: Intrinsics | None = None  # of the first frame of the epoch

    def request(self, reason: EpochReason = EpochReason.REQUEST) -> None:
        """Make the next frame begin a new epoch. Before the first frame it changes nothing."""
        if not self._fresh:
            self._fresh = True
            self._pending = reason

    def check(self, frame: Frame) -> EpochReason | None:
        """Return why ``frame`` begins a new epoch, or None when it continues the current one."""
        if self._fresh:
            return self._pending
        if (frame.height, frame.width) != self._size:
            return EpochReason.IMAGE_SIZE
        if not _same_camera(self._camera, frame.intrinsics):
            return EpochReason.CAMERA_CHANGE
        if frame.stamp_ns < self._last_stamp_ns:
            return EpochReason.TIME_JUMP_BACK
        # Python integers: exact for any two stamps, however far apart.
        if frame.stamp_ns - self._last_stamp_ns > self.max_gap_s * 1e9:
            return EpochReason.GAP
        return None

    def accept(self, frame: Frame, *, begins: bool) -> None:
        """Remember ``frame`` as the newest of the stream; ``begins``: as the first of an epoch."""
        if begins:
            self._size = (frame.height, frame.width)
            # Compared with the first camera of the epoch, not the last: a slow drift adds up.
            self._camera = frame.intrinsics
        self._fresh = False
        self._last_stamp_ns = frame.stamp_ns

    def state_dict(self) -> dict[str, object]:
        """The state as plain numbers and strings."""
        camera = self._camera
        return {
            "pending": self._pending.value,
            "fresh": self._fresh,
            "last_stamp_ns": self._last_stamp_ns,
            "size": self._size,
            "camera": None if camera is None else dataclasses.asdict(camera),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        self._pending = EpochReason(state["pending"])
        self._fresh = bool(state["fresh"])
        self._last_stamp_ns = int(state["last_stamp_ns"])
        height, width = state["size"]
        self._size = (int(height), int(width))
        camera = state["camera"]
        self._camera = None if camera is None else Intrinsics(**camera)


def _same_camera(first: Intrinsics | None, second: Intrinsics | None) -> bool:
    """Whether two frames of one size come from the same camera; learning the camera is a change."""
    if first is None or second is None:
        return first is second
    tolerance = _CAMERA_TOLERANCE * max(first.width, first.height)
    pairs = (
        (first.fx, second.fx),
        (first.fy, second.fy),
        (first.cx, second.cx),
        (first.cy, second.cy),
    )
    return all(abs(a - b) <= tolerance for a, b in pairs)
