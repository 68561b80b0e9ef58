# SPDX-License-Identifier: Apache-2.0
"""What an image message must fulfil before any memory is taken for it, in plain functions.

Every fault has a reason (a stable name, counted and published) and a sentence that says what was
found and what to do.
"""

from __future__ import annotations

import dataclasses
import enum
import math

from sensor_msgs.msg import CameraInfo, Image

from omnistream_ros.nodes.image_encodings import ENCODINGS
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.preprocess import MAX_ASPECT

_DEPTH_ENCODINGS = ("16UC1", "32FC1")


class Drop(str, enum.Enum):
    """Why a received image was not used; the values are published in StreamStatus."""

    SUPERSEDED = "superseded"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    EMPTY_IMAGE = "empty_image"
    UNSUPPORTED_SIZE = "unsupported_size"
    WRONG_STEP = "wrong_step"
    SHORT_DATA = "short_data"
    OTHER_SOURCE = "other_source"
    STAMP_REPEATED = "stamp_repeated"
    STAMP_BACKWARDS = "stamp_backwards"
    DEACTIVATED = "deactivated"


class BadImageError(ValueError):
    """An image that cannot be used: ``reason`` for the counters, the text for people."""

    def __init__(self, reason: Drop, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class BadCameraInfoError(ValueError):
    """A camera_info that must not be used; the text says what is wrong with it."""


def check_image(message: Image) -> None:
    """Check that the pixels described by the message are there.

    Raises:
        BadImageError: with the first fault found.
    """
    height, width, step = message.height, message.width, message.step
    encoding = message.encoding
    layout = ENCODINGS.get(encoding)
    if layout is None:
        depth = encoding in _DEPTH_ENCODINGS
        hint = (
            "this is a depth image; remap `image` to the colour topic"
            if depth
            else f"use one of {', '.join(ENCODINGS)}, for example with image_proc"
        )
        raise BadImageError(
            Drop.UNSUPPORTED_ENCODING, f"image encoding '{encoding}' cannot be read: {hint}"
        )
    if height == 0 or width == 0:
        raise BadImageError(
            Drop.EMPTY_IMAGE, f"image of {width}x{height} pixels: check the camera driver"
        )
    if (layout.even_width and width % 2) or (layout.even_height and height % 2):
        raise BadImageError(
            Drop.UNSUPPORTED_SIZE,
            f"image of {width}x{height} pixels cannot be '{encoding}', which shares colour between "
            "pairs of pixels: check the camera driver",
        )
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise BadImageError(
            Drop.UNSUPPORTED_SIZE,
            f"image of {width}x{height} pixels is too elongated for the model, whose limit is "
            f"{MAX_ASPECT:g} to 1: crop it first",
        )
    needed = layout.row_bytes(width)
    if step < needed:
        raise BadImageError(
            Drop.WRONG_STEP,
            f"image step is {step} bytes but a row of {width} pixels '{encoding}' takes {needed}: "
            "the publisher must set step to the bytes of one row, padding included",
        )
    rows = layout.rows(height)
    # The last row may go without its padding.
    least = (rows - 1) * step + needed
    if len(message.data) < least:
        raise BadImageError(
            Drop.SHORT_DATA,
            f"image data has {len(message.data)} bytes but {rows} rows with step {step} take "
            f"{rows * step}: the message was cut short or its size is wrong",
        )


def intrinsics_of(info: CameraInfo, *, rectified: bool) -> Intrinsics | None:
    """The pinhole camera of the image that comes with a camera_info.

    Binning and region of interest are applied (sensor_msgs/CameraInfo: K and P describe the full
    sensor). ``rectified``: the image was undistorted already, so P holds instead of K.

    Returns:
        None when the camera says that it is not calibrated (first element zero).

    Raises:
        BadCameraInfoError: a number is not finite, or a focal length or size is not positive.
    """
    name, matrix, columns = ("P", info.p, 4) if rectified else ("K", info.k, 3)
    numbers = (*info.k, *info.p, *info.d, *info.r)
    if not all(math.isfinite(number) for number in numbers):
        raise BadCameraInfoError(
            "camera_info holds a number that is not finite: calibrate the camera again or correct "
            "its calibration file"
        )
    if matrix[0] == 0.0:
        return None
    bin_x, bin_y = max(1, info.binning_x), max(1, info.binning_y)
    roi = info.roi
    whole = roi.width == 0 or roi.height == 0  # all zero means the full sensor
    width, height = (info.width, info.height) if whole else (roi.width, roi.height)
    left, top = (0, 0) if whole else (roi.x_offset, roi.y_offset)
    try:
        return Intrinsics(
            fx=matrix[0] / bin_x,
            fy=matrix[columns + 1] / bin_y,
            cx=(matrix[2] - left + 0.5) / bin_x - 0.5,
            cy=(matrix[columns + 2] - top + 0.5) / bin_y - 0.5,
            width=width // bin_x,
            height=height // bin_y,
        )
    except ValueError as error:
        raise BadCameraInfoError(f"camera_info cannot be used ({name} matrix): {error}") from None


@dataclasses.dataclass(frozen=True)
class Source:
    """What tells one camera from another on the same topic."""

    width: int
    height: int
    frame_id: str

    def __str__(self) -> str:
        return f"{self.width}x{self.height} from frame '{self.frame_id}'"


class SourceGate:
    """Lets the images of one camera through, in order of time.

    Another image size or frame is taken for a second publisher as long as the present camera goes
    on; once that one was silent for ``patience_s``, it is taken for a change of the camera.

    A stamp that goes back costs one image: if the next one continues from there, time has jumped
    (a bag that starts again) and is accepted; if not, a single image had come late.
    """

    def __init__(self) -> None:
        self._source: Source | None = None
        self._last_seen_s = 0.0
        self._last_stamp_ns = 0
        self._jump_stamp_ns: int | None = None

    def admit(self, source: Source, stamp_ns: int, now_s: float, patience_s: float) -> None:
        """Let the image pass, or refuse it.

        Args:
            stamp_ns: stamp of the image.
            now_s: monotonic time of receipt in seconds.
            patience_s: see the class.

        Raises:
            BadImageError: the image belongs to another source, or its stamp does not advance.
        """
        if source != self._source:
            if self._source is not None and now_s - self._last_seen_s < patience_s:
                raise BadImageError(
                    Drop.OTHER_SOURCE,
                    f"image {source} on a topic that carries {self._source}: two publishers share "
                    "the topic; remap one of them (ros2 topic info -v shows both)",
                )
            self._source = source
            self._last_stamp_ns = stamp_ns
            self._jump_stamp_ns = None
        elif stamp_ns > self._last_stamp_ns or (
            self._jump_stamp_ns is not None and stamp_ns > self._jump_stamp_ns
        ):
            self._last_stamp_ns = stamp_ns
            self._jump_stamp_ns = None
        else:
            self._last_seen_s = now_s
            self._refuse_stamp(stamp_ns)
        self._last_seen_s = now_s

    def _refuse_stamp(self, stamp_ns: int) -> None:
        back_s = (self._last_stamp_ns - stamp_ns) * 1e-9
        if back_s == 0.0:
            raise BadImageError(
                Drop.STAMP_REPEATED,
                f"image stamp {stamp_ns * 1e-9:.3f} s came twice: the driver must set header.stamp "
                "to the time of exposure, and only one publisher may use the topic",
            )
        self._jump_stamp_ns = stamp_ns
        raise BadImageError(
            Drop.STAMP_BACKWARDS,
            f"image stamp went back by {back_s:.3f} s: late images are dropped; if time starts "
            "again (a bag in a loop), the next image begins a new epoch",
        )
