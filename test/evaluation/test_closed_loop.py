# SPDX-License-Identifier: Apache-2.0
"""The loop without ROS, closed by policies whose success is known beforehand; its figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from omnistream_ros.action.blending import Blending
from omnistream_ros.action.policy import Needs, Observation
from omnistream_ros.action.scripted_policy import ScriptedPolicy
from omnistream_ros.action.spaces import ActionSpec, Space
from omnistream_ros.evaluation.closed_loop import Loop
from omnistream_ros.evaluation.policy_trials import (
    FIRST_SEED,
    SHIPPED,
    TrialConditionsError,
    TrialSettings,
    named_policies,
    run_trials,
)
from omnistream_ros.simulation.environment import STEPS_PER_FRAME, Environment
from omnistream_ros.simulation.success import Attempt, Rate, rates, table
from omnistream_ros.simulation.tasks import make_environment, task_named

HORIZON = 4


class Oracle:
    """Asks the expert of an environment, in the order of axes that it likes."""

    name, sha256 = "oracle", ""

    def __init__(self, env: Environment, names: tuple[str, ...] = ("y", "x")) -> None:
        self.spec = ActionSpec(
            Space.JOINT_POSITION, names, ("m", "m"), "", HORIZON, 0.1, (-1.0, -1.0), (1.0, 1.0)
        )
        self.needs = Needs(joints=names, instruction=True)
        self.seen: list[Observation] = []
        self._env = env

    def act(self, observation: Observation) -> np.ndarray:
        self.seen.append(observation)
        order = [[a.name for a in self._env.axes].index(name) for name in self.spec.names]
        return np.tile(self._env.expert()[order], (HORIZON, 1))

    def reset(self) -> None:
        self.seen.clear()

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_an_oracle_does_it_however_late_it_is_heard(delay: int) -> None:
    env = make_environment("toy-red")
    policy = Oracle(env)
    attempt = Loop(policy, None, delay=delay).attempt(env, 4, None)
    assert attempt.success
    at_once = Loop(policy, None).attempt(env, 4, None)
    late = delay * STEPS_PER_FRAME * env.step_s
    assert attempt.seconds == pytest.approx(at_once.seconds + late)


def test_it_sees_the_robot_where_it_is_and_in_its_own_order() -> None:
    env = make_environment("toy-red")
    policy = Oracle(env)
    frames = []
    Loop(policy, None).attempt(env, 4, None, watch=lambda e: frames.append(e.positions()))
    assert len(frames) == len(policy.seen)
    for position, observation in zip(frames, policy.seen, strict=True):
        np.testing.assert_array_equal(observation.joints, position[::-1])
        assert observation.instruction == "move to the red disc"


def test_a_delay_longer_than_the_chunk_never_moves_it() -> None:
    env = make_environment("toy-red")
    policy = Oracle(env)
    begin: list[np.ndarray] = []
    attempt = Loop(policy, None, delay=HORIZON + 1).attempt(
        env, 4, None, watch=lambda e: begin.append(e.positions())
    )
    assert not attempt.success
    np.testing.assert_array_equal(begin[0], begin[-1])


def test_a_policy_for_another_robot_is_refused_by_the_name_of_the_axis() -> None:
    env = make_environment("toy-red")
    with pytest.raises(ValueError, match=r"'elbow'.*x, y"):
        Loop(Oracle(env, ("elbow", "x")), None).attempt(env, 0, None)


@pytest.mark.parametrize("dt", [0.05, 0.1, 0.3])
def test_a_row_lasts_as_long_as_the_policy_says(dt: float) -> None:
    """To one side within 2 s, as the robot is at every frame."""
    env = make_environment("toy-red")
    spec = ActionSpec(Space.JOINT_POSITION, ("x", "y"), ("m", "m"), "", 8, dt, (-1, -1), (1, 1))
    env.reset(4)
    begin = env.positions()
    policy = ScriptedPolicy(spec, Needs(), [(0.0, begin), (2.0, begin + 0.04)])
    places: list[np.ndarray] = []
    Loop(policy, None).attempt(env, 4, None, watch=lambda e: places.append(e.positions()))
    way = (np.array(places) - begin)[:20, 0]
    np.testing.assert_allclose(way, 0.002 * np.arange(20), atol=0.002)


def test_a_policy_whose_numbers_are_no_positions_is_refused() -> None:
    env = make_environment("toy-red")
    policy = Oracle(env)
    policy.spec = dataclasses.replace(policy.spec, space=Space.JOINT_DELTA)
    with pytest.raises(ValueError, match=r"commands joint_delta.*joint_position"):
        Loop(policy, None).attempt(env, 0, None)


@given(st.integers(1, 400), st.floats(0, 1))
def test_the_interval_holds_the_shares_that_a_score_test_does_not_reject(
    attempts: int, share: float
) -> None:
    """Wilson's interval by its definition: the p for which |p^ - p| = z sqrt(p (1 - p) / n)."""
    successes = round(share * attempts)
    rate = Rate(attempts, successes)

    def excess(p: float) -> float:
        return (rate.share - p) ** 2 - 1.959964**2 * p * (1 - p) / attempts

    low, high = rate.interval
    wanted_low = 0.0 if successes == 0 else optimize.brentq(excess, 0.0, rate.share - 1e-9)
    wanted_high = 1.0 if successes == attempts else optimize.brentq(excess, rate.share + 1e-9, 1.0)
    assert low == pytest.approx(wanted_low, abs=1e-6)
    assert high == pytest.approx(wanted_high, abs=1e-6)


def test_nothing_tried_is_nothing_known() -> None:
    assert Rate(0, 0).interval == (0.0, 1.0)


def test_rates_are_counted_by_task_and_told_in_a_table() -> None:
    made = [Attempt("a", i, i < 3, 1.0) for i in range(4)] + [Attempt("b", 0, False, 1.0)]
    found = rates(made)
    assert found == {"a": Rate(4, 3), "b": Rate(1, 0)}
    rows = table({"one": found}).splitlines()
    assert rows[2].startswith("| a |  75 % (30 to 95) |")
    assert rows[-1].startswith("| all |  60 %")


def test_trials_go_on_where_they_were(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> Environment:
        made.append(name)
        return make_environment(name)

    def trials(attempts: int, delay: int = 0) -> Rate:
        settings = TrialSettings((task_named("toy-red"),), attempts, delay=delay)
        found = run_trials({"expert": None}, settings, tmp_path, make, lambda _: np.zeros(384))
        return found["expert"]["toy-red"]

    assert trials(2) == Rate(2, 2)
    assert trials(2) == Rate(2, 2)
    assert made == ["toy-red"]
    assert trials(3) == Rate(3, 3)
    with (tmp_path / "expert.jsonl").open("a") as file:
        file.write('{"task": "toy-red", "seed": 10000')  # a run that was killed
    assert trials(3) == Rate(3, 3)
    lines = (tmp_path / "expert.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines[1:]] == [FIRST_SEED + i for i in range(3)]
    assert trials(1) == Rate(1, 1)  # of three that are there
    assert trials(3, delay=1) == Rate(3, 3)  # which the expert knows nothing of
    assert len(made) == 2
    assert (tmp_path / "expert.jsonl").read_text().splitlines() == lines


def test_attempts_under_other_conditions_are_named_and_kept(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    policies = {"new": None, "mine": SHIPPED}
    tried: list[str] = []

    def trials(settings: TrialSettings) -> None:
        run_trials(policies, settings, tmp_path, tried.append, lambda _: np.zeros(384))

    file = tmp_path / "mine.jsonl"
    tasks = (task_named("toy-red"),)
    trials(TrialSettings(tasks, attempts=0, delay=1))
    with file.open("a") as stream:
        stream.write('{"task": "toy-red", "seed": 1000000, "success": true, "seconds": 0.5}\n')
    before = file.read_text()
    for changes in ({"delay": 2}, {"blending": Blending("ensemble")}):
        settings = TrialSettings(tasks, **{"attempts": 1, "delay": 1, **changes})
        with pytest.raises(TrialConditionsError, match=r'"delay": 1.*"delay": [12].*--out'):
            trials(settings)
        assert file.read_text() == before
    assert tried == []  # what was to be tried before it neither
    file.write_text("something else\n")
    with pytest.raises(TrialConditionsError, match="something else"):
        trials(TrialSettings(tasks, attempts=0, delay=1))
    assert file.read_text() == "something else\n"


@pytest.mark.parametrize("word", ["", "policy.onnx", "=policy.onnx", "mine=", "expert=file"])
def test_policies_are_told_by_name_and_file(word: str) -> None:
    if word == "expert=file":
        assert named_policies([word]) == {"expert": Path("file")}
        return
    with pytest.raises(ValueError, match="NAME=FILE"):
        named_policies([word])
