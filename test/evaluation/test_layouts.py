# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from corridor import FRAMES, SIZE, corridor_depth, corridor_path, write_tum_folder

from omnistream_ros.evaluation.data_sets import read_sintel_depth
from omnistream_ros.evaluation.image_files import natural_key
from omnistream_ros.evaluation.inspection import describe
from omnistream_ros.evaluation.recordings import (
    DepthFrame,
    Recording,
    RecordingError,
    RecordingInfo,
    Selection,
    open_recording,
    with_depth,
)
from omnistream_ros.evaluation.trajectory import write_tum

GREY = np.full((*SIZE, 3), 90, np.uint8)


def write_image(path: Path, pixels: np.ndarray = GREY) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def matrices() -> np.ndarray:
    return corridor_path().matrices()


def check_depth_and_poses(path: Path, layout: str, step: float = 0.001) -> None:
    recording = open_recording(path)
    assert recording.info().layout == layout
    pairs = list(with_depth(recording.frames(), recording.depths()))
    assert len(pairs) == FRAMES
    for index, (frame, depth) in enumerate(pairs):
        assert depth is not None
        assert np.allclose(depth.depth, corridor_depth(index), atol=0.51 * step + 1e-6)
        assert frame.image.shape == (*SIZE, 3)
    trajectory = recording.trajectory()
    assert trajectory is not None
    assert np.allclose(trajectory.matrices(), matrices(), atol=1e-6)
    assert np.array_equal(trajectory.stamps_ns, [frame.stamp_ns for frame, _ in pairs])
    describe(recording)


def test_tum(corridor) -> None:
    check_depth_and_poses(corridor, "TUM RGB-D folder")
    camera = next(open_recording(corridor).frames()).intrinsics
    assert camera is not None
    assert (camera.fx, camera.cx) == (60.0, 31.5)


def depth_range(recording: Recording) -> str:
    """What `omnistream inspect` says of the range of depth."""
    (line,) = (x for x in describe(recording).splitlines() if x.startswith("depth range"))
    return line.removeprefix("depth range ")


def test_inspection_tells_the_range_of_depth(tmp_path) -> None:
    folder = write_tum_folder(tmp_path / "corridor")
    all_depth = np.stack([corridor_depth(index) for index in range(FRAMES)])
    said = re.fullmatch(
        r"median ([\d.]+) m, 5 to 95 % ([\d.]+) to ([\d.]+) m  \(of 8 depth images\)",
        depth_range(open_recording(folder)),
    )
    assert said is not None
    found = [float(said[n]) for n in (2, 1, 3)]
    assert found == pytest.approx(np.percentile(all_depth, [5, 50, 95]), rel=0.03)
    # Millimetres taken for metres are plain to see.
    camera = folder / "camera.yaml"
    camera.write_text(camera.read_text().replace("1000.0", "1.0"))
    assert re.match(r"median 3\d\d0 m, ", depth_range(open_recording(folder)))
    for file in (folder / "depth").iterdir():
        write_image(file, np.zeros(SIZE, np.uint16))
    assert depth_range(open_recording(folder)) == "no valid pixel in 8 depth images"


@pytest.mark.parametrize(("count", "read", "used"), [(3, 3, 3), (20, 15, 8), (1000, 176, 8)])
def test_inspection_reads_the_beginning_of_what_cannot_be_skipped(
    count: int, read: int, used: int
) -> None:
    decoded = []

    class Bag(Recording):
        def info(self) -> RecordingInfo:
            return RecordingInfo("bag", "/image", depth="/depth", depths=count)

        def frames(self):
            return iter(())

        def depths(self):
            for index in range(count):
                decoded.append(index)
                yield DepthFrame(index, np.full(SIZE, 1 + index, np.float32))

    assert f"(of {used} depth images)" in depth_range(Bag(Path("bag")))
    assert len(decoded) == read


def test_bonn_is_a_tum_folder_with_its_own_limits(tmp_path) -> None:
    folder = write_tum_folder(tmp_path / "rgbd_bonn_balloon2")
    assert open_recording(folder).depth_limits == (0.0, 70.0)


def test_tum_without_calibration_uses_the_published_one_and_5000_steps(tmp_path) -> None:
    folder = tmp_path / "rgbd_dataset_freiburg2_desk"
    write_image(folder / "rgb" / "0.png", np.zeros((480, 640, 3), np.uint8))
    write_image(folder / "depth" / "0.png", np.full((480, 640), 5000, np.uint16))
    (folder / "rgb.txt").write_text("0.0 rgb/0.png\n")
    (folder / "depth.txt").write_text("0.01 depth/0.png\n")
    recording = open_recording(folder)
    frame = next(recording.frames())
    assert frame.intrinsics is not None
    assert frame.intrinsics.fx == 520.9
    depth = next(recording.depths()).depth
    assert depth[240, 320] == 1.0
    # Its lens draws the corners inwards; undistorted, they come from outside of the image.
    assert np.isnan(depth[0, 0])
    assert "undistorted here" in describe(recording)
    assert recording.trajectory() is None


def test_seven_scenes(tmp_path) -> None:
    for index in range(FRAMES):
        stem = tmp_path / f"frame-{index:06d}"
        write_image(Path(f"{stem}.color.png"))
        depth = np.rint(1000 * corridor_depth(index)).astype(np.uint16)
        write_image(Path(f"{stem}.depth.png"), depth)
        np.savetxt(f"{stem}.pose.txt", matrices()[index])
    check_depth_and_poses(tmp_path, "7-Scenes folder")
    write_image(tmp_path / "frame-000000.depth.png", np.full(SIZE, 65535, np.uint16))
    assert np.isnan(next(open_recording(tmp_path).depths()).depth).all()


def test_scannet_leaves_lost_poses_out(tmp_path) -> None:
    for index in range(FRAMES):
        write_image(tmp_path / "color" / f"{index}.jpg")
        depth = np.rint(1000 * corridor_depth(index)).astype(np.uint16)
        write_image(tmp_path / "depth" / f"{index}.png", depth)
        (tmp_path / "pose").mkdir(exist_ok=True)
        np.savetxt(tmp_path / "pose" / f"{index}.txt", matrices()[index])
    check_depth_and_poses(tmp_path, "ScanNet folder")
    np.savetxt(tmp_path / "pose" / "3.txt", np.full((4, 4), -np.inf))
    trajectory = open_recording(tmp_path).trajectory()
    assert trajectory is not None
    assert len(trajectory) == FRAMES - 1


@pytest.mark.parametrize(
    ("size", "fx", "expected"),
    [
        ((320, 240), 160.0, 160.0),  # the calibration of the images themselves
        ((320, 240), 320.0, 160.0),  # that of the 640x480 depth camera
        ((648, 484), 648.0, 324.0),  # that of the full colour image
        ((640, 480), 320.0, 320.0),
    ],
)
def test_scannet_calibration_belongs_to_the_size_that_fits(
    tmp_path, size: tuple[int, int], fx: float, expected: float
) -> None:
    write_image(tmp_path / "color" / "0.jpg", np.full((size[1], size[0], 3), 90, np.uint8))
    write_image(tmp_path / "depth" / "0.png", np.full(size[::-1], 1000, np.uint16))
    for folder in ("pose", "intrinsic"):
        (tmp_path / folder).mkdir()
    np.savetxt(tmp_path / "pose" / "0.txt", np.eye(4))
    camera = np.diag([fx, fx, 1.0, 1.0])
    camera[:2, 2] = fx, 0.75 * fx  # 53 degrees to each side: the middle is at cx = fx
    np.savetxt(tmp_path / "intrinsic" / "intrinsic_color.txt", camera)
    found = next(open_recording(tmp_path).frames()).intrinsics
    assert found is not None
    assert found.fx == pytest.approx(expected)
    assert found.cx == pytest.approx(size[0] / 2, abs=1)


def test_kitti_odometry(tmp_path) -> None:
    folder = tmp_path / "sequences" / "07"
    path = corridor_path()
    for index in range(FRAMES):
        write_image(folder / "image_2" / f"{index:06d}.png")
    (folder / "times.txt").write_text("\n".join(f"{s / 1e9:e}" for s in path.stamps_ns) + "\n")
    (folder / "calib.txt").write_text("P2: 700 0 31 0 0 701 23 0 0 0 1 0\n")
    (tmp_path / "poses").mkdir()
    np.savetxt(tmp_path / "poses" / "07.txt", matrices()[:, :3].reshape(-1, 12))
    recording = open_recording(folder)
    assert recording.info().layout == "KITTI odometry folder"
    frames = list(recording.frames())
    assert [frame.stamp_ns for frame in frames] == list(path.stamps_ns)
    assert frames[0].intrinsics is not None
    assert frames[0].intrinsics.fy == 701
    trajectory = recording.trajectory()
    assert trajectory is not None
    assert np.allclose(trajectory.matrices(), matrices(), atol=1e-9)
    (folder / "times.txt").write_text("0.0\n")
    with pytest.raises(RecordingError, match="1 lines in times"):
        open_recording(folder)


def test_kitti_depth_starts_where_the_laser_does(tmp_path) -> None:
    drive = "2011_09_26_drive_0002_sync"
    images = tmp_path / "2011_09_26" / drive
    for index in range(8):
        write_image(images / "image_02" / "data" / f"{index:010d}.png")
    truth = tmp_path / "val" / drive / "proj_depth" / "groundtruth" / "image_02"
    sparse = np.zeros(SIZE, np.uint16)
    sparse[::4, ::4] = 256 * 12
    for index in range(2, 6):
        write_image(truth / f"{index:010d}.png", sparse)
    recording = open_recording(images)
    pairs = list(with_depth(recording.frames(), recording.depths()))
    assert [depth is not None for _, depth in pairs] == [False] * 2 + [True] * 4 + [False] * 2
    depth = pairs[3][1]
    assert depth is not None
    assert depth.depth[0, 0] == 12.0
    assert np.isnan(depth.depth[1, 1])


def test_sintel(tmp_path) -> None:
    root = tmp_path / "training"
    for index in range(FRAMES):
        stem = f"frame_{index + 1:04d}"
        write_image(root / "final" / "alley_2" / f"{stem}.png", np.zeros((436, 1024, 3), np.uint8))
        depth = np.full((436, 1024), 5.0 + index, "<f4")
        file = root / "depth" / "alley_2" / f"{stem}.dpt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(struct.pack("<fii", 202021.25, 1024, 436) + depth.tobytes())
        k = np.array([[1120.0, 0, 511.5], [0, 1120.0, 217.5], [0, 0, 1]])
        world_to_camera = np.linalg.inv(matrices()[index])[:3]
        file = root / "camdata_left" / "alley_2" / f"{stem}.cam"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(struct.pack("<f", 202021.25) + k.tobytes() + world_to_camera.tobytes())
    recording = open_recording(root / "final" / "alley_2")
    assert recording.info().layout == "Sintel folder"
    assert recording.depth_limits == (0.0, 70.0)
    pairs = list(with_depth(recording.frames(), recording.depths()))
    assert [depth.depth[0, 0] for _, depth in pairs if depth] == [5.0 + i for i in range(FRAMES)]
    trajectory = recording.trajectory()
    assert trajectory is not None
    assert np.allclose(trajectory.matrices(), matrices(), atol=1e-9)
    broken = root / "depth" / "alley_2" / "frame_0001.dpt"
    for data, words in (
        (b"", "tag"),
        (struct.pack("<fii", 1.0, 2, 2), "tag"),
        (struct.pack("<fii", 202021.25, 1024, 436), "says 1024x436"),
        (struct.pack("<fii", 202021.25, -1, 436), "says -1x436"),
    ):
        broken.write_bytes(data)
        with pytest.raises(RecordingError, match=words):
            read_sintel_depth(broken)


def test_image_folder_in_natural_order(tmp_path) -> None:
    for number in (1, 2, 10):
        write_image(tmp_path / f"frame{number}.png", np.full((*SIZE, 3), 10 * number, np.uint8))
    frames = list(open_recording(tmp_path).frames())
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [10, 20, 100]
    assert [frame.stamp_ns for frame in frames] == [0, 33333333, 66666667]
    names = ["b10", "b9", "a", "10", "9"]
    assert sorted(names, key=lambda n: natural_key(Path(n))) == ["9", "10", "a", "b9", "b10"]


def test_video(tmp_path) -> None:
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, SIZE[::-1])
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos: the video reader was not tested")
    for value in range(0, 200, 20):
        writer.write(np.full((*SIZE, 3), (value, 0, 0), np.uint8))
    writer.release()
    recording = open_recording(file)
    frames = list(recording.frames())
    assert [frame.stamp_ns for frame in frames[:3]] == [0, 80_000_000, 160_000_000]
    assert len(frames) == 10
    assert frames[5].image[20, 20].tolist() == pytest.approx([0, 0, 100], abs=8)  # RGB
    assert recording.trajectory() is None
    assert "no calibration" in describe(recording)


@pytest.mark.parametrize("data", [b"", b"RIFF nothing more"])
def test_video_that_is_none(tmp_path, data: bytes) -> None:
    (tmp_path / "clip.mp4").write_bytes(data)
    with pytest.raises(RecordingError, match="cannot be decoded"):
        open_recording(tmp_path / "clip.mp4")


def test_layout_can_be_named(tmp_path, corridor) -> None:
    images = open_recording(corridor / "rgb", Selection(layout="images"))
    assert images.info().layout == "image folder"
    with pytest.raises(RecordingError, match="is not tum"):
        open_recording(tmp_path, Selection(layout="tum"))


# -- bad folders ----------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path) -> Path:
    return write_tum_folder(tmp_path / "broken")


def test_missing_and_broken_images_are_named(broken) -> None:
    (broken / "rgb" / "0003.png").write_bytes(b"not an image")
    with pytest.raises(RecordingError, match=r"0003.png cannot be decoded"):
        list(open_recording(broken).frames())
    (broken / "rgb" / "0003.png").unlink()
    with pytest.raises(RecordingError, match=r"0003\.png"):
        list(open_recording(broken).frames())


def test_eight_bit_depth_is_refused(broken) -> None:
    write_image(broken / "depth" / "0000.png", np.ones(SIZE, np.uint8))
    with pytest.raises(RecordingError, match="16-bit"):
        next(open_recording(broken).depths())


@pytest.mark.parametrize(
    ("text", "words"),
    [("zero rgb/0.png", "expected 'timestamp filename'"), ("0.0", "rgb.txt:1"), ("", "no image")],
)
def test_bad_lists(broken, text: str, words: str) -> None:
    (broken / "rgb.txt").write_text(text)
    with pytest.raises(RecordingError, match=words):
        open_recording(broken)


@pytest.mark.parametrize("text", ["", "fx: one", "fx: 1\nfy: 1\ncx: 1\ncy: 1\nwidth: 0\nheight: 2"])
def test_bad_calibration(broken, text: str) -> None:
    (broken / "camera.yaml").write_text(text)
    with pytest.raises(RecordingError, match=r"camera\.yaml"):
        open_recording(broken)


def test_calibration_of_another_shape(broken) -> None:
    text = (broken / "camera.yaml").read_text().replace("width: 64", "width: 48")
    (broken / "camera.yaml").write_text(text)
    with pytest.raises(RecordingError, match="calibration is for 48x48"):
        next(open_recording(broken).frames())


def test_bad_poses_are_an_error_of_the_recording(broken) -> None:
    path = corridor_path()
    write_tum(broken / "groundtruth.txt", path)
    with (broken / "groundtruth.txt").open("a") as file:
        file.write("99.0 0 0 0 0 0 0 0\n")
    with pytest.raises(RecordingError, match=r"groundtruth.*length 0"):
        open_recording(broken).trajectory()
    assert "cannot be used" in describe(open_recording(broken))
