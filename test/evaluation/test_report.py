# SPDX-License-Identifier: Apache-2.0
"""The files of an evaluation, its report, and two of them side by side."""

from __future__ import annotations

import functools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from corridor import FRAMES, corridor_depth, corridor_path, write_tum_folder

from omnistream_ros.evaluation import evaluate_command, summary
from omnistream_ros.evaluation.compare import compare
from omnistream_ros.evaluation.depth_pairs import DepthPairs
from omnistream_ros.evaluation.evaluate import Options, evaluate_one
from omnistream_ros.evaluation.protocols import FrameRange
from omnistream_ros.evaluation.recordings import RecordingError
from omnistream_ros.evaluation.trajectory import read_tum


def silent(*_: object) -> None:
    """A progress that says nothing."""


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
    predictions = tmp_path_factory.mktemp("of_each")
    for path in paths:
        (predictions / path.name).symlink_to(perfect_predictions)
    good = evaluate_command.run(paths, Options(predictions=predictions), out, say=silent)
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
    assert page.count("<figcaption>") == parser.images
    assert "laid onto the truth by Sim(3)" in page
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
    assert "not the same frames" not in text
    few = tmp_path / "few"
    options = Options(predictions=tmp_path, frames=FrameRange(0, 5))
    evaluate_command.run([corridor], options, few, say=silent)
    assert f"not the same frames: A has {FRAMES}, B has 5" in compare(evaluation, few)
    command = json.loads((few / "metrics.json").read_text())["command"]
    assert f"\n   {command}\n" in compare(evaluation, few)
    assert "+" not in "".join(compare(other, other).split("B - A")[1:]).replace("+0.", "")
    for bad in ("", "[]", '{"sequences": []}'):
        (tmp_path / "metrics.json").write_text(bad)
        with pytest.raises(RecordingError, match=r"not the metrics\.json"):
            compare(tmp_path, other)


def test_the_report_says_what_the_stream_remembered(
    evaluation, corridor, model_file, tmp_path
) -> None:
    options = Options(model_file, "cpu", memory="window+memory", sink=2, window=3, keyframes=4)
    evaluate_command.run([corridor], options, tmp_path, say=silent)
    (one,) = json.loads((tmp_path / "metrics.json").read_text())["sequences"]
    memory = {"name": "window+memory", "sink": 2, "window": 3, "keyframes": 4, "cell": 2}
    assert one["memory"] == memory
    words = "window+memory (sink 2, window 3, keyframes 4, cell 2)"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<dt>memory of a stream</dt><dd>{words}</dd>" in page
    assert f"{one['weights_sha256'][:12]}; {words})" in compare(tmp_path, evaluation)
    # Predictions of others, and files of before, do not say.
    assert "memory of a stream" not in (evaluation / "report.html").read_text(encoding="utf-8")
    old = json.loads((evaluation / "metrics.json").read_text())
    assert old["sequences"][0].pop("memory") == {}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.json").write_text(json.dumps(old))
    assert compare(tmp_path / "old", evaluation)


def test_out_that_cannot_be_written_is_known_before_the_work(corridor, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        evaluate_command.run([corridor], Options(), tmp_path / "file" / "out", say=silent)


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(
    "file", ["corridor/frames.csv", "corridor/trajectory.tum", "metrics.json.part", "report.html"]
)
def test_full_disk_is_an_error_after_the_numbers_were_said(
    corridor, perfect_predictions, tmp_path, file: str
) -> None:
    """Every file in turn lies on a device that takes nothing."""
    (tmp_path / "corridor").mkdir()
    (tmp_path / "metrics.json").write_text("old")
    (tmp_path / file).symlink_to(FULL)
    said: list[str] = []
    with pytest.raises(OSError, match=r"No space left on device; the results are not") as caught:
        evaluate_command.run(
            [corridor], Options(predictions=perfect_predictions), tmp_path, say=said.append
        )
    assert caught.value.filename == str(tmp_path)
    assert any("0.500" in line for line in said), "what was measured is told all the same"
    if file != "report.html":  # complete or not at all
        assert (tmp_path / "metrics.json").read_text() == "old"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_full_temporary_folder_fails_the_sequence(
    corridor, perfect_predictions, monkeypatch
) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: FULL.open("r+b"))
    patch = functools.partial(DepthPairs, memory_pixels=100)
    monkeypatch.setattr("omnistream_ros.evaluation.replay.DepthPairs", patch)
    result = evaluate_one(corridor, Options(predictions=perfect_predictions))
    assert result.status == "failed"
    assert "No space left on device; set TMPDIR" in result.error
