# SPDX-License-Identifier: Apache-2.0
"""Predictions made elsewhere, scored by the same code; what is wrong with them is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from corridor import FRAMES, corridor_depth, write_tum_folder

from omnistream_ros.evaluation import evaluate_command
from omnistream_ros.evaluation.evaluate import Options, evaluate_one
from omnistream_ros.evaluation.predictors import FilePredictor
from omnistream_ros.evaluation.recordings import RecordingError, open_recording


def silent(*_: object) -> None:
    """A progress that says nothing."""


def test_predictions_of_half_the_depth_and_twice_the_way(corridor, perfect_predictions) -> None:
    result = evaluate_one(corridor, Options(predictions=perfect_predictions))
    assert result.status == "ok", result.error
    assert len(result.rows) == FRAMES
    assert result.depth["metric"].metrics.abs_rel == pytest.approx(0.5, abs=1e-3)
    for name in ("scale", "median", "scale (exact)", "scale_shift"):
        assert result.depth[name].metrics.abs_rel == pytest.approx(0.0, abs=1e-3)
    alignment = result.depth["scale (exact)"].alignment
    assert alignment is not None
    assert alignment.scale == pytest.approx(2.0, rel=1e-3)
    assert result.pose["sim3"].ate_m == pytest.approx(0.0, abs=1e-6)
    assert result.pose["sim3"].scale == pytest.approx(0.5, abs=1e-6)
    assert result.pose["se3"].ate_m > 0.1
    assert result.pose["static"].ate_m < result.pose["se3"].ate_m
    assert result.temporal_change < 1e-3
    assert result.constant_depth is not None
    assert result.constant_depth.abs_rel > 0.05


def test_predictions_named_by_stamp_png_and_in_a_folder_per_recording(corridor, tmp_path) -> None:
    import cv2

    folder = tmp_path / "corridor"
    folder.mkdir()
    for index in range(FRAMES):
        depth = np.rint(corridor_depth(index) * 5000).astype(np.uint16)
        cv2.imwrite(str(folder / f"{index / 10:.6f}.png"), depth)
    result = evaluate_one(corridor, Options(predictions=tmp_path, predictions_per_metre=5000.0))
    assert result.depth["metric"].metrics.abs_rel == pytest.approx(0.0, abs=1e-3)
    assert "no predicted pose" in result.notes


def test_missing_prediction_files_lower_the_coverage_not_the_error(
    corridor, perfect_predictions, tmp_path
) -> None:
    for index in range(0, FRAMES, 2):
        np.save(tmp_path / f"{index}.npy", corridor_depth(index))
    result = evaluate_one(corridor, Options(predictions=tmp_path))
    assert result.depth["metric"].metrics.abs_rel == pytest.approx(0.0, abs=1e-3)
    assert len(result.depth_stamps) == FRAMES // 2
    half = f"predicted depth for {FRAMES // 2} of {FRAMES} frames that have true depth"
    assert f"{half}: only these count" in result.notes


def test_predictions_of_other_frames_are_no_predictions(corridor, tmp_path) -> None:
    np.save(tmp_path / "1000.npy", corridor_depth(0))
    result = evaluate_one(corridor, Options(predictions=tmp_path))
    assert "no predicted depth" in result.notes
    assert "no ground-truth depth" not in result.notes
    assert not result.depth


def test_predictions_of_one_recording_are_not_scored_against_another(
    corridor, perfect_predictions, tmp_path
) -> None:
    """Alone, DIR itself will do; of several, each needs a subfolder of its name."""
    other = write_tum_folder(tmp_path / "other")
    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / "corridor").symlink_to(perfect_predictions)
    for index in range(FRAMES):
        np.save(folder / f"{index}.npy", corridor_depth(index))
    out = tmp_path / "out"
    assert not evaluate_command.run([corridor, other], Options(predictions=folder), out, say=silent)
    content = json.loads((out / "metrics.json").read_text())
    assert [one["status"] for one in content["sequences"]] == ["ok", "failed"]
    assert "other holds no predictions" in content["sequences"][1]["error"]


def test_one_alignment_per_frame_forgives_what_one_per_sequence_does_not(
    corridor, tmp_path
) -> None:
    for index in range(FRAMES):
        np.save(tmp_path / f"{index}.npy", corridor_depth(index) * (1.0 + 0.1 * index))
    sequence = evaluate_one(corridor, Options(predictions=tmp_path))
    each = evaluate_one(corridor, Options(predictions=tmp_path, per_frame=True))
    for name in ("scale", "median", "scale (exact)", "scale_shift"):
        assert sequence.depth[name].metrics.abs_rel > 0.03
        assert each.depth[name].metrics.abs_rel == pytest.approx(0.0, abs=1e-3)
        assert each.depth[name].alignment is None
    assert each.depth["metric"].metrics == sequence.depth["metric"].metrics
    # The flicker is of the predictions themselves: no alignment hides it.
    assert each.temporal_change == sequence.temporal_change > 0.03


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: None, "holds no predictions"),
        (lambda d: (d / "first.npy").write_bytes(b""), "neither by a frame number nor by a stamp"),
        (lambda d: (d / "0.npy").write_bytes(b"junk"), "cannot be read"),
        (lambda d: np.save(d / "0.npy", np.ones((2, 3, 4))), "must hold depth"),
        (lambda d: np.save(d / "0.npy", np.ones((3, 4), np.int32)), "must hold depth"),
        (lambda d: np.save(d / "0.npy", np.array([{}], dtype=object)), "cannot be read"),
        (lambda d: (d / "0.png").write_bytes(b"junk"), "16-bit"),
        (lambda d: (d / "trajectory.tum").write_text("1 2 3\n"), "trajectory.tum:1"),
    ],
)
def test_bad_predictions_fail_the_sequence_with_a_reason(corridor, tmp_path, make, words) -> None:
    make(tmp_path)
    result = evaluate_one(corridor, Options(predictions=tmp_path))
    assert result.status == "failed"
    assert words in result.error
    assert not result.depth


def test_nothing_is_unpickled(tmp_path) -> None:
    np.save(tmp_path / "0.npy", np.array([print], dtype=object), allow_pickle=True)
    frame = next(iter(open_recording(write_tum_folder(tmp_path / "r", 2)).frames()))
    with pytest.raises(RecordingError, match="cannot be read"):
        FilePredictor(tmp_path).predict(0, frame)
