# SPDX-License-Identifier: Apache-2.0
"""The demo's table and picture, from a node's bag that is made here and therefore known exactly."""

from __future__ import annotations

from pathlib import Path

import bags
import cv2
import numpy as np
import pytest
from corridor import FRAMES, SIZE, corridor_depth, corridor_path, write_tum_folder

from omnistream_ros.evaluation import demo_picture, demo_report
from omnistream_ros.evaluation.node_bag import NodeBag
from omnistream_ros.evaluation.recordings import RecordingError, open_recording

NODE = "/omnistream_perception"
PLAYED = {"frames": FRAMES, "duration_s": 1.1}


def node_entries(skipped: tuple[int, ...] = (4, 5), *, child: str = "camera"):
    """What a node publishes that dropped some frames and sees everything 10 % too far."""
    path = corridor_path()
    processed = 0
    for index in range(FRAMES):
        if index in skipped:
            continue
        processed += 1
        stamp, received = int(path.stamps_ns[index]), 10**18 + index * 10**8
        depth = (1.1 * corridor_depth(index)).astype(np.float32)
        yield (f"{NODE}/depth/image", received, bags.image(stamp, depth, "32FC1"))
        yield (f"{NODE}/depth/camera_info", received, bags.camera_info(stamp, SIZE[1], SIZE[0]))
        xyz, xyzw = path.translations[index], path.quaternions[index]
        yield (f"{NODE}/odometry", received, bags.odometry(stamp, "odom", child, xyz, xyzw))
        drops = {"superseded": index + 1 - processed}
        status = bags.status(stamp, processed, index + 1, drops)
        yield (f"{NODE}/status", received + 10**6, status)


@pytest.fixture
def node_bag(tmp_path) -> Path:
    return bags.write_bag(tmp_path / "node_bag", node_entries())


def test_numbers(corridor, node_bag) -> None:
    result = demo_report.measure(open_recording(corridor), node_bag, PLAYED)
    assert (result.sent, result.run.received, result.run.processed) == (12, 12, 10)
    assert result.run.drops == {"superseded": 2}
    assert result.run.rate_hz == pytest.approx(9 / 1.1)
    assert result.played_hz == pytest.approx(10.0)
    assert result.published == 10
    assert result.depth is not None
    assert result.scaled_depth is not None
    assert result.constant_depth is not None
    assert result.depth.abs_rel == pytest.approx(0.1, abs=1e-3)
    assert result.depth.delta1 == 1.0
    assert result.scaled_depth.abs_rel == pytest.approx(0.0, abs=1e-3)
    assert result.constant_depth.abs_rel > 0.05
    assert result.pose is not None
    assert result.static_pose is not None
    assert result.pose.ate_m == pytest.approx(0.0, abs=1e-6)
    assert result.static_pose.ate_m > 0.1
    assert result.pose.matched == 10
    assert result.notes == []
    assert result.run.stages()["backbone"][0] == pytest.approx(20.1)


def test_table_says_everything(corridor, node_bag) -> None:
    text = demo_report.table(demo_report.measure(open_recording(corridor), node_bag, PLAYED))
    words = {line.strip()[:26].strip(): line.strip()[26:].split() for line in text.splitlines()}
    assert words["sent by the player"] == ["12"]
    assert words["processed"] == ["10", "83", "%"]
    assert words["dropped: superseded"] == ["2"]
    assert words["rate"] == ["8.2", "Hz", "of", "10.0", "Hz"]
    assert words["as published"][-1] in ("%", "deg")
    for stage in ("preprocess", "backbone", "heads", "publish", "receipt to publish"):
        assert len(words[stage]) == 2
    assert "constant depth (baseline)" in text
    assert "camera standing still" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_picture(corridor, node_bag, tmp_path) -> None:
    result = demo_report.measure(open_recording(corridor), node_bag, PLAYED)
    demo_picture.draw(result, tmp_path / "demo.png")
    picture = cv2.imread(str(tmp_path / "demo.png"))
    assert picture.shape[1] > 1200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500


def test_without_ground_truth(tmp_path, node_bag) -> None:
    folder = write_tum_folder(tmp_path / "plain")
    for name in ("depth.txt", "groundtruth.txt"):
        (folder / name).unlink()
    result = demo_report.measure(open_recording(folder), node_bag, PLAYED)
    text = demo_report.table(result)
    assert "against truth" not in text
    assert "Note: no ground-truth depth" in text
    assert "Note: no ground-truth pose" in text
    demo_picture.draw(result, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_status_alone_is_enough_for_a_report(corridor, tmp_path) -> None:
    entries = [entry for entry in node_entries() if entry[0].endswith("status")]
    bag = bags.write_bag(tmp_path / "bag", entries)
    result = demo_report.measure(open_recording(corridor), bag, PLAYED)
    assert result.depth is None
    assert result.examples == []
    assert "no published pose" in " ".join(result.notes)
    demo_picture.draw(result, tmp_path / "demo.png")


def test_odometry_of_a_base_falls_back_to_tf(tmp_path) -> None:
    path = corridor_path()
    moving = [
        ("/tf", 10**18 + i, bags.transform(
            int(path.stamps_ns[i]), "odom", "camera", path.translations[i], path.quaternions[i]))
        for i in range(FRAMES)
    ]  # fmt: skip
    bag = bags.write_bag(tmp_path / "bag", [*node_entries(child="base_link"), *moving])
    trajectory = NodeBag(bag).trajectory()
    assert trajectory is not None
    assert np.allclose(trajectory.translations, path.translations, atol=1e-9)
    lost = bags.write_bag(tmp_path / "lost", node_entries(child="base_link"))
    with pytest.raises(RecordingError, match="no fixed transform"):
        NodeBag(lost).trajectory()


def test_truth_of_another_camera_becomes_a_note(tmp_path, node_bag) -> None:
    folder = write_tum_folder(tmp_path / "other")
    (folder / "camera.yaml").unlink()
    for file in (folder / "depth").iterdir():
        cv2.imwrite(str(file), np.full((64, 64), 1000, np.uint16))
    result = demo_report.measure(open_recording(folder), node_bag, PLAYED)
    assert result.depth is None
    assert any("another camera" in note for note in result.notes)


def test_a_node_that_processed_nothing(tmp_path, corridor) -> None:
    waiting = bags.status(0, 1, 0, {}, state=1)
    bag = bags.write_bag(tmp_path / "bag", [(f"{NODE}/status", 10**18, waiting)])
    with pytest.raises(RecordingError, match="processed no frame"):
        demo_report.measure(open_recording(corridor), bag, PLAYED)
    other = bags.write_bag(
        tmp_path / "other", [("/image", 1, bags.image(0, np.ones((2, 2, 3), np.uint8), "rgb8"))]
    )
    with pytest.raises(RecordingError, match="needs one topic of type omnistream_ros/msg/Stream"):
        NodeBag(other)


def test_states_that_are_no_frames_are_not_counted_as_frames(tmp_path) -> None:
    entries = list(node_entries())
    last = bags.status(0, FRAMES - 2, FRAMES + 3, {"superseded": 2, "bad_image": 3}, state=0)
    bag = bags.write_bag(tmp_path / "bag", [*entries, (f"{NODE}/status", 10**18 + 10**10, last)])
    run = NodeBag(bag).run()
    assert len(run.frames) == 10
    assert run.received == FRAMES + 3
    assert run.drops == {"superseded": 2, "bad_image": 3}
