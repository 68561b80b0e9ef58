# SPDX-License-Identifier: Apache-2.0
"""Which reader fits a path: the table of all layouts that can be evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omnistream_ros.evaluation import data_sets, tum, video
from omnistream_ros.evaluation.recordings import Recording, RecordingError, Selection
from omnistream_ros.evaluation.rosbag2 import Rosbag2Recording

#: A layout looks at a path and returns its reader, or None when the path is of another kind.
Opener = Callable[[Path, Selection], "Recording | None"]


def _rosbag2(path: Path, selection: Selection) -> Recording | None:
    if path.is_file():
        fits = path.suffix in (".mcap", ".db3")
    else:
        fits = (path / "metadata.yaml").exists() or any(
            file.suffix in (".mcap", ".db3") for file in path.iterdir()
        )
    return Rosbag2Recording(path, selection) if fits else None


def _tum(path: Path, _: Selection) -> Recording | None:
    return tum.open_folder(path) if tum.matches(path) else None


def _video(path: Path, _: Selection) -> Recording | None:
    fits = path.is_file() and path.suffix.lower() in video.VIDEO_SUFFIXES
    return video.VideoRecording(path) if fits else None


def _folder(opener: Callable[[Path], Recording | None]) -> Opener:
    return lambda path, _: opener(path) if path.is_dir() else None


#: In the order in which they are tried; the plain image folder takes what nothing else knows.
LAYOUTS: dict[str, Opener] = {
    "rosbag2": _rosbag2,
    "tum": _tum,
    "7scenes": _folder(data_sets.seven_scenes),
    "scannet": _folder(data_sets.scannet),
    "kitti-odometry": _folder(data_sets.kitti_odometry),
    "kitti-depth": _folder(data_sets.kitti_depth),
    "sintel": _folder(data_sets.sintel),
    "video": _video,
    "images": _folder(video.image_folder),
}


def open_layout(path: Path, selection: Selection) -> Recording:
    """The first layout that takes the path, or the one that the selection names.

    Raises:
        RecordingError: none does, or the named one is unknown.
    """
    if selection.layout is not None and selection.layout not in LAYOUTS:
        raise RecordingError(f"unknown layout {selection.layout!r}; known: {', '.join(LAYOUTS)}")
    for name in [selection.layout] if selection.layout else LAYOUTS:
        recording = LAYOUTS[name](path, selection)
        if recording is not None:
            return recording
    expected = (
        selection.layout or "a rosbag2, TUM, 7-Scenes, ScanNet, KITTI, Sintel or image folder"
    )
    raise RecordingError(f"{path} is not {expected}, nor a video file that can be read")
