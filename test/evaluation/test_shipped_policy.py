# SPDX-License-Identifier: Apache-2.0
"""The policy in the package: for the shipped model, for the simulated robot, and small."""

from __future__ import annotations

import numpy as np
import pytest

from omnistream_ros.action.onnx_policy import OnnxPolicy
from omnistream_ros.action.policy import Observation
from omnistream_ros.evaluation.policy_trials import SHIPPED
from omnistream_ros.model import load_model
from omnistream_ros.simulation.environment import STEPS_PER_FRAME
from omnistream_ros.simulation.meta_world import TASKS, MetaWorldEnvironment


@pytest.fixture(scope="module")
def policy() -> OnnxPolicy:
    return OnnxPolicy(SHIPPED)


def test_it_was_trained_on_features_of_the_shipped_weights(policy: OnnxPolicy) -> None:
    _, card = load_model("omnistream-nano")
    assert policy.needs.model_sha256 == card.sha256, (
        "the weights have changed: train the policy again, docs/closed_loop.md has the command"
    )


def test_it_is_for_the_simulated_robot_and_its_tasks(policy: OnnxPolicy) -> None:
    names = tuple(axis.name for axis in MetaWorldEnvironment.axes)
    assert policy.needs.joints == policy.spec.names == names
    assert policy.spec.low == tuple(axis.low for axis in MetaWorldEnvironment.axes)
    assert policy.spec.dt == pytest.approx(STEPS_PER_FRAME * 0.0125)
    told = policy.facts.tasks["instructions"]
    assert told == {task.name: task.instructions[0] for task in TASKS}
    assert SHIPPED.stat().st_size < 2_000_000


def test_whatever_it_sees_it_commands_places_within_reach(policy: OnnxPolicy) -> None:
    rng = np.random.default_rng(0)
    (feature,) = policy.needs.features
    for size in (0.0, 1.0, 100.0):
        rows = policy.act(
            Observation(
                features={
                    (feature.stream, feature.key): (
                        size * rng.standard_normal(feature.shape)
                    ).astype(np.float32)
                },
                joints=np.array([0.0, 0.6, 0.2, 1.0]),
                embedding=rng.standard_normal(384).astype(np.float32),
            )
        )
        assert np.isfinite(rows).all()
        assert (rows >= np.array(policy.spec.low) - 1e-6).all()
        assert (rows <= np.array(policy.spec.high) + 1e-6).all()
