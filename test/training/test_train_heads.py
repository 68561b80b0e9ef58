# SPDX-License-Identifier: Apache-2.0
"""Heads for a frozen backbone: from recordings to a file that a stream runs, resumably."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_clips import plane_clip, write_clip
from tiny_recordings import write_released_backbone, write_tum_recording

from omnistream_ros import cli
from omnistream_ros.evaluation.recordings import RecordingError, open_recording
from omnistream_ros.model import load_model
from omnistream_ros.stream.frame import Frame, Intrinsics
from omnistream_ros.stream.session import StreamSession
from omnistream_ros.training import frozen_features
from omnistream_ros.training.frozen_features import FeatureError, read_features, stream_features
from omnistream_ros.training.head_settings import HeadSettings, HeadTrainingError
from omnistream_ros.training.recorded_streams import Cut, recorded_streams
from omnistream_ros.training.run_folder import RunFolderError, lock_run
from omnistream_ros.training.train_heads import HeadTrainer, train_heads

PIXELS = 64 * 48


def _quiet(line: str) -> None:
    """Where the progress lines of tests go."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released_backbone(tmp_path_factory.mktemp("model") / "released")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("recordings")
    return tuple(
        write_tum_recording(folder / f"room_{n}", plane_clip(seed=n, frames=18, size=(96, 128)))
        for n in (1, 2)
    )


def _settings(backbone: Path, recordings: tuple[Path, ...], folder: Path) -> HeadSettings:
    return HeadSettings(
        backbone=backbone,
        run=folder / "run",
        output=folder / "out.safetensors",
        recordings=recordings,
        pixels=PIXELS,
        head_width=16,
        clip_frames=6,
        window=4,
        steps=6,
        save_period=2,
        judge_period=100,
        warmup_steps=2,
    )


def test_command_makes_a_model_that_streams(
    backbone: Path, recordings: tuple[Path, ...], tmp_path: Path
) -> None:
    """End to end through the command line: released folder + TUM folders -> depth and pose."""
    output = tmp_path / "with_heads.safetensors"
    words = ["train-heads", "--backbone", str(backbone), "--recordings", *map(str, recordings)]
    words += ["--run", str(tmp_path / "run"), "--output", str(output), "--pixels", str(PIXELS)]
    words += ["--steps", "60", "--head-width", "16", "--clip-frames", "6", "--window", "4"]
    assert cli.main(words) == 0

    model, card = load_model(output)
    released, _ = load_model(backbone)
    for name, value in released.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
    assert model.config.metric
    assert model.config.model_pixels == PIXELS
    assert card.training["heads"]["steps"] == 60
    (figures,) = card.accuracy.values()
    assert 0 < figures["abs_rel"] < 1
    assert figures["standing still m"] > 0

    clip = plane_clip(seed=1, frames=4, size=(96, 128))
    camera = Intrinsics(*clip.intrinsics, width=128, height=96)
    session = StreamSession(model)
    for index, image in enumerate(clip.rgb):
        result = session.step(Frame(image, index * 100_000_000, camera))
    assert result.metric
    depth = np.asarray(result.depth)
    # 60 steps on a random backbone: the depth of these rooms, not yet of this picture.
    assert 0.5 < np.median(depth) / np.median(clip.depth) < 2
    assert result.pose is not None


def test_training_is_resumed_and_stops_politely(
    backbone: Path, recordings: tuple[Path, ...], tmp_path: Path
) -> None:
    whole = _settings(backbone, recordings, tmp_path / "whole")
    HeadTrainer(whole, report=_quiet).run()

    pieces = _settings(backbone, recordings, tmp_path / "pieces")
    interrupted = HeadTrainer(pieces, report=_quiet)
    compute = frozen_features.FeatureStore.compute
    done = 0

    def stop_after_two(self: object, *words: object, **named: object) -> None:
        nonlocal done
        compute(self, *words, **named)  # type: ignore[arg-type]
        done += 1
        interrupted.stopped = done == 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen_features.FeatureStore, "compute", stop_after_two)
        assert interrupted.run() is None
    files = sorted((pieces.run / "features").glob("clip_*"))
    assert len(files) == 2
    times = [f.stat().st_mtime_ns for f in files]

    HeadTrainer(replace(pieces, steps=6), report=_quiet)  # made, and killed before it ran
    first = HeadTrainer(pieces, report=_quiet)
    step = first._step

    def die_at_three(number: int, *words: object) -> dict[str, float]:
        if number == 3:
            raise KeyboardInterrupt
        return step(number, *words)  # type: ignore[arg-type]

    first._step = die_at_three  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert [f.stat().st_mtime_ns for f in files] == times, "features were computed again"
    lines: list[str] = []
    HeadTrainer(pieces, report=lines.append).run()
    assert any("resuming at step 2" in line for line in lines)
    one, other = (load_model(s.output)[0].state_dict() for s in (whole, pieces))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_stored_features_give_what_the_stream_gives(
    backbone: Path, recordings: tuple[Path, ...], tmp_path: Path
) -> None:
    """Heads on stored features equal the model stepping through the recording."""
    trainer = HeadTrainer(_settings(backbone, recordings, tmp_path), report=_quiet)
    stored = trainer.features.compute(lambda: False)
    assert [clip.held_out for clip in stored] == [False, False, True] * 2
    assert {clip.size for clip in stored} == {(48, 64)}
    model = trainer.model
    features, batch = read_features([(stored[1], np.arange(6))], model)
    made = model.predict(features)
    streams = list(recorded_streams(open_recording(recordings[0]), Cut(PIXELS, 16, 6)))
    clip = streams[1].clip
    direct = stream_features(model, clip, sink=1, window=4)
    torch.testing.assert_close(features.hidden[1][0], direct["tap_1"], rtol=1e-3, atol=1e-3)
    cache = model.backbone.allocate_cache(48, 64, sink=1, window=4)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    for index, image in enumerate(clip.rgb):
        pixels = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std
        said = model.step(pixels[None], cache, rays=True)
        for name in ("depth", "rays"):
            one, other = getattr(said, name)[0], getattr(made, name)[0, index]
            torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(
            said.camera.translation[0], made.camera.translation[0, index], rtol=1e-2, atol=1e-3
        )
    assert torch.allclose(batch.poses[0, 0], torch.eye(4), atol=1e-6)


def test_streams_follow_time_and_truth(tmp_path: Path) -> None:
    """Cut at a gap and where poses end; frames between two poses get one in between."""
    clip = plane_clip(seed=3, frames=12, size=(48, 64))
    folder = write_tum_recording(tmp_path / "rec", clip)
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    poses = [line for line in lines if not line.startswith("#")]
    # No truth from 0.5 s to 0.8 s: too far to interpolate.
    (folder / "groundtruth.txt").write_text("\n".join(poses[:5] + poses[9:]) + "\n")
    streams = list(recorded_streams(open_recording(folder), Cut(PIXELS, 16, 100)))
    assert [len(s.clip) for s in streams] == [5, 3]
    np.testing.assert_allclose(streams[1].clip.poses, clip.poses[9:], atol=1e-5)
    np.testing.assert_allclose(streams[0].clip.depth, clip.depth[:5], atol=2e-4)
    np.testing.assert_array_equal(streams[0].clip.rgb, clip.rgb[:5])
    half = list(recorded_streams(open_recording(folder), Cut(PIXELS, 16, 2, stride=2)))
    assert [len(s.clip) for s in half] == [2]


def test_recordings_without_poses_train_depth_alone(backbone: Path, tmp_path: Path) -> None:
    clip = plane_clip(seed=4, frames=14)
    folder = write_tum_recording(tmp_path / "rec", clip, posed=False)
    settings = _settings(backbone, (folder,), tmp_path)
    HeadTrainer(settings, report=_quiet).run()
    text = (settings.run / "loss.csv").read_text().splitlines()
    row = dict(zip(text[0].split(","), text[1].split(","), strict=True))
    assert row["log_l1"]
    assert not row["translation"]
    assert not row["rays"]


def test_rendered_clips_and_augmented_copies(backbone: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in (1, 2):
        write_clip(clips / f"clip_{number:06d}.npz", plane_clip(number, 5, size=(96, 128)))
    settings = replace(
        _settings(backbone, (Path("none"),), tmp_path), recordings=(), clips=clips, copies=2
    )
    trainer = HeadTrainer(settings, report=_quiet)
    stored = trainer.features.compute(lambda: False)
    assert [(c.held_out, c.size) for c in stored] == [
        (False, (48, 64)),
        (False, (48, 64)),
        (True, (48, 64)),
    ]
    (one, _), (other, _) = (read_features([(c, np.arange(5))], trainer.model) for c in stored[:2])
    assert not torch.allclose(one.hidden[1], other.hidden[1], atol=1e-2)


def test_what_cannot_be_trained_on_is_refused(
    backbone: Path, recordings: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(backbone, recordings, tmp_path)
    with pytest.raises(HeadTrainingError, match="give recordings"):
        replace(settings, recordings=())
    with pytest.raises(HeadTrainingError, match="held out and trained on"):
        replace(settings, held_out=(recordings[0] / ".." / recordings[0].name,))
    whole = replace(settings, recordings=recordings[:1], clip_frames=100, run=tmp_path / "a")
    with pytest.raises(HeadTrainingError, match="held out"):
        HeadTrainer(whole, report=_quiet).run()
    blind = plane_clip(seed=5, frames=4)
    blind.depth[:] = np.nan
    folder = write_tum_recording(tmp_path / "blind", blind)
    for file in (folder / "depth").iterdir():
        file.unlink()
    (folder / "depth.txt").write_text("")
    with pytest.raises(RecordingError, match="depth"):
        list(recorded_streams(open_recording(folder), Cut(PIXELS, 16)))

    HeadTrainer(settings, report=_quiet)
    with pytest.raises(FeatureError, match="clip_frames"):
        HeadTrainer(replace(settings, clip_frames=7), report=_quiet)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(FeatureError, match="GB left"):
        HeadTrainer(settings, report=_quiet).run()


def test_a_run_folder_has_one_trainer(
    backbone: Path, recordings: tuple[Path, ...], tmp_path: Path
) -> None:
    settings = _settings(backbone, recordings, tmp_path)
    with lock_run(settings.run), pytest.raises(RunFolderError, match="process"):
        train_heads(settings, _quiet)
