# SPDX-License-Identifier: Apache-2.0
"""Whatever is asked for, in ticks of whatever length: no limit is ever passed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monitor import JointMonitor

from omnistream_ros.action.limits import Clamp, JointLimiter, Limits, MotionLimiter

LIMITS = Limits(
    low=np.array([-1.0, 0.0]),
    high=np.array([1.0, 0.05]),
    velocity=np.array([0.5, 0.2]),
    acceleration=np.array([2.0, 0.5]),
    step=np.array([0.2, 0.02]),
)
_FAR = np.full(2, np.nan)  # no measured position: the step limit does not take part


def _monitor(limits: Limits = LIMITS) -> JointMonitor:
    named = {
        name: {str(i): float(v) for i, v in enumerate(getattr(limits, name))}
        for name in ("low", "high", "velocity", "acceleration")
    }
    return JointMonitor(**named, stops_at_once=False)


_targets = st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).map(np.array)
_ticks = st.floats(0.001, 0.2)
_moves = st.tuples(st.sampled_from(["follow", "drive", "ramp"]), _targets, _ticks)


@given(st.floats(-1.0, 1.0), st.floats(0.0, 0.05), st.lists(_moves, min_size=1, max_size=60))
@settings(deadline=None, max_examples=150)
def test_no_limit_is_ever_passed(first: float, second: float, moves: list) -> None:
    limiter, monitor = JointLimiter(LIMITS), _monitor()
    limiter.start(np.array([first, second]))
    monitor.start({"0": first, "1": second})
    now = 0.0
    for kind, wish, seconds in moves:
        now += seconds
        if kind == "ramp":
            position = limiter.ramp(seconds)
        else:
            position = getattr(limiter, kind)(wish, _FAR, seconds, set())
        monitor.command(now, seconds, {"0": position[0], "1": position[1]})
    assert monitor.faults == []


@given(_targets, st.lists(_ticks, min_size=1, max_size=40))
@settings(deadline=None, max_examples=50)
def test_a_joint_outside_of_its_range_only_comes_back(wish: np.ndarray, ticks: list) -> None:
    limiter = JointLimiter(LIMITS)
    limiter.start(np.array([1.5, -0.1]))
    before = np.array([1.5, -0.1])
    for seconds in ticks:
        position = limiter.follow(wish, _FAR, seconds, set())
        assert position[0] <= before[0] + 1e-12 or position[0] <= 1.0
        assert position[1] >= before[1] - 1e-12 or position[1] >= 0.0
        before = position


@given(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0), st.floats(0.02, 0.1))
@settings(deadline=None, max_examples=20)
def test_a_target_that_stands_is_reached_and_not_passed(
    start: float, target: float, seconds: float
) -> None:
    limiter = JointLimiter(LIMITS)
    limiter.start(np.array([start, 0.02]))
    wish = np.array([target, 0.02])
    side = np.sign(target - start)
    for _ in range(int(12.0 / seconds)):
        position = limiter.follow(wish, _FAR, seconds, set())
        assert side * (position[0] - target) <= 1e-9
    assert position[0] == pytest.approx(target, abs=2e-3)


def test_a_motion_within_the_limits_is_followed_exactly_and_without_a_clamp() -> None:
    limiter = JointLimiter(LIMITS)
    limiter.start(np.array([0.0, 0.02]))
    clamps: set[Clamp] = set()
    for tick in range(1, 400):
        t = 0.01 * tick
        wish = np.array([0.2 * (1.0 - np.cos(1.5 * t)), 0.02])
        position = limiter.follow(wish, wish, 0.01, clamps)
        if tick > 5:
            assert position == pytest.approx(wish, abs=2e-4)
    assert clamps <= {Clamp.ACCELERATION}  # of the very first step, from rest


@given(_targets, _targets, st.lists(_ticks, min_size=1, max_size=60))
@settings(deadline=None, max_examples=50)
def test_the_command_never_leaves_a_robot_that_is_stuck(
    wish: np.ndarray, stuck: np.ndarray, ticks: list
) -> None:
    stuck = np.clip(stuck, LIMITS.low, LIMITS.high)
    limiter = JointLimiter(LIMITS)
    limiter.start(stuck)
    for seconds in ticks:
        position = limiter.follow(wish, stuck, seconds, set())
        assert (np.abs(position - stuck) <= LIMITS.step + 1e-9).all()


def test_hold_repeats_the_last_command_and_forgets_its_speed() -> None:
    limiter = JointLimiter(LIMITS)
    limiter.start(np.array([0.0, 0.02]))
    for _ in range(20):
        last = limiter.follow(np.array([1.0, 0.02]), _FAR, 0.02, set())
    assert (limiter.hold() == last).all()
    assert (limiter.velocity == 0.0).all()
    begun = limiter.follow(np.array([1.0, 0.02]), _FAR, 0.02, set())
    assert begun[0] - last[0] <= 2.0 * 0.02 * 0.02 + 1e-12


@given(st.lists(st.tuples(_targets, _ticks), min_size=1, max_size=60))
@settings(deadline=None, max_examples=40)
def test_motion_keeps_velocity_and_acceleration(moves: list) -> None:
    limiter, before = MotionLimiter(LIMITS), np.zeros(2)
    for wish, seconds in moves:
        speed = limiter.follow(wish, seconds, set())
        assert (np.abs(speed) <= LIMITS.velocity + 1e-12).all()
        assert (np.abs(speed - before) <= LIMITS.acceleration * seconds + 1e-12).all()
        before = speed
    for _ in range(10):
        speed = limiter.ramp(0.05)
    assert (speed == 0.0).all()


@pytest.mark.parametrize(
    ("wish", "measured", "kind"),
    [
        ([0.0, 0.5], [np.nan, np.nan], Clamp.POSITION),
        ([0.9, 0.02], [0.0, 0.02], Clamp.STEP),
        ([0.9, 0.02], [np.nan, np.nan], Clamp.VELOCITY),
        ([0.02, 0.02], [np.nan, np.nan], Clamp.ACCELERATION),
    ],
)
def test_every_intervention_is_named(wish: list, measured: list, kind: Clamp) -> None:
    limiter, clamps = JointLimiter(LIMITS), set()
    limiter.start(np.array([0.0, 0.02]))
    limiter.follow(np.array(wish), np.array(measured), 0.05, clamps)
    assert kind in clamps


@pytest.mark.parametrize("field", ["velocity", "acceleration", "step", "low"])
def test_limits_that_are_none_are_refused(field: str) -> None:
    values = {name: getattr(LIMITS, name).copy() for name in LIMITS.__dataclass_fields__}
    values[field][0] = np.nan if field != "low" else 2.0
    with pytest.raises(ValueError, match=r"limit must be"):
        Limits(**values)
