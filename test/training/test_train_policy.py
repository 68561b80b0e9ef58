# SPDX-License-Identifier: Apache-2.0
"""Imitation on the toy robot: what is learned from, that it is learned, and what the file says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from omnistream_ros.action.onnx_policy import OnnxPolicy
from omnistream_ros.action.policy import Needs, Observation
from omnistream_ros.action.spaces import Space
from omnistream_ros.evaluation.policy_trials import PolicyModelError, open_eyes
from omnistream_ros.evaluation.stream_features import StreamFeatures
from omnistream_ros.simulation.environment import Axis
from omnistream_ros.simulation.episodes import Episode, collect, show
from omnistream_ros.simulation.tasks import make_environment
from omnistream_ros.training.policy_data import (
    Demonstrations,
    FeatureSource,
    chunks_of,
    read_demonstrations,
)
from omnistream_ros.training.policy_export import export_policy, facts_of
from omnistream_ros.training.policy_fit import FitSettings, fit
from omnistream_ros.training.policy_network import PolicyNetwork, PolicyShape
from omnistream_ros.training.train_policy import PolicySettings

NANO, KEY = "omnistream-nano", "7:patch:normed"
AXES = (Axis("x", "m", -1.0, 1.0), Axis("grip", "1", 0.0, 1.0))


def _episode(led: list[bool]) -> Episode:
    frames = len(led)
    commands = np.arange(2 * frames, dtype=np.float32).reshape(frames, 2)
    images = np.zeros((frames, 8, 8, 3), np.uint8)
    return Episode("toy-red", 0, images, commands, commands, np.array(led), True)


def test_chunks_are_the_commands_that_follow() -> None:
    episode = _episode([True] * 5)
    chunks, counts = chunks_of(episode, 3)
    np.testing.assert_array_equal(chunks[1], episode.commands[1:4])
    np.testing.assert_array_equal(counts[:, 2], [True, True, True, False, False])
    np.testing.assert_array_equal(chunks[4, 1:], episode.commands[[4, 4]])


def test_a_chunk_ends_where_the_robot_is_led_astray() -> None:
    _, counts = chunks_of(_episode([True, True, False, True, True]), 4)
    np.testing.assert_array_equal(
        counts,
        np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool),
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Demonstrations]:
    folder = tmp_path_factory.mktemp("policy")
    tasks = ("toy-red", "toy-blue")
    collect(folder / "episodes", tasks, range(3), make_environment, lambda _: None)
    view = make_environment("toy-red").field_of_view
    source = FeatureSource(NANO, (KEY,))
    return folder, read_demonstrations(
        folder / "episodes", tasks, range(3), 4, source, folder / "features", view
    )


def test_features_are_those_of_the_stream_from_the_beginning_of_each_episode(
    shown: tuple[Path, Demonstrations],
) -> None:
    _, data = shown
    env = make_environment("toy-blue")
    episode = show(env, 1)
    eyes = StreamFeatures(NANO, (KEY,), episode.images.shape[1:3], env.field_of_view)
    eyes.reset()
    wanted = [eyes.look(image, 0.1 * i)[KEY] for i, image in enumerate(episode.images)]
    mine = data.features[KEY][data.episodes == 4]
    np.testing.assert_allclose(mine.float().numpy(), np.stack(wanted), atol=2e-2)
    assert data.model_sha256 == eyes.sha256
    # The past makes a difference; without it every frame is the first.
    alone = StreamFeatures(NANO, (KEY,), episode.images.shape[1:3], env.field_of_view, cached=False)
    last = alone.look(episode.images[-1], 0.7)[KEY]
    assert np.abs(last - wanted[-1]).max() > 0.1
    np.testing.assert_allclose(alone.look(episode.images[0], 0.8)[KEY], wanted[0], atol=1e-4)


def test_too_few_successes_are_an_error_in_words(shown: tuple[Path, Demonstrations]) -> None:
    folder, _ = shown
    with pytest.raises(ValueError, match=r"1 of 1 demonstrations .* ask for more"):
        read_demonstrations(
            folder / "episodes", ["toy-red"], range(1), 4, None, folder / "features", (1.0, 1.0)
        )


def test_features_are_computed_once(shown: tuple[Path, Demonstrations]) -> None:
    folder, data = shown
    files = sorted((folder / "features").rglob("*.npy"))
    written = {file: file.stat().st_mtime_ns for file in files}
    assert len(files) == 6
    view = make_environment("toy-red").field_of_view
    again = read_demonstrations(
        folder / "episodes",
        data.names,
        range(3),
        4,
        FeatureSource(NANO, (KEY,)),
        folder / "features",
        view,
    )
    torch.testing.assert_close(again.features[KEY], data.features[KEY])
    assert {file: file.stat().st_mtime_ns for file in files} == written


def _world(n: int = 600) -> tuple[Demonstrations, list[torch.Tensor]]:
    """Frames whose answer stands in one token: go to where it is, if you are told so."""
    rng = np.random.default_rng(0)
    at = rng.integers(0, 12, n)
    features = 0.1 * rng.standard_normal((n, 3, 4, 8))
    features[np.arange(n), at // 4, at % 4, 0] = 5.0
    positions = rng.uniform(-0.5, 0.5, (n, 2)).astype(np.float32)
    tasks = rng.integers(0, 2, n)
    goal = (at % 4 - 1.5) / 3
    command = np.stack((np.where(tasks == 0, goal, -goal), tasks), -1)
    chunks = np.repeat(command[:, None], 2, axis=1).astype(np.float32)
    data = Demonstrations(
        {KEY: torch.from_numpy(features).half()},
        torch.from_numpy(positions),
        torch.from_numpy(chunks),
        torch.ones(n, 2, dtype=torch.bool),
        torch.from_numpy(tasks),
        torch.arange(n) // 5,
        ("there", "back"),
        "0" * 64,
    )
    return data, [torch.eye(384)[i : i + 1] for i in range(2)]


def test_it_learns_where_to_look_and_to_listen() -> None:
    data, sentences = _world()
    settings = FitSettings(steps=400, batch=64, learning_rate=4e-3)
    seeing = fit(data, sentences, AXES, settings, lambda _: None)
    blind = fit(dataclasses.replace(data, features={}), sentences, AXES, settings, lambda _: None)
    for task in data.names:
        assert seeing.error[task] < 8.0
        assert blind.error[task] > 25.0


def test_the_same_seed_gives_the_same_policy() -> None:
    data, sentences = _world(100)
    settings = FitSettings(steps=5, batch=16)
    one, other = (fit(data, sentences, AXES, settings, lambda _: None) for _ in range(2))
    for name, value in one.network.state_dict().items():
        torch.testing.assert_close(other.network.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("sees", [True, False])
def test_the_file_computes_what_the_network_does_and_says_what_it_is(
    tmp_path: Path, sees: bool
) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    shape = PolicyShape(((3, 4, 8),) if sees else (), 2, 5)
    network = PolicyNetwork(shape, [True, False]).eval()
    network.command_mean += torch.tensor([3.0, 0.0])  # x is beyond its range, and held there
    keys = (KEY,) if sees else ()
    facts = facts_of("mine", network, keys, "a" * 64 if sees else "", AXES, 0.1, {"sight": "x"})
    export_policy(tmp_path / "policy.onnx", network, facts)
    assert [p.name for p in tmp_path.iterdir()] == ["policy.onnx"]
    source = str(Path(__file__).parents[2]).encode()
    assert source not in (tmp_path / "policy.onnx").read_bytes()  # nothing of this machine
    policy = OnnxPolicy(tmp_path / "policy.onnx")
    assert policy.facts == facts
    assert (policy.spec.space, policy.spec.horizon, policy.spec.dt) == (
        Space.JOINT_POSITION,
        5,
        0.1,
    )
    rng = np.random.default_rng(1)
    features = rng.standard_normal((3, 4, 8)).astype(np.float32)
    joints, words = rng.uniform(-0.5, 0.5, 2), rng.standard_normal(384).astype(np.float32)
    seen = {("camera", KEY): features} if sees else {}
    said = policy.act(Observation(features=seen, joints=joints, embedding=words))
    inputs = [joints.astype(np.float32), words, *([features] if sees else [])]
    with torch.no_grad():
        wanted = network(*(torch.from_numpy(x)[None] for x in inputs))[0].numpy()
    low, high = [axis.low for axis in AXES], [axis.high for axis in AXES]
    assert (wanted[:, 0] > 1.0).any()
    np.testing.assert_allclose(said, np.clip(wanted, low, high), atol=1e-5)


def test_a_policy_of_other_weights_is_refused() -> None:
    network = PolicyNetwork(PolicyShape(((9, 12, 192),), 2, 4), [True, True])
    env = make_environment("toy-red")
    facts = facts_of("old", network, (KEY,), "b" * 64, env.axes, 0.1, {})
    needs = Needs(features=facts.features, model_sha256=facts.model_sha256)
    policy: Any = SimpleNamespace(name="old", facts=facts, needs=needs)
    with pytest.raises(PolicyModelError, match=r"bbbbbbbbbbbb.*train it again"):
        open_eyes(policy, NANO, env)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"sights": ("blindly",)}, "blindly"), ({"episodes": 1}, "least"), ({"horizon": 0}, "least")],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        PolicySettings(tmp_path, **wrong)
