# SPDX-License-Identifier: Apache-2.0
"""What is commanded, and when it is not: every reason to stop, and the way back from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monitor import JointMonitor
from policy_files import with_action
from robots import JOINTS, NEEDS, NS, PERIOD_S, SPEC, TWIST, Rig, limits, still

from omnistream_ros.action.blending import Blending
from omnistream_ros.action.policy import Needs, Observation
from omnistream_ros.action.safety import Drop, Reason, State
from omnistream_ros.action.scripted_policy import ScriptedPolicy


def test_nothing_is_commanded_before_everything_is_there() -> None:
    rig = Rig()
    assert rig.tick() is None
    assert rig.controller.decision.reason is Reason.NO_PROPRIOCEPTION
    assert rig.controller.decision.detail.endswith("nothing was heard on joint_states")
    rig.feel()
    assert rig.tick() is None
    assert rig.controller.decision.reason is Reason.NO_FEATURES
    rig.see()
    assert rig.tick() is None
    assert rig.controller.decision.reason is Reason.NO_CHUNK
    assert rig.controller.decision.state is State.WAITING
    rig.think()
    command = rig.tick()
    assert command is not None
    assert rig.controller.decision.state is State.EXECUTING
    # The first command lies where the robot is.
    assert command.positions == pytest.approx([0.1, -0.2], abs=2.0 * PERIOD_S**2 + 1e-9)


def test_it_goes_where_the_policy_wants() -> None:
    rig = Rig()
    rig.target = np.array([0.5, -0.4])
    rig.live(200)
    assert list(rig.positions.values()) == pytest.approx([0.5, -0.4], abs=1e-3)


@pytest.mark.parametrize("stop_mode", ["hold", "ramp"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda rig: rig.feel() or rig.think(), Reason.FEATURES_STALE),
        (lambda rig: rig.see() or rig.think(), Reason.PROPRIOCEPTION_STALE),
        (lambda rig: (rig.feel(), rig.see()), Reason.CHUNK_USED_UP),
        (
            lambda rig: (rig.feel(), rig.see(), rig.think(data=np.full((8, 2), np.nan))),
            Reason.POLICY_FAILED,
        ),
        (
            lambda rig: (rig.feel(), rig.see(), rig.think(data=np.zeros((7, 2)))),
            Reason.POLICY_FAILED,
        ),
    ],
)
def test_every_missing_input_stops_the_robot_and_its_return_lets_it_go_on(
    spoil: Callable[[Rig], object], reason: Reason, stop_mode: str
) -> None:
    rig = Rig(stop_mode=stop_mode, features_timeout=0.3)
    rig.target = np.array([1.0, -1.0])
    rig.live(20)
    moving = rig.live(1)[0]
    assert moving is not None
    assert abs(moving.velocities[0]) > 0.3
    for _ in range(200):
        spoil(rig)
        last = rig.tick()
        if rig.controller.decision.state is not State.EXECUTING:
            break
    assert rig.controller.decision.state is State.HOLDING
    assert rig.controller.decision.reason is reason, rig.controller.decision
    assert rig.controller.decision.detail
    held = []
    for _ in range(40):
        spoil(rig)
        held.append(rig.tick())
        assert rig.controller.decision.state is not State.EXECUTING
    if stop_mode == "hold":
        assert still([last, *held])
    assert still(held[20:])
    assert rig.controller.holds.snapshot()[reason.value] >= 1
    on = rig.live(60)
    assert rig.controller.decision.state is State.EXECUTING
    assert on[-1] is not None
    assert on[-1].positions[0] > held[-1].positions[0]


def test_the_ramp_keeps_the_acceleration_limit() -> None:
    rig = Rig(stop_mode="ramp")
    rig.target = np.array([1.0, -1.0])
    rig.live(30)
    before = rig.live(1)[0]
    speeds = [before.velocities]
    for _ in range(100):
        rig.feel()
        command = rig.tick()
        speeds.append(command.velocities)
    changes = np.abs(np.diff(speeds, axis=0))
    assert changes.max() <= 2.0 * PERIOD_S + 1e-9
    assert (speeds[-1] == 0.0).all()


def test_a_late_turn_of_the_loop_holds_once() -> None:
    rig = Rig()
    rig.target = 1.0
    rig.live(20)
    before = dict(rig.positions)
    rig.feel()
    rig.see()
    rig.think()
    command = rig.tick(seconds=0.3)
    assert rig.controller.decision.reason is Reason.LATE_TICK
    assert command.positions == pytest.approx(list(before.values()))
    rig.live(2)
    assert rig.controller.decision.state is State.EXECUTING
    assert rig.controller.holds.snapshot() == {"late_tick": 1}


def test_time_that_goes_back_forgets_everything() -> None:
    rig = Rig()
    rig.live(20)
    ticket = rig.controller.begin(rig.now_ns)
    rig.see()
    ticket = rig.controller.begin(rig.now_ns) or ticket
    rig.now_ns -= 500 * NS
    held = [rig.tick()]
    assert rig.controller.decision.state is State.HOLDING
    assert rig.controller.drops.snapshot()["clock_backwards"] == 1
    assert rig.controller.offer(rig.chunk(ticket), rig.now_ns) is Drop.CLOCK_BACKWARDS
    held.append(rig.tick())
    assert still(held)
    rig.live(3)
    assert rig.controller.decision.state is State.EXECUTING


@pytest.mark.parametrize("pause", ["silence", "stop", "lateness"])
def test_a_script_goes_on_where_a_pause_found_it(pause: str) -> None:
    """To 0.8 rad in 4 s; something is wrong from 2.0 to 2.3 s, and once more a second later."""
    rig = Rig(spec=with_action(horizon=8, dt=0.05).action, proprioception_timeout=0.1)
    policy = ScriptedPolicy(rig.spec, NEEDS, [(0.0, [0.0, 0.0]), (4.0, [0.8, 0.8])])
    rig.positions = dict.fromkeys(JOINTS, 0.0)
    places = []
    for turn in range(250):
        wrong = 100 <= turn < 115 or 165 <= turn < 180
        if wrong and pause == "stop":
            rig.stop.press("hand")
        elif rig.stop.latched:
            rig.stop.clear(rig.now_ns, 0.0)
        if not (wrong and pause == "silence"):
            rig.feel()
        rig.see()
        ticket = rig.controller.begin(rig.now_ns)
        if ticket is not None:
            if ticket.reset:
                policy.reset()
            data = policy.act(Observation(joints=ticket.joints, consumed=ticket.anchor))
            rig.controller.offer(rig.chunk(ticket, data=data), rig.now_ns)
        rig.tick(0.3 if wrong and pause == "lateness" else PERIOD_S)
        places.append(rig.positions["shoulder"])
    assert sum(rig.controller.holds.snapshot().values()) >= 2
    behind = np.maximum.accumulate(places) - places
    assert behind.max() < 0.02  # never back, but for what it overshoots at the end of the script
    assert places[-1] == pytest.approx(0.8, abs=1e-3)


def test_only_a_world_that_began_anew_makes_the_policy_begin_anew() -> None:
    rig = Rig()

    def resets() -> bool:
        rig.feel()
        rig.see()
        ticket = rig.controller.begin(rig.now_ns)
        rig.controller.offer(rig.chunk(ticket), rig.now_ns)
        rig.tick()
        return ticket.reset

    assert [resets(), resets()] == [True, False]
    rig.tick(0.3)  # features and joints become stale
    rig.tick(0.4)
    assert not resets()
    rig.stop.press("hand")
    rig.tick()
    rig.stop.clear(rig.now_ns, 0.0)
    assert not resets()
    for anew in (
        lambda: setattr(rig, "epoch", 1),
        lambda: rig.controller.set_instruction("lean back", rig.now_ns),
        rig.controller.start_over,
        lambda: rig.tick(-5.0),
    ):
        anew()
        rig.stop.press("hand")  # a stop after it does not make it forgotten
        rig.tick()
        rig.stop.clear(rig.now_ns, 0.0)
        assert [resets(), resets()] == [True, False]


def test_a_clock_that_stands_still_commands_nothing() -> None:
    rig = Rig()
    rig.live(5)
    assert rig.tick(seconds=0.0) is None


# --- chunks ---


@pytest.mark.parametrize(
    ("data", "drop"),
    [
        (np.full((8, 2), np.inf, np.float32), Drop.CHUNK_NOT_FINITE),
        (np.where(np.eye(8, 2) > 0, np.nan, 0.0), Drop.CHUNK_NOT_FINITE),
        (np.zeros((8, 2), complex), Drop.CHUNK_NOT_FINITE),
        (np.full((8, 2), None), Drop.CHUNK_NOT_FINITE),
        (np.zeros((2, 8), np.float32), Drop.CHUNK_SHAPE),
        (np.zeros(16, np.float32), Drop.CHUNK_SHAPE),
    ],
)
def test_a_chunk_that_is_none_is_dropped_as_a_whole(data: np.ndarray, drop: Drop) -> None:
    rig = Rig()
    rig.live(3)
    rig.see()
    assert rig.think(data=data) is drop
    assert rig.controller.drops.snapshot() == {drop.value: 1}


def test_a_policy_slower_than_its_horizon_is_told_and_counted() -> None:
    """0.4 s of actions, answers after 0.5 s: the robot moves in between, and says why not more."""
    rig = Rig()
    reasons = set()
    pending: tuple[int, object] | None = None
    for _ in range(300):
        rig.feel()
        rig.see()
        if pending is None:
            ticket = rig.controller.begin(rig.now_ns)
            pending = None if ticket is None else (rig.now_ns, ticket)
        elif rig.now_ns - pending[0] >= NS // 2:
            rig.controller.offer(rig.chunk(pending[1]), rig.now_ns)
            pending = None
        rig.tick()
        reasons.add(rig.controller.decision.reason)
        if rig.controller.decision.reason is Reason.CHUNK_USED_UP:
            assert rig.controller.decision.detail == "the policy is slower than its horizon"
    assert {Reason.NONE, Reason.CHUNK_USED_UP} <= reasons
    assert rig.controller.holds.snapshot()["chunk_used_up"] >= 2


def test_an_answer_to_an_old_observation_is_late_even_if_nothing_was_consumed() -> None:
    rig = Rig()
    rig.feel()
    rig.see()
    ticket = rig.controller.begin(rig.now_ns)
    for _ in range(60):
        rig.feel()
        rig.see()
        rig.tick()
    assert rig.controller.offer(rig.chunk(ticket), rig.now_ns) is Drop.CHUNK_LATE


def test_skipping_counts_consumed_actions_and_not_time() -> None:
    rig = Rig()
    rig.live(3)
    rig.feel()
    rig.see()
    ticket = rig.controller.begin(rig.now_ns)
    rig.tick()
    rig.tick(seconds=0.3)  # the loop stood still: nothing was consumed in this time
    assert rig.controller.decision.reason is Reason.LATE_TICK
    ramp = np.linspace(0.0, 0.7, 8, dtype=np.float32)[:, None].repeat(2, axis=1)
    assert rig.controller.offer(rig.chunk(ticket, data=ramp), rig.now_ns) is None
    consumed = rig.controller.clock - ticket.anchor
    assert consumed == pytest.approx(PERIOD_S / SPEC.dt)
    due = rig.controller._plan.due(rig.controller.clock, 0.4)
    assert due == pytest.approx(0.1 * consumed)


def test_the_policy_is_asked_again_after_so_many_actions() -> None:
    rig = Rig(replan_actions=4.0)
    asked = []
    for _ in range(50):
        rig.feel()
        rig.see()
        ticket = rig.controller.begin(rig.now_ns)
        if ticket is not None:
            asked.append(rig.controller.clock)
            rig.controller.offer(rig.chunk(ticket), rig.now_ns)
        rig.tick()
    assert np.diff(asked) == pytest.approx(4.0, abs=0.41)  # at the next turn of the loop


# --- spaces ---


def test_a_twist_needs_no_joints_and_stops_at_zero() -> None:
    rig = Rig(TWIST, Needs(features=NEEDS.features))
    rig.target = np.array([0.3, -0.4, 0.7])
    commands = rig.live(60)
    assert commands[-1].motion == pytest.approx([0.3, -0.4])
    assert commands[-1].positions == pytest.approx([0.7])  # the gripper
    for _ in range(40):
        stopped = rig.tick()
    assert (stopped.motion == 0.0).all()
    assert rig.controller.last_command().motion.tolist() == [0.0, 0.0]


# --- whatever happens ---

_KINDS = ["live"] * 3 + ["silence", "nan", "wild", "late", "stop", "clear", "epoch", "old"]
_KINDS += ["text", "empty", "jump", "shape", "over"]
_events = st.lists(
    st.tuples(st.sampled_from(_KINDS), st.floats(-50.0, 50.0), st.floats(0.001, 0.15)),
    min_size=5,
    max_size=60,
)


@given(
    _events, st.sampled_from(["latest", "linear", "ensemble"]), st.sampled_from(["hold", "ramp"])
)
@settings(deadline=None, max_examples=300)
def test_no_unsafe_command_whatever_happens(events: list, blending: str, stop_mode: str) -> None:
    rig = Rig(blending=Blending(blending), stop_mode=stop_mode)
    monitor = JointMonitor(
        low=dict(zip(JOINTS, SPEC.low, strict=True)),
        high=dict(zip(JOINTS, SPEC.high, strict=True)),
        velocity=dict.fromkeys(JOINTS, 0.5),
        acceleration=dict.fromkeys(JOINTS, 2.0),
    )
    monitor.start(rig.positions)
    first = True
    for kind, value, seconds in events:
        if kind == "stop":
            rig.stop.press("test")
        elif kind == "clear":
            rig.stop.clear(rig.now_ns, 0.0)
        elif kind == "epoch":
            rig.epoch += 1
        elif kind in ("text", "empty"):
            rig.controller.set_instruction("go" if kind == "text" else "", rig.now_ns)
        elif kind == "jump":
            rig.now_ns -= NS
            first = True
        elif kind == "over":
            rig.controller.start_over()
            monitor.start(rig.positions)
        rig.target = value if kind == "wild" else np.array([value, -value]) / 50.0
        if kind != "silence":
            rig.feel()
            rig.see(delay_s=1.0 if kind == "old" else 0.0)
            spoilt = {"nan": np.full((8, 2), np.nan), "shape": np.zeros((3, 2))}
            rig.think(**({"data": spoilt[kind]} if kind in spoilt else {}))
        for _ in range(3):
            elapsed = 0.5 if kind == "late" else seconds
            command = rig.tick(elapsed)
            if command is not None:
                # Where no time is known to have passed, one period counts.
                known = PERIOD_S if first else min(elapsed, 0.2)
                positions = dict(zip(JOINTS, command.positions.tolist(), strict=True))
                monitor.command(rig.now_ns / NS, known, positions)
            first = False
    assert monitor.faults == []


def test_limits_of_columns() -> None:
    of = limits(TWIST).of((2,))
    assert (of.low.tolist(), of.high.tolist()) == ([0.0], [1.0])
