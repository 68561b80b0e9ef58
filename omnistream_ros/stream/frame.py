# SPDX-License-Identifier: Apache-2.0
"""What goes into a stream: one image with its time and, if known, its camera.

Both types check themselves on construction, so that everything below this file may rely on them.
Pixel convention as in OpenCV and ROS (REP-104, ``sensor_msgs/CameraInfo``): integer coordinates are
pixel centres, so an image of width W spans the interval [-0.5, W - 0.5].
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from omnistream_ros.stream.undistort import Undistorter

_INT64 = (-(2**63), 2**63 - 1)
# No lens is shorter or longer than these many image widths (0.06 to 180 degrees), and no crop is
# further off its centre: numbers beyond overflow in the geometry instead of saying what is wrong.
_SHORTEST, _LONGEST = 1e-3, 1e3


@dataclasses.dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera without distortion, in pixels of an image of ``width`` x ``height``.

    Raises:
        ValueError: a number is not finite, a focal length or a size is not positive, or a focal
            length or the principal point is out of all proportion to the size of the image.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        for name in ("fx", "fy", "cx", "cy"):
            value = float(getattr(self, name))
            if not math.isfinite(value):
                raise ValueError(
                    f"intrinsics: {name} must be a finite number of pixels, got {value}"
                )
            object.__setattr__(self, name, value)
        for name in ("fx", "fy"):
            if getattr(self, name) <= 0.0:
                raise ValueError(
                    f"intrinsics: {name} must be positive, got {getattr(self, name)}; "
                    "an uncalibrated camera has no intrinsics (pass None)"
                )
        for name in ("width", "height"):
            size = _as_int(f"intrinsics: {name}", getattr(self, name))
            if size < 1:
                raise ValueError(f"intrinsics: {name} must be at least 1 pixel, got {size}")
            object.__setattr__(self, name, size)
        for name, focal, centre, size in (
            ("fx and cx", self.fx, self.cx, self.width),
            ("fy and cy", self.fy, self.cy, self.height),
        ):
            if not _SHORTEST * size <= focal <= _LONGEST * size or abs(centre) > _LONGEST * size:
                raise ValueError(
                    f"intrinsics: {name} must be pixels of an image of {self.width}x{self.height}, "
                    f"got {focal:g} and {centre:g}: calibrate the camera"
                )

    @classmethod
    def from_fov(cls, horizontal: float, vertical: float, width: int, height: int) -> Intrinsics:
        """The camera whose image of this size covers these angles (radians), centred.

        Raises:
            ValueError: an angle is not inside (0, pi).
        """
        for name, angle in (("horizontal", horizontal), ("vertical", vertical)):
            if not 0.0 < angle < math.pi:  # also refuses NaN
                raise ValueError(f"{name} field of view must be inside (0, pi) rad, got {angle}")
        return cls(
            fx=0.5 * width / math.tan(0.5 * horizontal),
            fy=0.5 * height / math.tan(0.5 * vertical),
            cx=0.5 * (width - 1),
            cy=0.5 * (height - 1),
            width=width,
            height=height,
        )

    def matrix(self) -> np.ndarray:
        """The camera matrix K, (3, 3) float64."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def fov(self) -> tuple[float, float]:
        """Full horizontal and vertical field of view in radians, from image border to border."""
        horizontal = math.atan((self.cx + 0.5) / self.fx) + math.atan(
            (self.width - 0.5 - self.cx) / self.fx
        )
        vertical = math.atan((self.cy + 0.5) / self.fy) + math.atan(
            (self.height - 0.5 - self.cy) / self.fy
        )
        return horizontal, vertical

    def resized(self, width: int, height: int) -> Intrinsics:
        """The same camera after its image was resized to ``width`` x ``height``.

        Image borders map to image borders, hence the half pixels around the principal point.
        """
        sx, sy = width / self.width, height / self.height
        return Intrinsics(
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
            width=width,
            height=height,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One image of a camera stream.

    Attributes:
        image: (H, W, 3) uint8, RGB. Not copied: do not write into it afterwards.
        stamp_ns: time of exposure in nanoseconds, any epoch, the same clock for all frames.
        intrinsics: the camera at the size of ``image``, or None when unknown.
        lens: takes the distortion out of ``image`` before anything else is done with it, so that
            ``intrinsics`` (its own) and all results are those of the undistorted image; None for
            images that are undistorted, or shall be taken as they are.

    Raises:
        TypeError: ``image`` is not a numpy array or ``stamp_ns`` not an integer.
        ValueError: wrong dtype, shape or empty image; intrinsics of another image size.
    """

    image: np.ndarray
    stamp_ns: int
    intrinsics: Intrinsics | None = None
    lens: Undistorter | None = None

    def __post_init__(self) -> None:
        image = self.image
        if not isinstance(image, np.ndarray):
            raise TypeError(f"frame: image must be a numpy array, got {type(image).__name__}")
        if image.dtype != np.uint8:
            raise ValueError(f"frame: image must be uint8 RGB, got dtype {image.dtype}")
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"frame: image must have shape (H, W, 3), got {image.shape}")
        if image.size == 0:
            raise ValueError(f"frame: image is empty, shape {image.shape}")
        stamp = _as_int("frame: stamp_ns", self.stamp_ns)
        if not _INT64[0] <= stamp <= _INT64[1]:
            raise ValueError(f"frame: stamp_ns must fit in 64 bits, got {stamp}")
        object.__setattr__(self, "stamp_ns", stamp)
        camera = self.intrinsics
        if camera is not None and (camera.width, camera.height) != (self.width, self.height):
            raise ValueError(
                f"frame: intrinsics are for {camera.width}x{camera.height} but the image is "
                f"{self.width}x{self.height}; use Intrinsics.resized if the camera scales its image"
            )
        if self.lens is not None and self.lens.intrinsics != camera:
            raise ValueError("frame: intrinsics must be those of the lens")

    @property
    def height(self) -> int:
        """Rows of the image."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Columns of the image."""
        return int(self.image.shape[1])


def _as_int(what: str, value: object) -> int:
    """An exact Python integer from any integer type; a bool or a float is a mistake upstream."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{what} must be an integer, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} must be an integer, got {value!r}") from None
