# SPDX-License-Identifier: Apache-2.0
"""The words of safety: the state of the robot, why, what was refused; and the emergency stop."""

from __future__ import annotations

import collections
import dataclasses
import enum
import threading


class State(str, enum.Enum):
    """What happens to the robot."""

    INACTIVE = "inactive"  # no command is given
    WAITING = "waiting"  # active; nothing was commanded yet, so nothing is
    EXECUTING = "executing"
    HOLDING = "holding"  # the last command is kept, or braked to, until the reason is gone
    STOPPED = "stopped"  # emergency stop: until somebody clears it by hand


class Reason(str, enum.Enum):
    """Why the robot does not execute actions."""

    NONE = "none"
    NOT_ACTIVE = "not_active"
    EMERGENCY_STOP = "emergency_stop"
    LATE_TICK = "late_tick"  # the control loop itself was held up
    NO_FEATURES = "no_features"
    FEATURES_STALE = "features_stale"
    NO_PROPRIOCEPTION = "no_proprioception"
    PROPRIOCEPTION_STALE = "proprioception_stale"
    NO_INSTRUCTION = "no_instruction"
    INSTRUCTION_REFUSED = "instruction_refused"
    INSTRUCTION_STALE = "instruction_stale"
    NO_CHUNK = "no_chunk"  # all inputs are there, the policy's first answer is not
    CHUNK_USED_UP = "chunk_used_up"  # the policy is slower than its horizon
    POLICY_FAILED = "policy_failed"


class Drop(str, enum.Enum):
    """Why something that came was not used."""

    # features and images
    BAD_TENSOR = "bad_tensor"
    BAD_IMAGE = "bad_image"
    OTHER_MODEL = "other_model"
    OTHER_SHAPE = "other_shape"
    OTHER_STREAM = "other_stream"
    FEATURES_NOT_FINITE = "features_not_finite"
    OTHER_FEATURE = "other_feature"
    FRAME_INCOMPLETE = "frame_incomplete"
    FEATURES_OLD = "features_old"
    FEATURES_FUTURE = "features_from_the_future"
    FRAME_BACKWARDS = "frame_backwards"
    EPOCH_BACKWARDS = "epoch_backwards"
    # joint states
    JOINTS_MALFORMED = "joints_malformed"
    JOINTS_NOT_FINITE = "joints_not_finite"
    JOINTS_OLD = "joints_old"
    JOINTS_FUTURE = "joints_from_the_future"
    JOINTS_BACKWARDS = "joints_backwards"
    # instructions
    INSTRUCTION_EMPTY = "instruction_empty"
    INSTRUCTION_TOO_LONG = "instruction_too_long"
    INSTRUCTION_UNREADABLE = "instruction_unreadable"
    INSTRUCTION_UNUSED = "instruction_unused"
    # chunks
    CHUNK_SHAPE = "chunk_shape"
    CHUNK_NOT_FINITE = "chunk_not_finite"
    CHUNK_LATE = "chunk_late"
    CHUNK_EPOCH = "chunk_of_another_epoch"
    CHUNK_INSTRUCTION = "chunk_of_another_instruction"
    CHUNK_STOPPED = "chunk_from_before_a_stop"
    CHUNK_HELD = "chunk_from_before_a_hold"
    CLOCK_BACKWARDS = "clock_backwards"
    POLICY_ERROR = "policy_error"


STOP_MODES = ("hold", "ramp")


@dataclasses.dataclass(frozen=True)
class SafetySettings:
    """When the robot must not go on, and how it stops. Seconds; ages count from acquisition.

    Attributes:
        features_timeout, proprioception_timeout: largest age of what is acted upon.
        instruction_timeout: the same; 0: an instruction holds until the next one.
        clock_tolerance: how far in the future a stamp may lie.
        watchdog: longest time between two ticks of the control loop.
        stop_mode: hold (the last position again, no velocity, at once) or ramp (brake with the
            acceleration limit, then hold). An emergency stop always holds.
    """

    features_timeout: float = 0.5
    proprioception_timeout: float = 0.2
    instruction_timeout: float = 0.0
    clock_tolerance: float = 0.05
    watchdog: float = 0.2
    stop_mode: str = "hold"


class Counts:
    """How often what happened; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, kind: enum.Enum) -> int:
        """One more; returns how often by now."""
        with self._lock:
            self._counts[kind.value] += 1
            return self._counts[kind.value]

    def snapshot(self) -> dict[str, int]:
        """By name, in the order of their first occurrence."""
        with self._lock:
            return dict(self._counts)


class EmergencyStop:
    """A latch: anybody sets it, only a person clears it. Any thread.

    With a heartbeat, silence of the button counts as a press: a cable that was cut must not look
    like a robot that may move. Its times are of a clock that nobody sets, unlike all others here: a
    step back would hide the silence, and one forward would be taken for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._source = ""
        self._button_down = False
        self._heard_ns: int | None = None
        self.presses = 0  # also those while it was latched

    @property
    def latched(self) -> bool:
        """Whether the robot must stand."""
        return bool(self._source)

    @property
    def source(self) -> str:
        """Who set it first; empty while it is clear."""
        return self._source

    def press(self, source: str) -> None:
        """Latch."""
        with self._lock:
            self.presses += 1
            self._source = self._source or source

    def button(self, down: bool, now_ns: int, source: str) -> None:
        """The state of a button, as its topic tells it; letting go clears nothing."""
        with self._lock:
            self._button_down = down
            self._heard_ns = now_ns
        if down:
            self.press(source)

    def watch(self, now_ns: int, heartbeat_s: float) -> None:
        """Latch if the button has been silent for longer than its heartbeat; 0: it needs none."""
        heard = self._heard_ns
        silent = heard is None or now_ns - heard > heartbeat_s * 1e9
        if heartbeat_s > 0.0 and silent and not self.latched:
            self.press(f"no word from the button for more than {heartbeat_s:g} s")

    def clear(self, now_ns: int, heartbeat_s: float) -> str:
        """Unlatch; returns why not, empty if done."""
        with self._lock:
            if self._button_down:
                return "the button is still down"
            silent = self._heard_ns is None or now_ns - self._heard_ns > heartbeat_s * 1e9
            if heartbeat_s > 0.0 and silent:
                return "the button is silent: its heartbeat must come first"
            self._source = ""
            return ""
