# SPDX-License-Identifier: Apache-2.0
"""The rules that every environment keeps, on the one that runs anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from omnistream_ros.simulation.environment import STEPS_PER_FRAME, SimulationError
from omnistream_ros.simulation.episodes import frames_of
from omnistream_ros.simulation.tasks import TASKS, make_environment, task_named


def test_the_same_seed_is_the_same_world_whatever_was_before() -> None:
    env = make_environment("toy-red")
    env.reset(7)
    first, image = env.positions(), env.observe().image
    env.reset(8)
    assert not np.array_equal(env.observe().image, image)
    for _ in range(5):
        env.advance(env.expert())
    env.reset(7)
    np.testing.assert_array_equal(env.positions(), first)
    np.testing.assert_array_equal(env.observe().image, image)


@pytest.mark.parametrize("seed", range(20))
def test_the_expert_does_it_in_time(seed: int) -> None:
    env = make_environment("toy-blue")
    env.reset(seed)
    for _ in range(frames_of(env.task, env.step_s) * STEPS_PER_FRAME):
        env.advance(env.expert())
    assert env.success


def test_the_instruction_is_all_that_tells_the_tasks_apart() -> None:
    red, blue = make_environment("toy-red"), make_environment("toy-blue")
    red.reset(3)
    blue.reset(3)
    np.testing.assert_array_equal(red.observe().image, blue.observe().image)
    np.testing.assert_allclose(np.sign(red.expert()), -np.sign(blue.expert()))


def test_what_is_not_the_goal_is_no_success() -> None:
    env = make_environment("toy-red")
    other = make_environment("toy-blue")
    env.reset(3)
    other.reset(3)
    for _ in range(400):
        env.advance(other.expert())
    assert not env.success


@settings(max_examples=50, deadline=None)
@given(arrays(float, 2, elements=st.floats(-1e6, 1e6)))
def test_no_command_moves_it_faster_or_farther_than_it_can(command: np.ndarray) -> None:
    env = make_environment("toy-red")
    env.reset(0)
    before = env.positions()
    for _ in range(3):
        env.advance(command)
    after = env.positions()
    assert np.linalg.norm(after - before) <= 3 * 0.5 * env.step_s + 1e-9
    for axis, position in zip(env.axes, after, strict=True):
        assert axis.low <= position <= axis.high


@pytest.mark.parametrize(
    "command", [np.zeros(3), np.array([np.nan, 0.0]), np.array([0.0, np.inf]), np.zeros((1, 2))]
)
def test_a_command_that_is_none_is_refused(command: np.ndarray) -> None:
    env = make_environment("toy-red")
    before = env.positions()
    with pytest.raises(ValueError, match="2 finite positions"):
        env.advance(command)
    np.testing.assert_array_equal(env.positions(), before)


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SimulationError, match="toy-red"):
        task_named("toy-green")


def test_tasks_of_one_scene_have_instructions_of_their_own() -> None:
    said = [words for task in TASKS.values() for words in task.instructions]
    assert len(said) == len(set(said))
    assert all(task.instructions for task in TASKS.values())
