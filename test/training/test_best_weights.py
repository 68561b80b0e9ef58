# SPDX-License-Identifier: Apache-2.0
"""The best weights so far stay: through kills, new runs, teams and other people's files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from test_early_stop import _given_scores
from test_train import TINY, _quiet, _settings
from tiny_clips import plane_clip, write_clip
from tiny_recordings import write_tum_recording

from omnistream_ros.model import build_model, load_model
from omnistream_ros.model.sentence_encoder import WIDTH
from omnistream_ros.training import best_weights
from omnistream_ros.training.data import Batch
from omnistream_ros.training.export import export_weights
from omnistream_ros.training.held_out import HeldOutScore
from omnistream_ros.training.recorded_clips import write_recorded_clips
from omnistream_ros.training.team import Team
from omnistream_ros.training.train import Trainer
from omnistream_ros.training.train_settings import TrainSettings
from omnistream_ros.training.training_record import rows


class KilledError(Exception):
    """Stands for a kill: nothing after it runs."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in (0, 1, 2):  # number 0 is held out
        write_clip(folder / f"clip_{number:06d}.npz", plane_clip(seed=number, frames=16))
    return folder


@pytest.fixture
def settings(clips: Path, tmp_path: Path) -> TrainSettings:
    settings = replace(_settings(clips, tmp_path / "run", 20), frames_per_step=1, lengths={1: 1.0})
    return replace(settings, judge_period=5, save_period=100, output=tmp_path / "out.safetensors")


def _weights(path: Path, training: dict[str, object] | None = None, language: int = 0) -> Path:
    export_weights(path, build_model(replace(TINY, language_width=language)), training or {})
    return path


def test_a_kill_after_a_judgement_does_not_lose_it(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.output is not None
    _given_scores(monkeypatch, [0.7, 0.6])  # step 5 is the best of all
    step = Trainer._step

    def killed_at_7(self: Trainer, batch: Batch) -> dict[str, float]:
        if self.progress.step == 7:
            raise KilledError
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", killed_at_7)
    with pytest.raises(KilledError):
        Trainer(TINY, settings, report=_quiet).run()
    best = settings.output.read_bytes()
    monkeypatch.setattr(Trainer, "_step", step)
    again = Trainer(TINY, settings, report=_quiet)
    assert again.progress.step == 5
    assert again.progress.best["delta_1"] == 0.7
    again.run()
    assert settings.output.read_bytes() == best
    assert load_model(settings.run / "best.safetensors")[1].training["steps"] == 5


@pytest.mark.parametrize(("there", "replaced"), [(0.9, False), (0.2, True)])
def test_a_new_run_replaces_a_file_by_better_weights_only(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch, there: float, replaced: bool
) -> None:
    assert settings.output is not None
    before = _weights(settings.output).read_bytes()
    shown = _given_scores(monkeypatch, [there, 0.3, 0.5, 0.4])
    Trainer(TINY, settings, report=_quiet).run()
    assert len(shown) == 5  # the file, then at 5, 10, 15 and 20
    assert (settings.output.read_bytes() != before) is replaced
    if replaced:
        assert load_model(settings.output)[1].training["steps"] == 10


def test_weights_to_begin_with_are_judged_first(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.output is not None
    start = _weights(tmp_path / "start.safetensors", {"steps": 11})
    _given_scores(monkeypatch, [0.8, 0.5])
    Trainer(TINY, replace(settings, start_from=start), report=_quiet).run()
    kept, card = load_model(settings.output)
    assert card.training["steps"] == 11
    given = load_model(start)[0].state_dict()
    assert all((value == given[name]).all() for name, value in kept.state_dict().items())


def test_a_broken_file_in_the_way_is_replaced_with_a_word(settings: TrainSettings) -> None:
    assert settings.output is not None
    settings.output.write_bytes(b"no weights")
    said: list[str] = []
    Trainer(TINY, replace(settings, steps=5), report=said.append).run()
    load_model(settings.output)
    assert any("it will be replaced" in line for line in said)


def test_the_lowest_error_is_kept_and_not_the_highest_delta(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([(0.7212, 0.20), (0.7216, 0.21), (0.7000, 0.18), (0.7100, 0.18)])

    def score(model: object, clips: list) -> HeldOutScore:
        delta, error = next(found)
        return HeldOutScore(0.5, 0.5, delta, 0.5, log_mae=error)

    monkeypatch.setattr(best_weights, "score_clips", score)
    trainer = Trainer(TINY, settings, report=_quiet)
    trainer.run()
    assert trainer.progress.best["step"] == 15
    (figures,) = load_model(settings.run / "best.safetensors")[1].accuracy.values()
    assert (figures["step"], figures["log_mae"], figures["clips"]) == (15, 0.18, 1)
    assert "names" not in figures
    rows = (settings.run / "held_out.csv").read_text().splitlines()
    assert rows[0].endswith(",log_mae")
    assert rows[3].split(",")[0] == "15"
    assert rows[3].split(",")[-1] == "0.18000"


def test_a_run_that_was_judged_by_delta_goes_on(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state and table can be read, and its best weights are only replaced by better ones."""
    assert settings.output is not None
    _given_scores(monkeypatch, [0.7, 0.6])
    Trainer(TINY, replace(settings, steps=10), report=_quiet).run()
    files = (settings.run / "best.safetensors", settings.output)
    kept = [file.read_bytes() for file in files]
    trainer = Trainer(TINY, settings, report=_quiet)
    old = {"abs_rel": 0.2, "abs_rel_scaled": 0.2, "delta_1": 0.7, "delta_1_scaled": 0.7}
    trainer.progress.best = {"step": 5, "clips": 1, "judge": "rendered clips", **old}
    trainer._save()
    table = settings.run / "held_out.csv"
    table.write_text("step,abs_rel,abs_rel_scaled,delta_1,delta_1_scaled\n5,0.2,0.2,0.7,0.7\n")

    # The output file and the best weights again, then those of steps 15 and 20.
    shown = _given_scores(monkeypatch, [0.7, 0.7, 0.6, 0.65])
    said: list[str] = []
    again = Trainer(TINY, settings, report=said.append)
    assert again.progress.best["delta_1"] == 0.7
    again.run()
    assert len(shown) == 4
    assert any("it is judged again" in line for line in said)
    assert again.progress.best["step"] == 5
    assert again.progress.best["log_mae"] == pytest.approx(0.3)
    assert [file.read_bytes() for file in files] == kept
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["log_mae"]) for row in rows] == [
        ("5", ""),
        ("15", "0.40000"),
        ("20", "0.35000"),
    ]
    Trainer(TINY, settings, report=said.append).run()
    assert sum("it is judged again" in line for line in said) == 1


def test_other_clips_judge_again_what_is_best(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as before, but others: their scores do not compare."""
    folder = tmp_path / "growing"
    folder.mkdir()
    for number in (0, 1):
        write_clip(folder / f"clip_{number:06d}.npz", plane_clip(seed=number, frames=16))
    settings = replace(settings, clips=folder, validation_count=1)
    _given_scores(monkeypatch, [0.7])
    Trainer(TINY, replace(settings, steps=5), report=_quiet).run()
    for number in (50, 100):
        write_clip(folder / f"clip_{number:06d}.npz", plane_clip(seed=number, frames=16))
    _given_scores(monkeypatch, [0.4, 0.4, 0.5, 0.3])
    trainer = Trainer(TINY, replace(settings, steps=15), report=_quiet)
    assert trainer.progress.best["names"] == ["clip_000000.npz"]
    trainer.run()
    best = trainer.progress.best
    assert (best["step"], best["delta_1"], best["names"]) == (10, 0.5, ["clip_000050.npz"])
    assert settings.output is not None
    assert load_model(settings.output)[1].training["steps"] == 10


class Follower(Team):
    """A process that is not the first of its team."""

    leads = False  # type: ignore[assignment]


def test_only_the_first_process_loses_its_patience(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another one knows of the best is as old as the state that it began with."""
    _given_scores(monkeypatch, [0.5, 0.4])
    for team, steps in ((Follower(), 20), (Team(), 10)):
        trainer = Trainer(TINY, replace(settings, patience=1), report=_quiet, team=team)
        trainer.progress.best = {"step": 0}
        trainer.run()
        assert trainer.progress.step == steps


def test_a_run_that_lost_patience_stays_ended(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _given_scores(monkeypatch, [0.5, 0.4])
    settings = replace(settings, patience=2, steps=100)
    Trainer(TINY, settings, report=_quiet).run()
    again = Trainer(TINY, settings, report=_quiet)
    assert again.progress.step == 15
    again.run()
    assert again.progress.step == 15


def test_what_the_first_weights_were_trained_on_is_told_and_cannot_judge(
    settings: TrainSettings, tmp_path: Path
) -> None:
    assert settings.output is not None
    kitchen = write_tum_recording(tmp_path / "kitchen", plane_clip(seed=7, frames=4))
    office = write_tum_recording(tmp_path / "office", plane_clip(seed=8, frames=4))
    start = _weights(tmp_path / "s.safetensors", {"recorded": ["kitchen"], "pretrained": True})
    assert write_recorded_clips([office], tmp_path / "cut") == 1
    settings = replace(settings, start_from=start, recorded=tmp_path / "cut", steps=2)
    with pytest.raises(ValueError, match=r"kitchen: held out, but .*s\.safetensors has been"):
        Trainer(TINY, replace(settings, held_out=(kitchen,)), report=_quiet)
    Trainer(TINY, settings, report=_quiet).run()
    training = load_model(settings.output)[1].training
    assert list(training["recorded"]) == ["kitchen", "office"]
    assert "ImageNet" in training["trunk starts from"]
    other = replace(settings, start_from=None, run=tmp_path / "other")
    Trainer(TINY, other, report=_quiet).run()
    assert "trunk starts from" not in load_model(tmp_path / "other/best.safetensors")[1].training


def test_the_card_counts_what_the_first_weights_had_behind_them(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = {"steps": 7, "clips": 3}  # trained apart, on features that stay
    start = _weights(
        tmp_path / "start.safetensors",
        {"steps": 4, "frames": 60, "hours": 1.5, "seed": 8, "clips": 99, "matching head": head},
    )
    _given_scores(monkeypatch, [0.1, 0.2, 0.3, 0.4])
    assert rows(load_model(start)[1].training)["last run"] == "seed 8, clips 99"  # of before
    settings = replace(settings, start_from=start, judge_period=2, output=None)
    Trainer(TINY, replace(settings, steps=2), report=_quiet).run()
    # The file that it began with is replaced by its own: resumed, nothing is counted twice.
    start.write_bytes((settings.run / "best.safetensors").read_bytes())
    trainer = Trainer(TINY, replace(settings, steps=6), report=_quiet)
    trainer.run()
    training = load_model(settings.run / "best.safetensors")[1].training
    assert training["steps"] == 4 + 6
    assert training["frames"] == 60 + trainer.progress.frames
    assert training["hours"] == pytest.approx(1.5, abs=0.1)
    assert training["matching head"] == head
    said = rows(training)
    assert (said["steps, all runs"], said["last run"]) == (10, "steps 6, seed 0, clips 2")
    assert "clips" not in training  # beside the sums it would pass for one


def test_recordings_of_heads_cannot_judge_either(settings: TrainSettings, tmp_path: Path) -> None:
    kitchen = write_tum_recording(tmp_path / "kitchen", plane_clip(seed=7, frames=4))
    heads = {"recordings": [str(tmp_path / "kitchen")]}  # as `omnistream train-heads` writes it
    start = _weights(tmp_path / "s.safetensors", {"heads": heads})
    with pytest.raises(ValueError, match=r"kitchen: held out, but .*s\.safetensors has been"):
        Trainer(TINY, replace(settings, start_from=start, held_out=(kitchen,)), report=_quiet)


def test_a_run_that_nothing_judges_leaves_its_last_weights(
    settings: TrainSettings, tmp_path: Path
) -> None:
    assert settings.output is not None
    folder = tmp_path / "unjudged"
    folder.mkdir()
    write_clip(folder / "clip_000001.npz", plane_clip(seed=1, frames=16))
    said: list[str] = []
    Trainer(TINY, replace(settings, clips=folder, steps=2), report=said.append).run()
    assert load_model(settings.output)[1].training["steps"] == 2
    assert any("render more" in line for line in said)
    assert f"{settings.run / 'best.safetensors'}: the last weights of the run, not judged" in said
    assert f"{settings.output}: the last weights of the run" in said
    # Further on, nothing says that they are better than what now stands there.
    Trainer(TINY, replace(settings, clips=folder, steps=4), report=said.append).run()
    assert load_model(settings.output)[1].training["steps"] == 2
    assert load_model(settings.run / "best.safetensors")[1].training["steps"] == 4
    assert any("stays as it is" in line for line in said)


def test_an_output_that_is_asked_for_later_is_written(settings: TrainSettings) -> None:
    assert settings.output is not None
    Trainer(TINY, replace(settings, steps=5, output=None), report=_quiet).run()
    Trainer(TINY, replace(settings, steps=5), report=_quiet).run()
    assert settings.output.read_bytes() == (settings.run / "best.safetensors").read_bytes()


def test_a_language_head_that_is_not_trained_is_left_out(
    settings: TrainSettings, tmp_path: Path
) -> None:
    assert settings.output is not None
    start = _weights(tmp_path / "start.safetensors", language=WIDTH)
    said: list[str] = []
    settings = replace(settings, start_from=start, steps=1)
    Trainer(TINY, settings, report=said.append).run()
    assert load_model(settings.output)[0].language_head is None
    assert any("omnistream train-language" in line for line in said)


def test_recorded_clips_of_a_run_stay_the_same(settings: TrainSettings, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    write_clip(cut / "clip_000000.npz", plane_clip(seed=5, frames=4))
    settings = replace(settings, recorded=cut, recorded_share=0.5)
    Trainer(TINY, replace(settings, steps=2), report=_quiet).run()
    write_clip(cut / "clip_000001.npz", plane_clip(seed=6, frames=4))
    again = Trainer(TINY, settings, report=_quiet)
    assert again.sampler.recorded_names == ["clip_000000.npz"]


def test_streams_are_trained_through_the_cache(settings: TrainSettings, tmp_path: Path) -> None:
    """Eight frames of clips that have five, seen with a window of two."""
    folder = tmp_path / "short"
    folder.mkdir()
    write_clip(folder / "clip_000001.npz", plane_clip(seed=1, frames=5))
    settings = replace(settings, clips=folder, stream_frames=8, context=(1, 2), steps=2)
    seen: list[tuple[tuple[int, ...], object]] = []
    trainer = Trainer(TINY, settings, report=_quiet)
    forward = trainer.model.forward_clip

    def watched(pixels, **options):  # type: ignore[no-untyped-def]
        seen.append((tuple(pixels.shape[:2]), options["context"]))
        return forward(pixels, **options)

    trainer.model.forward_clip = watched  # type: ignore[method-assign]
    before = trainer.model.backbone.blocks[0].attn.qkv.weight.detach().clone()
    trainer.run()
    assert seen == [((1, 8), (1, 2))] * 2
    assert (trainer.model.backbone.blocks[0].attn.qkv.weight != before).any()
