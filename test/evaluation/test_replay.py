# SPDX-License-Identifier: Apache-2.0
"""Replay: every frame in order, bit-equal twice, in bounded memory, with any number of jobs."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
import tracemalloc

import bags
import numpy as np
import pytest
from corridor import FRAMES, write_tum_folder

from omnistream_ros.evaluation import summary
from omnistream_ros.evaluation.collector import Scoring
from omnistream_ros.evaluation.depth_pairs import DepthPairs
from omnistream_ros.evaluation.evaluate import Options, evaluate, evaluate_one
from omnistream_ros.evaluation.predictors import FramePrediction
from omnistream_ros.evaluation.progress import ProgressBar, lengths
from omnistream_ros.evaluation.protocols import PROTOCOLS, FrameRange
from omnistream_ros.evaluation.recordings import open_recording
from omnistream_ros.evaluation.replay import replay
from omnistream_ros.evaluation.sequence_result import SequenceResult


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


def test_frames_without_prediction_are_not_covered(corridor, perfect_predictions, tmp_path) -> None:
    """A method that leaves out frames must not look complete."""
    for index in range(0, FRAMES, 2):
        name = f"{index:06d}.npy"
        depth = np.load(perfect_predictions / "depth" / name)
        (tmp_path / "depth").mkdir(exist_ok=True)
        np.save(tmp_path / "depth" / name, depth)
    result = evaluate_one(corridor, Options(predictions=tmp_path))
    assert result.depth["metric"].coverage == pytest.approx(0.5)
    assert any("predicted depth for 6 of 12" in note for note in result.notes)


def test_predictions_of_another_shape_are_refused(corridor, tmp_path) -> None:
    (tmp_path / "depth").mkdir()
    for index in range(FRAMES):
        np.save(tmp_path / "depth" / f"{index:06d}.npy", np.ones((100, 100), np.float32))
    result = evaluate_one(corridor, Options(predictions=tmp_path))
    assert result.status == "failed"
    assert "predicted depth is 100x100 where the truth is 64x48" in result.error


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


def test_images_that_the_model_cannot_take_spoil_no_other_recording(
    corridor, model_file, tmp_path
) -> None:
    import cv2

    panorama = tmp_path / "panorama"
    panorama.mkdir()
    cv2.imwrite(str(panorama / "0000.png"), np.zeros((48, 410, 3), np.uint8))
    options = Options(model=model_file, device="cpu")
    bad, good = evaluate([panorama, corridor], options, 1, silent)
    assert (bad.status, good.status) == ("failed", "ok")
    assert "410x48" in bad.error
    with pytest.raises(ValueError, match="window"):  # no fault of a recording
        evaluate_one(corridor, Options(model=model_file, window=-1))


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

    name, sha256, metric, context_capacity, memory = "test", "", True, 0, {}

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
