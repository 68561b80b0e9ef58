# SPDX-License-Identifier: Apache-2.0
"""Stopping: the latch, what is void after it, and the command that is safe to end with."""

from __future__ import annotations

import numpy as np
import pytest
from robots import NS, PERIOD_S, Rig, still

from omnistream_ros.action.safety import Drop, State


def test_the_emergency_stop_latches_until_it_is_cleared_by_hand() -> None:
    rig = Rig()
    rig.target = 1.0
    rig.live(30)
    before = list(rig.positions.values())
    rig.stop.button(True, rig.now_ns, "topic")
    held = rig.live(50)
    assert rig.controller.decision.state is State.STOPPED
    assert held[0].positions == pytest.approx(before)
    assert still(held)
    rig.stop.button(False, rig.now_ns, "topic")  # letting go clears nothing
    assert still(rig.live(10))
    assert rig.controller.decision.state is State.STOPPED
    assert rig.stop.clear(rig.now_ns, 0.0) == ""
    rig.live(3)
    assert rig.controller.decision.state is State.EXECUTING


def test_it_cannot_be_cleared_while_the_button_is_down() -> None:
    rig = Rig()
    rig.stop.button(True, rig.now_ns, "topic")
    assert "still down" in rig.stop.clear(rig.now_ns, 0.0)
    assert rig.stop.latched


def test_what_was_computed_before_a_stop_is_void_after_it() -> None:
    rig = Rig()
    rig.live(5)
    rig.see()
    ticket = rig.controller.begin(rig.now_ns)
    rig.stop.press("service")
    assert rig.controller.offer(rig.chunk(ticket), rig.now_ns) is Drop.CHUNK_STOPPED
    rig.stop.clear(rig.now_ns, 0.0)  # before the loop turned even once
    assert rig.controller.offer(rig.chunk(ticket), rig.now_ns) is Drop.CHUNK_STOPPED
    rig.feel()
    rig.tick()
    assert rig.controller.decision.state is not State.EXECUTING


def test_a_button_that_falls_silent_is_pressed() -> None:
    rig = Rig()
    rig.stop.watch(rig.now_ns, 0.0)
    assert not rig.stop.latched  # none is expected
    rig.stop.watch(rig.now_ns, 0.5)
    assert rig.stop.latched
    assert "heartbeat must come first" in rig.stop.clear(rig.now_ns, 0.5)
    rig.stop.button(False, rig.now_ns, "topic")
    assert rig.stop.clear(rig.now_ns, 0.5) == ""
    rig.stop.watch(rig.now_ns + NS, 0.5)
    assert "no word from the button" in rig.stop.source


# --- the safe end ---


def test_nothing_was_commanded_so_nothing_is_the_safe_end() -> None:
    assert Rig().controller.last_command() is None


def test_the_safe_end_is_the_last_position_at_rest() -> None:
    rig = Rig()
    rig.target = 1.0
    last = rig.live(30)[-1]
    end = rig.controller.last_command()
    assert (end.positions == last.positions).all()
    assert (end.velocities == 0.0).all()


def test_leaving_the_dry_run_begins_where_the_robot_is() -> None:
    rig = Rig()
    rig.follows = False
    rig.target = 1.0
    rig.live(100)
    rig.controller.start_over()
    first = next(c for c in rig.live(5) if c is not None)
    assert first.positions == pytest.approx([0.1, -0.2], abs=1e-3)


def test_a_robot_that_was_moved_by_hand_is_taken_up_where_it_is() -> None:
    rig = Rig()
    rig.live(30)
    rig.stop.press("hand")
    rig.live(2)
    rig.positions, rig.follows = {"shoulder": 0.9, "elbow": 1.5}, False
    rig.live(60)
    rig.stop.clear(rig.now_ns, 0.0)
    commands = rig.live(4)
    assert rig.controller.decision.state is State.EXECUTING
    assert commands[-1].positions == pytest.approx([0.9, 1.5], abs=0.01)


def test_a_short_pause_never_throws_the_arm_back_to_where_it_was_measured() -> None:
    """A robot that stops short is more than a step behind while the command still brakes."""
    rig = Rig(proprioception_timeout=1.0)
    rig.target = np.array([1.0, 2.0])
    past = [dict(rig.positions)] * 24
    before, behind = None, 0.0
    for turn in range(100):
        rig.feel(**past[min(turn, 60)])
        rig.see()
        rig.think()
        command = rig.tick(0.21 if turn in (68, 70, 75) else PERIOD_S)
        past.append(dict(rig.positions))
        if before is not None and command is not None:
            moved = np.abs(command.positions - before.positions)
            assert (moved <= 0.5 * PERIOD_S + 1e-9).all(), turn
            behind = max(behind, command.positions[0] - past[min(turn, 60)]["shoulder"])
        before = command
    assert behind > 0.2  # more than max_step: otherwise this test says nothing
