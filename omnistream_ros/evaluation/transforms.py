# SPDX-License-Identifier: Apache-2.0
"""A tree of coordinate frames as TF publishes it, read from a recording rather than live.

Only what an evaluation needs: from transforms with stamps to the path of one frame in the tree's
    root.
"""

from __future__ import annotations

import array
import dataclasses

import numpy as np

from omnistream_ros.evaluation.trajectory import Trajectory, TrajectoryError, interpolate

#: Stamps that go back by more than this are a clock that jumped, not messages out of order.
_JUMP_NS = 1_000_000_000


class PoseSeries:
    """Poses with stamps as they arrive: (tx, ty, tz, qx, qy, qz, qw) each, perhaps out of order."""

    def __init__(self) -> None:
        self._stamps = array.array("q")
        self._poses = array.array("d")

    def __len__(self) -> int:
        return len(self._stamps)

    def append(
        self, stamp_ns: int, translation: tuple[float, ...], rotation: tuple[float, ...]
    ) -> None:
        """Add one pose; ``rotation`` is x, y, z, w."""
        self._stamps.append(stamp_ns)
        self._poses.extend((*translation, *rotation))

    def trajectory(self) -> tuple[Trajectory, list[str]]:
        """The poses in order of time, and notes on what was left out to get there.

        Poses that are not finite are left out (a tracker that lost its target), and so are repeated
        stamps (TF is often sent twice).

        Raises:
            TrajectoryError: time jumps back, a quaternion is not of unit length, nothing remains.
        """
        stamps = (
            np.frombuffer(self._stamps, dtype=np.int64) if self._stamps else np.zeros(0, np.int64)
        )
        poses: np.ndarray = (
            np.frombuffer(self._poses, dtype=np.float64).reshape(-1, 7)
            if self._poses
            else np.zeros((0, 7))
        )
        notes = []
        finite = np.asarray(np.isfinite(poses).all(axis=1))
        if not finite.all():
            notes.append(f"{int((~finite).sum())} of {len(finite)} poses are not finite: left out")
            stamps, poses = stamps[finite], poses[finite]
        if not len(stamps):
            raise TrajectoryError("no pose with finite numbers")
        back = np.maximum.accumulate(stamps) - stamps
        if back.max() > _JUMP_NS:
            raise TrajectoryError(
                f"time jumps back by {back.max() / 1e9:.3f} s at pose {int(np.argmax(back))}; "
                "cut the recording there and evaluate the parts"
            )
        unique, index = np.unique(stamps, return_index=True)
        if len(unique) < len(stamps):
            notes.append(f"{len(stamps) - len(unique)} poses repeat a stamp: left out")
        return Trajectory(unique, poses[index, :3], poses[index, 3:]), notes


@dataclasses.dataclass
class _Edge:
    """The transform of one child frame in its parent."""

    parent: str
    fixed: bool
    poses: PoseSeries


class TransformTree:
    """All transforms of a recording, by child frame."""

    def __init__(self) -> None:
        self._edges: dict[str, _Edge] = {}

    def add(
        self,
        parent: str,
        child: str,
        stamp_ns: int,
        translation: tuple[float, ...],
        rotation: tuple[float, ...],
        *,
        fixed: bool,
    ) -> None:
        """Add the pose of ``child`` in ``parent``; a fixed one holds for all time.

        Raises:
            TrajectoryError: the child has another parent already.
        """
        parent, child = parent.lstrip("/"), child.lstrip("/")
        edge = self._edges.get(child)
        if edge is None:
            edge = self._edges[child] = _Edge(parent, fixed, PoseSeries())
        elif edge.parent != parent:
            raise TrajectoryError(
                f"frame {child!r} has two parents in TF, {edge.parent!r} and {parent!r}"
            )
        if fixed:
            edge.fixed, edge.poses = True, PoseSeries()
        elif edge.fixed:
            return
        edge.poses.append(stamp_ns, translation, rotation)

    def __contains__(self, frame: str) -> bool:
        return frame.lstrip("/") in self._edges

    def chain(self, frame: str) -> list[str]:
        """The frames from ``frame`` up to the root of its tree.

        Raises:
            TrajectoryError: the parents go in a circle.
        """
        names = [frame.lstrip("/")]
        while names[-1] in self._edges:
            names.append(self._edges[names[-1]].parent)
            if names[-1] in names[:-1]:
                raise TrajectoryError(f"TF goes in a circle: {' -> '.join(names)}")
        return names

    def fixed_transform(self, ancestor: str, frame: str) -> np.ndarray | None:
        """The pose (4, 4) of ``frame`` in ``ancestor``; None unless all between them is fixed."""
        names = self.chain(frame)
        ancestor = ancestor.lstrip("/")
        if ancestor not in names:
            return None
        pose = np.eye(4)
        for name in names[: names.index(ancestor)]:
            edge = self._edges[name]
            if not edge.fixed:
                return None
            pose = edge.poses.trajectory()[0].matrices()[0] @ pose
        return pose

    def path_of(self, frame: str) -> tuple[Trajectory | None, list[str]]:
        """The poses of ``frame`` in its root, and notes; None where nothing above it moves.

        Sampled at the stamps of the moving transform that has most of them; the others are
        interpolated, and the result ends where one of them does.

        Raises:
            TrajectoryError: as `PoseSeries.trajectory`.
        """
        notes: list[str] = []
        parts: list[Trajectory] = []
        moving: list[Trajectory] = []
        for name in self.chain(frame)[:-1]:
            edge = self._edges[name]
            try:
                part, more = edge.poses.trajectory()
            except TrajectoryError as error:
                raise TrajectoryError(f"transform {edge.parent} -> {name}: {error}") from None
            notes += [f"{edge.parent} -> {name}: {note}" for note in more]
            parts.append(part)
            if not edge.fixed:
                moving.append(part)
        if not moving:
            return None, notes
        start = max(part.stamps_ns[0] for part in moving)
        end = min(part.stamps_ns[-1] for part in moving)
        stamps = max(moving, key=len).stamps_ns
        stamps = stamps[(stamps >= start) & (stamps <= end)]
        if not len(stamps):
            raise TrajectoryError(f"the transforms above {frame!r} share no span of time")
        pose = np.tile(np.eye(4), (len(stamps), 1, 1))
        for part in parts:
            fixed = not any(part is other for other in moving)
            at_stamps = part.matrices()[:1] if fixed else interpolate(part, stamps).matrices()
            pose = at_stamps @ pose
        return Trajectory.from_matrices(stamps, pose), notes
