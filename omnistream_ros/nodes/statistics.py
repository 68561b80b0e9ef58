# SPDX-License-Identifier: Apache-2.0
"""Counts and timings of one stream, written by two threads and read by a third."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time

import numpy as np

# Frames over which medians and percentiles are taken.
_WINDOW = 256
_RATE_SPAN_S = 5.0
_MAX_RATE_HZ = 200


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The statistics at one moment.

    Attributes:
        received, processed: images since activation.
        drops: images not used since activation, by reason.
        camera_info_faults: camera_info messages not used since activation.
        input_hz, output_hz: rates over the last seconds; 0 when nothing came.
        latency_ms: (median, 95th percentile) by stage, "latency" last; milliseconds.
        idle_s: seconds since the last processed image, or since activation.
    """

    received: int
    processed: int
    drops: dict[str, int]
    camera_info_faults: int
    input_hz: float
    output_hz: float
    latency_ms: dict[str, tuple[float, float]]
    idle_s: float


class StreamStatistics:
    """Thread-safe counters; one object lives from activation to deactivation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = 0
        self._processed = 0
        self._drops: dict[str, int] = {}
        self._camera_info_faults = 0
        self._drops_at_last_frame = 0
        self._since_s = self._last_processed_s = time.monotonic()
        longest = int(_RATE_SPAN_S * _MAX_RATE_HZ)
        self._input_times: collections.deque[float] = collections.deque(maxlen=longest)
        self._output_times: collections.deque[float] = collections.deque(maxlen=longest)
        self._timings: collections.deque[dict[str, float]] = collections.deque(maxlen=_WINDOW)

    def image_received(self) -> None:
        """An image reached the node."""
        with self._lock:
            self._received += 1
            self._input_times.append(time.monotonic())

    def image_dropped(self, reason: str) -> int:
        """An image is not used. Returns how often this reason occurred by now."""
        with self._lock:
            self._drops[reason] = self._drops.get(reason, 0) + 1
            return self._drops[reason]

    def camera_info_refused(self) -> int:
        """A camera_info is not used. Returns how often that occurred by now."""
        with self._lock:
            self._camera_info_faults += 1
            return self._camera_info_faults

    def dropped_since_last(self) -> int:
        """Images dropped since the last call."""
        with self._lock:
            total = sum(self._drops.values())
            since = total - self._drops_at_last_frame
            self._drops_at_last_frame = total
            return since

    def image_processed(self, timings_ms: dict[str, float]) -> None:
        """An image went through the model; milliseconds by stage, in order."""
        with self._lock:
            self._processed += 1
            self._last_processed_s = time.monotonic()
            self._output_times.append(self._last_processed_s)
            self._timings.append(timings_ms)

    def idle_s(self) -> float:
        """Seconds since the last processed image, or since activation."""
        with self._lock:
            return time.monotonic() - self._last_processed_s

    def silent_s(self) -> float:
        """Seconds since an image reached the node, usable or not, or since activation."""
        with self._lock:
            last = self._input_times[-1] if self._input_times else self._since_s
            return time.monotonic() - last

    def counts(self) -> tuple[int, int, dict[str, int]]:
        """Received, processed, and dropped by reason; taken together."""
        with self._lock:
            return self._received, self._processed, dict(self._drops)

    def snapshot(self) -> Snapshot:
        """Everything, summed up."""
        with self._lock:
            now = time.monotonic()
            timings = list(self._timings)
            stages = {stage: None for frame in timings for stage in frame}  # ordered, unique
            latency = {}
            for stage in stages:
                values = [frame[stage] for frame in timings if stage in frame]
                median, late = np.percentile(values, (50, 95))
                latency[stage] = (float(median), float(late))
            return Snapshot(
                received=self._received,
                processed=self._processed,
                drops=dict(self._drops),
                camera_info_faults=self._camera_info_faults,
                input_hz=_rate(self._input_times, self._since_s, now),
                output_hz=_rate(self._output_times, self._since_s, now),
                latency_ms=latency,
                idle_s=now - self._last_processed_s,
            )


def _rate(times: collections.deque[float], since: float, now: float) -> float:
    """Events per second over the last ``_RATE_SPAN_S``, or over the life of the stream so far."""
    recent = sum(now - t <= _RATE_SPAN_S for t in times)
    return recent / max(min(_RATE_SPAN_S, now - since), 1e-3)
