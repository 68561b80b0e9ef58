# SPDX-License-Identifier: Apache-2.0
"""Between policy and robot: what is commanded in every tick, and why it is not what was wanted.

The caller brings in what arrives (`frame_arrived`, `joints_arrived`, `set_instruction`), asks the
policy when `begin` gives a ticket, hands its answer to `offer`, and sends what `tick` returns. Any
thread may call; time is nanoseconds of one clock, the one that stamps the inputs.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnistream_ros.action.blending import Blending, Plan
from omnistream_ros.action.chunk import Chunk, Origin
from omnistream_ros.action.drive import Command, Drive
from omnistream_ros.action.gate import Ages, InputGate
from omnistream_ros.action.limits import Clamp, Limits
from omnistream_ros.action.policy import Needs
from omnistream_ros.action.safety import (
    Counts,
    Drop,
    EmergencyStop,
    Reason,
    SafetySettings,
    State,
)
from omnistream_ros.action.spaces import ActionSpec

#: Said to who gives an instruction to a policy that has no use for it.
READS_NO_INSTRUCTION = "this policy reads no instruction"
_NS = 1_000_000_000
_POLICYS_FAULT = (Drop.CHUNK_SHAPE, Drop.CHUNK_NOT_FINITE, Drop.CHUNK_LATE)


@dataclasses.dataclass(frozen=True, eq=False)
class Ticket:
    """Leave to ask the policy: what it shall see, and what its chunk must carry back.

    Attributes:
        origins, stamp_ns, anchor, generation: as in `Chunk`.
        payloads: what came with the newest frame of each stream.
        joints: positions in the order of `Needs.joints`.
        reset: the world has begun anew since the last ticket.
    """

    origins: tuple[Origin, ...]
    stamp_ns: int
    anchor: float
    generation: int
    payloads: Mapping[str, Any]
    joints: np.ndarray
    instruction: str
    reset: bool


@dataclasses.dataclass(frozen=True)
class Decision:
    """The outcome of a tick; `detail` is one sentence for people, empty while executing."""

    state: State = State.WAITING
    reason: Reason = Reason.NO_CHUNK
    detail: str = ""


class Controller:
    """Lives from activation to deactivation.

    Args:
        limits: one entry per number of an action.
        stop: outlives the controller.
        period_s: nominal length of a tick.
        replan_actions: consumed actions after which the policy is asked again; 0: at every frame.
    """

    def __init__(
        self,
        spec: ActionSpec,
        needs: Needs,
        limits: Limits,
        settings: SafetySettings,
        blending: Blending,
        stop: EmergencyStop,
        *,
        period_s: float,
        replan_actions: float = 0.0,
    ) -> None:
        self.settings = settings
        self.drops, self.clamps, self.holds = Counts(), Counts(), Counts()
        self.decision = Decision()
        self.clock = 0.0  # actions consumed
        self._stop = stop
        self._spec = spec
        self._period_s, self._replan_actions = period_s, replan_actions
        self._lock = threading.RLock()
        self._plan = Plan(spec, blending, limits.endless)
        self._drive = Drive(spec, limits)
        joints = self._drive.joint_names
        # Joint spaces must start from where the robot is; beside a motion, joints may be unknown.
        required = dict.fromkeys([*needs.joints, *(() if spec.motion else joints)])
        self._gate = InputGate(needs, [*required], joints, self.drops)
        self._last_tick_ns: int | None = None
        self._generation = 0
        self._voided_by = Drop.CHUNK_STOPPED
        self._reset = True
        self._asked: tuple[int, int] = (0, 0)  # arrivals and generation of the last ticket
        self._asked_clock = 0.0
        self._presses = stop.presses
        self._stopped = False
        self._computing = False
        self._unanswered = True  # since the last plan became void
        self._failure = ""

    # --- what arrives ---

    def frame_arrived(self, stream: str, origin: Origin, payload: Any, now_ns: int) -> Drop | None:
        """A frame of a stream with all that is read of it; None: it is used."""
        with self._lock:
            drop, anew = self._gate.frame(stream, origin, payload, now_ns, self.settings)
            if anew:
                self._void(Drop.CHUNK_EPOCH, anew=True)
            return drop

    def joints_arrived(
        self, names: Sequence[str], positions: Sequence[float], stamp_ns: int, now_ns: int
    ) -> Drop | None:
        """A message with joint positions; None: it is used, or tells of other joints."""
        with self._lock:
            return self._gate.joints(names, positions, stamp_ns, now_ns, self.settings)

    def set_instruction(self, text: str, now_ns: int) -> tuple[Drop | None, str]:
        """Follow another instruction from now on; returns why not, and a sentence."""
        with self._lock:
            if not self._gate.needs.instruction:
                self.drops.add(Drop.INSTRUCTION_UNUSED)
                return Drop.INSTRUCTION_UNUSED, READS_NO_INSTRUCTION
            said = self._gate.instruction
            before = said.text
            drop = said.offer(text, now_ns)
            if drop is not None:
                self.drops.add(drop)
            if drop is not None or said.text != before:
                self._void(Drop.CHUNK_INSTRUCTION, anew=True)
            if drop is not None:
                return drop, f"{said.refused}; the robot holds until a good one comes"
            return None, f"following: {said.text}"

    def refuse(self, stream: str, drop: Drop, words: str) -> None:
        """Something of a stream was not even a frame."""
        with self._lock:
            self._gate.refuse(stream, drop, words)

    # --- the policy ---

    def begin(self, now_ns: int) -> Ticket | None:
        """Leave to ask the policy; None: an input is missing, or nothing has changed."""
        with self._lock:
            gate = self._gate
            asked = (gate.arrivals, self._generation)
            if self._stop.latched or asked == self._asked or gate.obstacle(now_ns, self.settings):
                return None
            going = self._plan.left(self.clock) > 0.0 and not self._reset
            if going and self.clock - self._asked_clock < self._replan_actions:
                return None
            self._asked, self._asked_clock, self._computing = asked, self.clock, True
            reset, self._reset = self._reset, False
            oldest_ns = gate.oldest_ns()
            return Ticket(
                origins=gate.origins,
                stamp_ns=now_ns if oldest_ns is None else oldest_ns,
                anchor=self.clock,
                generation=self._generation,
                payloads=dict(gate.payloads),
                joints=gate.positions(gate.needs.joints),
                instruction=gate.instruction.text,
                reset=reset,
            )

    def offer(self, chunk: Chunk, now_ns: int) -> Drop | None:
        """Take a policy's answer; None: it is carried out from the next tick on."""
        with self._lock:
            self._computing = False
            self._notice_stop()
            drop = self._judge(chunk, now_ns)
            if drop is not None:
                self.drops.add(drop)
                if drop in _POLICYS_FAULT:
                    self._failure = f"the last answer of the policy was not used: {drop.value}"
                return drop
            self._failure = ""
            self._unanswered = False
            self._plan.add(chunk, self.clock)
            return None

    def policy_failed(self, words: str) -> None:
        """The policy was asked and gave no actions."""
        with self._lock:
            self._computing = False
            self.drops.add(Drop.POLICY_ERROR)
            self._failure = words

    # --- the robot ---

    def tick(self, now_ns: int) -> Command | None:
        """What to command until the next tick; None: nothing was commanded yet, so nothing is."""
        with self._lock:
            last, self._last_tick_ns = self._last_tick_ns, now_ns
            if last is not None and now_ns < last:
                self._time_began_anew(now_ns)
                last = None
            seconds = self._period_s if last is None else (now_ns - last) / _NS
            if seconds <= 0.0:
                return None
            reason, detail = self._obstacle(now_ns, seconds)
            command = self._command(reason, seconds)
            self._decide(reason, detail)
            return command

    def last_command(self) -> Command | None:
        """The safe end: hold. None if nothing was ever commanded."""
        with self._lock:
            self._plan.clear()
            return self._drive.rest(self._period_s, ramp=False)

    def start_over(self) -> None:
        """Commands go elsewhere from now on (dry run or robot): begin where the robot is."""
        with self._lock:
            self._drive.start_over()
            self._void(Drop.CHUNK_HELD, anew=True)

    # --- for reports ---

    def ages(self, now_ns: int) -> Ages:
        """How old every input is."""
        with self._lock:
            return self._gate.ages(now_ns)

    @property
    def instruction(self) -> str:
        """The instruction that is followed; empty if none."""
        return self._gate.instruction.text

    def progress(self) -> tuple[int, float]:
        """The chunk in execution (0: none), and how many of its actions are left."""
        with self._lock:
            newest = self._plan.newest
            return (newest.chunk_id if newest else 0), self._plan.left(self.clock)

    # --- inner workings ---

    def _judge(self, chunk: Chunk, now_ns: int) -> Drop | None:
        spec = self._spec
        if np.shape(chunk.data) != (spec.horizon, len(spec.names)):
            return Drop.CHUNK_SHAPE
        if not np.issubdtype(chunk.data.dtype, np.floating) or not np.isfinite(chunk.data).all():
            return Drop.CHUNK_NOT_FINITE
        if self._stop.latched:
            return Drop.CHUNK_STOPPED
        if chunk.generation != self._generation:
            return self._voided_by
        longest_s = spec.horizon * spec.dt + self.settings.features_timeout
        used_up = self.clock - chunk.anchor >= spec.horizon
        return Drop.CHUNK_LATE if used_up or now_ns - chunk.stamp_ns > longest_s * _NS else None

    def _void(self, why: Drop, *, anew: bool) -> None:
        """No action that is planned or being computed counts any more.

        Args:
            anew: the policy shall forget the past too; after a pause it goes on where it was.
        """
        self._generation += 1
        self._voided_by = why
        self._unanswered = True
        self._reset = self._reset or anew
        self._plan.clear()

    def _time_began_anew(self, now_ns: int) -> None:
        self.drops.add(Drop.CLOCK_BACKWARDS)
        self._gate.forget(now_ns)
        self._void(Drop.CLOCK_BACKWARDS, anew=True)

    def _notice_stop(self) -> None:
        """Also a press that was cleared between two ticks ends everything that was planned."""
        if self._presses != self._stop.presses:
            self._presses = self._stop.presses
            self._void(Drop.CHUNK_STOPPED, anew=False)

    def _obstacle(self, now_ns: int, seconds: float) -> tuple[Reason, str]:
        """The first reason not to execute, with a sentence; NONE if there is none."""
        self._notice_stop()
        if self._stop.latched:
            return Reason.EMERGENCY_STOP, f"emergency stop: {self._stop.source}"
        limit = self.settings.watchdog
        if seconds > limit:
            return Reason.LATE_TICK, f"the control loop stood still for {seconds:.3f} s"
        missing = self._gate.obstacle(now_ns, self.settings)
        if missing is not None:
            if self._plan.newest is not None:  # of before the pause
                self._void(Drop.CHUNK_HELD, anew=False)
            return missing
        if self._plan.left(self.clock) > 0.0:
            return Reason.NONE, ""
        if self._failure:
            return Reason.POLICY_FAILED, self._failure
        if self._unanswered:
            return Reason.NO_CHUNK, "the policy has not answered yet"
        if self._computing:
            return Reason.CHUNK_USED_UP, "the policy is slower than its horizon"
        return Reason.CHUNK_USED_UP, "nothing new has come since the policy's last answer"

    def _command(self, reason: Reason, seconds: float) -> Command | None:
        if reason is not Reason.NONE:
            ramp = self.settings.stop_mode == "ramp" and reason is not Reason.EMERGENCY_STOP
            return self._drive.rest(min(seconds, self.settings.watchdog), ramp=ramp)
        actions = seconds / self._spec.dt
        due = self._plan.due(self.clock, actions)
        assert due is not None  # something is left
        clamps: set[Clamp] = set()
        measured = self._gate.positions(self._drive.joint_names)
        command = self._drive.execute(due, measured, seconds, clamps)
        self.clock += actions
        for clamp in clamps:
            self.clamps.add(clamp)
        return command

    def _decide(self, reason: Reason, detail: str) -> None:
        if reason is Reason.NONE:
            state = State.EXECUTING
        elif reason is Reason.EMERGENCY_STOP:
            state = State.STOPPED
        else:
            state = State.HOLDING if self._drive.commanded else State.WAITING
        if reason is not Reason.NONE and reason is not self.decision.reason:
            self.holds.add(reason)
        self.decision = Decision(state, reason, detail)
