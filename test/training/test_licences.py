# SPDX-License-Identifier: Apache-2.0
"""Licences of recordings go from the command that cuts them to what `omnistream info` says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_train import TINY, _quiet, _settings
from tiny_clips import plane_clip, write_clip
from tiny_recordings import write_released_backbone, write_tum_recording

from omnistream_ros import cli
from omnistream_ros.model import ModelCard, build_model, load_model, save_model
from omnistream_ros.training.assets import LICENCES
from omnistream_ros.training.export import training_behind
from omnistream_ros.training.head_settings import HeadSettings, HeadTrainingError
from omnistream_ros.training.licences import collected, licences_in, told, with_earlier
from omnistream_ros.training.recorded_clips import recordings_of
from omnistream_ros.training.train import Trainer


def _recording(folder: Path, seed: int, frames: int = 4) -> Path:
    return write_tum_recording(folder, plane_clip(seed, frames, size=(96, 128)))


def _cut(recording: Path, folder: Path, *licence: str) -> None:
    words = ["clips", str(recording), "--out", str(folder)]
    assert cli.main([*words, *(("--licence", *licence) if licence else ())]) == 0


def _old_weights(path: Path, training: dict[str, object]) -> Path:
    """Weights whose card is of the time before licences were kept."""
    save_model(path, build_model(TINY), ModelCard("tiny", "none", training=training))
    return path


def _info(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert cli.main(["info", str(path)]) == 0
    rows = (line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    return {name.strip(): value.strip() for name, value in rows}


def test_licence_of_clips_reaches_the_weights_and_info(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Old weights, trained on two rooms, go on with one of them cut again and with a third."""
    rooms = {name: _recording(tmp_path / name, seed=n) for n, name in enumerate(("attic", "hall"))}
    _cut(rooms["attic"], tmp_path / "cut")
    assert recordings_of(tmp_path / "cut") == {"attic": "not stated"}
    _cut(rooms["attic"], tmp_path / "cut", " CC  BY 4.0")
    _cut(rooms["hall"], tmp_path / "cut")
    start = _old_weights(tmp_path / "start.safetensors", {"recorded": ["attic", "yard"]})
    assert _info(start, capsys)["trained: recorded"] == (
        "attic (licence not stated), yard (licence not stated)"
    )

    rendered = tmp_path / "rendered"
    rendered.mkdir()
    write_clip(rendered / "clip_000001.npz", plane_clip(seed=1, frames=16))
    settings = replace(
        _settings(rendered, tmp_path / "run", 2),
        frames_per_step=1,
        lengths={1: 1.0},
        recorded=tmp_path / "cut",
        start_from=start,
    )
    Trainer(TINY, settings, report=_quiet).run()
    weights = settings.run / "best.safetensors"
    licences = {"attic": "CC BY 4.0", "hall": "not stated", "yard": "not stated"}
    assert load_model(weights)[1].training["recorded"] == licences
    rows = _info(weights, capsys)
    line = "attic (CC BY 4.0), hall (licence not stated), yard (licence not stated)"
    assert rows["trained: recorded"] == line
    assert f"the recordings {line}; no others" in rows["trained: data"]
    for furniture in LICENCES.values():
        assert furniture in rows["trained: data"]
    assert "mate-backgrounds (GPL-2+, CC BY-SA 4.0)" in rows["trained: data"]

    further = replace(settings, start_from=weights, run=tmp_path / "further", recorded=None)
    for room in (rooms["attic"], tmp_path / "yard"):  # refused as judges, licence or not
        with pytest.raises(ValueError, match=f"{room.name}: held out, but"):
            Trainer(TINY, replace(further, held_out=(room,)), report=_quiet)

    trainer = Trainer(TINY, further, report=_quiet)
    trainer.progress.before["recorded"] = ["yard"]  # as states of before licences have it
    assert trainer._record()["recorded"] == {"yard": "not stated"}


def test_a_licence_must_say_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["clips", "nowhere", "--out", str(tmp_path), "--licence", " "])
    assert "must name a licence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("own", "before", "expected"),
    [
        ({"a": "MIT"}, {"a": "not stated"}, {"a": "MIT"}),
        ({"a": "not stated"}, {"a": "MIT"}, {"a": "MIT"}),
        ({"a": "MIT"}, {"a": "CC0"}, {"a": "CC0; MIT"}),
        ({"a": "MIT"}, {"a": "CC0; MIT"}, {"a": "CC0; MIT"}),
        ({"b": "MIT"}, {"a": "not stated"}, {"a": "not stated", "b": "MIT"}),
        # Two recordings of one name, one of which nobody stated: both are told.
        ({"a": "MIT; not stated"}, {"a": "not stated"}, {"a": "MIT; not stated"}),
    ],
)
def test_what_is_stated_wins(own: dict, before: dict, expected: dict) -> None:
    merged = with_earlier(own, before)
    assert merged == expected
    assert list(merged) == sorted(merged)


def test_names_that_are_shared_have_all_licences() -> None:
    pairs = [("b", "MIT"), ("a", "not stated"), ("a", "CC0"), ("b", "MIT")]
    assert collected(pairs) == {"a": "CC0; not stated", "b": "MIT"}
    assert told({"a": "CC0; not stated", "b": "MIT"}) == "a (CC0; not stated), b (MIT)"
    assert licences_in(None) == {}


def test_heads_tell_the_licences_of_their_recordings(tmp_path: Path) -> None:
    backbone = write_released_backbone(tmp_path / "released")
    rooms = [_recording(tmp_path / name, seed=n, frames=12) for n, name in enumerate("ab")]
    output = tmp_path / "heads.safetensors"
    words = ["train-heads", "--backbone", str(backbone), "--recordings", *map(str, rooms)]
    words += ["--licence", "MIT", "CC0 1.0", "--run", str(tmp_path / "run"), "--steps", "1"]
    words += ["--output", str(output), "--pixels", "3072", "--head-width", "16"]
    assert cli.main([*words, "--clip-frames", "6", "--window", "4"]) == 0
    card = load_model(output)[1]
    licences = dict(zip(map(str, rooms), ("MIT", "CC0 1.0"), strict=True))
    assert card.training["heads"]["recordings"] == licences
    assert training_behind(card)["recorded"] == {"a": "MIT", "b": "CC0 1.0"}


def test_heads_of_before_licences_are_read() -> None:
    training = {"recorded": ["a"], "heads": {"recordings": ["/somewhere/b"]}}
    behind = training_behind(ModelCard("tiny", "none", training=training))
    assert behind["recorded"] == {"a": "not stated", "b": "not stated"}


def test_licences_of_heads_are_one_or_one_each(tmp_path: Path) -> None:
    settings = HeadSettings("b", tmp_path, tmp_path, tuple(map(Path, "xyz")))
    for licences, expected in (((), "not stated"), (("MIT",), "MIT")):
        given = replace(settings, licences=licences).licences_of_recordings()
        assert given == dict.fromkeys("xyz", expected)
    with pytest.raises(HeadTrainingError, match="2 licences of 3 recordings"):
        replace(settings, licences=("MIT", "CC0"))
