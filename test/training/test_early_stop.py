# SPDX-License-Identifier: Apache-2.0
"""A recording that judges the training: what is kept, when it ends, and what it must not be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_clips import plane_clip, write_clip
from tiny_recordings import write_tum_recording

from omnistream_ros.evaluation.recordings import RecordingError
from omnistream_ros.model import ModelConfig, load_model
from omnistream_ros.training import best_weights
from omnistream_ros.training import train as training
from omnistream_ros.training.held_out import HeldOutScore, clips_of_recordings
from omnistream_ros.training.recorded_clips import write_recorded_clips
from omnistream_ros.training.train import Trainer
from omnistream_ros.training.train_settings import TrainSettings

TINY = ModelConfig(
    name="tiny",
    width=64,
    depth=2,
    heads=1,
    taps=(0, 0, 1, 1),
    head_width=16,
    model_pixels=64 * 48,
    metric=True,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in (1, 2):  # number 0, which would be held out, is not there
        write_clip(folder / f"clip_{number:06d}.npz", plane_clip(seed=number, frames=16))
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings") / "kitchen"
    return write_tum_recording(folder, plane_clip(seed=7, frames=18, size=(96, 128)))


@pytest.fixture
def settings(clips: Path, recording: Path, tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        clips=clips,
        run=tmp_path / "run",
        held_out=(recording,),
        steps=40,
        pretrained=False,
        frames_per_step=2,
        lengths={1: 1.0},
        save_period=5,
        judge_period=5,
        coarse_sizes=(),
        full_sizes=(),
    )


def _given_scores(monkeypatch: pytest.MonkeyPatch, deltas: list[float]) -> list[int]:
    """Lets the judge find these, and errors to match; returns how many clips it was shown."""
    shown: list[int] = []

    def score(model: object, clips: list) -> HeldOutScore:
        shown.append(len(clips))
        delta = deltas[min(len(shown), len(deltas)) - 1]
        return HeldOutScore(0.5, 0.5, delta, 0.5, log_mae=1 - delta)

    monkeypatch.setattr(best_weights, "score_clips", score)
    return shown


def test_ends_when_the_recording_gets_no_better(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _given_scores(monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.25])
    lines: list[str] = []
    trainer = Trainer(TINY, replace(settings, patience=3), report=lines.append)
    trainer.run()
    assert trainer.progress.step == 25  # the best was at 10; 15, 20 and 25 brought nothing
    assert shown == [2] * 5  # 18 frames are a clip of 16 and one of 2
    assert any("no better than step 10 in 3 judgements" in line for line in lines)
    assert (settings.run / "state.safetensors").exists()
    (judge, found), *_ = load_model(settings.run / "best.safetensors")[1].accuracy.items()
    assert (found["step"], found["delta_1"]) == (10, 0.3)
    assert judge == "clips of kitchen, by which the weights were chosen"


def test_patience_survives_a_resume(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _given_scores(monkeypatch, [0.3, 0.1])
    Trainer(TINY, replace(settings, patience=9, steps=15), report=lambda _: None).run()
    again = Trainer(TINY, replace(settings, patience=3), report=lambda _: None)
    again.run()
    assert again.progress.step == 20


def test_real_scores_are_of_the_recording(settings: TrainSettings, recording: Path) -> None:
    """Judging for true, and the clips carry the recording's depth at the model's size."""
    trainer = Trainer(TINY, replace(settings, steps=5), report=lambda _: None)
    score = trainer.run()
    assert score is not None
    assert np.isfinite(score.abs_rel)
    (first, _) = clips_of_recordings([recording], TINY, length=16)
    assert first.rgb.shape == (16, 48, 64, 3)
    assert np.nanmedian(first.depth) == pytest.approx(
        np.median(plane_clip(seed=7, frames=16, size=(96, 128)).depth), rel=0.02
    )


def test_a_run_from_weights_sees_full_size_at_once(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(TINY, replace(settings, steps=5), report=lambda _: None).run()
    sizes: set[tuple[int, ...]] = set()
    step = Trainer._step

    def watch(self: Trainer, batch: training.Batch) -> dict[str, float]:
        sizes.add(tuple(batch.pixels.shape[-2:]))
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", watch)
    small = replace(settings, run=settings.run.with_name("next"), steps=4)
    small = replace(small, coarse_sizes=((32, 32),))
    start = settings.run / "best.safetensors"
    Trainer(TINY, replace(small, start_from=start), report=lambda _: None).run()
    assert sizes == {(48, 64)}
    Trainer(TINY, replace(small, run=settings.run.with_name("fresh")), report=lambda _: None).run()
    assert (32, 32) in sizes


def test_a_recording_that_is_trained_on_cannot_judge(
    settings: TrainSettings, recording: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    assert write_recorded_clips([recording], cut) > 0
    with pytest.raises(ValueError, match="kitchen: held out, but clips of it are in"):
        Trainer(TINY, replace(settings, recorded=cut), report=lambda _: None)


def test_a_judge_without_depth_is_refused(settings: TrainSettings, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    with pytest.raises(RecordingError):
        Trainer(TINY, replace(settings, held_out=(images,)), report=lambda _: None).run()
    with pytest.raises(ValueError, match="patience"):
        replace(settings, patience=0)
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1.5"):
        replace(settings, coarse_fraction=1.5)
    with pytest.raises(ValueError, match=r"multiples of 16, got 130x96"):
        replace(settings, coarse_sizes=((130, 96),))
