# SPDX-License-Identifier: Apache-2.0
"""Episodes of the expert: what they hold, and that files are complete or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnistream_ros.simulation.environment import Environment
from omnistream_ros.simulation.episodes import (
    EpisodeError,
    collect,
    episode_file,
    read_episode,
    show,
    write_episode,
)
from omnistream_ros.simulation.tasks import make_environment


def test_an_episode_comes_back_as_it_was_written(tmp_path: Path) -> None:
    episode = show(make_environment("toy-red"), 5)
    again = read_episode(write_episode(tmp_path, episode))
    for name in ("images", "positions", "commands", "led"):
        np.testing.assert_array_equal(getattr(again, name), getattr(episode, name))
    assert (again.task, again.seed, again.success) == ("toy-red", 5, True)


def test_without_wrong_ways_all_commands_are_the_experts() -> None:
    env = make_environment("toy-red")
    episode = show(env, 5, astray=False)
    assert episode.led.all()
    env.reset(5)
    np.testing.assert_allclose(episode.commands, np.tile(env.expert(), (len(episode.led), 1)), 1e-6)


def test_wrong_ways_are_marked_and_left_again() -> None:
    env = make_environment("toy-red")
    episodes = [show(env, seed) for seed in range(20)]
    astray = [e for e in episodes if not e.led.all()]
    assert len(astray) > 5
    for episode in astray:
        env.reset(episode.seed)
        wrong = np.linalg.norm(episode.commands - env.expert(), axis=1) > 1e-6
        np.testing.assert_array_equal(wrong, ~episode.led)
        assert episode.success


def test_collecting_goes_on_where_it_was(tmp_path: Path) -> None:
    collect(tmp_path, ["toy-red"], range(2), make_environment)
    first = episode_file(tmp_path, "toy-red", 0)
    written = first.stat().st_mtime_ns
    made: list[str] = []

    def make(name: str) -> Environment:
        made.append(name)
        return make_environment(name)

    collect(tmp_path, ["toy-red"], range(3), make)
    assert first.stat().st_mtime_ns == written
    assert sorted(p.name for p in (tmp_path / "toy-red").iterdir()) == [
        "000000.npz",
        "000001.npz",
        "000002.npz",
    ]
    collect(tmp_path, ["toy-red"], range(3), make)
    assert made == ["toy-red"]


@pytest.mark.parametrize("spoil", [b"", b"PK\x03\x04 nothing", b"\x00" * 500])
def test_a_spoilt_file_is_named(tmp_path: Path, spoil: bytes) -> None:
    path = write_episode(tmp_path, show(make_environment("toy-red"), 1))
    path.write_bytes(spoil)
    with pytest.raises(EpisodeError, match=r"000001\.npz"):
        read_episode(path)


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = write_episode(tmp_path, show(make_environment("toy-red"), 1))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(EpisodeError, match="collect again"):
        read_episode(path)
