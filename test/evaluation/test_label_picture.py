# SPDX-License-Identifier: Apache-2.0
"""The picture of labels: real frames through a real stream, an encoder that knows the answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from corridor import write_tum_folder

from omnistream_ros.evaluation.label_picture import LabelledFrame, draw, label_recording
from omnistream_ros.model import NANO, ModelCard, build_model, save_model

WORDS = ("chair", "potted plant", "wall")


def _encoder(sentences):  # type: ignore[no-untyped-def]
    return torch.eye(8)[: len(sentences)]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_tum_folder(tmp_path / "corridor", 5)


def _model(folder: Path, width: int) -> str:
    config = replace(
        NANO,
        name="small",
        width=32,
        heads=1,
        head_width=0,
        patch_embed="conv16",
        model_pixels=64 * 48,
        language_width=width,
    )
    path = folder / "small.safetensors"
    save_model(path, build_model(config), ModelCard(name="small", licence="-"))
    return str(path)


def test_frames_are_labelled_and_drawn(recording: Path, tmp_path: Path) -> None:
    target = tmp_path / "labels.png"
    shares = label_recording(
        recording, WORDS, target, model=_model(tmp_path, 8), count=3, encoder=_encoder
    )
    assert list(shares) == list(WORDS)
    assert sum(shares.values()) == pytest.approx(1)
    picture = cv2.imread(str(target))
    assert picture.shape[1] == 2 * (2 * 320 + 12)  # two frames, each beside its labels
    assert picture.shape[0] > 2 * 240  # three frames are two rows, and the legend


def test_colours_follow_the_words_and_how_sure_it_is() -> None:
    image = np.full((96, 128, 3), 100, np.uint8)
    indices = np.array([[0, 1], [1, 2]])
    sure = LabelledFrame(image, indices, np.ones((2, 2)))
    unsure = LabelledFrame(image, indices, np.full((2, 2), 0.05))
    left = draw([sure], WORDS)[6:246, 326:646].astype(int)
    pale = draw([unsure], WORDS)[6:246, 326:646].astype(int)
    corners = [left[10, 10], left[10, 310], left[230, 10], left[230, 310]]
    assert (corners[1] == corners[2]).all()
    assert all(abs(a - b).max() > 60 for a, b in zip(corners[:2], corners[2:], strict=True))
    own = 60 + 100 * 195 / 255
    assert abs(pale - own).max() < 15, "an undecided patch keeps the picture's own grey"


def test_what_is_missing_is_said(recording: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="language head"):
        label_recording(
            recording, WORDS, tmp_path / "x.png", model=_model(tmp_path, 0), encoder=_encoder
        )
    model = _model(tmp_path, 8)
    with pytest.raises(ValueError, match=r"x\.tiff: a picture is"):
        label_recording(recording, WORDS, tmp_path / "x.tiff", model=model, encoder=_encoder)
    with pytest.raises(ValueError, match="given twice: wall"):
        label_recording(
            recording, ["wall", "wall"], tmp_path / "x.png", model=model, encoder=_encoder
        )
