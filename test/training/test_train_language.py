# SPDX-License-Identifier: Apache-2.0
"""A language head for a finished model: it learns words, and the rest stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_objectives import FakeEncoder
from test_probes import _write_described
from test_train import TINY
from tiny_clips import plane_clip, write_clip

from omnistream_ros.model import build_model, load_model, save_model
from omnistream_ros.model.checkpoint import ModelCard
from omnistream_ros.training.train_language import (
    LanguageSettings,
    LanguageTrainingError,
    train_language,
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    save_model(path, build_model(TINY), ModelCard("tiny", "none"))
    return path


def test_head_learns_and_the_model_stays(weights: Path, tmp_path: Path) -> None:
    clips = _write_described(tmp_path / "clips", 11, frames=8)
    settings = LanguageSettings(clips, steps=60, takes_per_step=4, learning_rate=5e-3)
    output = tmp_path / "out.safetensors"
    lines: list[str] = []
    figures = train_language(weights, output, settings, encoder=FakeEncoder(), report=lines.append)
    # Two classes fill these pictures, so that guessing among all 18 would be right once in 18.
    assert figures["class of a patch"] > 0.4
    before, after = (load_model(p)[0] for p in (weights, output))
    assert after.language_head is not None
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    card = load_model(output)[1]
    assert card.training["language head"]["steps"] == 60
    assert card.accuracy["language head, held-out rendered clips"] == figures
    again = train_language(weights, output, settings, encoder=FakeEncoder(), report=lines.append)
    assert again == figures
    assert any("2 held out" in line for line in lines)


def test_clips_without_boxes_teach_no_words(weights: Path, tmp_path: Path) -> None:
    clips = tmp_path / "bare"
    clips.mkdir()
    write_clip(clips / "clip_000001.npz", plane_clip(1, 8))
    with pytest.raises(LanguageTrainingError, match="render"):
        train_language(weights, tmp_path / "o", LanguageSettings(clips), encoder=FakeEncoder())
    with pytest.raises(ValueError, match="steps"):
        LanguageSettings(clips, steps=0)
