# SPDX-License-Identifier: Apache-2.0
"""Bad input over real topics: the robot holds, the status says why, and it goes on afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the extra 'onnx'")
pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

sys.path.append(str(Path(__file__).resolve().parents[1] / "action"))

import dataclasses

from action_bench import SCRIPTED, Bench, arguments, benches
from omnistream_ros.msg import ActionStatus, FeatureTensor
from policy_files import with_action, write_policy
from ros_processes import NodeStarter, User
from sensor_msgs.msg import JointState

from omnistream_ros.action.scripted_policy import ScriptedPolicy
from omnistream_ros.nodes import action

HOLDING, EXECUTING = ActionStatus.HOLDING, ActionStatus.EXECUTING
_STALE, _NUMB = ActionStatus.FEATURES_STALE, ActionStatus.PROPRIOCEPTION_STALE
# Long enough that the robot moves on while the test machine is busy with something else.
HORIZON = 40


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    facts = dataclasses.replace(with_action(horizon=HORIZON), instruction=None)
    return write_policy(tmp_path_factory.mktemp("policy") / "lean.onnx", facts)


@pytest.fixture(scope="module")
def bench(module_domain: int, weights: Path, policy_file: Path) -> Iterator[Bench]:
    """A node with an ONNX policy that has to survive everything, one after the other."""
    parameters = {
        "policy": str(policy_file),
        "features": [""],
        "features_timeout": 0.4,
        "proprioception_timeout": 0.4,
    }
    yield from benches(module_domain, weights, **parameters)


def _features(**fields: Any) -> Callable[[FeatureTensor], FeatureTensor]:
    def spoil(message: FeatureTensor) -> FeatureTensor:
        for name, value in fields.items():
            setattr(message, name, value)
        return message

    return spoil


def _not_finite(message: FeatureTensor) -> FeatureTensor:
    values = np.frombuffer(message.data, np.float16).copy()
    values[-1] = np.inf
    message.data = values.tobytes()
    return message


def _old(message: Any) -> Any:
    message.header.stamp.sec -= 100
    return message


def _future(message: Any) -> Any:
    message.header.stamp.sec += 100
    return message


@pytest.mark.parametrize(
    ("spoil", "drop", "words"),
    [
        (lambda message: None, None, "limit 0.4 s"),
        (_features(shape=[2**40, 3, 4]), "bad_tensor", "the message was cut short"),
        (_features(shape=[-1]), "bad_tensor", "negative size"),
        (_features(data=b"123"), "bad_tensor", "the message was cut short"),
        (_features(dtype_code=FeatureTensor.DTYPE_INT), "bad_tensor", "must be floating point"),
        (_features(dtype_bits=3), "bad_tensor", "unknown element type"),
        (_features(shape=[4, 3, 2]), "other_shape", "[4, 3, 2], the policy reads [2, 3, 4]"),
        (_features(weights_sha256="f" * 64), "other_model", "weights ffffffffffff"),
        (_features(layer=2), None, "limit 0.4 s"),
        (_features(normed=False), None, "limit 0.4 s"),
        (_features(kind=200), None, "limit 0.4 s"),
        (_not_finite, "features_not_finite", "not finite"),
        (_old, "features_old", "s old"),
        (_future, "features_from_the_future", "s old"),
        (_features(stream_id="twin"), "other_stream", "'twin'"),
        (_features(frame_index=1), "frame_backwards", "frame 1 of 'camera'"),
    ],
    ids=[
        *("silence", "sizes_that_lie", "negative_sizes", "cut_short", "integers", "odd_type"),
        *("other_shape", "other_model", "other_layer", "not_normed", "other_kind", "not_finite"),
        *("too_old", "from_the_future", "other_stream", "frame_backwards"),
    ],
)
def test_features_that_cannot_be_used(
    bench: Bench, spoil: Callable[..., Any], drop: str | None, words: str
) -> None:
    bench.executes()
    before = bench.drops(drop) if drop else 0
    # What comes from the twin for longer than the limit is a stream of its own right.
    bench.robot.spoil_features = lambda m: None if drop == "other_stream" and late else spoil(m)
    late: list[int] = []
    if drop in ("other_stream", "frame_backwards"):
        bench.user.wait_until(lambda: bench.drops(drop) > before)
        late.append(1)
        bench.robot.spoil_features = lambda message: None
    status = bench.wait_for(HOLDING, _STALE, words)
    bench.moves_no_more()
    if drop:
        assert bench.drops(drop) > before
        assert drop in status.detail
    bench.robot.spoil_features = lambda message: message
    bench.executes()


def test_a_stream_that_was_reset(bench: Bench) -> None:
    """Nothing that was planned before the reset is carried out after it."""
    bench.executes()
    bench.robot.epoch, bench.robot.frame = bench.robot.epoch + 1, -1
    bench.user.wait_until(lambda: bench.chunks[-1].epochs[0] == bench.robot.epoch)
    bench.executes()
    before = bench.drops("epoch_backwards")
    late = bench.robot.features()
    late.epoch -= 1
    bench.robot.say(late)
    bench.user.wait_until(lambda: bench.drops("epoch_backwards") == before + 1)
    assert bench.last.state == EXECUTING


def test_a_perception_node_that_was_restarted(bench: Bench) -> None:
    bench.executes()
    bench.robot.spoil_features = lambda message: None
    bench.wait_for(HOLDING, _STALE)
    bench.robot.epoch, bench.robot.frame = 0, -1
    bench.robot.spoil_features = lambda message: message
    bench.executes()


def _rename(message: JointState) -> JointState:
    message.name = [f"{name}_2" for name in message.name]
    return message


def _drop_one(message: JointState) -> JointState:
    message.name, message.position = message.name[:1], message.position[:1]
    return message


def _nan(message: JointState) -> JointState:
    message.position = [float("nan"), 0.0]
    return message


def _short(message: JointState) -> JointState:
    message.position = message.position[:1]
    return message


def _no_stamp(message: JointState) -> JointState:
    message.header.stamp.sec = message.header.stamp.nanosec = 0
    return message


@pytest.mark.parametrize(
    ("spoil", "drop"),
    [
        (lambda message: None, None),
        (_rename, None),
        (_drop_one, None),
        (_nan, "joints_not_finite"),
        (_short, "joints_malformed"),
        (_old, "joints_old"),
        (_no_stamp, "joints_old"),
        (_future, "joints_from_the_future"),
    ],
    ids=["silence", "renamed", "one_missing", "nan", "short", "old", "no_stamp", "future"],
)
def test_joints_that_cannot_be_used(
    bench: Bench, spoil: Callable[..., Any], drop: str | None
) -> None:
    bench.executes()
    before = bench.drops(drop) if drop else 0
    bench.robot.spoil_joints = spoil
    status = bench.wait_for(HOLDING, _NUMB, "limit 0.4 s")
    bench.moves_no_more()
    if drop:
        assert bench.drops(drop) > before
        assert drop in status.detail
    bench.robot.spoil_joints = lambda message: message
    bench.executes()


def test_joints_in_another_order_with_others_among_them(bench: Bench) -> None:
    def shuffle(message: JointState) -> JointState:
        message.name = ["wheel", *reversed(message.name)]
        message.position = [99.0, *reversed(message.position)]
        return message

    bench.executes()
    bench.robot.spoil_joints = shuffle
    bench.user.wait_until(lambda: len(bench.chunks) > 0)
    bench.executes()
    del bench.robot.commands[:]
    bench.user.wait_until(lambda: len(bench.robot.commands) > 20)
    assert max(abs(p) for c in bench.robot.commands for p in c.position) < 2.0
    bench.robot.spoil_joints = lambda message: message
    bench.executes()


def test_a_joint_that_was_never_heard_is_named(bench: Bench) -> None:
    bench.executes()
    assert bench.change("deactivate")
    bench.robot.spoil_joints = _drop_one
    assert bench.change("activate")
    # At first nothing was heard of any joint, then a message tells of one.
    words = "no position of elbow; the last message told of shoulder"
    bench.wait_for(ActionStatus.WAITING, ActionStatus.NO_PROPRIOCEPTION, words)
    bench.robot.spoil_joints = lambda message: message
    bench.executes()


def test_a_policy_file_that_is_broken(bench: Bench, policy_file: Path, tmp_path: Path) -> None:
    bench.executes()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(policy_file.read_bytes()[:-100])
    assert bench.change("deactivate", "cleanup")
    assert bench.set_parameter("policy", str(broken))
    assert not bench.change("configure")
    assert bench.state() == "unconfigured"
    bench.node.wait_for(r"cannot configure: .*broken\.onnx")
    assert bench.set_parameter("policy", str(policy_file))
    assert bench.change("configure", "activate")
    bench.executes()


def _broken_policy(args: list[str]) -> int:
    """The node with a policy whose fourth answer is a bug."""
    answers = iter(range(3))
    right = ScriptedPolicy.act

    def act(self: ScriptedPolicy, observation: Any) -> np.ndarray:
        next(answers)
        return right(self, observation)

    ScriptedPolicy.act = act  # type: ignore[method-assign]
    return action.main(args)


def test_a_bug_in_a_policy_ends_in_a_hold_and_error_processing(
    user: User, start_node: NodeStarter
) -> None:
    line = arguments(**{**SCRIPTED, "autostart": True, "replan_actions": 4.0})
    bench = Bench(user, start_node.fork(_broken_policy, line))
    # The robot lives while the test waits in this way.
    user.wait_until(lambda: bench.node.count("recovered to unconfigured"), "recovery")
    user.wait_until(lambda: bench.status and bench.last.state == ActionStatus.FAULT, "FAULT")
    bench.ended_with_a_hold()
    bench.node.wait_for("StopIteration")
    assert bench.state() == "unconfigured"
    assert bench.change("configure", "activate")


def test_everything_was_survived(bench: Bench) -> None:
    assert bench.node.alive
    assert bench.node.count("Traceback") == 0
