# SPDX-License-Identifier: Apache-2.0
"""Depth of another scale than the poses is found and named; nothing else is called wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from tiny_clips import plane_clip
from tiny_recordings import write_released_backbone, write_tum_recording

from omnistream_ros.evaluation.recordings import RecordingError, open_recording
from omnistream_ros.training.clip_files import Clip
from omnistream_ros.training.depth_scale import DepthScaleCheck
from omnistream_ros.training.head_settings import HeadSettings
from omnistream_ros.training.recorded_clips import write_recorded_clips
from omnistream_ros.training.recorded_streams import Cut, recorded_streams
from omnistream_ros.training.train_heads import HeadTrainer

CAMERA = np.array([60.0, 60.0, 31.5, 23.5])
#: Turns the room against the first image: planes that a motion is parallel to tell nothing of it.
TILT = Rotation.from_rotvec([0.5, 0.6, 0.2]).as_matrix()


def room_clip(velocity: np.ndarray, spin: np.ndarray, frames: int = 24) -> Clip:
    """A camera in a room of 4 x 2.4 x 5 m, moving and turning by so much a frame (m, radian)."""
    v, u = np.mgrid[0:48, 0:64].astype(np.float64)
    rays = np.stack([(u - 31.5) / 60, (v - 23.5) / 60, np.ones_like(u)], -1)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    depth = np.empty((frames, 48, 64), np.float32)
    for t, pose in enumerate(poses):
        pose[:3, :3] = Rotation.from_rotvec(spin * t).as_matrix()
        pose[:3, 3] = velocity * t
        world = rays @ (TILT @ pose[:3, :3]).T
        wall = np.where(world > 0, [2.0, 1.2, 3.5], [-2.0, -1.2, -1.5])  # what each ray heads for
        with np.errstate(divide="ignore"):
            depth[t] = ((wall - TILT @ pose[:3, 3]) / world).min(axis=-1)
    return Clip(np.zeros((frames, 48, 64, 3), np.uint8), depth, poses, CAMERA)


def checked(*clips: Clip, posed: bool = True) -> DepthScaleCheck:
    check = DepthScaleCheck()
    for clip in clips:
        check.add(clip, posed)
    return check


def scaled(clip: Clip, factor: float) -> Clip:
    return replace(clip, depth=clip.depth * np.float32(factor))


directions = st.tuples(*[st.floats(-1, 1)] * 3).map(np.array)
moving, turning = directions.map(lambda d: 0.025 * d), directions.map(lambda d: 0.01 * d)


@pytest.mark.parametrize("factor", [5.0, 0.2, 1000.0])
@pytest.mark.parametrize("seed", range(5))
def test_wrong_depth_of_a_moving_camera_is_found_and_named(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    velocity = rng.normal(size=3)
    velocity *= 0.025 / np.linalg.norm(velocity)
    check = checked(scaled(room_clip(velocity, rng.uniform(-0.01, 0.01, 3)), factor))
    found = check.factor()
    assert found is not None
    assert found[0] * factor == pytest.approx(1, rel=0.15)
    named = r"^kitchen: depth and poses disagree: .*multiplied by about ([\d.]+) \(.*16UC1"
    with pytest.raises(RecordingError, match=named) as caught:
        check.judge(Path("kitchen"))
    said = re.match(named, str(caught.value))
    assert said is not None
    assert float(said[1]) == pytest.approx(found[0], rel=0.05), "without an exponent"


@given(moving, turning, st.floats(0, 0.05), st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_right_depth_passes_with_noise_and_holes(
    velocity: np.ndarray, spin: np.ndarray, noise: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    clip = room_clip(velocity, spin)
    depth = clip.depth * rng.normal(1, noise, clip.depth.shape).astype(np.float32)
    depth[rng.random(depth.shape) < 0.3] = np.nan
    depth[3] = np.nan  # a frame without
    checked(replace(clip, depth=depth)).judge(Path("kitchen"))


@given(turning, st.sampled_from([1.0, 5.0, 0.2]))
@settings(max_examples=10, deadline=None)
def test_a_camera_that_only_turns_gives_no_verdict(spin: np.ndarray, factor: float) -> None:
    check = checked(scaled(room_clip(np.zeros(3), spin), factor))
    assert check.factor() is None
    check.judge(Path("kitchen"))


def test_few_pairs_give_no_verdict() -> None:
    clip = scaled(room_clip(np.array([0.02, 0, 0.02]), np.zeros(3)), 5)
    assert checked(clip.frames(np.arange(6))).factor() is None
    assert checked().factor() is None
    checked().judge(Path("kitchen"))


def test_poses_that_are_wrong_otherwise_are_not_blamed_on_depth() -> None:
    """With the motion reversed the best is to make it vanish, which no factor does better."""
    for direction in np.eye(3):
        clip = room_clip(0.02 * direction, np.array([0, 0.01, 0]))
        clip.poses[:, :3, 3] *= -1
        assert checked(clip).factor() is None


@pytest.mark.parametrize(("factor", "median"), [(1000, r"\d+"), (0.001, r"0\.00\d+")])
def test_depth_that_no_robot_meets_is_refused_without_poses(factor: float, median: str) -> None:
    clip = scaled(room_clip(np.zeros(3), np.zeros(3), 3), factor)
    with pytest.raises(RecordingError, match=rf"median depth is {median} m.*0\.05 and 50 m; check"):
        checked(clip, posed=False).judge(Path("kitchen"))


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A TUM folder of 5000 steps to the metre whose camera.yaml says 1000."""
    folder = write_tum_recording(tmp_path / "wrong", plane_clip(seed=1, frames=40, size=(96, 128)))
    camera = folder / "camera.yaml"
    camera.write_text(camera.read_text().replace("5000.0", "1000.0"))
    return folder


def test_clips_of_wrong_depth_are_not_written(wrong: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RecordingError, match=r"wrong: depth and poses .* multiplied by about 0\.2 "
    ):
        write_recorded_clips([wrong], tmp_path / "clips")
    assert not list((tmp_path / "clips").iterdir())


@pytest.mark.parametrize("held_out", [False, True])
def test_heads_are_not_trained_on_wrong_depth(wrong: Path, tmp_path: Path, held_out: bool) -> None:
    right = write_tum_recording(tmp_path / "right", plane_clip(seed=6, frames=12, size=(96, 128)))
    heads = HeadSettings(
        backbone=write_released_backbone(tmp_path / "released"),
        run=tmp_path / "run",
        output=tmp_path / "out.safetensors",
        recordings=(right,) if held_out else (right, wrong),
        held_out=(wrong,) if held_out else (),
        pixels=96 * 128,
        head_width=16,
    )
    with pytest.raises(RecordingError, match="wrong: depth and poses disagree"):
        HeadTrainer(heads, report=[].append).run()
    assert not list((heads.run / "features").glob("clip_*")), "not even of the right one"


@pytest.mark.parametrize(
    "name", ["tum_fr1_rpy", "bags/hololens_mcap_zstd", "bags/tartan_sqlite3_jpeg"]
)
def test_real_recordings(shared: Path, name: str) -> None:
    streams = recorded_streams(open_recording(shared / "data" / name), Cut(128 * 96, 16))
    clips = [stream.clip for stream in streams]
    assert checked(*clips).factor() is None
    for factor in (5, 0.2):
        found = checked(*(scaled(clip, factor) for clip in clips)).factor()
        assert found is not None
        assert found[0] * factor == pytest.approx(1, rel=0.2)
