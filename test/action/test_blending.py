# SPDX-License-Identifier: Apache-2.0
"""Which action is due: skipping by what was consumed, and every way to join chunks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_files import with_action
from scipy.spatial.transform import Rotation

from omnistream_ros.action.blending import Blending, Plan
from omnistream_ros.action.chunk import Chunk, Origin
from omnistream_ros.action.spaces import Space

POSITION = with_action(names=("a",), units=("rad",), low=(-9.0,), high=(9.0,)).action
DELTA = dataclasses.replace(POSITION, space=Space.JOINT_DELTA)
TURN = with_action(
    space=Space.END_EFFECTOR_DELTA,
    names=("x", "rx", "ry", "rz", "grip"),
    units=("m", "rad", "rad", "rad", "1"),
    frame="base",
    low=(-9.0,) * 5,
    high=(9.0,) * 5,
).action


def chunk(rows: object, anchor: float = 0.0, epoch: int = 0) -> Chunk:
    data = np.asarray(rows, np.float32)
    data = data[:, None] if data.ndim == 1 else data
    return Chunk(1, (Origin("camera", epoch, 3, 0),), 0, anchor, 0, data)


def test_what_was_consumed_meanwhile_is_skipped_and_nothing_else() -> None:
    plan = Plan(POSITION, Blending())
    plan.add(chunk(np.arange(8), anchor=5.0), clock=8.0)  # three were consumed since
    assert plan.due(8.0, 1.0) == pytest.approx([3.0])
    assert plan.due(8.5, 0.5) == pytest.approx([3.5])  # between two rows: interpolated
    assert plan.due(12.0, 1.0) == pytest.approx([7.0])
    assert plan.due(12.9, 1.0) == pytest.approx([7.0])  # the last action lasts its dt
    assert plan.due(13.0, 1.0) is None


def test_a_pause_consumes_nothing() -> None:
    plan = Plan(POSITION, Blending())
    plan.add(chunk(np.arange(8), anchor=5.0), clock=5.0)
    assert plan.due(5.0, 1.0) == pytest.approx([0.0])
    assert plan.left(5.0) == 8.0


@given(st.lists(st.floats(0.01, 2.7), min_size=1, max_size=40), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_steps_add_up_whatever_the_ticks(ticks: list[float], seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=200)
    plan = Plan(DELTA, Blending())
    plan.add(chunk(rows), clock=0.0)
    clock = moved = 0.0
    for actions in ticks:
        due = plan.due(clock, actions)
        assert due is not None
        moved += due[0] * actions
        clock += actions
    whole = int(clock)
    exact = rows[:whole].sum() + (clock - whole) * rows[whole]
    assert moved == pytest.approx(exact, abs=1e-4)


def test_latest_forgets_the_older() -> None:
    plan = Plan(POSITION, Blending("latest"))
    plan.add(chunk(np.zeros(8)), clock=0.0)
    plan.add(chunk(np.ones(8), anchor=1.0), clock=2.0)
    assert plan.due(2.0, 1.0) == pytest.approx([1.0])


def test_linear_takes_over_step_by_step() -> None:
    plan = Plan(POSITION, Blending("linear", blend_actions=4.0))
    plan.add(chunk(np.zeros(16)), clock=0.0)
    plan.add(chunk(np.ones(16), anchor=1.0), clock=2.0)
    seen = [plan.due(clock, 1.0)[0] for clock in (2.0, 3.0, 4.0, 5.0, 6.0)]
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_linear_takes_over_from_the_mixture() -> None:
    plan = Plan(POSITION, Blending("linear", blend_actions=4.0))
    for anchor, value in enumerate((0.0, 1.0, 3.0)):
        plan.add(chunk(np.full(16, value), anchor=anchor), clock=float(anchor))
    middle = 0.5 * 1.0  # of the first two, half way
    assert plan.due(2.0, 1.0) == pytest.approx([0.75 * middle + 0.25 * 3.0])


def test_linear_goes_on_with_the_newest_when_the_older_is_used_up() -> None:
    plan = Plan(POSITION, Blending("linear", blend_actions=8.0))
    plan.add(chunk(np.zeros(4)), clock=0.0)
    plan.add(chunk(np.ones(8), anchor=3.0), clock=3.0)
    assert plan.due(4.0, 1.0) == pytest.approx([1.0])


def test_ensemble_is_that_of_act() -> None:
    m, values = 0.01, [1.0, 2.0, 4.0, 8.0]
    plan = Plan(POSITION, Blending("ensemble", ensemble_m=m))
    for anchor, value in enumerate(values):
        plan.add(chunk(np.full(8, value), anchor=anchor), clock=float(anchor))
    weights = np.exp(-m * np.arange(4))  # the oldest first
    assert plan.due(3.0, 1.0) == pytest.approx([weights @ values / weights.sum()])
    # At 8 the first is used up, and the second is the oldest.
    weights = weights[:3]
    assert plan.due(8.0, 1.0) == pytest.approx([weights @ values[1:] / weights.sum()])


@pytest.mark.parametrize("mode", ["latest", "linear", "ensemble"])
def test_nothing_is_blended_across_epochs(mode: str) -> None:
    plan = Plan(POSITION, Blending(mode))
    plan.add(chunk(np.zeros(16)), clock=0.0)
    plan.add(chunk(np.ones(16), epoch=1), clock=0.0)
    assert plan.due(0.0, 1.0) == pytest.approx([1.0])


@pytest.mark.parametrize("mode", ["linear", "ensemble"])
def test_rotations_are_blended_on_the_sphere(mode: str) -> None:
    plan = Plan(TURN, Blending(mode, blend_actions=2.0, ensemble_m=0.0))
    one, other = np.array([0.0, 0.0, 2.4]), np.array([2.0, 0.5, 0.0])
    for vector, place in ((one, 0.0), (other, 2.0)):
        plan.add(chunk(np.tile([place, *vector, place], (8, 1))), clock=0.0)
    due = plan.due(0.0, 1.0)
    assert due is not None
    half = Rotation.from_rotvec(one) * Rotation.from_rotvec(
        0.5 * (Rotation.from_rotvec(one).inv() * Rotation.from_rotvec(other)).as_rotvec()
    )
    assert Rotation.from_rotvec(due[1:4]).approx_equal(half, 1e-6)
    assert due[1:4] != pytest.approx((one + other) / 2, abs=0.05)  # which is what must not happen
    assert due[[0, 4]] == pytest.approx([1.0, 1.0])


def test_memory_is_bounded() -> None:
    plan = Plan(dataclasses.replace(POSITION, horizon=10_000), Blending("ensemble"))
    for number in range(1000):
        plan.add(chunk(np.zeros(10_000), anchor=0.01 * number), clock=0.01 * number)
    assert len(plan._planned) <= 64
