# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a recording or with the disk becomes a reason, never a number."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from pathlib import Path

import bags
import numpy as np
import pytest
from corridor import FRAMES, SIZE, corridor_depth, write_tum_folder

from omnistream_ros.evaluation import evaluate_command, summary, terminal_table
from omnistream_ros.evaluation.collector import Scoring
from omnistream_ros.evaluation.evaluate import Options, evaluate, evaluate_one
from omnistream_ros.evaluation.predictors import FilePredictor, FramePrediction
from omnistream_ros.evaluation.recordings import open_recording
from omnistream_ros.evaluation.replay import replay
from omnistream_ros.evaluation.trajectory import Trajectory, TrajectoryError


def silent(*_: object) -> None:
    """A progress that says nothing."""


def test_truth_without_one_valid_pixel_is_a_failure(tmp_path, perfect_predictions) -> None:
    import cv2

    folder = write_tum_folder(tmp_path / "dark")
    for file in (folder / "depth").iterdir():
        cv2.imwrite(str(file), np.zeros(SIZE, np.uint16))
    result = evaluate_one(folder, Options(predictions=perfect_predictions))
    assert result.status == "failed"
    assert "valid true depth" in result.error


def test_truth_of_half_the_time_is_used_for_that_half(tmp_path, perfect_predictions) -> None:
    folder = write_tum_folder(tmp_path / "half")
    lines = (folder / "depth.txt").read_text().splitlines()
    (folder / "depth.txt").write_text("\n".join(lines[:7]) + "\n")
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    (folder / "groundtruth.txt").write_text("\n".join(lines[:6]) + "\n")
    result = evaluate_one(folder, Options(predictions=perfect_predictions))
    assert (result.status, len(result.rows), len(result.depth_stamps)) == ("ok", FRAMES, 6)
    assert result.pose["sim3"].matched == 5
    assert f"true depth for 6 of {FRAMES} frames: only these count" in result.notes
    assert f"true pose for 5 of {FRAMES} estimated poses: only these count" in result.notes


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "rgb.txt").write_text(""), "holds no image"),
        (lambda d: spoil_line(d / "groundtruth.txt", 4, "0.3 0 0 nan 0 0 0 1"), "not finite"),
        (lambda d: spoil_line(d / "groundtruth.txt", 4, "0.3 0 0 0 0 0 0 2"), "length 2"),
        (lambda d: spoil_line(d / "groundtruth.txt", 4, "0.1 0 0 0 0 0 0 1"), "must increase"),
        (lambda d: spoil_line(d / "rgb.txt", 4, "0.1 rgb/0003.png"), "stamps must increase"),
        (lambda d: spoil_line(d / "depth.txt", 4, "0.1 depth/0003.png"), "stamps must increase"),
        (lambda d: (d / "rgb" / "0003.png").unlink(), "0003.png"),
        (lambda d: (d / "depth" / "0003.png").write_bytes(b"junk"), "16-bit"),
        (lambda d: (d / "groundtruth.txt").write_bytes(b"0.1 0 0 0 0 0 0 1 # \xfc"), "is no text"),
        (lambda d: shift_stamps(d / "groundtruth.txt", 1e6), "Are their clocks the same?"),
    ],
)
def test_a_broken_recording_is_failed_with_a_reason_and_without_numbers(
    tmp_path, perfect_predictions, spoil, words: str
) -> None:
    folder = write_tum_folder(tmp_path / "broken")
    spoil(folder)
    result = evaluate_one(folder, Options(predictions=perfect_predictions))
    assert result.status == "failed"
    assert words in result.error
    assert not result.depth
    assert not result.pose


def spoil_line(file: Path, number: int, text: str) -> None:
    """Replace the line of one entry; the first line is a comment."""
    lines = file.read_text().splitlines()
    lines[number] = text
    file.write_text("\n".join(lines) + "\n")


def shift_stamps(file: Path, seconds: float) -> None:
    lines = [line.split(" ", 1) for line in file.read_text().splitlines()[1:]]
    file.write_text("".join(f"{float(stamp) + seconds} {rest}\n" for stamp, rest in lines))


def test_bags_that_cannot_be_used_are_failed_sequences(tmp_path, perfect_predictions) -> None:
    grey = np.zeros((48, 64), np.uint8)
    tf = [("/tf", 10**18, bags.transform(0, "world", "camera", (0, 0, 0), (0, 0, 0, 1.0)))]
    images = [("/image", 10**18 + i, bags.image(i * 10**8, grey, "mono8")) for i in range(40)]
    depths = [
        (name, 10**18, bags.image(0, np.full((48, 64), 900, np.uint16), "16UC1"))
        for name in ("/one/depth", "/two/depth")
    ]
    bags.write_bag(tmp_path / "no_image", tf)
    bags.write_bag(tmp_path / "two_depths", [*images, *depths])
    cut = bags.write_bag(tmp_path / "cut", images) / "cut.mcap"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    paths = [tmp_path / name for name in ("no_image", "two_depths", "cut")]
    results = list(evaluate(paths, Options(predictions=perfect_predictions), 1, silent))
    assert [result.status for result in results] == ["failed"] * 3
    for result, words in zip(results, ("no image topic", "several depth", "reindex"), strict=True):
        assert words in result.error


def test_depth_of_another_shape_fails(tmp_path, perfect_predictions) -> None:
    import cv2

    folder = write_tum_folder(tmp_path / "other")
    (folder / "camera.yaml").unlink()
    for file in (folder / "depth").iterdir():
        cv2.imwrite(str(file), np.full((64, 64), 1000, np.uint16))
    result = evaluate_one(folder, Options(predictions=perfect_predictions))
    assert (result.status, "another camera" in result.error) == ("failed", True)


class Interrupting:
    """A predictor that is interrupted at its fifth frame."""

    name, sha256, metric, context_capacity, memory = "test", "", True, 0, {}

    def predict(self, number, frame) -> FramePrediction:
        if number == 5:
            raise KeyboardInterrupt
        return FramePrediction(depth=corridor_depth(number))

    def trajectory(self):
        return None


def test_interrupted_replay_measures_what_was_done(corridor) -> None:
    result = replay(open_recording(corridor), Interrupting(), Scoring())
    assert (result.status, len(result.rows)) == ("partial", 5)
    assert result.depth["metric"].metrics.abs_rel == pytest.approx(0.0, abs=1e-3)
    assert result.name in summary.averages([result])["left_out"]


def statuses(out: Path) -> list[tuple[str, str]]:
    """Name and status of every sequence in a report."""
    assert (out / "report.html").stat().st_size > 1000
    content = json.loads((out / "metrics.json").read_text())
    return [(one["name"], one["status"]) for one in content["sequences"]]


def test_ctrl_c_after_the_last_frame_keeps_what_was_done(
    corridor, perfect_predictions, tmp_path, monkeypatch
) -> None:
    """A second recording is being measured, not replayed; a third one waits."""
    write_tum_folder(tmp_path / "second")
    write_tum_folder(tmp_path / "third")
    (tmp_path / "all").mkdir()
    for name in ("corridor", "second", "third"):
        (tmp_path / "all" / name).symlink_to(perfect_predictions)
    read, finished = FilePredictor.trajectory, []

    def interrupted(self: FilePredictor) -> Trajectory | None:
        finished.append(self)
        if len(finished) == 2:
            raise KeyboardInterrupt
        return read(self)

    monkeypatch.setattr(FilePredictor, "trajectory", interrupted)
    paths = [corridor, tmp_path / "second", tmp_path / "third"]
    options = Options(predictions=tmp_path / "all")
    assert not evaluate_command.run(paths, options, tmp_path / "out", say=silent)
    expected = [("corridor", "ok"), ("second", "failed"), ("third", "failed")]
    assert statuses(tmp_path / "out") == expected


def test_a_recording_that_cannot_even_be_counted_spoils_no_other(
    corridor, perfect_predictions, tmp_path
) -> None:
    kitti = tmp_path / "kitti"
    (kitti / "image_0").mkdir(parents=True)
    (kitti / "times.txt").write_text("0.0 soon\n")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "corridor").symlink_to(perfect_predictions)
    options = Options(predictions=tmp_path / "all")
    assert not evaluate_command.run([kitti, corridor], options, tmp_path / "out", say=silent)
    assert statuses(tmp_path / "out") == [("kitti", "failed"), ("corridor", "ok")]
    (sequence, _) = json.loads((tmp_path / "out" / "metrics.json").read_text())["sequences"]
    assert "times.txt: expected seconds" in sequence["error"]


def test_a_killed_process_fails_what_it_had_in_work(
    corridor, perfect_predictions, tmp_path
) -> None:
    """The second recording waits for a prediction that never comes, until its process is killed."""
    write_tum_folder(tmp_path / "second")
    (tmp_path / "all" / "second").mkdir(parents=True)
    os.mkfifo(tmp_path / "all" / "second" / "000000.npy")
    (tmp_path / "all" / "corridor").symlink_to(perfect_predictions)
    options = Options(predictions=tmp_path / "all", predictions_by_name=True)
    sequence = evaluate([corridor, tmp_path / "second"], options, 2, silent)
    results = [next(sequence)]
    for process in multiprocessing.active_children():
        if process.name.startswith("SpawnProcess"):  # the others keep the queue
            process.kill()
    results += sequence
    assert [result.status for result in results] == ["ok", "failed"]
    assert "ended from outside" in results[1].error


@pytest.mark.parametrize(
    ("fault", "note", "good"),
    [
        (TrajectoryError("stamps must increase"), "the live run failed: stamps must inc", True),
        (OSError(28, "No space left on device"), "the live run failed: .*No space left", True),
        (KeyboardInterrupt(), "the live run was interrupted", False),
    ],
)
def test_a_live_run_that_fails_spoils_nothing_else(
    corridor, perfect_predictions, tmp_path, monkeypatch, fault: BaseException, note, good: bool
) -> None:
    scored = Options(predictions=perfect_predictions)

    def evaluated(paths, *_):
        return iter([evaluate_one(path, scored) for path in paths])

    def played(*_: object) -> None:
        raise fault

    monkeypatch.setattr(evaluate_command, "evaluate", evaluated)
    monkeypatch.setattr(evaluate_command, "measure_live", played)
    out = tmp_path / "out"
    assert evaluate_command.run([corridor], Options(), out, live=True, say=silent) == good
    assert statuses(out) == [("corridor", "ok")]
    (sequence,) = json.loads((out / "metrics.json").read_text())["sequences"]
    assert any(re.match(note, text) for text in sequence["notes"])


def test_nobody_plays_one_model_beside_the_numbers_of_another(
    corridor, perfect_predictions, tmp_path
) -> None:
    options = Options(predictions=perfect_predictions)
    with pytest.raises(ValueError, match="--live"):
        evaluate_command.run([corridor], options, tmp_path / "out", live=True, say=silent)
    assert not (tmp_path / "out").exists()


def test_failed_sequences_are_named_and_in_no_mean(corridor, perfect_predictions, tmp_path) -> None:
    options = Options(predictions=perfect_predictions)
    results = list(evaluate([corridor, tmp_path / "absent", corridor], options, 1, silent))
    mean = summary.averages(results)
    assert list(mean["left_out"]) == ["absent"]
    assert mean["depth"]["metric"]["sequences"] == 2
    assert mean["depth"]["metric"]["abs_rel"] == results[0].depth["metric"].metrics.abs_rel
    text = terminal_table.table(
        {"sequences": [summary.sequence_numbers(r) for r in results], "averages": mean}
    )
    assert "absent    failed: no recording at" in text
    metres, scaled = (mean["pose"][name]["ate_m"] for name in ("se3", "sim3"))
    assert f"{metres:8.3f}{scaled:8.3f}" in text.splitlines()[-2]
    assert "not in the mean: absent" in text
