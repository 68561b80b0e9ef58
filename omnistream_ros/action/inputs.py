# SPDX-License-Identifier: Apache-2.0
"""What comes in, judged before it is used: order of frames, age of joints, form of instructions.

Ages count from the stamp of acquisition on the clock of the caller, never from arrival. Everything
here returns the reason of a refusal instead of raising: bad input is normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from omnistream_ros.action.chunk import Origin
from omnistream_ros.action.safety import Drop, SafetySettings

MAX_INSTRUCTION_BYTES = 1000
_NS = 1_000_000_000


class StreamWatch:
    """One camera stream: frames in order, epochs forward, one source.

    A frame that goes back, or is of another stream, is refused while the stream is fresh: two
    publishers on one topic never take turns. Once the stream is too old to act upon, whatever is
    newer takes its place: a node that was restarted counts from 0 again.
    """

    def __init__(self) -> None:
        self.newest: Origin | None = None

    def offer(self, origin: Origin, now_ns: int, settings: SafetySettings) -> Drop | None:
        """Judge a frame; None: it is the newest now."""
        age_s = (now_ns - origin.stamp_ns) / _NS
        if age_s > settings.features_timeout:
            return Drop.FEATURES_OLD
        if age_s < -settings.clock_tolerance:
            return Drop.FEATURES_FUTURE
        newest = self.newest
        if newest is not None:
            over = (now_ns - newest.stamp_ns) / _NS > settings.features_timeout
            drop = self._order(newest, origin)
            if drop is not None and not (over and origin.stamp_ns > newest.stamp_ns):
                return drop
        self.newest = origin
        return None

    @staticmethod
    def _order(before: Origin, after: Origin) -> Drop | None:
        if after.stream_id != before.stream_id:
            return Drop.OTHER_STREAM
        if after.epoch < before.epoch:
            return Drop.EPOCH_BACKWARDS
        on = after.epoch > before.epoch or after.frame_index > before.frame_index
        return None if on and after.stamp_ns > before.stamp_ns else Drop.FRAME_BACKWARDS


class JointWatch:
    """Positions of joints by name; each message may tell a part of them, in any order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._positions = dict.fromkeys(self.names, math.nan)
        self._stamps: dict[str, int] = {}
        self.heard: tuple[str, ...] = ()  # names in the last message, for people

    def offer(
        self,
        names: Sequence[str],
        positions: Sequence[float],
        stamp_ns: int,
        now_ns: int,
        settings: SafetySettings,
    ) -> Drop | None:
        """Take the positions of a message; None: those that anybody asked for are used."""
        if len(names) != len(positions) or len(set(names)) < len(names):
            return Drop.JOINTS_MALFORMED
        self.heard = tuple(names)
        ours = {n: float(p) for n, p in zip(names, positions, strict=True) if n in self._positions}
        if not ours:
            return None
        if not all(map(math.isfinite, ours.values())):
            return Drop.JOINTS_NOT_FINITE
        age_s = (now_ns - stamp_ns) / _NS
        if age_s > settings.proprioception_timeout:
            return Drop.JOINTS_OLD
        if age_s < -settings.clock_tolerance:
            return Drop.JOINTS_FUTURE
        if any(self._stamps.get(name, stamp_ns) > stamp_ns for name in ours):
            return Drop.JOINTS_BACKWARDS
        self._positions.update(ours)
        self._stamps.update(dict.fromkeys(ours, stamp_ns))
        return None

    def forget(self) -> None:
        """Nothing is known any more."""
        self._positions = dict.fromkeys(self.names, math.nan)
        self._stamps = {}

    @property
    def missing(self) -> tuple[str, ...]:
        """Joints that were never heard of."""
        return tuple(name for name in self.names if name not in self._stamps)

    def oldest_ns(self, names: Sequence[str]) -> int | None:
        """Acquisition of the oldest of some positions; None if one is not known."""
        stamps = [self._stamps.get(name) for name in names]
        known = [stamp for stamp in stamps if stamp is not None]
        return min(known) if known and len(known) == len(stamps) else None

    def positions(self, names: Sequence[str]) -> np.ndarray:
        """Positions (len(names),); NaN for what is not known."""
        return np.array([self._positions.get(name, math.nan) for name in names])


class InstructionWatch:
    """The instruction that holds now."""

    def __init__(self) -> None:
        self.text = ""
        self.since_ns = 0
        self.refused = ""  # why the last one cannot be followed; until a good one comes

    def offer(self, text: str, now_ns: int) -> Drop | None:
        """A new instruction. A bad one also ends the one before: somebody wanted a change."""
        text = text.strip()
        size = len(text.encode(errors="replace"))
        drop = None
        if not text:
            drop, self.refused = Drop.INSTRUCTION_EMPTY, "the instruction is empty"
        elif size > MAX_INSTRUCTION_BYTES:
            drop = Drop.INSTRUCTION_TOO_LONG
            self.refused = (
                f"the instruction has {size} bytes; at most {MAX_INSTRUCTION_BYTES} are read"
            )
        elif not text.isprintable():
            drop = Drop.INSTRUCTION_UNREADABLE
            self.refused = "the instruction has control characters"
        else:
            self.refused = ""
        self.text = "" if drop else text
        self.since_ns = now_ns
        return drop
