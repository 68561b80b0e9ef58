# SPDX-License-Identifier: Apache-2.0
"""What a length is in metres and what the model says it is: one ratio from one frame.

Three kinds of evidence: points measured by a range sensor, the height of the camera above the
ground, and the way that somebody else says the camera has gone. Each is robust by itself where one
frame holds many measurements (a median); what is wrong with a whole frame is left to
`scale_estimate`.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator

import numpy as np
import torch

from omnistream_ros.stream.frame import Intrinsics

# Fewer range measurements in the image than this say nothing.
_FEWEST_POINTS = 8
# Nearer than this, sensors see the robot itself.
_NEAREST_M = 0.1
# The ground is looked for in a depth image of about this many columns.
_GROUND_COLUMNS = 96
# Ground looks up, give or take 25 degrees, and covers this share of the image.
_UPWARD = np.cos(np.radians(25.0))
_GROUND_SHARE = 0.05
# Heights within this factor are one surface; the ground is the lowest of the large ones.
_ONE_SURFACE = 0.1
_LARGE_SHARE = 0.4
# A way shorter than this is mostly noise; one that takes longer than this, mostly drift.
_SHORTEST_WAY_M = 0.15
_LONGEST_TIME_S = 5.0
# Two positions further apart in time than this are not interpolated between.
_LONGEST_GAP_S = 0.5


def from_points(points: np.ndarray, depth: torch.Tensor, camera: Intrinsics) -> float | None:
    """Ratio from points measured by another sensor.

    Args:
        points: (N, 3) metres in the optical axes of the camera; non-finite ones are ignored.
        depth: (H, W) as the model says it.
        camera: of the depth image.

    Returns:
        the median over the points that are in the image, or None for fewer than 8.
    """
    points = np.asarray(points, np.float64)
    points = points[np.isfinite(points).all(1)]
    points = points[points[:, 2] > _NEAREST_M]
    columns = np.rint(camera.fx * points[:, 0] / points[:, 2] + camera.cx)
    rows = np.rint(camera.fy * points[:, 1] / points[:, 2] + camera.cy)
    inside = (columns >= 0) & (columns < camera.width) & (rows >= 0) & (rows < camera.height)
    if inside.sum() < _FEWEST_POINTS:
        return None
    where = np.stack((rows[inside], columns[inside])).astype(np.int64)
    row, column = torch.from_numpy(where).to(depth.device)
    predicted = depth[row, column].double().cpu().numpy()
    measured = points[inside, 2]
    usable = np.isfinite(predicted) & (predicted > 0)
    if usable.sum() < _FEWEST_POINTS:
        return None
    return float(np.exp(np.median(np.log(measured[usable] / predicted[usable]))))


def from_ground(
    depth: torch.Tensor, camera: Intrinsics, up: np.ndarray, height: float
) -> float | None:
    """Ratio from the known height of the camera above the ground.

    Args:
        depth: (H, W) as the model says it.
        camera: of the depth image.
        up: (3,) unit vector away from the ground, in the optical axes of the camera.
        height: metres from the ground to the camera.

    Returns:
        None when no ground is in sight: too little of the image looks up, below the camera.
    """
    stride = max(1, camera.width // _GROUND_COLUMNS)
    z = depth[::stride, ::stride].double().cpu().numpy()  # (h, w)
    u = np.arange(0, camera.width, stride)
    v = np.arange(0, camera.height, stride)[:, None]
    rays = np.broadcast_arrays((u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, 1.0)
    points = z[..., None] * np.stack(rays, -1)  # (h, w, 3)
    across = points[:-1, 1:] - points[:-1, :-1]
    down = points[1:, :-1] - points[:-1, :-1]
    normals = np.cross(down, across)  # towards the camera, for a surface that faces it
    with np.errstate(invalid="ignore", divide="ignore"):
        upward = normals @ up / np.linalg.norm(normals, axis=-1)
        below = -(points[:-1, :-1] @ up)
        ground = np.isfinite(upward) & (upward > _UPWARD) & (below > 0)
    logs = np.sort(np.log(below[ground]))
    if logs.size < max(_FEWEST_POINTS, _GROUND_SHARE * upward.size):
        return None
    # How many lie within the width of one surface above each.
    counts = np.searchsorted(logs, logs + _ONE_SURFACE) - np.arange(logs.size)
    large = np.flatnonzero(counts >= _LARGE_SHARE * counts.max())
    first = large[-1]
    while first > 0 and counts[first - 1] > counts[first]:  # to the densest place nearby
        first -= 1
    surface = logs[first : first + counts[first]]
    return float(height / np.exp(np.median(surface)))


class WayComparison:
    """Ratios from the way of the camera, as the model and as somebody else says it.

    Both sides are fed on their own, in the order of their stamps, which must be of one clock.
    Nothing is assumed of how the two worlds lie to each other: only lengths are compared.
    """

    def __init__(self) -> None:
        # What is newest of theirs may be older than what is newest of ours: frames wait for it.
        self._ours: collections.deque[tuple[int, np.ndarray]] = collections.deque(maxlen=64)
        self._theirs: collections.deque[tuple[int, np.ndarray]] = collections.deque(maxlen=512)
        self._start: tuple[int, np.ndarray, np.ndarray] | None = None  # stamp, ours, theirs

    def lost(self) -> None:
        """The camera could not be followed: the way up to here is compared with nothing."""
        self._ours.clear()
        self._start = None

    def add_ours(self, stamp_ns: int, position: np.ndarray) -> None:
        """Where the model says that the camera is, (3,), in its unit."""
        if self._ours and stamp_ns <= self._ours[-1][0]:
            self.lost()
        self._ours.append((stamp_ns, np.array(position, np.float64)))

    def add_theirs(self, stamp_ns: int, position: np.ndarray) -> None:
        """Where the camera is in metres, (3,), in a fixed frame; non-finite ones are ignored."""
        if not np.isfinite(position).all():
            return
        if self._theirs and stamp_ns <= self._theirs[-1][0]:
            self._theirs.clear()
            self._start = None
        self._theirs.append((stamp_ns, np.array(position, np.float64)))

    def ratios(self) -> Iterator[tuple[int, float]]:
        """What has become known: stamp of our frame, and metres over model units."""
        while self._ours and self._theirs and self._ours[0][0] <= self._theirs[-1][0]:
            stamp, ours = self._ours.popleft()
            theirs = self._position(stamp)
            if theirs is None:
                continue
            if self._start is None or stamp - self._start[0] > _LONGEST_TIME_S * 1e9:
                self._start = stamp, ours, theirs
                continue
            measured = float(np.linalg.norm(theirs - self._start[2]))
            if measured < _SHORTEST_WAY_M:
                continue
            predicted = float(np.linalg.norm(ours - self._start[1]))
            self._start = stamp, ours, theirs
            yield stamp, measured / predicted if predicted > 0 else np.inf

    def _position(self, stamp_ns: int) -> np.ndarray | None:
        """Theirs at one of our stamps; forgets what lies before."""
        while len(self._theirs) > 1 and self._theirs[1][0] <= stamp_ns:
            self._theirs.popleft()
        (before, a), (after, b) = self._theirs[0], self._theirs[min(1, len(self._theirs) - 1)]
        if before == stamp_ns:
            return a
        if not before < stamp_ns <= after or after - before > _LONGEST_GAP_S * 1e9:
            return None
        share = (stamp_ns - before) / (after - before)
        return a + share * (b - a)
