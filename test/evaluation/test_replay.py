# SPDX-License-Identifier: Apache-2.0
"""Replay, files, report and comparison, with predictions from files and with a small real model."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import bags
import numpy as np
import pytest
from corridor import FRAMES, SIZE, corridor_depth, corridor_path, write_tum_folder

from omnistream_ros.evaluation import evaluate_command, summary
from omnistream_ros.evaluation.collector import Scoring
from omnistream_ros.evaluation.compare import compare
from omnistream_ros.evaluation.depth_pairs import DepthPairs
from omnistream_ros.evaluation.evaluate import Options, evaluate, evaluate_one
from omnistream_ros.evaluation.predictors import FilePredictor, FramePrediction
from omnistream_ros.evaluation.progress import ProgressBar, lengths
from omnistream_ros.evaluation.protocols import PROTOCOLS, FrameRange
from omnistream_ros.evaluation.recordings import RecordingError, open_recording
from omnistream_ros.evaluation.replay import replay
from omnistream_ros.evaluation.sequence_result import SequenceResult
from omnistream_ros.evaluation.trajectory import read_tum


def silent(*_: object) -> None:
    """A progress that says nothing."""


def numbers_of(result: SequenceResult) -> str:
    """Everything that must be equal twice: all but timings and memory."""
    numbers = summary.sequence_numbers(result)
    for name in ("latency_ms", "memory_mib"):
        del numbers[name]
    numbers["frames_done"] = [
        (row.number, row.stamp_ns, row.epoch, row.context_frames, repr(row.temporal_change))
        for row in result.rows
    ]
    return json.dumps(numbers, sort_keys=True)


# -- predictions from files -----------------------------------------------------------------------


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


# -- ranges and protocols -------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["2:9:3", "4:", ":5", "::2", "7", "0:12:1"])
def test_frame_ranges_are_python_slices(corridor, perfect_predictions, text: str) -> None:
    parts = [int(part) if part else None for part in text.split(":")]
    expected = list(range(FRAMES))[slice(*parts)]
    options = Options(predictions=perfect_predictions, frames=FrameRange.parse(text))
    result = evaluate_one(corridor, options)
    assert [row.number for row in result.rows] == expected
    assert result.depth["metric"].metrics.abs_rel == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("text", ["a", "1:2:3:4", "5:5", "3:1", "::0", "-1:", "1.5"])
def test_wrong_ranges_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="START:STOP:STEP"):
        FrameRange.parse(text)


def test_range_beyond_the_recording_fails(corridor, perfect_predictions) -> None:
    options = Options(predictions=perfect_predictions, frames=FrameRange(100))
    result = evaluate_one(corridor, options)
    assert (result.status, "no frame in the range" in result.error) == ("failed", True)


def test_protocols(corridor) -> None:
    assert str(Options(protocol="bonn").scoring().frames) == "30:140:1"
    assert Options(protocol="sintel").scoring().depth_clip == 70.0
    assert len(PROTOCOLS["sintel"].sequences) == 14
    missing = PROTOCOLS["bonn"].missing(["rgbd_bonn_balloon2", "rgbd_bonn_crowd2"])
    assert missing == ["crowd3", "person_tracking2", "synchronous"]
    with pytest.raises(ValueError, match="unknown protocol 'nyu'"):
        Options(protocol="nyu")


# -- failures are failures ------------------------------------------------------------------------


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

    name, sha256, metric, context_capacity = "test", "", True, 0

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


def test_failed_sequences_are_named_and_in_no_mean(corridor, perfect_predictions, tmp_path) -> None:
    options = Options(predictions=perfect_predictions)
    results = list(evaluate([corridor, tmp_path / "absent", corridor], options, 1, silent))
    mean = summary.averages(results)
    assert list(mean["left_out"]) == ["absent"]
    assert mean["depth"]["metric"]["sequences"] == 2
    assert mean["depth"]["metric"]["abs_rel"] == results[0].depth["metric"].metrics.abs_rel
    text = summary.table(
        {"sequences": [summary.sequence_numbers(r) for r in results], "averages": mean}
    )
    assert "absent    failed: no recording at" in text
    assert "not in the mean: absent" in text


# -- files and report -----------------------------------------------------------------------------


class Balanced(HTMLParser):
    """Checks that every element is closed, and collects what is loaded from elsewhere."""

    void = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.images = 0

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in self.void:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.loaded.append(value[:11])
                self.images += tag == "img"

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, corridor, perfect_predictions) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "out"
    strange = write_tum_folder(tmp_path_factory.mktemp("names") / "<b>&name")
    paths = [corridor, strange, out / "absent"]
    good = evaluate_command.run(paths, Options(predictions=perfect_predictions), out, say=silent)
    assert not good
    return out


def test_report_is_one_file_with_everything(evaluation) -> None:
    page = (evaluation / "report.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert parser.images >= 6
    assert all(source.startswith("data:image/") for source in parser.loaded)
    assert "<b>&name" not in page
    assert "&lt;b&gt;&amp;name" in page
    assert "failed: no recording at" in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower().replace("nano", "")


def test_metrics_file_is_strict_json_and_complete(evaluation) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (evaluation / "metrics.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    assert [one["status"] for one in content["sequences"]] == ["ok", "ok", "failed"]
    assert content["averages"]["averaged"] == ["corridor", "<b>&name"]
    assert content["versions"]["python"]
    assert content["command"].startswith("omnistream")
    # Every number that the report shows has its one line of explanation.
    assert {"metric", "scale", "scale (exact)", "scale_shift", "median"} <= set(
        summary.EXPLANATIONS
    )
    assert set(content["sequences"][0]["depth"]) <= set(summary.EXPLANATIONS)
    assert set(content["sequences"][0]["pose"]) <= set(summary.EXPLANATIONS)


def test_trajectory_and_frames_files(evaluation) -> None:
    written = read_tum(evaluation / "corridor" / "trajectory.tum")
    assert np.array_equal(written.stamps_ns, corridor_path().stamps_ns)
    lines = (evaluation / "corridor" / "frames.csv").read_text().splitlines()
    assert len(lines) == FRAMES + 1
    head, row = lines[0].split(","), lines[5].split(",")
    values = dict(zip(head, row, strict=True))
    assert values["frame"] == "4"
    assert values["stamp_s"] == "0.400000000"
    assert float(values["abs_rel_metric"]) == pytest.approx(0.5, abs=1e-3)


def test_compare(evaluation, tmp_path, corridor) -> None:
    for index in range(FRAMES):
        np.save(tmp_path / f"{index}.npy", 1.1 * corridor_depth(index))
    other = tmp_path / "out"
    evaluate_command.run([corridor], Options(predictions=tmp_path), other, say=silent)
    text = compare(evaluation, other)
    line = next(line for line in text.splitlines() if "AbsRel metric" in line)
    assert line.split()[2:] == ["0.5000", "0.1000", "-0.4000", "+B"]
    assert "only in A: <b>&name, absent" in text
    assert "+" not in "".join(compare(other, other).split("B - A")[1:]).replace("+0.", "")
    for bad in ("", "[]", '{"sequences": []}'):
        (tmp_path / "metrics.json").write_text(bad)
        with pytest.raises(RecordingError, match=r"not the metrics\.json"):
            compare(tmp_path, other)


def test_out_that_cannot_be_written_is_known_before_the_work(corridor, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        evaluate_command.run([corridor], Options(), tmp_path / "file" / "out", say=silent)


def test_full_disk_leaves_the_old_metrics(evaluation, tmp_path, monkeypatch) -> None:
    (tmp_path / "metrics.json").write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        summary.write_files([], tmp_path, {})
    assert (tmp_path / "metrics.json").read_bytes() == b"old"


# -- progress -------------------------------------------------------------------------------------


def test_progress_says_rate_and_remaining_time(corridor, tmp_path) -> None:
    write_tum_folder(tmp_path / "long", 30)
    options = Options(frames=FrameRange(2, None, 2))
    totals = lengths([corridor, tmp_path / "long", tmp_path / "absent"], options)
    assert totals == [5, 14, 0]
    bar = ProgressBar([30, 7000])
    bar("first", 30, 30)
    bar("second", 10, 7000)
    line = bar.text("second", 7000, elapsed_s=4.0)
    assert line == "[2/2] second: 10 of 7000  10.0 frames/s  11:39 left"
    unknown = ProgressBar([None])
    unknown("video", 8, None)
    assert unknown.text("video", None, elapsed_s=2.0) == "video: 8  4.0 frames/s"


# -- a real model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> str:
    torch = pytest.importorskip("torch")
    from omnistream_ros.model import ModelCard, ModelConfig, build_model, save_model

    torch.manual_seed(0)
    config = ModelConfig(
        name="tiny", width=64, depth=4, heads=1, patch_embed="conv16", taps=(0, 1, 2, 3),
        head_width=16, model_pixels=48 * 64, metric=True,
    )  # fmt: skip
    network = build_model(config)
    with torch.no_grad():  # an untrained head may be constant, which would test nothing
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, network, ModelCard("tiny", "Apache-2.0"))
    return str(path)


def test_replay_loses_nothing_and_is_bit_equal_twice(corridor, model_file) -> None:
    options = Options(model=model_file, device="cpu")
    first, second = evaluate_one(corridor, options), evaluate_one(corridor, options)
    assert first.status == "ok", first.error
    assert [row.number for row in first.rows] == list(range(FRAMES))
    assert first.rows[0].epoch_reason == "start"
    assert numbers_of(first) == numbers_of(second)
    assert first.trajectory is not None
    assert second.trajectory is not None
    assert first.trajectory.translations.tobytes() == second.trajectory.translations.tobytes()


def test_processes_give_the_same_numbers(corridor, model_file, tmp_path) -> None:
    paths = [corridor, tmp_path / "absent", corridor]
    options = Options(model=model_file, device="cpu")
    one = [numbers_of(result) for result in evaluate(paths, options, 1, silent)]
    two = [numbers_of(result) for result in evaluate(paths, options, 2, silent)]
    assert one == two


def test_a_cluster_gives_the_same_numbers(corridor, perfect_predictions, tmp_path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: no cluster was tried")
    from omnistream_ros.evaluation.cluster import evaluate_on_cluster

    paths = [corridor, tmp_path / "absent"]
    options = Options(predictions=perfect_predictions)
    here = [numbers_of(result) for result in evaluate(paths, options, 1, silent)]
    there = [numbers_of(result) for result in evaluate_on_cluster(paths, options, "local", silent)]
    assert here == there


def test_ctrl_c_of_the_program_writes_the_report(model_file, tmp_path) -> None:
    """A recording too long to finish, interrupted as soon as frames are done."""

    def entries():
        grey = np.zeros((48, 64), np.uint8)
        for i in range(5000):
            yield ("/image", 10**18 + i, bags.image(i * 10**8, grey, "mono8"))

    bag = bags.write_bag(tmp_path / "bag", entries())
    out = tmp_path / "out"
    code = (
        "import sys, signal\n"
        "from omnistream_ros.evaluation import evaluate_command\n"
        "from omnistream_ros.evaluation.evaluate import Options\n"
        "from omnistream_ros.evaluation.progress import ProgressBar\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "ProgressBar.__call__ = lambda self, name, done, total: print(done, flush=True)\n"
        f"options = Options(model={model_file!r}, device='cpu')\n"
        f"good = evaluate_command.run([Path({str(bag)!r})], options, Path({str(out)!r}))\n"
        "sys.exit(0 if good else 1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "1"  # sentinel: the first frame is through
        child.send_signal(signal.SIGINT)
        begin = time.monotonic()
        _, errors = child.communicate(timeout=120)
        assert time.monotonic() - begin < 120
    assert child.returncode == 1, errors
    content = json.loads((out / "metrics.json").read_text())
    assert content["sequences"][0]["status"] == "partial"
    assert 1 <= content["sequences"][0]["frames"] < 5000
    assert (out / "report.html").stat().st_size > 1000


class Constant:
    """Two metres everywhere."""

    name, sha256, metric, context_capacity = "test", "", True, 0

    def predict(self, number, frame) -> FramePrediction:
        return FramePrediction(depth=np.full((24, 32), 2.0, np.float32))

    def trajectory(self):
        return None


def test_memory_of_a_long_replay_is_constant(tmp_path) -> None:
    """Ten minutes at one frame a second: what the replay keeps does not grow with the images."""
    images = np.random.default_rng(0).integers(0, 256, (8, 96, 128), dtype=np.uint8)
    depth = np.full((96, 128), 2000, np.uint16)

    def entries():
        for i in range(600):
            yield ("/image", 10**18 + i, bags.image(i * 10**9, images[i % 8], "mono8"))
            yield ("/depth", 10**18 + i, bags.image(i * 10**9, depth, "16UC1"))

    recording = open_recording(bags.write_bag(tmp_path / "bag", entries()))
    peaks = []
    for frames in (60, 600):
        tracemalloc.start()
        pairs = DepthPairs(memory_pixels=2**16)  # of 7 million that there are
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("omnistream_ros.evaluation.replay.DepthPairs", lambda pairs=pairs: pairs)
            result = replay(recording, Constant(), Scoring(frames=FrameRange(0, frames)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result.status == "ok", result.error
        assert result.depth["metric"].metrics.pixels == frames * depth.size
    # A row of the table per frame (some kilobytes with its metrics) is all that may be added.
    assert peaks[1] - peaks[0] < 600 * 8192
    assert math.isfinite(result.rows[-1].memory_mib)
