# SPDX-License-Identifier: Apache-2.0
"""Recordings become clips whose pixels still back-project to the points they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from omnistream_ros.evaluation.recordings import (
    DepthFrame,
    Recording,
    RecordingError,
    RecordingInfo,
)
from omnistream_ros.evaluation.trajectory import Trajectory
from omnistream_ros.stream.frame import Frame, Intrinsics
from omnistream_ros.training import recorded_clips
from omnistream_ros.training.clip_files import ClipError, find_clips, read_clip
from omnistream_ros.training.recorded_clips import SIZE, recordings_of, write_recorded_clips

CAMERA = Intrinsics(300.0, 300.0, 330.0, 170.0, 640, 360)
MS = 1_000_000


class TiltedPlane(Recording):
    """A 16:9 camera before the plane z = 2 + x / 2, moving 1 cm a frame along x, at 30 Hz."""

    stamps = tuple(33 * MS * i for i in range(90))
    poses: tuple[int, int] | None = (0, 90)
    depth_of: Sequence[int] = range(90)
    depth_shape = (360, 640)

    def info(self) -> RecordingInfo:
        return RecordingInfo("test", "images")

    def frames(self) -> Iterator[Frame]:
        for number, stamp in enumerate(self.stamps):
            yield Frame(np.full((360, 640, 3), number, np.uint8), stamp, CAMERA)

    def depths(self) -> Iterator[DepthFrame]:
        u = np.arange(640, dtype=np.float32)
        ray = (u - CAMERA.cx) / CAMERA.fx
        for number in self.depth_of:
            # z = 2 + (x_camera + 0.01 n) / 2 with x_camera = ray * z
            depth = (2 + 0.005 * number) / (1 - ray / 2)
            height, width = self.depth_shape
            plane = np.tile(depth[:width], (height, 1)).astype(np.float32)
            yield DepthFrame(self.stamps[number], plane)

    def trajectory(self) -> Trajectory | None:
        if self.poses is None:
            return None
        numbers = np.arange(*self.poses)
        x = np.stack([0.01 * numbers, 0 * numbers, 0 * numbers], 1)
        turned = np.tile([0.0, 0, 0, 1], (len(numbers), 1))
        return Trajectory(np.array(self.stamps, np.int64)[numbers], x, turned)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TiltedPlane:
    plane = TiltedPlane(tmp_path / "plane")
    monkeypatch.setattr(recorded_clips, "open_recording", lambda path: plane)
    return plane


def test_clips_show_the_plane_that_was_recorded(recording: TiltedPlane, tmp_path: Path) -> None:
    assert write_recorded_clips([recording.path], tmp_path / "clips", stride=3) == 2
    names = find_clips(tmp_path / "clips")
    assert names == [f"clip_{n:06d}.npz" for n in range(2)]
    clips = [read_clip(tmp_path / "clips" / name) for name in names]
    assert [len(clip) for clip in clips] == [24, 6], "every third of 90 frames"
    for clip in clips:
        assert clip.rgb.shape[1:3] == SIZE[::-1]
        fx, fy, cx, _ = clip.intrinsics
        assert fx == pytest.approx(fy, rel=1e-2)  # sides are whole pixels
        for pose, depth in zip(clip.poses, clip.depth, strict=True):
            x = (np.arange(SIZE[0]) - cx) / fx * depth + pose[0, 3]
            np.testing.assert_allclose(depth, 2 + x / 2, rtol=4e-3)  # nearest pixel, float16
    assert list(recordings_of(tmp_path / "clips")) == ["plane"]
    numbers = np.concatenate([clip.rgb[:, 0, 0, 0] for clip in clips])
    np.testing.assert_array_equal(numbers, np.arange(0, 90, 3))


def _paint(folder: Path, shade: int) -> None:
    """Fills the clips of a folder with one grey, which tells them from those written later."""
    for path in folder.glob("clip_*.npz"):
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez(path, **{**arrays, "rgb": np.full_like(arrays["rgb"], shade)})


def test_clips_of_a_recording_are_replaced_and_others_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(recorded_clips, "open_recording", TiltedPlane)
    clips, (one, other) = tmp_path / "clips", (tmp_path / name / "plane" for name in "ab")
    for path in (one, other, tmp_path / "wall"):
        path.mkdir(parents=True)
    assert write_recorded_clips([one, other], clips, stride=3) == 4, "two of the same name"
    _paint(clips, 255)
    # The path is the same however it is written, and the folder is numbered on.
    assert write_recorded_clips([one / ".." / "plane", tmp_path / "wall"], clips, stride=3) == 4
    names = find_clips(clips)
    assert names == [f"clip_{number:06d}.npz" for number in range(2, 8)]
    old = [(read_clip(clips / name).rgb == 255).all() for name in names]
    assert old == [True] * 2 + [False] * 4
    assert list(recordings_of(clips)) == ["plane", "wall"]


def test_clips_that_tell_no_path_are_replaced_by_name(
    recording: TiltedPlane, tmp_path: Path
) -> None:
    write_recorded_clips([recording.path], tmp_path, stride=3)
    for number, info in enumerate((b'{"recording": "plane"}', b'{"recording": "wall"}', b"{}")):
        with np.load(tmp_path / "clip_000000.npz") as stored:
            arrays = {**stored, "info": np.frombuffer(info, np.uint8)}
        np.savez(tmp_path / f"clip_{10 + number:06d}.npz", **arrays)
    write_recorded_clips([recording.path], tmp_path, stride=3)
    assert find_clips(tmp_path) == [f"clip_{number:06d}.npz" for number in (11, 12, 13, 14)]
    (tmp_path / "clip_000020.npz").write_bytes(b"not a zip")
    with pytest.raises(ClipError, match=r"clip_000020\.npz: not a readable clip .* delete it"):
        write_recorded_clips([recording.path], tmp_path)


def test_a_recording_that_is_refused_leaves_its_clips(
    recording: TiltedPlane, tmp_path: Path
) -> None:
    write_recorded_clips([recording.path], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    recording.depth_of = ()
    with pytest.raises(RecordingError, match="no depth image belongs"):
        write_recorded_clips([recording.path], tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_frames_without_a_pose_are_left_out(recording: TiltedPlane, tmp_path: Path) -> None:
    recording.depth_of = [*range(20), *range(50, 90)]
    recording.poses = (6, 80)
    write_recorded_clips([recording.path], tmp_path)
    clips = [read_clip(tmp_path / name) for name in find_clips(tmp_path)]
    seen = np.concatenate([clip.rgb[:, 0, 0, 0] for clip in clips])
    np.testing.assert_array_equal(seen, np.arange(6, 80))
    known = np.concatenate([np.isfinite(clip.depth).any(axis=(1, 2)) for clip in clips])
    np.testing.assert_array_equal(seen[~known], np.arange(20, 50))


def test_depth_of_another_camera_is_refused(recording: TiltedPlane, tmp_path: Path) -> None:
    recording.depth_shape = (360, 360)
    with pytest.raises(RecordingError, match="another camera"):
        write_recorded_clips([recording.path], tmp_path)


@pytest.mark.parametrize(
    ("poses", "depth_of", "message"),
    [(None, range(90), "no camera poses"), ((0, 90), (), "no depth image belongs")],
)
def test_a_recording_without_truth_is_refused(
    recording: TiltedPlane, tmp_path: Path, poses, depth_of, message: str
) -> None:
    recording.poses, recording.depth_of = poses, depth_of
    with pytest.raises(RecordingError, match=message):
        write_recorded_clips([recording.path], tmp_path)
