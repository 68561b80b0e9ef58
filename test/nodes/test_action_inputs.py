# SPDX-License-Identifier: Apache-2.0
"""Frames of several tensors, images for a policy, and parameters that are lists of names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from omnistream_ros.msg import FeatureTensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "action"))

from policy_files import FACTS, with_action

from omnistream_ros.action.chunk import Origin
from omnistream_ros.action.policy import Needs
from omnistream_ros.action.policy_facts import FeatureInput
from omnistream_ros.action.safety import Drop
from omnistream_ros.nodes import handover, named_values
from omnistream_ros.nodes.action_inputs import (
    ActionInputs,
    FeatureStream,
    all_finite,
    fit_in_square,
)
from omnistream_ros.nodes.action_parameters import ActionParameters
from omnistream_ros.nodes.action_policies import make_limits
from omnistream_ros.nodes.feature_messages import set_tensor

WANTED = (
    FeatureInput("camera", "3:patch:normed", (2, 3, 4), "a"),
    FeatureInput("camera", "1:cls", (4,), "b"),
)


class Listener:
    """What a controller would be told."""

    def __init__(self) -> None:
        self.frames: list[dict] = []
        self.refused: list[tuple[Drop, str]] = []

    def frame_arrived(self, stream: str, origin: Origin, payload: dict, now_ns: int) -> None:
        self.frames.append(payload)

    def refuse(self, stream: str, drop: Drop, words: str) -> None:
        self.refused.append((drop, words))


def _message(feature: FeatureInput, frame: int, dtype: type = np.float32) -> FeatureTensor:
    message = FeatureTensor(
        stream_id="camera", frame_index=frame, layer=feature.layer, normed=feature.normed
    )
    message.kind = FeatureTensor.PATCH if feature.kind == "patch" else FeatureTensor.CLS
    message.header.stamp.sec = 100 + frame
    set_tensor(message, np.full(feature.shape, frame, dtype))
    return message


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def stream(listener: Listener) -> FeatureStream:
    return FeatureStream("camera", WANTED, "", listener)  # type: ignore[arg-type]


def test_a_frame_is_complete_with_its_last_tensor(
    stream: FeatureStream, listener: Listener
) -> None:
    patches, cls = WANTED
    assert not stream.hear(_message(patches, 1), 0)
    assert stream.hear(_message(cls, 1), 0)
    (frame,) = listener.frames
    assert set(frame) == {("camera", "3:patch:normed"), ("camera", "1:cls")}
    assert listener.refused == []


def test_the_last_block_needs_no_number(listener: Listener) -> None:
    last = FeatureInput("camera", "-1:patch:normed", (2, 3, 4), "a")
    stream = FeatureStream("camera", [last], "", listener)  # type: ignore[arg-type]
    raw = FeatureInput("camera", "23:patch", (2, 3, 4), "")
    assert not stream.hear(_message(raw, 1), 0)  # whether that is the last one it does not say
    assert stream.hear(_message(FeatureInput("camera", "23:patch:normed", (2, 3, 4), ""), 1), 0)
    assert [set(frame) for frame in listener.frames] == [{("camera", "-1:patch:normed")}]


def test_tensors_of_two_frames_are_never_mixed(stream: FeatureStream, listener: Listener) -> None:
    patches, cls = WANTED
    stream.hear(_message(patches, 1), 0)
    stream.hear(_message(cls, 2), 0)
    assert listener.frames == []
    assert listener.refused == [(Drop.FRAME_INCOMPLETE, "a frame came without 1:cls")]
    stream.hear(_message(patches, 2), 0)
    (frame,) = listener.frames
    assert all((tensor == 2).all() for tensor in frame.values())


def test_tensors_of_others_are_told_only_until_the_right_ones_come(
    stream: FeatureStream, listener: Listener
) -> None:
    other = FeatureInput("camera", "2:cls", (4,), "c")
    stream.hear(_message(other, 1), 0)
    assert listener.refused == [
        (Drop.OTHER_FEATURE, "2:cls came, the policy reads 3:patch:normed, 1:cls")
    ]
    for feature in (*WANTED, other):
        stream.hear(_message(feature, 2), 0)
    assert len(listener.refused) == 1
    assert len(listener.frames) == 1


def test_bfloat16_and_tensors_by_reference(stream: FeatureStream, listener: Listener) -> None:
    torch = pytest.importorskip("torch")
    patches, cls = WANTED
    message = _message(patches, 1)
    set_tensor(message, torch.full((2, 3, 4), 0.5, dtype=torch.bfloat16))
    given = torch.arange(4.0)
    facts = _message(cls, 1)
    facts.data = b""
    stream.hear(message, 0)
    assert stream.hear(facts, 0, given)
    (frame,) = listener.frames
    assert (frame["camera", "3:patch:normed"] == 0.5).all()
    assert np.shares_memory(frame["camera", "1:cls"], given.numpy())  # nothing was copied


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_found(dtype: type, wrong: float) -> None:
    values = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(dtype)
    values[0, 0, 0], values[6, 4, 2] = np.finfo(dtype).max, np.finfo(dtype).min
    assert all_finite(values)
    assert all_finite(values[::2, ::-1])
    assert all_finite(np.zeros((0, 3), dtype))
    values[3, 2, 1] = wrong
    assert not all_finite(values)
    assert not all_finite(values.transpose())


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (10, 300), (1, 1), (224, 224)])
def test_an_image_fits_in_a_square(shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 200, np.uint8)
    square = fit_in_square(pixels, 224)
    assert square.shape == (224, 224, 3)
    lit = square[..., 0] > 0
    rows, columns = lit.any(axis=1).sum(), lit.any(axis=0).sum()
    assert max(rows, columns) == 224
    assert rows / columns == pytest.approx(shape[0] / shape[1], rel=0.1)
    middle = np.argwhere(lit).mean(axis=0)
    assert middle == pytest.approx([111.5, 111.5], abs=1.0)


class BrokenNode:
    """Makes so many subscriptions, and then no more."""

    def __init__(self, able: int) -> None:
        self.able = able
        self.subscriptions: list[str] = []

    def resolve_topic_name(self, topic: str) -> str:
        return f"/{topic}"

    def create_subscription(self, kind: type, topic: str, *_: object, **__: object) -> str:
        if len(self.subscriptions) == self.able:
            raise RuntimeError("no more")
        self.subscriptions.append(topic)
        return topic

    def destroy_subscription(self, subscription: str) -> None:
        self.subscriptions.remove(subscription)


@pytest.mark.parametrize("able", [0, 1, 2, 3])
def test_inputs_that_break_half_way_leave_nothing_behind(able: int) -> None:
    handover.announce("/broken/perception")
    node = BrokenNode(able)
    given = {"front": "broken/perception/features", "back": "elsewhere/features"}
    with pytest.raises(RuntimeError, match="no more"):
        ActionInputs(
            node,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            Needs(),
            streams=given,
            images={"image": "camera/image"},
            image_size=0,
            robot_names={"shoulder": "shoulder"},
            on_instruction=print,
            news=print,
        )
    assert node.subscriptions == []
    assert handover.listeners("/broken/perception/features") == ()


def test_handing_over_ends() -> None:
    heard: list = []
    handover.announce("/front/perception")
    assert handover.is_local("/front/perception/features")
    assert not handover.is_local("/front/perception_2/features")
    end = handover.listen("/front/perception/features", lambda m, t: heard.append(t))
    for listener in handover.listeners("/front/perception/features"):
        listener(FeatureTensor(), 1)
    end()
    assert handover.listeners("/front/perception/features") == ()
    assert heard == [1]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["a"], "must be NAME: VALUE"),
        (["a: 1", "a: 2"], "stands twice"),
        (["b: 1", "*: 1"], "['b'] are none of the names"),
        (["a: x"], "must be a positive number"),
        (["a: nan"], "must be a positive number"),
        (["a: inf"], "must be a positive number"),
        ([], "no value for ['a']"),
    ],
)
def test_values_by_name(entries: Sequence[str], words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        named_values.resolve(entries, ["a"], named_values.number)
    assert words in str(caught.value)
    assert named_values.resolve(["*: 2", "a: 1"], ["a", "b"], named_values.number) == [1.0, 2.0]


def test_scripts() -> None:
    read = named_values.script(["0: 1 2", "1.5: -0.5 3e-1"])
    assert read == [(0.0, [1.0, 2.0]), (1.5, [-0.5, 0.3])]
    for wrong in ("0 1 2", "soon: 1", "0: one"):
        with pytest.raises(ValueError, match=r"must be (SECONDS: NUMBER|NAME: VALUE)"):
            named_values.script([wrong])


def test_joints_that_turn_without_end_are_named() -> None:
    found = make_limits(FACTS.action, ActionParameters(continuous_joints=("shoulder",)))
    np.testing.assert_array_equal(found.endless, [True, False])
    np.testing.assert_array_equal(found.low, [-np.inf, FACTS.action.low[1]])
    with pytest.raises(ValueError, match=r"'continuous_joints': 'wrist' is none of .*shoulder"):
        make_limits(FACTS.action, ActionParameters(continuous_joints=("wrist",)))
    given = ActionParameters(
        continuous_joints=("shoulder",), position_limits=("shoulder: -1 1", "elbow: -1 1")
    )
    with pytest.raises(ValueError, match=r"'position_limits'.*shoulder"):
        make_limits(FACTS.action, given)
    metres = with_action(units=("m", "rad")).action
    with pytest.raises(ValueError, match="joints in rad"):
        make_limits(metres, ActionParameters(continuous_joints=("shoulder",)))
