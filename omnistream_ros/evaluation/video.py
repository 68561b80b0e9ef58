# SPDX-License-Identifier: Apache-2.0
"""A video file or a plain folder of images: no ground truth, and usually no calibration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cv2

from omnistream_ros.evaluation.image_files import FileRecording, Layout, at_rate, image_files
from omnistream_ros.evaluation.recordings import Recording, RecordingError, RecordingInfo
from omnistream_ros.stream.frame import Frame

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ogv")
_ASSUMED_RATE = 30.0


class VideoRecording(Recording):
    """A video file, decoded by OpenCV one frame at a time.

    Raises:
        RecordingError: the file cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        capture = self._capture()
        rate = capture.get(cv2.CAP_PROP_FPS)
        self._count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        self._rate_known = math.isfinite(rate) and 0 < rate < 1000
        self._rate = rate if self._rate_known else _ASSUMED_RATE

    def _capture(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise RecordingError(f"{self.path} cannot be decoded as a video")
        return capture

    def info(self) -> RecordingInfo:
        first = next(self.frames(), None)
        if first is None:
            raise RecordingError(f"{self.path} holds no frame that can be decoded")
        rate = f"{self._rate:g} frames/s" + ("" if self._rate_known else " assumed")
        return RecordingInfo(
            layout="video file",
            images=str(self.path),
            frames=self._count if self._count > 0 else None,
            duration_s=(self._count - 1) / self._rate if self._count > 0 else None,
            width=first.width,
            height=first.height,
            notes=(rate, "no calibration: the focal length is unknown, so depth cannot be metric"),
        )

    def frames(self) -> Iterator[Frame]:
        capture = self._capture()
        try:
            index = 0
            while True:
                good, image = capture.read()
                if not good:
                    return
                stamp = round(index * 1e9 / self._rate)
                yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), stamp)
                index += 1
        finally:
            capture.release()


def image_folder(path: Path) -> FileRecording | None:
    """A folder of images in natural order of their names, or None when it holds none."""
    files = image_files(path)
    if not files:
        return None
    notes = (
        f"no stamps: {_ASSUMED_RATE:g} frames/s assumed",
        "no calibration: the focal length is unknown, so depth cannot be metric",
    )
    return FileRecording(
        path, Layout(name="image folder", images=at_rate(files, _ASSUMED_RATE), notes=notes)
    )
