# SPDX-License-Identifier: Apache-2.0
"""What a stream remembers: which frames are kept, in which slots, at which logical times.

A policy is plain arithmetic on frame numbers; it owns no tensor and knows no device. `kv_cache`
carries out what it plans, `cache_storage` holds the numbers.

Memory is divided into slots of one frame each. Frame f of an epoch is written into

    slot f                              while f < sink
    slot sink + (f - sink) % window     afterwards: a ring, the oldest frame is overwritten

Attention does not care in which order keys stand, so nothing is ever moved, and the current frame
counts as the last of the window: before it is written, the frame it replaces is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Kept(NamedTuple):
    """One frame that a step attends to: its index in the epoch, and the time it stands at."""

    frame: int
    time: int


@dataclass(frozen=True)
class Plan:
    """What the step of one frame reads and writes.

    Attributes:
        slot: where the frame at hand is written.
        visible: slots [0, visible) are attended to, `slot` among them.
        sink_shift: frames by which the sink stands later than it was written; 0: where it was.
    """

    slot: int
    visible: int
    sink_shift: int = 0


@dataclass
class StreamState:
    """What a policy remembers of one stream, in plain numbers.

    Attributes:
        frames_seen: frames since the start of the epoch; a Python int, it cannot overflow.
    """

    frames_seen: int = 0

    def reset(self) -> None:
        """The next frame is the first of its epoch."""
        self.frames_seen = 0

    def state_dict(self) -> dict[str, Any]:
        """A copy, in plain types."""
        return {"frames_seen": self.frames_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.frames_seen = int(state["frames_seen"])


class Policy(Protocol):
    """One way to remember. Immutable, shared by all streams of a cache."""

    @property
    def slots(self) -> int:
        """Frames that are kept at full resolution, at most."""
        ...

    @property
    def sink(self) -> int:
        """The first slots, whose frames may be moved in time."""
        ...

    def plan(self, state: StreamState) -> Plan:
        """How to step frame `state.frames_seen`; changes nothing."""
        ...

    def kept(self, state: StreamState) -> list[Kept]:
        """What the last step attended to, itself included."""
        ...


@dataclass(frozen=True)
class Window:
    """The first frames of the epoch (sink) and the most recent ones (window).

    Time. A frame of the window stands at its own frame index. Once frames between sink and window
    have been forgotten, the sink is moved in time to stand right before the window, so no distance
    ever exceeds sink + window - 1 frames:

        time(f) = f + (frames forgotten so far)   for the sink
        time(f) = f                               for the window

    Attributes:
        sink: frames that are never forgotten; may be 0.
        window: recent frames, the current one included; may be smaller than the sink.

    Raises:
        ValueError: impossible sizes.
    """

    sink: int = 1
    window: int = 16

    def __post_init__(self) -> None:
        if self.sink < 0 or self.window < 1:
            raise ValueError(
                f"a cache of sink {self.sink} and window {self.window}: the window counts the "
                "current frame, so it must be at least 1, and the sink at least 0"
            )

    @property
    def slots(self) -> int:
        return self.sink + self.window

    def plan(self, state: StreamState) -> Plan:
        frame = state.frames_seen
        slot = frame  # slots fill from the left, then the window goes round
        if frame >= self.slots:
            slot = self.sink + (frame - self.sink) % self.window
        forgotten = max(0, frame + 1 - self.slots)
        return Plan(slot, min(frame + 1, self.slots), forgotten if self.sink else 0)

    def kept(self, state: StreamState) -> list[Kept]:
        forgotten = max(0, state.frames_seen - self.slots)
        sink = min(self.sink, state.frames_seen)
        window = range(sink + forgotten, state.frames_seen)
        return [Kept(f, f + forgotten) for f in range(sink)] + [Kept(f, f) for f in window]
