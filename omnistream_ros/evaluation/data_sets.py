# SPDX-License-Identifier: Apache-2.0
"""Folders of published data sets: 7-Scenes, ScanNet, KITTI (odometry, depth) and Sintel.

Every function takes the folder of one sequence as it is laid out by its publishers and returns a
`FileRecording`, or None when the folder is not of that kind.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from omnistream_ros.evaluation.image_files import (
    FileRecording,
    Layout,
    at_rate,
    image_files,
    matrix_trajectory,
    natural_key,
    png_depth,
    read_matrix,
    read_rgb,
)
from omnistream_ros.evaluation.recordings import RecordingError
from omnistream_ros.evaluation.trajectory import Trajectory, parse_stamp
from omnistream_ros.stream.frame import Intrinsics

_SINTEL_TAG = 202021.25


def seven_scenes(path: Path) -> FileRecording | None:
    """7-Scenes (Shotton et al., CVPR 2013): ``frame-N.{color.png,depth.png,pose.txt}``."""
    images = image_files(path, "frame-*.color.*")
    if not images:
        return None
    stamped = at_rate(images, 30.0)

    def beside(suffix: str) -> list[tuple[int, Path]]:
        pairs = [(s, f.with_name(f.name.split(".")[0] + suffix)) for s, f in stamped]
        return [(stamp, file) for stamp, file in pairs if file.is_file()]

    poses = beside(".pose.txt")
    return FileRecording(
        path,
        Layout(
            name="7-Scenes folder",
            images=stamped,
            depths=beside(".depth.png"),
            depth_reader=png_depth(1000.0, invalid=65535),
            intrinsics=Intrinsics(585.0, 585.0, 320.0, 240.0, 640, 480),
            poses=functools.partial(_matrix_files, poses) if poses else None,
            notes=("no stamps in this layout: 30 frames/s assumed",),
        ),
    )


def scannet(path: Path) -> FileRecording | None:
    """ScanNet (Dai et al., CVPR 2017), exported: ``color``, ``depth``, ``pose``, ``intrinsic``."""
    if not (path / "color").is_dir() or not (path / "pose").is_dir():
        return None
    images = image_files(path / "color")
    stamp_of = {file.stem: stamp for stamp, file in at_rate(images, 30.0)}
    depths = [(stamp_of[f.stem], f) for f in image_files(path / "depth") if f.stem in stamp_of]
    files = sorted((path / "pose").glob("*.txt"), key=natural_key)
    poses = [(stamp_of[f.stem], f) for f in files if f.stem in stamp_of]
    return FileRecording(
        path,
        Layout(
            name="ScanNet folder",
            images=[(stamp_of[f.stem], f) for f in images],
            depths=depths,
            depth_reader=png_depth(1000.0),
            intrinsics=_scannet_camera(path / "intrinsic" / "intrinsic_color.txt", images),
            poses=functools.partial(_matrix_files, poses) if poses else None,
            notes=("no stamps in this layout: 30 frames/s assumed",),
        ),
    )


def _scannet_camera(file: Path, images: list[Path]) -> Intrinsics | None:
    if not file.is_file() or not images:
        return None
    k = read_matrix(file, (4, 4))
    # The file has no image size. Exports keep the calibration of the full colour image or of the
    # depth camera beside smaller images, or write that of the images themselves: the principal
    # point, which lies near the middle, tells which it is.
    shape = read_rgb(images[0]).shape
    sizes = ((1296, 968), (640, 480), (shape[1], shape[0]))
    width, height = min(sizes, key=lambda size: abs(2 * k[0, 2] / size[0] - 1))
    return Intrinsics(k[0, 0], k[1, 1], k[0, 2], k[1, 2], width, height)


def kitti_odometry(path: Path) -> FileRecording | None:
    """KITTI odometry (Geiger et al., CVPR 2012): ``sequences/NN`` with ``../../poses/NN.txt``."""
    folder = next((path / n for n in ("image_2", "image_0") if (path / n).is_dir()), None)
    if folder is None or not (path / "times.txt").is_file():
        return None
    images = image_files(folder)
    try:
        stamps = [parse_stamp(text) for text in (path / "times.txt").read_text().split()]
    except ValueError as error:
        raise RecordingError(f"{path / 'times.txt'}: expected seconds: {error}") from None
    if len(stamps) < len(images):
        raise RecordingError(f"{path}: {len(images)} images but {len(stamps)} lines in times.txt")
    truth = path.resolve().parent.parent / "poses" / f"{path.resolve().name}.txt"

    def poses() -> Trajectory:
        rows = read_matrix(truth, (len(stamps), 12)).reshape(-1, 3, 4)
        return Trajectory.from_matrices(np.array(stamps, dtype=np.int64), rows)

    return FileRecording(
        path,
        Layout(
            name="KITTI odometry folder",
            images=list(zip(stamps, images, strict=False)),
            intrinsics=_kitti_camera(path / "calib.txt", f"P{folder.name[-1]}", images),
            poses=poses if truth.is_file() else None,
        ),
    )


def kitti_depth(path: Path) -> FileRecording | None:
    """KITTI depth (Uhrig et al., 3DV 2017): a raw drive, or a sequence of the gathered selection.

    Depth lies in ``proj_depth/groundtruth/image_02`` of the drive or of ``train``/``val`` beside
    it, or in ``groundtruth_depth_gathered`` beside ``image_gathered``; 256 steps to the metre,
    depth > 0.
    """
    drive = path.resolve()
    if (path / "image_02" / "data").is_dir():
        images = image_files(path / "image_02" / "data")
        above = [drive, *(root / part / drive.name for root in drive.parents[:3]
                          for part in ("val", "train", "data_depth_annotated/val",
                                       "data_depth_annotated/train"))]  # fmt: skip
        places = [place / "proj_depth" / "groundtruth" / "image_02" for place in above]
        calibration = drive.parent / "calib_cam_to_cam.txt"
    elif drive.parent.name == "image_gathered":
        images = image_files(path)
        places = [drive.parent.parent / "groundtruth_depth_gathered" / drive.name]
        calibration = drive.parent / "calib_cam_to_cam.txt"
    else:
        return None
    truth = next((place for place in places if place.is_dir()), None)
    stamped = at_rate(images, 10.0)
    by_name = {file.name: stamp for stamp, file in stamped}
    files = image_files(truth) if truth else []
    return FileRecording(
        path,
        Layout(
            name="KITTI depth folder",
            images=stamped,
            depths=[(by_name[f.name], f) for f in files if f.name in by_name],
            depth_reader=png_depth(256.0),
            intrinsics=_kitti_camera(calibration, "P_rect_02", images),
            notes=("stamps at 10 frames/s",)
            + (() if truth else ("no proj_depth found: no ground-truth depth",)),
        ),
    )


def _kitti_camera(file: Path, key: str, images: list[Path]) -> Intrinsics | None:
    """The camera of one projection matrix line, for the size of the first image."""
    if not file.is_file() or not images:
        return None
    for line in file.read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == key:
            p = np.array(numbers.split(), dtype=np.float64).reshape(3, 4)
            height, width = read_rgb(images[0]).shape[:2]
            return Intrinsics(p[0, 0], p[1, 1], p[0, 2], p[1, 2], width, height)
    return None


def sintel(path: Path) -> FileRecording | None:
    """MPI Sintel (Butler et al., ECCV 2012): ``training/{final,depth,camdata_left}/NAME``."""
    sequence = path.resolve()
    root = sequence.parent.parent
    if sequence.parent.name not in ("final", "clean") or not (root / "depth").is_dir():
        return None
    images = image_files(path, "frame_*.png")
    stamped = at_rate(images, 24.0)
    depths = [(s, root / "depth" / sequence.name / f"{f.stem}.dpt") for s, f in stamped]
    cameras = [(s, root / "camdata_left" / sequence.name / f"{f.stem}.cam") for s, f in stamped]
    cameras = [(stamp, file) for stamp, file in cameras if file.is_file()]

    def poses() -> Trajectory:
        to_world = []
        for _, file in cameras:
            world_to_camera = np.eye(4)
            world_to_camera[:3] = read_sintel_camera(file)[1]
            to_world.append(np.linalg.inv(world_to_camera))
        return matrix_trajectory([stamp for stamp, _ in cameras], to_world)

    camera = None
    if cameras:
        k, _ = read_sintel_camera(cameras[0][1])
        camera = Intrinsics(k[0, 0], k[1, 1], k[0, 2], k[1, 2], 1024, 436)
    return FileRecording(
        path,
        Layout(
            name="Sintel folder",
            images=stamped,
            depths=[(stamp, file) for stamp, file in depths if file.is_file()],
            depth_reader=read_sintel_depth,
            intrinsics=camera,
            poses=poses if cameras else None,
            depth_limits=(0.0, 70.0),
            notes=("no stamps in this layout: 24 frames/s assumed",),
        ),
    )


def read_sintel_depth(file: Path) -> np.ndarray:
    """A ``.dpt`` file: float32 tag 202021.25, int32 width and height, float32 metres; (H, W)
    float32.

    Raises:
        RecordingError: missing, another tag, or too short.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RecordingError(f"cannot read {file}: {error}") from error
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != np.float32(_SINTEL_TAG):
        raise RecordingError(f"{file} is not a Sintel depth file (tag {_SINTEL_TAG} missing)")
    width, height = np.frombuffer(data, "<i4", 2, offset=4)
    if width < 1 or height < 1 or len(data) != 12 + 4 * int(width) * int(height):
        raise RecordingError(f"{file} says {width}x{height} but holds {len(data)} bytes")
    depth = np.frombuffer(data, "<f4", offset=12).reshape(height, width).astype(np.float32)
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def read_sintel_camera(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """A ``.cam`` file: (3, 3) intrinsics and (3, 4) world-to-camera, float64.

    Raises:
        RecordingError: another tag or size.
    """
    data = file.read_bytes()
    if len(data) != 4 + 8 * 21 or np.frombuffer(data, "<f4", 1)[0] != np.float32(_SINTEL_TAG):
        raise RecordingError(f"{file} is not a Sintel camera file")
    numbers = np.frombuffer(data, "<f8", 21, offset=4)
    return numbers[:9].reshape(3, 3), numbers[9:].reshape(3, 4)


def _matrix_files(poses: list[tuple[int, Path]]) -> Trajectory:
    """Camera-to-world matrices, one file each."""
    return matrix_trajectory([s for s, _ in poses], [read_matrix(f, (4, 4)) for _, f in poses])
