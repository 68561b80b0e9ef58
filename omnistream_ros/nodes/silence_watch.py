# SPDX-License-Identifier: Apache-2.0
"""Looks out for images that do not come, and says why, once for each reason."""

from __future__ import annotations

import time
from collections.abc import Callable

from omnistream_ros.msg import StreamStatus
from omnistream_ros.nodes.image_input import ImageInput
from omnistream_ros.nodes.statistics import StreamStatistics

_LOOK_AGAIN_S = 1.0


class SilenceWatch:
    """One camera's watch, from activate to deactivate. Executor's thread only.

    Args:
        warn: takes a sentence for people.
    """

    def __init__(
        self, images: ImageInput, statistics: StreamStatistics, warn: Callable[[str], None]
    ) -> None:
        self._images = images
        self._statistics = statistics
        self._warn = warn
        self._looked_s = 0.0
        self._lonely_s = time.monotonic()  # when nobody published last
        self.reason = ""  # why no usable image comes, in words, while none does

    def look(self, stall_timeout: float, *, busy: bool) -> int | None:
        """The state of a stream of which no frame tells now, a constant of StreamStatus, or None.

        Args:
            stall_timeout: seconds without a frame that are nothing to speak of.
            busy: the model is at work on some image; then a lack of results is no lack of images.
        """
        idle_s = self._statistics.idle_s()
        arriving = self._statistics.silent_s() <= stall_timeout
        silent = not (busy and arriving) and idle_s > stall_timeout
        new = self._has_new_publisher(stall_timeout)
        if silent and not new:
            self._explain(idle_s, stall_timeout)
        else:
            self.reason = ""
        if self._statistics.counts()[1] == 0:
            return StreamStatus.WAITING
        return StreamStatus.STALLED if silent else None

    def _has_new_publisher(self, stall_timeout: float) -> bool:
        """Whether somebody publishes, for less than the time that a camera may be silent."""
        now = time.monotonic()
        if not self._images.publishers():
            self._lonely_s = now
            return False
        return now - self._lonely_s < stall_timeout

    def _explain(self, idle_s: float, stall_timeout: float) -> None:
        """Say why no usable image comes; again when the reason changes."""
        now = time.monotonic()
        if now - self._looked_s < _LOOK_AGAIN_S:
            return  # looking through a large graph takes its time
        self._looked_s = now
        if self._statistics.silent_s() > stall_timeout:
            why = self._images.explain_silence()
        else:
            why = "images arrive and none can be used: the reasons are in the log and in ~/status"
        if why != self.reason:
            self.reason = why
            self._warn(f"no usable image on '{self._images.topic}' for {idle_s:.1f} s: {why}")
