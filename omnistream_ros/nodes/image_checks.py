# SPDX-License-Identifier: Apache-2.0
"""What an image message must fulfil before any memory is taken for it, in plain functions.

Every fault has a reason (a stable name, counted and published) and a sentence that says what was
found and what to do.
"""

from __future__ import annotations

import dataclasses
import enum

from sensor_msgs.msg import CompressedImage, Image

from omnistream_ros.stream.compressed_images import encoded_size
from omnistream_ros.stream.image_encodings import ImageError, check_colour
from omnistream_ros.stream.preprocess import MAX_ASPECT

_DEPTH_ENCODINGS = ("16UC1", "32FC1")
# A few bytes of a compressed image can claim to be gigabytes of pixels; no camera has more.
MOST_PIXELS = 2**26


class Drop(str, enum.Enum):
    """Why a received image was not used; the values are published in StreamStatus."""

    SUPERSEDED = "superseded"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    EMPTY_IMAGE = "empty_image"
    UNSUPPORTED_SIZE = "unsupported_size"
    WRONG_STEP = "wrong_step"
    SHORT_DATA = "short_data"
    BROKEN_DATA = "broken_data"
    OTHER_SOURCE = "other_source"
    NO_STAMP = "no_stamp"
    STAMP_REPEATED = "stamp_repeated"
    STAMP_BACKWARDS = "stamp_backwards"
    DEACTIVATED = "deactivated"
    PAUSED = "paused"


class BadImageError(ValueError):
    """An image that cannot be used: ``reason`` for the counters, the text for people."""

    def __init__(self, reason: Drop, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def check_image(message: Image) -> tuple[int, int]:
    """Check that the pixels described by the message are there.

    Returns:
        Width and height.

    Raises:
        BadImageError: with the first fault found.
    """
    height, width = message.height, message.width
    if message.encoding in _DEPTH_ENCODINGS:
        raise BadImageError(
            Drop.UNSUPPORTED_ENCODING,
            f"image encoding '{message.encoding}' cannot be read: this is a depth image; remap "
            "`image` to the colour topic",
        )
    try:
        check_colour(message.encoding, height, width, message.step, len(message.data))
    except ImageError as error:
        raise BadImageError(Drop(error.fault.value), str(error)) from None
    if width * height > MOST_PIXELS:
        raise BadImageError(
            Drop.UNSUPPORTED_SIZE,
            f"image of {width}x{height} pixels; at most {MOST_PIXELS} are read",
        )
    _check_shape(width, height)
    return width, height


def check_compressed(message: CompressedImage) -> tuple[int, int]:
    """Check that a compressed image can be decoded into a sensible amount of memory.

    Returns:
        Width and height.

    Raises:
        BadImageError: with the first fault found.
    """
    if "compressedDepth" in message.format:
        raise BadImageError(
            Drop.UNSUPPORTED_ENCODING,
            f"compressed image of format '{message.format}' is a depth image; remap `image` to the "
            "colour topic",
        )
    try:
        width, height = encoded_size(message.data)
    except ImageError as error:
        raise BadImageError(Drop(error.fault.value), str(error)) from None
    if width == 0 or height == 0:
        raise BadImageError(
            Drop.EMPTY_IMAGE, f"compressed image of {width}x{height} pixels: check the publisher"
        )
    if width * height > MOST_PIXELS:
        raise BadImageError(
            Drop.UNSUPPORTED_SIZE,
            f"compressed image claims {width}x{height} pixels; at most {MOST_PIXELS} are decoded",
        )
    _check_shape(width, height)
    return width, height


def _check_shape(width: int, height: int) -> None:
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise BadImageError(
            Drop.UNSUPPORTED_SIZE,
            f"image of {width}x{height} pixels is too elongated for the model, whose limit is "
            f"{MAX_ASPECT:g} to 1: crop it first",
        )


def check_stamp(stamp_ns: int) -> None:
    """Refuse the stamp of a driver that sets none.

    Raises:
        BadImageError: it is zero.
    """
    if stamp_ns == 0:
        raise BadImageError(
            Drop.NO_STAMP,
            "image without a stamp (header.stamp is zero): the driver must set it to the time of "
            "exposure; until it does, set the parameter 'stamps' to receipt",
        )


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
