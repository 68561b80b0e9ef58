# SPDX-License-Identifier: Apache-2.0
"""TUM RGB-D folders (Sturm et al., IROS 2012) and Bonn RGB-D Dynamic (Palazzolo et al., IROS 2019).

``rgb.txt`` and ``depth.txt`` list stamps and files, ``groundtruth.txt`` poses. Depth has 5000 steps
to the metre unless a ``camera.yaml`` beside the lists says otherwise (``depth_scale``, with width,
height, fx, fy, cx, cy and, where the images are distorted, k1, k2, p1, p2, k3).
"""

from __future__ import annotations

import re
from pathlib import Path

from omnistream_ros.evaluation.image_files import (
    FileRecording,
    Layout,
    StampedFile,
    png_depth,
)
from omnistream_ros.evaluation.recordings import RecordingError
from omnistream_ros.evaluation.trajectory import parse_stamp, read_tum
from omnistream_ros.stream.calibration import Distortion
from omnistream_ros.stream.frame import Intrinsics

# Published calibrations, 640x480: fx, fy, cx, cy, then k1, k2, p1, p2, k3. The images of freiburg3
# are undistorted as published; those of Bonn are not, but the published tables take them as they
# are, and so does this reader.
_CAMERAS = {
    "freiburg1": ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "freiburg2": ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "freiburg3": ((535.4, 539.2, 320.1, 247.6), ()),
    "bonn": ((542.822841, 542.576870, 315.593520, 237.756098), ()),
}
_DISTORTION = ("k1", "k2", "p1", "p2", "k3")


def matches(path: Path) -> bool:
    """Whether a folder has this layout."""
    return (path / "rgb.txt").is_file()


def open_folder(path: Path) -> FileRecording:
    """Open a TUM or Bonn sequence.

    Raises:
        RecordingError: a list that cannot be read.
    """
    images = read_list(path / "rgb.txt")
    depths = read_list(path / "depth.txt") if (path / "depth.txt").is_file() else []
    truth = path / "groundtruth.txt"
    camera, distortion, per_metre = _calibration(path)
    bonn = "bonn" in path.resolve().name.lower()
    return FileRecording(
        path,
        Layout(
            name="Bonn RGB-D folder" if bonn else "TUM RGB-D folder",
            images=images,
            depths=depths,
            depth_reader=png_depth(per_metre),
            intrinsics=camera,
            distortion=distortion,
            poses=(lambda: read_tum(truth)) if truth.is_file() else None,
            depth_limits=(0.0, 70.0) if bonn else (0.0, float("inf")),
            notes=_notes(camera, distortion),
        ),
    )


def _notes(camera: Intrinsics | None, distortion: Distortion | None) -> tuple[str, ...]:
    if camera is None:
        return ("no camera.yaml and not a known TUM camera: focal length unknown",)
    if distortion is not None:
        return ("images and depth are distorted: undistorted here, K kept",)
    return ()


def read_list(file: Path) -> list[StampedFile]:
    """``timestamp filename`` lines, in order of time.

    Raises:
        RecordingError: a line that is not that; the message names it.
    """
    entries = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("#", 1)[0].split()
        if not fields:
            continue
        try:
            stamp_text, name = fields
            entries.append((parse_stamp(stamp_text), file.parent / name))
        except ValueError:
            raise RecordingError(
                f"{file}:{number}: expected 'timestamp filename', got {line!r}"
            ) from None
    return entries


def _calibration(path: Path) -> tuple[Intrinsics | None, Distortion | None, float]:
    """Camera, its distortion and depth steps per metre, from camera.yaml or the folder's name."""
    file = path / "camera.yaml"
    if file.is_file():
        values = dict(re.findall(r"^(\w+)\s*:\s*([-+.\deE]+)", file.read_text(), re.MULTILINE))
        try:
            numbers = {name: float(values[name]) for name in ("fx", "fy", "cx", "cy")}
            width, height = int(values["width"]), int(values["height"])
            per_metre = float(values.get("depth_scale", 5000.0))
            if per_metre <= 0:
                raise ValueError(f"depth_scale {per_metre}")
            bent = tuple(float(values.get(name, 0.0)) for name in _DISTORTION)
            camera = Intrinsics(**numbers, width=width, height=height)
            return camera, _distortion(bent), per_metre
        except (KeyError, ValueError) as error:
            raise RecordingError(
                f"{file}: needs fx, fy, cx, cy, width, height as numbers: {error!r}"
            ) from None
    name = path.resolve().name.lower().replace("fr1", "freiburg1")
    name = name.replace("fr2", "freiburg2").replace("fr3", "freiburg3")
    for key, (matrix, bent) in _CAMERAS.items():
        if key in name:
            return Intrinsics(*matrix, 640, 480), _distortion(bent), 5000.0
    return None, None, 5000.0


def _distortion(coefficients: tuple[float, ...]) -> Distortion | None:
    return Distortion("plumb_bob", coefficients) if any(coefficients) else None
