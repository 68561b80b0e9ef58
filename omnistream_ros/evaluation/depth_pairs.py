# SPDX-License-Identifier: Apache-2.0
"""Predicted and true depth of a whole sequence, pixel by pixel, in bounded memory.

One alignment per sequence needs every valid pixel several times. Up to ``MEMORY_PIXELS`` stay in
memory, up to ``MOST_PIXELS`` lie in a temporary file that disappears with this object, and of a
longer sequence every second, fourth ... pixel is kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO

import cv2
import numpy as np

from omnistream_ros.evaluation.recordings import DepthFrame, RecordingError
from omnistream_ros.stream.frame import Frame

#: Pixels that stay in memory (64 MiB), and pixels that are kept at all (512 MiB on disk). All
#: sequences of the published protocols are shorter than that.
MEMORY_PIXELS = 2**23
MOST_PIXELS = 2**26
_BYTES = 8  # a float32 for the prediction, one for the truth

#: How far a focal length (relative) and a principal point (of the width) may differ in one camera.
_CAMERA_TOLERANCE = 0.02


class DepthPairs:
    """Valid pixels of a sequence: iterate to get (prediction, truth) of each frame.

    Attributes:
        stamps_ns: of the frames.
        counts: pixels kept of each frame.
        every: one in so many of a frame's valid pixels is kept.
        compared: pixels with both a truth and a prediction, before any were left out.
        valid_truth: pixels with a truth.
    """

    def __init__(self, memory_pixels: int = MEMORY_PIXELS, most_pixels: int = MOST_PIXELS) -> None:
        self._memory_pixels = memory_pixels
        self._most_pixels = most_pixels
        self._blocks: list[np.ndarray] = []  # (2, n) float32 each, until memory is used up
        self._file: IO[bytes] | None = None  # from then on all of them
        self.stamps_ns: list[int] = []
        self.counts: list[int] = []
        self.every = 1
        self.pixels = 0
        self.compared = 0
        self.valid_truth = 0

    def add(
        self,
        stamp_ns: int,
        prediction: np.ndarray,
        truth: np.ndarray,
        limits: tuple[float, float] = (0.0, float("inf")),
    ) -> None:
        """Add one frame.

        Args:
            prediction: (h, w) float32 metres; resized to the truth's size by bicubic interpolation.
            truth: (H, W) float32 metres, NaN unknown.
            limits: truth outside this open interval is not counted.

        Raises:
            RecordingError: the two are of so different a shape that they cannot show the same.
        """
        _check_shapes(prediction, truth)
        valid = (truth > limits[0]) & (truth < limits[1])  # NaN compares false
        resized = resize_prediction(prediction, truth.shape)
        self.valid_truth += int(valid.sum())
        valid &= np.isfinite(resized)
        self.compared += int(valid.sum())
        kept = slice(None, None, self.every)
        block = np.stack([resized[valid][kept], truth[valid][kept]]).astype(np.float32)
        self._store(block)
        self.stamps_ns.append(stamp_ns)
        self.counts.append(block.shape[1])
        self.pixels += block.shape[1]
        while self.pixels > self._most_pixels:
            self._thin()

    def add_missing(
        self, truth: np.ndarray, limits: tuple[float, float] = (0.0, float("inf"))
    ) -> None:
        """Count the valid pixels of a frame that has a truth (H, W) and no prediction."""
        self.valid_truth += int(((truth > limits[0]) & (truth < limits[1])).sum())

    def _store(self, block: np.ndarray) -> None:
        if self._file is None and self.pixels + block.shape[1] <= self._memory_pixels:
            self._blocks.append(block)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  (close() closes it)
                for earlier in self._blocks:
                    self._file.write(earlier.tobytes())
                self._blocks.clear()
            self._file.seek(0, 2)
            self._file.write(block.tobytes())
            self._file.flush()
        except OSError as error:
            raise RecordingError(
                f"the pixels to compare do not fit into {tempfile.gettempdir()}: {error.strerror}; "
                f"set TMPDIR to a folder with {_BYTES * self._most_pixels // 2**20 + 1} MiB free"
            ) from error

    def _thin(self) -> None:
        """Keep every second pixel of what there is, in place."""
        read = write = 0
        counts = []
        for index, count in enumerate(self.counts):
            block = self._block(index, read, count)[:, ::2]
            read += _BYTES * count
            if self._file is None:
                self._blocks[index] = block.copy()
            else:
                self._file.seek(write)
                self._file.write(block.tobytes())
            write += _BYTES * block.shape[1]
            counts.append(block.shape[1])
        if self._file is not None:
            self._file.truncate(write)
        self.counts, self.pixels = counts, sum(counts)
        self.every *= 2

    def _block(self, index: int, offset: int, count: int) -> np.ndarray:
        """Prediction and truth (2, count) float32 of one frame."""
        if self._file is None:
            return self._blocks[index]
        self._file.seek(offset)
        return np.frombuffer(self._file.read(_BYTES * count), np.float32).reshape(2, count)

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(prediction, truth) of each frame in the order of adding, (n,) float64 each."""
        offset = 0
        for index, count in enumerate(self.counts):
            block = self._block(index, offset, count).astype(np.float64)
            offset += _BYTES * count
            yield block[0], block[1]

    def close(self) -> None:
        """Give back the memory and the file."""
        self._blocks.clear()
        if self._file is not None:
            self._file.close()


def resize_prediction(prediction: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Depth (h, w) at another size (H, W), bicubic as in the protocol of MonST3R and CUT3R."""
    if prediction.shape == shape:
        return prediction
    size = (shape[1], shape[0])
    return cv2.resize(prediction.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)


def _check_shapes(prediction: np.ndarray, truth: np.ndarray) -> None:
    (height, width), size = prediction.shape, truth.shape[::-1]
    # The sides of a network's own image are multiples of its patch: a little off is the same image.
    if not 0.8 < (width * size[1]) / (height * size[0]) < 1.25:
        raise RecordingError(
            f"predicted depth is {width}x{height} where the truth is {size[0]}x{size[1]}: a shape "
            "that stretching would falsify. Give depth of the whole image, at any scale"
        )


def check_same_camera(frame: Frame, depth: DepthFrame) -> None:
    """Refuse ground truth that was not seen by the camera of the image.

    Raises:
        RecordingError: the calibrations differ, or without them the shapes of the images.
    """
    height, width = depth.depth.shape
    if frame.intrinsics is None or depth.intrinsics is None:
        if abs(width * frame.height - height * frame.width) > 0.02 * width * frame.height:
            raise RecordingError(
                f"depth is {width}x{height} but the image {frame.width}x{frame.height}: another "
                "camera. Use depth registered to the image"
            )
        return
    truth = depth.intrinsics.resized(frame.width, frame.height)
    image = frame.intrinsics
    limit = _CAMERA_TOLERANCE
    same = (
        abs(truth.fx / image.fx - 1) < limit
        and abs(truth.fy / image.fy - 1) < limit
        and abs(truth.cx - image.cx) < limit * image.width
        and abs(truth.cy - image.cy) < limit * image.height
    )
    if not same:
        raise RecordingError(
            f"depth was seen by another camera than the image: at {frame.width}x{frame.height} its "
            f"fx is {truth.fx:.1f}, cx {truth.cx:.1f}, cy {truth.cy:.1f}, the image's "
            f"{image.fx:.1f}, {image.cx:.1f}, {image.cy:.1f}. Use depth registered to the image"
        )
