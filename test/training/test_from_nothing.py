# SPDX-License-Identifier: Apache-2.0
"""`omnistream train` as a whole, and what its options come to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import _settings
from tiny_clips import plane_clip, write_clip

from omnistream_ros.cli import main
from omnistream_ros.model import NANO, build_model, load_model
from omnistream_ros.training import from_nothing
from omnistream_ros.training.export import export_weights
from omnistream_ros.training.from_nothing import train_from_nothing
from omnistream_ros.training.losses import LossWeights
from omnistream_ros.training.matching_pairs import PairBatch
from omnistream_ros.training.train_matching import MatchingTrainer
from omnistream_ros.training.train_settings import TrainSettings

SMALL = replace(NANO, name="small", width=32, heads=1, head_width=16, model_pixels=64 * 48)


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    settings = _settings(tmp_path / "clips", tmp_path / "run", 2)
    return replace(settings, frames_per_step=1, lengths={1: 1.0}, output=tmp_path / "w.safetensors")


def _quiet(line: str) -> None:
    """Where the progress lines of tests go."""


def _fake_fill(folder: Path, first: int, last: int, pictures: bool) -> None:
    """What the renderer would write."""
    folder.mkdir(exist_ok=True)
    for number in range(first, last):
        path = folder / f"clip_{number:06d}.npz"
        if not path.exists():
            write_clip(path, plane_clip(seed=number, frames=16))


def test_clips_weights_and_matching_head_in_one_go(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.output is not None
    monkeypatch.setattr(from_nothing, "fill", _fake_fill)
    said: list[str] = []
    train_from_nothing(SMALL, settings, (0, 3), matching_steps=2, report=said.append)
    model, card = load_model(settings.output)
    assert model.matching_head is not None
    assert card.training["matching head"]["steps"] == 2
    assert card.training["last run"]["clips"] == 2
    # Again: nothing is left to do, and nothing is done.
    done = settings.output.read_bytes()
    train_from_nothing(SMALL, settings, (0, 3), matching_steps=2, report=said.append)
    assert settings.output.read_bytes() == done
    assert sum("training one" in line for line in said) == 1


def test_matching_goes_on_where_it_was_stopped(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And begins anew where the training has gone on to other weights since."""
    assert settings.output is not None
    _fake_fill(settings.clips, 0, 3, False)
    step = MatchingTrainer.step

    def stopped_at_2(self: MatchingTrainer, batch: PairBatch) -> dict[str, float]:
        if self.progress.step == 2:
            self.stopped = True
        return step(self, batch)

    monkeypatch.setattr(MatchingTrainer, "step", stopped_at_2)
    train_from_nothing(SMALL, settings, matching_steps=5, report=_quiet)
    monkeypatch.setattr(MatchingTrainer, "step", step)
    assert load_model(settings.output)[0].matching_head is None
    said: list[str] = []
    train_from_nothing(SMALL, settings, matching_steps=5, report=said.append)
    assert any(line.startswith("resuming at step 3 of") for line in said)
    assert load_model(settings.output)[1].training["matching head"]["steps"] == 5

    torch.manual_seed(5)
    export_weights(settings.output, build_model(SMALL), {})  # whose trunk is another
    said.clear()
    train_from_nothing(SMALL, settings, matching_steps=5, report=said.append)
    assert load_model(settings.output)[0].matching_head is not None
    assert not any("resuming" in line for line in said)


def test_a_run_that_was_stopped_trains_no_matching(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_fill(settings.clips, 0, 2, False)
    monkeypatch.setattr(from_nothing, "train", lambda config, settings: False)
    monkeypatch.setattr(from_nothing, "train_matching", None)  # calling it would fail
    train_from_nothing(SMALL, settings)


def test_a_team_does_not_render(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"render --clips 5:9 --out .*clips"):
        train_from_nothing(SMALL, settings, (5, 9))


def test_options_of_the_command_become_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[object, ...]] = []

    def take(model: str, settings: TrainSettings, seeds: object, *, pictures: bool) -> None:
        given.append((model, settings, seeds, pictures))

    monkeypatch.setattr(from_nothing, "train_from_nothing", take)
    options = "--steps 5 --render 3:8 --coarse-part 0.5 --step-motion 0.25 --distillation 0.1"
    command = ["train", str(tmp_path), "--run", str(tmp_path / "run"), *options.split()]
    assert main([*command, "--learning-rate", "4e-4", "--without", "rays", "gradient"]) == 0
    ((model, settings, seeds, pictures),) = given
    assert isinstance(settings, TrainSettings)
    assert (model, seeds, pictures) == ("omnistream-nano", (3, 8), False)
    assert (settings.steps, settings.coarse_part) == (5, 0.5)
    assert (settings.learning_rate, settings.trunk_learning_rate) == (4e-4, 1e-4)
    assert settings.weights == replace(
        LossWeights(), rays=0.0, gradient=0.0, step_translation=0.25, step_rotation=0.25
    )
    assert settings.objectives.distillation == 0.1
    with pytest.raises(SystemExit):
        main([*command, "--without", "depth"])
