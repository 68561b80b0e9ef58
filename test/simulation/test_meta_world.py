# SPDX-License-Identifier: Apache-2.0
"""Meta-World behind our interface, where it is installed and something can be rendered."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest

from omnistream_ros.simulation.environment import STEPS_PER_FRAME, SimulationError
from omnistream_ros.simulation.meta_world import MetaWorldEnvironment
from omnistream_ros.simulation.tasks import make_environment, task_named

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None,
    reason="metaworld is not installed (pip install 'omnistream_ros[simulation]')",
)


@pytest.fixture(scope="module")
def reach() -> Iterator[MetaWorldEnvironment]:
    env = make_environment("reach-red")
    assert isinstance(env, MetaWorldEnvironment)
    try:
        env.observe()
    except SimulationError as error:
        pytest.skip(str(error))
    yield env
    env.close()


def _frame(env: MetaWorldEnvironment, command: np.ndarray) -> None:
    for _ in range(STEPS_PER_FRAME):
        env.advance(command)


def test_the_same_seed_is_the_same_world_whatever_was_before(reach: MetaWorldEnvironment) -> None:
    reach.reset(11)
    image, positions = reach.observe().image, reach.positions()
    reach.reset(12)
    _frame(reach, reach.expert())
    reach.reset(11)
    np.testing.assert_array_equal(reach.observe().image, image)
    np.testing.assert_array_equal(reach.positions(), positions)


def test_the_image_is_upright_and_shows_both_balls(reach: MetaWorldEnvironment) -> None:
    reach.reset(3)
    image = reach.observe().image.astype(int)
    assert image.shape == (144, 192, 3)
    red = (image[..., 0] > 150) & (image[..., 1] < 80) & (image[..., 2] < 80)
    blue = (image[..., 2] > 120) & (image[..., :2] < 100).all(-1)
    assert red.sum() > 10
    assert blue.sum() > 10
    # A ball that is raised goes up in the image.
    reach.balls[1] = reach.balls[1]._replace(place=reach.balls[1].place + np.array([0, 0, 0.1]))
    raised = reach.observe().image.astype(int)
    lifted = (raised[..., 2] > 120) & (raised[..., :2] < 100).all(-1)
    assert np.nonzero(lifted)[0].mean() < np.nonzero(blue)[0].mean() - 5


def test_the_hand_goes_where_it_is_told(reach: MetaWorldEnvironment) -> None:
    reach.reset(0)
    wanted = np.array([0.1, 0.7, 0.25, 1.0])
    for _ in range(15):
        _frame(reach, wanted)
    np.testing.assert_allclose(reach.positions()[:3], wanted[:3], atol=0.01)


def test_the_expert_reaches_the_ball_that_was_named(reach: MetaWorldEnvironment) -> None:
    other = MetaWorldEnvironment(task_named("reach-blue"))
    for seed in range(3):
        reach.reset(seed)
        other.reset(seed)
        np.testing.assert_array_equal(reach.balls[0].place, other.balls[0].place)
        assert reach.balls[0].colour != other.balls[0].colour
        for _ in range(20):
            _frame(reach, reach.expert())
        assert reach.success
    other.close()


def test_the_expert_presses_the_button() -> None:
    env = make_environment("button-press")
    env.reset(1)
    for _ in range(40):
        assert isinstance(env, MetaWorldEnvironment)
        _frame(env, env.expert())
    assert env.success
    env.close()
