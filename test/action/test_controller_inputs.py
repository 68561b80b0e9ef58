# SPDX-License-Identifier: Apache-2.0
"""What reaches the controller and cannot be used: features, joints, instructions; and epochs."""

from __future__ import annotations

import math

import pytest
from robots import JOINTS, NEEDS, NS, Rig, still

from omnistream_ros.action.policy import Needs
from omnistream_ros.action.safety import Drop, Reason, State


def test_frames_that_go_back_are_refused() -> None:
    rig = Rig()
    rig.live(5)
    assert rig.see(frame_index=2) is Drop.FRAME_BACKWARDS
    assert rig.see(stamp_ns=rig.now_ns - NS // 10) is Drop.FRAME_BACKWARDS
    rig.epoch = 3
    assert rig.see() is None
    assert rig.see(epoch=2) is Drop.EPOCH_BACKWARDS
    assert rig.see(stream_id="another") is Drop.OTHER_STREAM
    assert rig.see(delay_s=0.6) is Drop.FEATURES_OLD
    assert rig.see(delay_s=-0.2) is Drop.FEATURES_FUTURE
    counts = rig.controller.drops.snapshot()
    assert (counts["frame_backwards"], counts["epoch_backwards"]) == (2, 1)
    assert counts["features_old"] == counts["features_from_the_future"] == 1


def test_two_publishers_never_take_turns() -> None:
    rig = Rig()
    rig.live(5)
    refused = 0
    for number in range(100):
        rig.see()
        refused += rig.see(stream_id="twin", frame_index=1000 + number) is Drop.OTHER_STREAM
        rig.feel()
        rig.think()
        rig.tick()
        assert rig.controller.decision.state is State.EXECUTING
    assert refused == 100


def test_a_stream_that_was_restarted_is_followed_once_the_old_one_is_stale() -> None:
    rig = Rig()
    rig.live(5)
    rig.frame = -1
    first = rig.see()
    assert first is Drop.FRAME_BACKWARDS
    for _ in range(60):
        rig.feel()
        rig.tick()
    assert rig.controller.decision.reason is Reason.FEATURES_STALE
    assert "frame_backwards" in rig.controller.decision.detail
    assert rig.see() is None
    rig.live(3)
    assert rig.controller.decision.state is State.EXECUTING


def test_a_new_epoch_voids_what_was_planned_and_what_is_being_computed() -> None:
    rig = Rig()
    rig.live(5)
    rig.see()
    ticket = rig.controller.begin(rig.now_ns)
    rig.tick()
    rig.epoch, rig.frame = 1, -1
    assert rig.see() is None
    assert rig.controller.offer(rig.chunk(ticket), rig.now_ns) is Drop.CHUNK_EPOCH
    rig.feel()
    held = rig.tick()
    assert rig.controller.decision.state is State.HOLDING
    assert still([held])
    following = rig.controller.begin(rig.now_ns)
    assert following.reset
    assert rig.controller.offer(rig.chunk(following), rig.now_ns) is None
    rig.tick()
    assert rig.controller.decision.state is State.EXECUTING


# --- joints ---


def test_joints_may_come_in_any_order_and_in_parts() -> None:
    rig = Rig()
    rig.see()
    assert rig.feel(elbow=-0.2, other=9.0) is None
    rig.tick()
    assert "no position of shoulder" in rig.controller.decision.detail
    assert "elbow, other" in rig.controller.decision.detail
    assert rig.feel(shoulder=0.1) is None
    ticket = rig.controller.begin(rig.now_ns)
    assert ticket.joints == pytest.approx([0.1, -0.2])  # in the policy's order


def test_bad_joint_states_are_refused() -> None:
    rig = Rig()
    offer, now = rig.controller.joints_arrived, rig.now_ns
    assert offer(["shoulder"], [0.0, 1.0], now, now) is Drop.JOINTS_MALFORMED
    assert offer(["elbow", "elbow"], [0.0, 1.0], now, now) is Drop.JOINTS_MALFORMED
    assert offer(["elbow"], [math.nan], now, now) is Drop.JOINTS_NOT_FINITE
    assert offer(["elbow"], [0.0], now - NS, now) is Drop.JOINTS_OLD
    assert offer(["elbow"], [0.0], 0, now) is Drop.JOINTS_OLD  # no stamp
    assert offer(["elbow"], [0.0], now + NS, now) is Drop.JOINTS_FUTURE
    assert offer(["elbow"], [0.0], now, now) is None
    assert offer(["elbow"], [0.0], now - NS // 100, now) is Drop.JOINTS_BACKWARDS
    assert offer(["wheel"], [math.nan], now, now) is None  # nobody asked for it


def test_one_joint_that_falls_silent_is_enough() -> None:
    rig = Rig()
    rig.live(5)
    for _ in range(20):
        rig.see()
        rig.feel(shoulder=0.1)
        rig.think()
        rig.tick()
    assert rig.controller.decision.reason is Reason.PROPRIOCEPTION_STALE


# --- instructions ---


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        ("", Drop.INSTRUCTION_EMPTY),
        ("  \n", Drop.INSTRUCTION_EMPTY),
        ("x" * 100_000, Drop.INSTRUCTION_TOO_LONG),
        ("ü" * 501, Drop.INSTRUCTION_TOO_LONG),
        ("pick\x00up", Drop.INSTRUCTION_UNREADABLE),
    ],
)
def test_a_bad_instruction_stops_until_a_good_one_comes(text: str, drop: Drop) -> None:
    rig = Rig()
    rig.live(5)
    assert rig.controller.set_instruction(text, rig.now_ns)[0] is drop
    held = rig.live(5)
    assert rig.controller.decision.reason is Reason.INSTRUCTION_REFUSED
    assert still(held)
    assert rig.controller.set_instruction("lean back", rig.now_ns)[0] is None
    rig.live(2)
    assert rig.controller.decision.state is State.EXECUTING


def test_another_instruction_voids_what_was_computed_for_the_old_one() -> None:
    rig = Rig()
    rig.live(5)
    rig.see()
    ticket = rig.controller.begin(rig.now_ns)
    rig.controller.set_instruction("lean back", rig.now_ns)
    assert rig.controller.offer(rig.chunk(ticket), rig.now_ns) is Drop.CHUNK_INSTRUCTION
    following = rig.controller.begin(rig.now_ns)
    assert (following.instruction, following.reset) == ("lean back", True)
    rig.tick()
    assert rig.controller.decision.reason is Reason.NO_CHUNK  # not the policy's slowness


def test_the_same_instruction_again_changes_nothing_but_its_age() -> None:
    rig = Rig(instruction_timeout=1.0)
    rig.live(40)
    rig.controller.set_instruction("lean forward", rig.now_ns)
    rig.live(40)
    assert rig.controller.decision.state is State.EXECUTING
    rig.live(15)
    assert rig.controller.decision.reason is Reason.INSTRUCTION_STALE


def test_an_instruction_ages_after_time_went_back_too() -> None:
    rig = Rig(instruction_timeout=1.0)
    rig.live(5)
    rig.now_ns -= 500 * NS
    rig.live(40)
    assert rig.controller.decision.state is State.EXECUTING
    assert 0.0 <= rig.controller.ages(rig.now_ns).instruction <= 1.0
    rig.live(15)
    assert rig.controller.decision.reason is Reason.INSTRUCTION_STALE


def test_without_an_instruction_nothing_moves() -> None:
    rig = Rig(instruction="")
    rig.live(3)
    assert rig.controller.decision.reason is Reason.NO_INSTRUCTION


def test_a_policy_that_reads_none_says_so() -> None:
    rig = Rig(needs=Needs(features=NEEDS.features, joints=JOINTS))
    assert rig.controller.set_instruction("", rig.now_ns)[0] is Drop.INSTRUCTION_UNUSED
    rig.live(3)
    assert rig.controller.decision.state is State.EXECUTING
