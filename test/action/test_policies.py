# SPDX-License-Identifier: Apache-2.0
"""The ONNX policy and the scripted one: what they read, what they answer, and how they fail."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the extra 'onnx'")
pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

import onnxruntime
from policy_files import FACTS, SHA256, with_action, write_policy

from omnistream_ros.action.onnx_policy import OnnxPolicy
from omnistream_ros.action.policy import Needs, Observation, PolicyError
from omnistream_ros.action.policy_file import PolicyFileError
from omnistream_ros.action.scripted_policy import ScriptedPolicy
from omnistream_ros.action.spaces import Space

OBSERVATION = Observation(
    features={("camera", "3:patch:normed"): np.full((2, 3, 4), 0.5, np.float32)},
    joints=np.array([0.25, 0.75]),
    instruction="lean forward",
    embedding=np.full(384, 0.125, np.float32),
)


def test_an_onnx_policy_reads_everything_by_name(tmp_path: Path) -> None:
    policy = OnnxPolicy(write_policy(tmp_path / "lean.onnx"))
    assert policy.act(OBSERVATION) == pytest.approx(np.full((8, 2), 0.5 + 0.5 + 0.125))
    assert (policy.name, policy.spec) == ("lean", FACTS.action)
    assert policy.needs.model_sha256 == SHA256
    assert policy.needs.joints == ("shoulder", "elbow")
    assert policy.needs.streams == ("camera",)
    assert policy.needs.embedding
    assert len(policy.sha256) == 64
    policy.close()


def test_a_policy_on_joints_alone_wants_no_model(tmp_path: Path) -> None:
    facts = dataclasses.replace(FACTS, features=(), instruction=None)
    policy = OnnxPolicy(write_policy(tmp_path / "blind.onnx", facts))
    assert policy.needs.model_sha256 == ""
    assert not policy.needs.instruction
    assert policy.act(OBSERVATION) == pytest.approx(np.full((8, 2), 0.5))


def test_a_wrong_shape_is_an_error_of_this_call_only(tmp_path: Path) -> None:
    policy = OnnxPolicy(write_policy(tmp_path / "lean.onnx"))
    features = {("camera", "3:patch:normed"): np.zeros((9, 9, 4), np.float32)}
    with pytest.raises(PolicyError, match="could not run the policy"):
        policy.act(dataclasses.replace(OBSERVATION, features=features))
    policy.act(OBSERVATION)


def test_cancel_leaves_the_policy_usable(tmp_path: Path) -> None:
    policy = OnnxPolicy(write_policy(tmp_path / "lean.onnx"))
    thread = threading.Thread(target=policy.cancel)
    thread.start()
    thread.join()
    assert policy.act(OBSERVATION).shape == (8, 2)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is a GPU"
)
def test_a_provider_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write_policy(tmp_path / "lean.onnx")
    with pytest.raises(PolicyFileError, match=r"no CUDAExecutionProvider, only .*CPU"):
        OnnxPolicy(path, "cuda")
    assert OnnxPolicy(path, "auto").provider == "CPUExecutionProvider"


def test_a_provider_that_does_not_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime then takes the next one, and only its log says so."""
    path = write_policy(tmp_path / "lean.onnx")
    asked: list[list[str]] = []
    make = onnxruntime.InferenceSession

    def session(model: object, *args: object, providers: list[str], **options: object) -> object:
        asked.append(providers)
        return make(model, *args, providers=providers[-1:], **options)

    every = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: every)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(PolicyFileError, match=r"could not start Tensorrt.*would use CPU"):
        OnnxPolicy(path, "tensorrt")
    assert asked == [every]
    assert OnnxPolicy(path, "auto").provider == "CPUExecutionProvider"
    assert asked[1] == every[1:]


def test_the_scripted_motion_begins_where_the_robot_is_and_stays_in_its_range() -> None:
    spec = with_action(horizon=100).action
    policy = ScriptedPolicy(spec, Needs(joints=("elbow", "shoulder")))
    actions = policy.act(Observation(joints=np.array([1.5, -0.9])))  # elbow, shoulder
    assert actions.shape == (100, 2)
    assert actions[0] == pytest.approx([-0.9, 1.5])
    assert (actions >= spec.low).all()
    assert (actions <= spec.high).all()
    assert np.ptp(actions, axis=0).min() > 0.02  # it moves
    following = policy.act(Observation(joints=np.array([1.4, -0.8]), consumed=1.0))
    assert following[0] == pytest.approx(actions[1])  # the phase goes on with what was consumed
    again = policy.act(Observation(joints=np.array([1.4, -0.8]), consumed=1.0))
    np.testing.assert_array_equal(again, following)  # however often it is asked
    policy.reset()
    assert policy.act(Observation(joints=np.array([0.0, 0.0])))[0] == pytest.approx([0.0, 0.0])


def test_a_script_is_followed_from_the_beginning_of_the_stream() -> None:
    spec = with_action(horizon=4, dt=0.5).action
    policy = ScriptedPolicy(
        spec, Needs(), [(0.0, (0.0, 1.0)), (1.0, (0.4, 1.0)), (2.0, (0.4, 0.0))]
    )
    first = policy.act(Observation(consumed=10.0))
    np.testing.assert_allclose(first, [[0.0, 1.0], [0.2, 1.0], [0.4, 1.0], [0.4, 0.5]])
    late = policy.act(Observation(consumed=13.5))
    np.testing.assert_allclose(late, [[0.4, 0.25], [0.4, 0.0], [0.4, 0.0], [0.4, 0.0]])
    policy.reset()
    np.testing.assert_allclose(policy.act(Observation(consumed=20.0)), first)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ([(0.0, (0.0,))], r"2 numbers \(shoulder, elbow\), got \[0.0\]"),
        ([(0.0, (0.0, float("nan")))], "2 numbers"),
        ([(1.0, (0.0, 0.0)), (0.5, (0.0, 0.0))], "must rise, got 0.5 after 1"),
        ([(float("inf"), (0.0, 0.0))], "must rise"),
    ],
)
def test_a_script_that_does_not_fit_is_refused(script: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ScriptedPolicy(FACTS.action, Needs(), script)


def test_a_scripted_twist_swings_about_the_middle_of_its_range() -> None:
    spec = with_action(
        space=Space.TWIST,
        names=("x", "rz"),
        units=("m/s", "rad/s"),
        frame="base_link",
        low=(-0.2, -1.0),
        high=(0.4, 1.0),
        horizon=80,
    ).action
    actions = ScriptedPolicy(spec, Needs()).act(Observation())
    assert actions[0] == pytest.approx([0.1, 0.0])
    assert (actions >= spec.low).all()
    assert (actions <= spec.high).all()
