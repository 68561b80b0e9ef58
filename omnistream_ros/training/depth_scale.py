# SPDX-License-Identifier: Apache-2.0
"""Whether a recording's depth has the scale of its poses, decided before anything learns from it.

Wrong units are the usual mistake in depth of one's own, and training takes them without a word. A
moving camera gives them away: points carried from one image into another by the poses must lie as
deep as the depth there says. A camera that only turns says nothing of scale, nor does one that
slides along a bare wall; then only depth that no robot meets is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omnistream_ros.evaluation.recordings import RecordingError
from omnistream_ros.training.clip_files import SKY, Clip

#: Factors tried on depth. The last one makes the motion vanish beside it: a fit has to be better
#: than that too, or it only says that the poses are wrong.
_SCALES = np.array([0.001, 0.01, *np.geomspace(0.1, 10, 41), 100, 1000, np.inf])
_ONE = int(np.argmin(np.abs(_SCALES - 1)))
#: No unit is off by as little, but poses of SLAM may be, and poses of a camera held askew seem so.
_RIGHT = (0.66, 1.5)
_BETTER = 0.6  # of the error as recorded: what another scale must reach
_ROUNDING = 0.005  # an error as small as this is none
#: Metres between which the median depth lies, of a table top seen by an arm as of a street. Their
#: ratio is 1000, so metres taken for millimetres (and the reverse) end up outside; beyond SKY,
#: training knows no depth anyway.
_MEDIAN = (SKY / 1000, SKY)
_GRID = (24, 32)  # rows and columns of the points that are carried
_EVERY = 8  # of the images begins pairs
_NEAREST = 0.1  # metres between two images of a pair
_SAME_VIEW = np.cos(np.radians(30))  # between their optical axes
_INSIDE = 0.2  # of the points of one that fall into the other
_POINTS = 30  # of them with depth
_PAIRS = 3  # fewer decide nothing
_UNITS = (
    "check the unit of the depth images (16UC1 is millimetres, 32FC1 metres; a TUM PNG has 5000 "
    "steps to the metre unless depth_scale in camera.yaml says otherwise)"
)


class DepthScaleCheck:
    """Takes the clips of one recording, one after the other, and then judges their depth."""

    def __init__(self) -> None:
        self._errors: list[NDArray[np.float64]] = []  # of each pair, one per scale
        self._medians: list[float] = []  # metres, of each clip

    def add(self, clip: Clip, posed: bool = True) -> None:
        """Looks at the depth of a clip and, where it is posed, at pairs of its images: two for
        every eight, a fraction of what decoding them has cost."""
        rows, columns = _grid(clip)
        depth = clip.depth[:, rows, columns]  # (T, 24 * 32)
        known = np.isfinite(depth) & (depth > 0)
        if known.any():
            self._medians.append(float(np.median(depth[known])))
        if posed:
            usable = np.flatnonzero(known.sum(axis=1) >= _POINTS)
            self._errors += [_errors(clip, *pair) for pair in _pairs(clip, usable)]

    def factor(self) -> tuple[float, float, float] | None:
        """The factor by which depth fits the poses, the error as recorded (median of |log ratio|)
        and that with it; None where nothing speaks against the depth as it is."""
        usable = [errors for errors in self._errors if np.isfinite(errors[_ONE])]
        if len(usable) < _PAIRS:
            return None
        median = np.median(usable, axis=0)
        best = int(np.argmin(median))
        scale, before, after = float(_SCALES[best]), float(median[_ONE]), float(median[best])
        if _RIGHT[0] <= scale <= _RIGHT[1] or before < _ROUNDING:
            return None
        return (scale, before, after) if after < _BETTER * min(before, median[-1]) else None

    def judge(self, recording: Path) -> None:
        """Says what is wrong with the depth of the clips, if anything is.

        Raises:
            RecordingError: another scale fits the poses, or no robot meets such depth.
        """
        found = self.factor()
        if found is not None:
            scale, before, after = found
            raise RecordingError(
                f"{recording}: depth and poses disagree: depth fits when multiplied by about "
                f"{_digits(scale)} (points of one image are {100 * before:.1f} % off in another, "
                f"then {100 * after:.1f} %); {_UNITS}; if it is right, check that the poses "
                "are in metres, of the camera's optical frame, and on its clock"
            )
        median = np.median(self._medians) if self._medians else None
        if median is not None and not _MEDIAN[0] < median < _MEDIAN[1]:
            raise RecordingError(
                f"{recording}: the median depth is {_digits(median)} m, expected is one between "
                f"{_MEDIAN[0]:g} and {_MEDIAN[1]:g} m; {_UNITS}"
            )


def _digits(number: float) -> str:
    """Two digits that count, without an exponent."""
    return np.format_float_positional(number, precision=2, fractional=False, trim="-")


def _grid(clip: Clip) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the pixels looked at, evenly over the image."""
    sides = zip(clip.depth.shape[1:], _GRID, strict=True)
    rows, columns = (((np.arange(n) + 0.5) * side / n).astype(np.int64) for side, n in sides)
    v, u = np.meshgrid(rows, columns, indexing="ij")
    return v.ravel(), u.ravel()


def _pairs(clip: Clip, usable: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Every eighth image with the nearest and the farthest later one that will do.

    Near ones still see the same when the motion looks too large, far ones show it when it looks
    too small.
    """
    for first in usable[:-1:_EVERY]:
        later = usable[usable > first]
        away = np.linalg.norm(clip.poses[later, :3, 3] - clip.poses[first, :3, 3], axis=1)
        cosine = clip.poses[later, :3, 2] @ clip.poses[first, :3, 2]
        fit = (away >= _NEAREST) & (cosine > _SAME_VIEW)
        if fit.any():
            near, far = later[fit][0], later[fit][np.argmax(away[fit])]
            yield from ((int(first), int(second)) for second in sorted({near, far}))


def _errors(clip: Clip, first: int, second: int) -> NDArray[np.float64]:
    """Median |log ratio| of carried and seen depth at each scale; inf where too few points meet."""
    v, u = _grid(clip)
    height, width = clip.depth.shape[1:]
    fx, fy, cx, cy = clip.intrinsics
    z = clip.depth[first, v, u].astype(np.float64)
    points = np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], axis=1)[z > 0]  # (N, 3), no NaN
    motion = np.linalg.inv(clip.poses[second]) @ clip.poses[first]
    points = points @ motion[:3, :3].T
    errors = np.full(len(_SCALES), np.inf)
    for number, scale in enumerate(_SCALES):
        # Larger depth is smaller motion: both images keep their depth, and nothing overflows.
        carried = points + motion[:3, 3] / scale
        x, y, z = carried[carried[:, 2] > 0].T
        column, row = np.round(fx * x / z + cx), np.round(fy * y / z + cy)
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        if inside.sum() < _INSIDE * len(points):
            continue
        seen = clip.depth[second, row[inside].astype(int), column[inside].astype(int)]
        ratio = z[inside][seen > 0] / seen[seen > 0]
        if len(ratio) >= _POINTS:
            errors[number] = np.median(np.abs(np.log(ratio)))
    return errors
