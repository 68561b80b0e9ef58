# SPDX-License-Identifier: Apache-2.0
"""The inputs of a policy, and in one sentence what is wrong with them now."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnistream_ros.action.chunk import Origin
from omnistream_ros.action.inputs import InstructionWatch, JointWatch, StreamWatch
from omnistream_ros.action.policy import Needs
from omnistream_ros.action.safety import Counts, Drop, Reason, SafetySettings

_NS = 1_000_000_000
_JOINTS = "joint states"  # among the names of streams in `_refusals`


@dataclasses.dataclass(frozen=True)
class Ages:
    """Seconds since the acquisition of each input; None: never came, or is not needed."""

    streams: dict[str, float | None]
    proprioception: float | None
    instruction: float | None


class InputGate:
    """Everything that came, as far as it can be acted upon.

    Args:
        required: joints without whose position nothing may move.
        wanted: joints whose position is of use.
        drops: counts what is refused.
    """

    def __init__(
        self, needs: Needs, required: Sequence[str], wanted: Sequence[str], drops: Counts
    ) -> None:
        self.needs = needs
        self.instruction = InstructionWatch()
        self.payloads: dict[str, Any] = {}  # what came with the newest frame of each stream
        self.arrivals = 0  # counts everything that a policy might answer to
        self._required = tuple(required)
        self._drops = drops
        self._streams = {name: StreamWatch() for name in needs.streams}
        self._joints = JointWatch([*dict.fromkeys([*required, *wanted])])
        self._refusals: dict[str, str] = {}  # the last one by input, told while it is missing

    def frame(
        self, stream: str, origin: Origin, payload: Any, now_ns: int, settings: SafetySettings
    ) -> tuple[Drop | None, bool]:
        """A frame with all that is read of it. Returns why not, and whether the stream is new."""
        watch = self._streams[stream]
        before = watch.newest
        drop = watch.offer(origin, now_ns, settings)
        if drop is not None:
            self.refuse(stream, drop, _frame_words(origin, before, now_ns))
            return drop, False
        self._refusals.pop(stream, None)
        self.payloads[stream] = payload
        self.arrivals += 1
        goes_on = before is None or (
            (before.stream_id, before.epoch) == (origin.stream_id, origin.epoch)
            and before.frame_index < origin.frame_index
        )
        return None, not goes_on

    def joints(
        self,
        names: Sequence[str],
        positions: Sequence[float],
        stamp_ns: int,
        now_ns: int,
        settings: SafetySettings,
    ) -> Drop | None:
        """A message with joint positions."""
        drop = self._joints.offer(names, positions, stamp_ns, now_ns, settings)
        if drop is not None:
            self.refuse(_JOINTS, drop, f"{(now_ns - stamp_ns) / _NS:.3f} s old")
            return drop
        self._refusals.pop(_JOINTS, None)
        if not self._streams:
            self.arrivals += 1
        return None

    def refuse(self, source: str, drop: Drop, words: str) -> None:
        """Something that came was not used; told as the reason while nothing better comes."""
        self._drops.add(drop)
        self._refusals[source] = f"{drop.value}: {words}"

    def forget(self, now_ns: int) -> None:
        """No stamp can be compared any more. The instruction holds, and ages from now on."""
        for watch in self._streams.values():
            watch.newest = None
        self._joints.forget()
        self.instruction.since_ns = min(self.instruction.since_ns, now_ns)

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The newest frame of every stream."""
        newest = [watch.newest for watch in self._streams.values()]
        return tuple(origin for origin in newest if origin is not None)

    def oldest_ns(self) -> int | None:
        """Acquisition of the oldest part of what is known now."""
        stamps = [origin.stamp_ns for origin in self.origins]
        joints = self._joints.oldest_ns(self._required)
        return min(stamps if joints is None else [*stamps, joints], default=None)

    def positions(self, names: Sequence[str]) -> np.ndarray:
        """Positions of joints; NaN for what is not known."""
        return self._joints.positions(names)

    def ages(self, now_ns: int) -> Ages:
        """How old everything is."""

        def age(stamp_ns: int | None) -> float | None:
            return None if stamp_ns is None else (now_ns - stamp_ns) / _NS

        said = self.instruction
        return Ages(
            streams={
                name: age(watch.newest.stamp_ns if watch.newest else None)
                for name, watch in self._streams.items()
            },
            proprioception=age(self._joints.oldest_ns(self._required)),
            instruction=age(said.since_ns if said.text else None),
        )

    def obstacle(self, now_ns: int, settings: SafetySettings) -> tuple[Reason, str] | None:
        """Why nothing may move: the reason, and one sentence with the numbers."""
        return (
            self._joint_obstacle(now_ns, settings)
            or self._stream_obstacle(now_ns, settings)
            or self._instruction_obstacle(now_ns, settings)
        )

    def _joint_obstacle(self, now_ns: int, settings: SafetySettings) -> tuple[Reason, str] | None:
        if not self._required:
            return None
        stamp_ns, limit = self._joints.oldest_ns(self._required), settings.proprioception_timeout
        if stamp_ns is None:
            missing = [name for name in self._joints.missing if name in self._required]
            words = f"no position of {', '.join(missing)}"
            if self._joints.heard:
                words += f"; the last message told of {', '.join(self._joints.heard)}"
            else:
                words += ": nothing was heard on joint_states"
            return Reason.NO_PROPRIOCEPTION, self._explained(words, _JOINTS)
        age_s = (now_ns - stamp_ns) / _NS
        if age_s <= limit:
            return None
        words = f"joint positions are {age_s:.2f} s old, limit {limit:g} s"
        return Reason.PROPRIOCEPTION_STALE, self._explained(words, _JOINTS)

    def _stream_obstacle(self, now_ns: int, settings: SafetySettings) -> tuple[Reason, str] | None:
        limit = settings.features_timeout
        for name, watch in self._streams.items():
            if watch.newest is None:
                words = f"nothing that can be used came of '{name}'"
                return Reason.NO_FEATURES, self._explained(words, name)
            age_s = (now_ns - watch.newest.stamp_ns) / _NS
            if age_s > limit:
                words = f"'{name}' is {age_s:.2f} s old, limit {limit:g} s"
                return Reason.FEATURES_STALE, self._explained(words, name)
        return None

    def _instruction_obstacle(
        self, now_ns: int, settings: SafetySettings
    ) -> tuple[Reason, str] | None:
        if not self.needs.instruction:
            return None
        limit, said = settings.instruction_timeout, self.instruction
        if said.refused:
            return Reason.INSTRUCTION_REFUSED, said.refused
        if not said.text:
            return Reason.NO_INSTRUCTION, "nobody has said what to do"
        age_s = (now_ns - said.since_ns) / _NS
        if limit > 0.0 and age_s > limit:
            words = f"the instruction is {age_s:.1f} s old, limit {limit:g} s"
            return Reason.INSTRUCTION_STALE, words
        return None

    def _explained(self, words: str, source: str) -> str:
        refused = self._refusals.get(source)
        return f"{words}; the last one was refused: {refused}" if refused else words


def _frame_words(origin: Origin, newest: Origin | None, now_ns: int) -> str:
    """A frame that is refused, with the numbers to find out why."""
    after = ""
    if newest is not None:
        after = (
            f", after epoch {newest.epoch}, frame {newest.frame_index} of '{newest.stream_id}'"
            f" {(origin.stamp_ns - newest.stamp_ns) / _NS:+.3f} s"
        )
    return (
        f"epoch {origin.epoch}, frame {origin.frame_index} of '{origin.stream_id}', "
        f"{(now_ns - origin.stamp_ns) / _NS:.3f} s old{after}"
    )
