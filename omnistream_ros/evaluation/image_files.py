# SPDX-License-Identifier: Apache-2.0
"""Recordings that are files in folders: a list of images with stamps, perhaps depth files and
poses.

Each data set layout (TUM, 7-Scenes, KITTI ...) only has to say which files there are; reading them
is the same for all and lives here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from omnistream_ros.evaluation.recordings import (
    DepthFrame,
    Recording,
    RecordingError,
    RecordingInfo,
)
from omnistream_ros.evaluation.trajectory import Trajectory, TrajectoryError
from omnistream_ros.stream.calibration import Calibration, Distortion
from omnistream_ros.stream.compressed_images import decode_rgb
from omnistream_ros.stream.depth_encodings import metres
from omnistream_ros.stream.frame import Frame, Intrinsics
from omnistream_ros.stream.image_encodings import ImageError
from omnistream_ros.stream.undistort import Undistorter

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")

#: (stamp in nanoseconds, file)
StampedFile = tuple[int, Path]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a folder of a data set holds.

    Attributes:
        name: of the layout, for people.
        images, depths: files in order of time.
        depth_reader: file to (H, W) float32 metres with NaN for unknown.
        intrinsics: camera of the images, and of the depth files.
        distortion: of the lens, in images and depth alike; it is taken out.
        poses: reads the ground truth; called only when it is asked for.
        depth_limits: valid depth in metres by the data set's protocol, exclusive.
        notes: what a user should know.
    """

    name: str
    images: Sequence[StampedFile]
    depths: Sequence[StampedFile] = ()
    depth_reader: Callable[[Path], np.ndarray] | None = None
    intrinsics: Intrinsics | None = None
    distortion: Distortion | None = None
    poses: Callable[[], Trajectory] | None = None
    depth_limits: tuple[float, float] = (0.0, float("inf"))
    notes: tuple[str, ...] = ()


class FileRecording(Recording):
    """A recording whose frames are files.

    Raises:
        RecordingError: there is not a single image.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        super().__init__(path)
        if not layout.images:
            raise RecordingError(f"{path} looks like a {layout.name} but holds no image")
        self.layout = layout
        self.depth_limits = layout.depth_limits
        self._undistorters: dict[Intrinsics, Undistorter] = {}

    def info(self) -> RecordingInfo:
        first = next(self.frames())
        stamps = [stamp for stamp, _ in self.layout.images]
        return RecordingInfo(
            layout=self.layout.name,
            images=str(self.layout.images[0][1].parent),
            depth=str(self.layout.depths[0][1].parent) if self.layout.depths else None,
            poses="ground truth of the data set" if self.layout.poses else None,
            frames=len(self.layout.images),
            depths=len(self.layout.depths) or None,
            duration_s=(stamps[-1] - stamps[0]) / 1e9,
            width=first.width,
            height=first.height,
            intrinsics=first.intrinsics,
            notes=self.layout.notes,
        )

    def frames(self) -> Iterator[Frame]:
        for stamp, file in self.layout.images:
            image = read_rgb(file)
            camera = _fit(self.layout.intrinsics, image, file)
            if camera is not None and self.layout.distortion is not None:
                image = self._undistorter(camera).image(image)
            yield Frame(image, stamp, camera)

    def depths(self) -> Iterator[DepthFrame]:
        reader = self.layout.depth_reader
        if reader is None:
            return
        camera = self.layout.intrinsics
        for stamp, file in self.layout.depths:
            depth = reader(file)
            fitted = _fit(camera, depth, file)
            if fitted is not None and self.layout.distortion is not None:
                depth = self._undistorter(fitted).depth(depth)
            yield DepthFrame(stamp, depth, fitted)

    def _undistorter(self, camera: Intrinsics) -> Undistorter:
        """Of the camera at this size; made once for each size."""
        if camera not in self._undistorters:
            calibration = Calibration(camera, self.layout.distortion)
            self._undistorters[camera] = Undistorter(calibration)
        return self._undistorters[camera]

    def trajectory(self) -> Trajectory | None:
        if self.layout.poses is None:
            return None
        try:
            return self.layout.poses()
        except (TrajectoryError, OSError) as error:
            raise RecordingError(f"{self.path}: ground-truth poses: {error}") from error


def _fit(camera: Intrinsics | None, image: np.ndarray, file: Path) -> Intrinsics | None:
    """The camera at the size of an image of it."""
    if camera is None:
        return None
    height, width = image.shape[:2]
    if (camera.width, camera.height) == (width, height):
        return camera
    if abs(camera.width * height - camera.height * width) > 0.02 * camera.width * height:
        raise RecordingError(
            f"{file} is {width}x{height}, but the calibration is for {camera.width}x{camera.height}"
        )
    return camera.resized(width, height)


def read_rgb(file: Path) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of an image file.

    Raises:
        RecordingError: missing or not an image.
    """
    try:
        return decode_rgb(file.read_bytes(), str(file))
    except (OSError, ImageError) as error:
        raise RecordingError(str(error)) from error


def png_depth(per_metre: float, invalid: int | None = None) -> Callable[[Path], np.ndarray]:
    """A reader of 16-bit PNG depth, ``per_metre`` steps; 0 (and ``invalid``) for unknown."""

    def read(file: Path) -> np.ndarray:
        pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED) if file.exists() else None
        if pixels is None or pixels.ndim != 2 or pixels.dtype != np.uint16:
            found = "cannot be read" if pixels is None else f"is {pixels.dtype} {pixels.shape}"
            raise RecordingError(f"{file} {found}; expected a 16-bit single-channel PNG")
        depth = metres(pixels, per_metre)
        if invalid is not None:
            depth[pixels == invalid] = np.nan
        return depth

    return read


def image_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The image files of a folder in natural order (frame2 before frame10)."""
    files = [f for f in folder.glob(pattern) if f.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(files, key=natural_key)


def natural_key(file: Path) -> list[tuple[int, int, str]]:
    """Sort key that takes runs of digits as numbers."""
    parts = re.split(r"([0-9]+)", file.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def at_rate(files: Sequence[Path], rate_hz: float) -> list[StampedFile]:
    """Stamps for files that have none: one after the other at a fixed rate."""
    return [(round(index * 1e9 / rate_hz), file) for index, file in enumerate(files)]


def read_matrix(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """A matrix of numbers from a text file.

    Raises:
        RecordingError: missing, not numbers, or of another shape.
    """
    try:
        matrix = np.loadtxt(file, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise RecordingError(f"{file}: expected a matrix of {shape} numbers: {error}") from error
    if matrix.shape != shape:
        raise RecordingError(f"{file}: expected a matrix of {shape}, got {matrix.shape}")
    return matrix


def matrix_trajectory(stamps_ns: Sequence[int], matrices: Sequence[np.ndarray]) -> Trajectory:
    """Camera-to-world matrices as a trajectory, without those not finite (tracking lost)."""
    stack = np.stack(matrices) if matrices else np.zeros((0, 4, 4))
    finite = np.isfinite(stack).all(axis=(1, 2))
    return Trajectory.from_matrices(np.array(stamps_ns, dtype=np.int64)[finite], stack[finite])
