# SPDX-License-Identifier: Apache-2.0
"""Joints that turn without end: the shorter way round, and never a turn more than was measured."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_files import with_action
from robots import limits

from omnistream_ros.action.blending import Blending, Plan
from omnistream_ros.action.chunk import Chunk, Origin
from omnistream_ros.action.drive import Drive
from omnistream_ros.action.limits import Clamp, Limits
from omnistream_ros.action.spaces import ActionSpec, Space

DT = 0.02
VELOCITY, ACCELERATION = 1.0, 4.0
SPEC = with_action(low=(-math.pi, -2.0), high=(math.pi, 2.0)).action  # shoulder turns, elbow not
ENDLESS = np.array([True, False])


def _limits(spec: ActionSpec = SPEC) -> Limits:
    return limits(
        spec,
        low=np.array([-np.inf, -2.0]),
        high=np.array([np.inf, 2.0]),
        velocity=np.full(2, VELOCITY),
        acceleration=np.full(2, ACCELERATION),
        step=np.full(2, 0.5),
        endless=ENDLESS,
    )


def _wrapped(angle: float) -> float:
    return math.remainder(angle, math.tau)


class Joint:
    """A shoulder that follows at once and reports its angle in its own way."""

    def __init__(self, angle: float, *, wraps: bool, space: Space = Space.JOINT_POSITION) -> None:
        spec = with_action(space=space, low=SPEC.low, high=SPEC.high).action
        self._drive = Drive(spec, _limits(spec))
        self._wraps = wraps
        self.angle = angle  # with all turns
        self.clamps: set[Clamp] = set()
        self.way = [angle]

    @property
    def reported(self) -> float:
        return _wrapped(self.angle) if self._wraps else self.angle

    def tick(self, due: float) -> None:
        measured = np.array([self.reported, 0.0])
        command = self._drive.execute(np.array([due, 0.0]), measured, DT, self.clamps)
        told = float(command.positions[0])
        # What is told lies beside what was measured, in the robot's own count of turns.
        assert abs(told - self.reported) <= 0.5 + 1e-9
        self.angle += _wrapped(told - self.angle)
        self.way.append(self.angle)

    def hold(self) -> None:
        command = self._drive.rest(DT, ramp=False)
        assert command is not None
        assert _wrapped(float(command.positions[0]) - self.angle) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("wraps", [True, False])
@pytest.mark.parametrize(
    ("begin", "goal", "way"),
    [(3.0, -3.0, math.tau - 6.0), (-3.0, 3.0, 6.0 - math.tau), (7.5, 1.0, math.tau - 6.5)],
)
def test_it_goes_the_shorter_way_round(begin: float, goal: float, way: float, wraps: bool) -> None:
    joint = Joint(begin, wraps=wraps)
    for _ in range(100):
        joint.tick(goal)
    assert joint.angle - begin == pytest.approx(way, abs=1e-6)
    assert abs(joint.way[-1] - joint.way[-2]) < 1e-9
    assert Clamp.RANGE not in joint.clamps
    joint.hold()


@given(
    st.floats(-20.0, 20.0),
    st.booleans(),
    st.lists(st.tuples(st.floats(-math.pi, math.pi), st.integers(1, 20)), min_size=1, max_size=8),
)
def test_no_goal_makes_it_faster_than_it_may(
    begin: float, wraps: bool, goals: list[tuple[float, int]]
) -> None:
    joint = Joint(begin, wraps=wraps)
    for goal, ticks in goals:
        for _ in range(ticks):
            joint.tick(goal)
    speeds = [(b - a) / DT for a, b in itertools.pairwise(joint.way)]
    assert max(map(abs, speeds)) <= VELOCITY + 1e-6
    changes = [abs(b - a) / DT for a, b in itertools.pairwise([0.0, *speeds])]
    assert max(changes) <= ACCELERATION + 1e-5


def test_steps_of_a_joint_that_turns_without_end_add_up_for_ever() -> None:
    joint = Joint(0.0, wraps=True, space=Space.JOINT_DELTA)
    for _ in range(1000):
        joint.tick(0.04)  # per 0.05 s
    assert joint.angle == pytest.approx(0.8 * 1000 * DT, rel=0.02)
    assert abs(joint.reported) <= math.pi


def _chunk(number: int, angles: list[float]) -> Chunk:
    rows = np.stack([angles, np.zeros(len(angles))], -1)
    return Chunk(number, (Origin("", 0, number, number),), number, 0.0, 0, rows)


def test_actions_are_joined_the_shorter_way_round() -> None:
    plan = Plan(SPEC, Blending("ensemble", ensemble_m=0.0), ENDLESS)
    plan.add(_chunk(1, [3.1, -3.1]), 0.0)
    due = plan.due(0.5, 0.1)
    assert due is not None
    assert abs(_wrapped(due[0])) == pytest.approx(math.pi)
    plan.add(_chunk(2, [-2.9, -2.9]), 0.0)
    due = plan.due(0.0, 0.1)  # between 3.1 and -2.9
    assert due is not None
    assert _wrapped(due[0]) == pytest.approx(_wrapped((3.1 - 2.9 + math.tau) / 2))


def test_an_endless_joint_with_an_end_is_none() -> None:
    with pytest.raises(ValueError, match="turns without end has no position limits"):
        limits(SPEC, endless=ENDLESS)
