# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tracemalloc
from pathlib import Path

import bags
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from omnistream_ros.evaluation.inspection import describe
from omnistream_ros.evaluation.recordings import (
    RecordingError,
    Selection,
    open_recording,
    with_depth,
)

SIZE = (6, 8)
LEVEL = (0.0, 0.0, 0.0, 1.0)


def pixels(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def camera_entries(count: int = 5, *, compressed: bool = False, info: bool = True):
    """Images at 10 Hz with a camera_info each."""
    for index in range(count):
        stamp, received = index * 10**8, 10**18 + index * 10**8
        if info:
            yield ("/cam/camera_info", received, bags.camera_info(stamp, SIZE[1], SIZE[0]))
        if compressed:
            yield ("/cam/image_raw/compressed", received, bags.compressed(stamp, pixels(index)))
        else:
            yield ("/cam/image_raw", received, bags.image(stamp, pixels(index), "rgb8"))


def depth_entries(
    count: int = 5, encoding: str = "16UC1", topic: str = "/cam/depth", frame="camera"
):
    for index in range(count):
        depth = np.full(SIZE, 2000 + index, np.uint16)
        if encoding == "32FC1":
            depth = (depth / 1000).astype(np.float32)
        stamp = index * 10**8 + 3_000_000
        yield (topic, 10**18 + index * 10**8 + 1, bags.image(stamp, depth, encoding, frame))


def tf_entries(count: int = 5, parent: str = "world", child: str = "camera"):
    for index in range(count):
        stamp = index * 10**8
        message = bags.transform(stamp, parent, child, (0.1 * index, 0.0, 0.0), LEVEL)
        yield ("/tf", 10**18 + stamp, message)


def opened(path: Path, entries, selection: Selection | None = None, **options):
    return open_recording(bags.write_bag(path, entries, **options), selection)


@pytest.mark.parametrize(
    ("storage", "compression"),
    [(storage, mode) for storage in ("mcap", "sqlite3") for mode in (None, "message", "file")]
    + [("mcap", "storage")],
)
@pytest.mark.parametrize(("compressed", "encoding"), [(False, "32FC1"), (True, "16UC1")])
def test_everything_is_found_and_comes_back(
    tmp_path, storage: str, compression: str | None, compressed: bool, encoding: str
) -> None:
    entries = [
        *camera_entries(compressed=compressed),
        *depth_entries(encoding=encoding),
        *tf_entries(),
    ]
    entries.sort(key=lambda entry: entry[1])
    recording = opened(tmp_path / "bag", entries, storage=storage, compression=compression)
    both = list(with_depth(recording.frames(), recording.depths()))
    assert len(both) == 5
    for index, (frame, depth) in enumerate(both):
        assert np.array_equal(frame.image, pixels(index))
        assert frame.stamp_ns == index * 10**8
        assert frame.intrinsics is not None
        assert (frame.intrinsics.fx, frame.intrinsics.width) == (100.0, 8)
        assert depth is not None
        assert depth.depth[0, 0] == pytest.approx(2.0 + index / 1000)
    trajectory = recording.trajectory()
    assert trajectory is not None
    assert trajectory.translations[:, 0] == pytest.approx(0.1 * np.arange(5))
    assert list(recording.frames())[2].stamp_ns == 2 * 10**8  # a second time, from the beginning
    text = describe(recording)
    assert ("mcap" if storage == "mcap" else "sqlite3") in text
    assert "5 poses, 0.40 m" in text


def test_single_file_and_folder_without_metadata(tmp_path) -> None:
    bag = bags.write_bag(tmp_path / "bag", camera_entries(), storage="sqlite3")
    file = next(bag.glob("*.db3"))
    assert len(list(open_recording(file).frames())) == 5
    (bag / "metadata.yaml").unlink()
    assert len(list(open_recording(bag).frames())) == 5


def test_two_readers_of_one_recording_do_not_disturb_each_other(tmp_path) -> None:
    recording = opened(tmp_path / "bag", camera_entries(20), compression="storage")
    first, second = recording.frames(), recording.frames()
    stamps = [(next(first).stamp_ns, next(second).stamp_ns) for _ in range(20)]
    assert all(a == b for a, b in stamps)
    assert next(first, None) is next(second, None) is None


def test_memory_does_not_grow_with_the_bag(tmp_path) -> None:
    def entries(count: int):
        grey = np.zeros((240, 320), np.uint8)
        return (("/image", 10**18 + i, bags.image(i, grey, "mono8")) for i in range(count))

    peaks = []
    for count in (30, 300):
        recording = opened(tmp_path / f"bag{count}", entries(count), compression="storage")
        list(zip(range(3), recording.frames(), strict=False))  # imports and caches
        tracemalloc.start()
        assert sum(1 for _ in recording.frames()) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 2**20


# -- poses ----------------------------------------------------------------------------------------


def mount() -> tuple[tuple[float, ...], np.ndarray]:
    return (0.2, 0.0, 0.5), Rotation.from_euler("xyz", [-90, 0, -90], degrees=True).as_quat()


def test_odometry_of_the_base_goes_through_tf_static(tmp_path) -> None:
    xyz, xyzw = mount()
    entries = [
        *camera_entries(),
        ("/tf_static", 10**18, bags.transform(0, "base_link", "camera", xyz, xyzw)),
        *(
            (
                "/odom",
                10**18 + i,
                bags.odometry(i * 10**8, "odom", "base_link", (i, 0.0, 0.0), LEVEL),
            )
            for i in range(5)
        ),
    ]
    trajectory = opened(tmp_path / "bag", entries).trajectory()
    assert trajectory is not None
    assert trajectory.translations == pytest.approx(np.array([[i + 0.2, 0, 0.5] for i in range(5)]))
    assert trajectory.rotations()[0] @ [0, 0, 1] == pytest.approx([1, 0, 0], abs=1e-9)


def test_chain_of_moving_and_fixed_transforms(tmp_path) -> None:
    xyz, xyzw = mount()
    slow = [
        ("/tf", 10**18, bags.transform(i * 4 * 10**8, "map", "odom", (0.0, i, 0.0), LEVEL))
        for i in range(2)
    ]
    entries = [
        *camera_entries(),
        *slow,
        *tf_entries(5, "odom", "base_link"),
        ("/tf_static", 10**18, bags.transform(0, "base_link", "camera", xyz, xyzw)),
    ]
    trajectory = opened(tmp_path / "bag", entries).trajectory()
    assert trajectory is not None
    expected = [[0.1 * i + 0.2, 0.25 * i, 0.5] for i in range(5)]
    assert trajectory.translations == pytest.approx(np.array(expected), abs=1e-9)


def test_pose_stamped_is_taken_for_the_camera_and_says_so(tmp_path) -> None:
    poses = [
        ("/mocap", 10**18 + i, bags.pose_stamped(i * 10**8, "world", (i, 0.0, 0.0), LEVEL))
        for i in range(5)
    ]
    recording = opened(tmp_path / "bag", [*camera_entries(), *poses])
    trajectory = recording.trajectory()
    assert trajectory is not None
    assert len(trajectory) == 5
    assert "taken for the pose of 'camera'" in describe(recording)


def test_base_without_a_way_to_the_camera_is_refused(tmp_path) -> None:
    odometry = [("/odom", 10**18, bags.odometry(0, "odom", "base", (0.0, 0.0, 0.0), LEVEL))]
    recording = opened(tmp_path / "bag", [*camera_entries(), *odometry])
    with pytest.raises(RecordingError, match="no fixed transform leads"):
        recording.trajectory()
    assert "cannot be used" in describe(recording)


def test_lost_tracking_and_repeated_stamps_are_left_out_and_told(tmp_path) -> None:
    nan = float("nan")
    lost = (
        "/tf",
        10**18 + 1,
        bags.transform(150_000_000, "world", "camera", (nan, 0.0, 0.0), LEVEL),
    )
    again = next(iter(tf_entries()))
    recording = opened(tmp_path / "bag", [*camera_entries(), *tf_entries(), lost, again])
    trajectory = recording.trajectory()
    assert trajectory is not None
    assert len(trajectory) == 5
    text = describe(recording)
    assert "1 of 7 poses are not finite: left out" in text
    assert "1 poses repeat a stamp: left out" in text


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            bags.transform(10**9, "world", "camera", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
            "length 0",
        ),
        (
            bags.transform(10**9, "world", "camera", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 2.0)),
            "length 2",
        ),
        (bags.transform(10**9, "odom", "camera", (0.0, 0.0, 0.0), LEVEL), "two parents"),
        (bags.transform(10**9, "camera", "world", (0.0, 0.0, 0.0), LEVEL), "circle"),
    ],
)
def test_wrong_transforms_are_errors(tmp_path, bad, words: str) -> None:
    recording = opened(
        tmp_path / "bag", [*camera_entries(), *tf_entries(), ("/tf", 10**18 + 10**9, bad)]
    )
    with pytest.raises(RecordingError, match=words):
        recording.trajectory()


def test_a_clock_that_starts_again_is_an_error(tmp_path) -> None:
    late = [("/tf", t + 10**9, bags.transform(5 * 10**9, "world", "camera", (0.0, 0, 0), LEVEL))
            for _, t, _ in tf_entries(1)]  # fmt: skip
    early = [(topic, t + 2 * 10**9, message) for topic, t, message in tf_entries()]
    recording = opened(tmp_path / "bag", [*camera_entries(), *late, *early])
    with pytest.raises(RecordingError, match="time jumps back by 5"):
        recording.trajectory()


def test_static_camera_has_no_trajectory(tmp_path) -> None:
    fixed = [("/tf_static", 10**18, bags.transform(0, "world", "camera", (1.0, 0, 0), LEVEL))]
    assert opened(tmp_path / "bag", [*camera_entries(), *fixed]).trajectory() is None


# -- bad input ------------------------------------------------------------------------------------


def test_bag_without_images_lists_what_it_has(tmp_path) -> None:
    with pytest.raises(RecordingError, match=r"no image topic; it has: /tf \(tf2_msgs"):
        opened(tmp_path / "bag", tf_entries())


def test_two_image_topics_are_listed(tmp_path) -> None:
    other = [("/left/image_raw", 10**18, bags.image(0, pixels(0), "rgb8"))]
    entries = [*camera_entries(), *other]
    with pytest.raises(RecordingError, match=r"/cam/image_raw, /left/image_raw; name one"):
        opened(tmp_path / "bag", entries)
    chosen = open_recording(tmp_path / "bag", Selection(image_topic="/left/image_raw"))
    assert len(list(chosen.frames())) == 1
    with pytest.raises(RecordingError, match="has no topic /right"):
        open_recording(tmp_path / "bag", Selection(image_topic="/right"))
    with pytest.raises(RecordingError, match="needs sensor_msgs/msg/Image"):
        open_recording(tmp_path / "bag", Selection(image_topic="/cam/camera_info"))


def test_two_depth_topics_are_listed(tmp_path) -> None:
    entries = [*camera_entries(), *depth_entries(), *depth_entries(topic="/cam/depth2")]
    with pytest.raises(RecordingError, match=r"several depth topics: /cam/depth, /cam/depth2"):
        opened(tmp_path / "bag", entries)
    chosen = open_recording(tmp_path / "bag", Selection(depth_topic="/cam/depth2"))
    assert len(list(chosen.depths())) == 5


def test_raw_is_preferred_to_its_compressed_twin(tmp_path) -> None:
    entries = [*camera_entries(), *camera_entries(compressed=True, info=False)]
    assert opened(tmp_path / "bag", entries).info().images == "/cam/image_raw"


def test_depth_of_another_camera_is_refused(tmp_path) -> None:
    recording = opened(
        tmp_path / "bag", [*camera_entries(), *depth_entries(frame="depth_optical_frame")]
    )
    with pytest.raises(RecordingError, match="another camera"):
        next(recording.depths())


def test_images_without_calibration_are_told(tmp_path) -> None:
    recording = opened(tmp_path / "bag", camera_entries(info=False))
    assert next(recording.frames()).intrinsics is None
    assert "no camera_info" in describe(recording)


def test_calibration_of_another_image_shape_is_an_error(tmp_path) -> None:
    entries = [
        ("/cam/camera_info", 10**18, bags.camera_info(0, 64, 64)),
        *camera_entries(info=False),
    ]
    with pytest.raises(RecordingError, match="camera_info is for 64x64"):
        next(opened(tmp_path / "bag", entries).frames())


def test_calibration_of_a_larger_image_of_the_same_camera_is_scaled(tmp_path) -> None:
    entries = [
        ("/cam/camera_info", 10**18, bags.camera_info(0, 16, 12)),
        *camera_entries(info=False),
    ]
    camera = next(opened(tmp_path / "bag", entries).frames()).intrinsics
    assert camera is not None
    assert (camera.width, camera.fx) == (8, 50.0)


def test_calibration_with_nan_names_topic_and_number(tmp_path) -> None:
    info = bags.camera_info(0, SIZE[1], SIZE[0])
    info.k[0] = np.nan
    entries = [("/cam/camera_info", 10**18, info), *camera_entries(info=False)]
    with pytest.raises(RecordingError, match=r"/cam/image_raw, message 0: .*not finite"):
        next(opened(tmp_path / "bag", entries).frames())


def distorted_entries(model: str, d: list[float], topic: str = "/cam/image_raw"):
    """White images and flat depth of a lens that draws the corners outwards."""
    for index in range(2):
        stamp = index * 10**8
        info = bags.camera_info(stamp, SIZE[1], SIZE[0], focal=5.0)
        info.distortion_model, info.d = model, np.array(d)
        white = np.full((*SIZE, 3), 255, np.uint8)
        yield ("/cam/camera_info", 10**18 + stamp, info)
        yield (topic, 10**18 + stamp, bags.image(stamp, white, "rgb8"))
        depth = np.full(SIZE, 2000, np.uint16)
        yield ("/cam/depth", 10**18 + stamp, bags.image(stamp, depth, "16UC1"))


def test_lens_distortion_is_taken_out_of_images_and_depth(tmp_path) -> None:
    recording = opened(tmp_path / "bag", distorted_entries("plumb_bob", [0.5, 0, 0, 0, 0]))
    for frame, depth in zip(recording.frames(), recording.depths(), strict=True):
        assert frame.intrinsics is not None
        assert frame.intrinsics == depth.intrinsics
        assert frame.intrinsics.fx == 5.0
        # What the pinhole sees in its corners lies outside of the lens's image.
        assert frame.image[0, 0].tolist() == [0, 0, 0]
        assert np.isnan(depth.depth[0, 0])
        assert frame.image[2, 3].tolist() == [255, 255, 255]
        assert depth.depth[2, 3] == 2.0
    assert "images are distorted (plumb_bob): undistorted here, K kept" in describe(recording)


def test_rectified_topics_are_left_as_they_are(tmp_path) -> None:
    entries = distorted_entries("plumb_bob", [0.5, 0, 0, 0, 0], topic="/cam/image_rect")
    recording = opened(tmp_path / "bag", entries)
    assert all((frame.image == 255).all() for frame in recording.frames())
    assert all((depth.depth == 2.0).all() for depth in recording.depths())
    assert "distorted" not in describe(recording)


def test_a_distortion_that_is_not_known_is_refused(tmp_path) -> None:
    recording = opened(tmp_path / "bag", distorted_entries("thin_prism", [0.5, 0, 0, 0]))
    with pytest.raises(RecordingError, match=r"model 'thin_prism' is not known.*image_proc"):
        next(recording.frames())


def test_uncalibrated_camera_info_means_unknown(tmp_path) -> None:
    info = bags.camera_info(0, SIZE[1], SIZE[0])
    info.k[:] = 0.0
    entries = [("/cam/camera_info", 10**18, info), *camera_entries(info=False)]
    assert next(opened(tmp_path / "bag", entries).frames()).intrinsics is None


def test_bad_image_in_the_middle_names_its_number(tmp_path) -> None:
    entries = list(camera_entries())
    entries[5][2].data = entries[5][2].data[:-10]
    frames = opened(tmp_path / "bag", entries).frames()
    next(frames)
    next(frames)
    with pytest.raises(RecordingError, match=r"image_raw, message 2: image data has 134 bytes"):
        next(frames)


@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
def test_other_files_by_the_name_of_a_bag_are_told_as_such(tmp_path, suffix: str) -> None:
    (tmp_path / f"notes{suffix}").write_text("these are my notes on the recording\n")
    for path in (tmp_path / f"notes{suffix}", tmp_path):
        with pytest.raises(RecordingError, match="is not a bag: it does not begin as a") as caught:
            open_recording(path)
        assert "repaired" not in str(caught.value)
    (tmp_path / f"notes{suffix}").write_bytes(b"")
    with pytest.raises(RecordingError, match="is empty"):
        open_recording(tmp_path)


def test_messages_about_damage_are_one_sentence_after_the_other(tmp_path) -> None:
    bag = bags.write_bag(tmp_path / "bag", camera_entries(50))
    file = next(bag.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(RecordingError, match="repaired") as caught:
        open_recording(bag)
    assert ".." not in str(caught.value).replace("/..", "")


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_inspect_counts_the_time_of_the_stamps(tmp_path, storage: str) -> None:
    """Five images at ten a second, which arrived (and were recorded) in a burst of 40 ns."""
    entries = list(camera_entries(5))
    burst = [(topic, 10**18 + n, message) for n, (topic, _, message) in enumerate(entries)]
    bag = bags.write_bag(tmp_path / "bag", burst, storage=storage)
    recording = open_recording(bag)
    stamps = [frame.stamp_ns for frame in recording.frames()]
    expected = (stamps[-1] - stamps[0]) / 1e9
    assert recording.info().duration_s == pytest.approx(expected)
    assert f"duration    {expected:.2f} s ({4 / expected:.1f}/s)" in describe(recording)


def test_the_last_image_is_found_far_from_the_end(tmp_path) -> None:
    entries = list(camera_entries(3))
    late = ("/chatter", 10**18 + 10**12, entries[0][2])  # another topic goes on for a while
    recording = opened(tmp_path / "bag", [*entries, late])
    stamps = [frame.stamp_ns for frame in recording.frames()]
    assert recording.info().duration_s == pytest.approx((stamps[-1] - stamps[0]) / 1e9)
    assert any("stamps are used" in note for note in recording.info().notes)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_truncated_bag(tmp_path, storage: str) -> None:
    bag = bags.write_bag(tmp_path / "bag", camera_entries(200), storage=storage)
    file = next(f for f in bag.iterdir() if f.suffix in (".mcap", ".db3"))
    data = file.read_bytes()
    for keep in (0, 5, 40, len(data) // 2):
        file.write_bytes(data[:keep])
        with pytest.raises(RecordingError, match=r"reindex|damaged"):
            list(open_recording(bag).frames())


def test_garbage_in_a_chunk_is_an_error_not_a_shorter_recording(tmp_path) -> None:
    bag = bags.write_bag(tmp_path / "bag", camera_entries(200), compression="storage")
    file = next(bag.glob("*.mcap"))
    data = bytearray(file.read_bytes())
    data[2000:2100] = bytes(100)
    file.write_bytes(data)
    with pytest.raises(RecordingError, match=r"damaged|opened"):
        list(open_recording(bag).frames())


@pytest.mark.parametrize("text", ["", "nonsense: [", "rosbag2_bagfile_information: 3"])
def test_broken_metadata(tmp_path, text: str) -> None:
    bag = bags.write_bag(tmp_path / "bag", camera_entries())
    (bag / "metadata.yaml").write_text(text)
    with pytest.raises(RecordingError, match="cannot be opened"):
        open_recording(bag)


def test_missing_storage_file(tmp_path) -> None:
    bag = bags.write_bag(tmp_path / "bag", camera_entries())
    next(bag.glob("*.mcap")).unlink()
    with pytest.raises(RecordingError, match="missing"):
        open_recording(bag)


def test_nothing_there(tmp_path) -> None:
    with pytest.raises(RecordingError, match="no recording at"):
        open_recording(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordingError, match="is not a rosbag2"):
        open_recording(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(RecordingError, match="is not a rosbag2"):
        open_recording(tmp_path / "notes.txt")
    with pytest.raises(RecordingError, match="unknown layout 'betamax'"):
        open_recording(tmp_path / "empty", Selection(layout="betamax"))


def test_stamps_in_the_wrong_order_are_an_error_when_depth_is_paired(tmp_path) -> None:
    entries = list(camera_entries())
    order = [0, 1, 2, 3, 6, 7, 4, 5, 8, 9]  # the third and the fourth image
    swapped = [(entries[i][0], 10**18 + n, entries[i][2]) for n, i in enumerate(order)]
    recording = opened(tmp_path / "bag", [*swapped, *depth_entries()])
    with pytest.raises(RecordingError, match="stamps must increase"):
        list(with_depth(recording.frames(), recording.depths()))


def test_real_bags(shared) -> None:
    for name, layout, kind in (
        ("hololens_mcap_zstd", "rosbag2 (mcap)", "/camera/color/image_raw"),
        ("tartan_sqlite3_jpeg", "rosbag2 (sqlite3)", "/camera/color/image_raw/compressed"),
    ):
        recording = open_recording(shared / "data" / "bags" / name)
        info = recording.info()
        assert (info.layout, info.images, info.frames, info.depths) == (layout, kind, 60, 60)
        pairs = list(with_depth(recording.frames(), recording.depths()))
        assert sum(depth is not None for _, depth in pairs) == 60
        trajectory = recording.trajectory()
        assert trajectory is not None
        assert np.array_equal(trajectory.stamps_ns, [frame.stamp_ns for frame, _ in pairs])
    folder = open_recording(shared / "data" / "hololens_office")
    truth = folder.trajectory()
    bag = open_recording(shared / "data" / "bags" / "hololens_mcap_zstd").trajectory()
    assert truth is not None
    assert bag is not None
    assert np.allclose(bag.matrices(), truth[np.arange(0, 120, 2)].matrices(), atol=1e-9)
    depths = list(folder.depths())[:3]
    again = list(open_recording(shared / "data" / "bags" / "hololens_mcap_zstd").depths())[:2]
    assert np.array_equal(depths[2].depth, again[1].depth, equal_nan=True)
