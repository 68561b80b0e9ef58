# SPDX-License-Identifier: Apache-2.0
"""Which frame moves in the odometry frame, and where it is (REP-103, REP-105).

The stream's world is its first camera, in optical axes. The ``odom`` frame has x forward and z up,
and its origin at the first pose of what moves in it:

- ``odom -> base`` when /tf_static connects the robot's base with the camera;
- ``odom -> camera`` otherwise.

With ``inverted`` the same transform stands the other way round on /tf, `base -> odom`, for a base
that has another parent and must keep it.

A frame of the tf tree has one parent, and one publisher of where it is there. So the camera gets
none from us once it has another one, and neither does the base when somebody else (wheel odometry,
a filter) places it, be it in the same ``odom``.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
from tf2_msgs.msg import TFMessage

from omnistream_ros.nodes.distribution import motion_from_transform
from omnistream_ros.nodes.sent_transforms import SentTransforms
from omnistream_ros.stream.geometry import (
    FLU_FROM_OPTICAL,
    quaternion_to_matrix,
    rigid,
    rigid_inverse,
)
from omnistream_ros.stream.result import Pose

# Longest chain of static transforms that is followed; a real robot has less than ten.
_MAX_CHAIN = 64
# Frames of which one is remembered; a large robot has a few hundred.
_MAX_FRAMES = 10_000
# Latched static transforms arrive within this time of subscribing.
_SETTLING_S = 0.5


class StaticTree:
    """The static transforms heard so far, and who is the parent of whom.

    One thread adds; any may ask.
    """

    def __init__(self) -> None:
        self._parent_from_child: dict[str, tuple[str, np.ndarray]] = {}
        self._told: set[str] = set()  # frames of loops
        self._full = False

    def add(self, message: TFMessage) -> list[str]:
        """Take in a message of /tf_static. Returns what is wrong with it, in words."""
        faults = []
        for transform in message.transforms:
            parent, child = transform.header.frame_id.lstrip("/"), transform.child_frame_id
            child = child.lstrip("/")
            try:
                motion = motion_from_transform(transform.transform)
            except ValueError as error:
                faults.append(f"static transform {parent} -> {child} cannot be used: {error}")
                continue
            if len(self._parent_from_child) >= _MAX_FRAMES and child not in self._parent_from_child:
                if not self._full:
                    faults.append(f"more than {_MAX_FRAMES} static transforms: the rest is ignored")
                self._full = True
            elif parent and child and parent != child:
                self._parent_from_child[child] = (parent, motion)
                loop = self._loop(child)
                if loop and child not in self._told:
                    self._told.update(loop)
                    faults.append(
                        f"the static transforms go in a loop ({' -> '.join(loop)}): positions in "
                        "it mean nothing; two nodes publish them, stop one"
                    )
        return faults

    def _loop(self, child: str) -> list[str]:
        """The frames from a frame upwards to itself again; empty when there is no loop."""
        names = [child]
        while names[-1] in self._parent_from_child and len(names) <= _MAX_CHAIN:
            names.append(self._parent_from_child[names[-1]][0])
            if names[-1] == child:
                return names
        return []

    def __contains__(self, frame: str) -> bool:
        """Whether a static transform leads to or from a frame."""
        # A copy: the thread that runs the model asks while the executor's adds.
        parents = [parent for parent, _ in list(self._parent_from_child.values())]
        return frame in self._parent_from_child or frame in parents

    def parent(self, frame: str) -> str | None:
        """The static parent of a frame, if it has one."""
        known = self._parent_from_child.get(frame)
        return known[0] if known else None

    def root(self, frame: str) -> str:
        """The frame that has no static parent above ``frame``."""
        return list(self._to_root(frame))[-1]

    def lookup(self, target: str, source: str) -> np.ndarray | None:
        """The motion (4, 4) ``target_from_source``, or None when no static chain connects them."""
        up_source = self._to_root(source)
        up_target = self._to_root(target)
        for frame, frame_from_source in up_source.items():
            if frame in up_target:
                return rigid_inverse(up_target[frame]) @ frame_from_source
        return None

    def _to_root(self, frame: str) -> dict[str, np.ndarray]:
        """All ancestors of ``frame``, itself included, with ancestor_from_frame, nearest first."""
        chain = {frame: np.eye(4)}
        motion = np.eye(4)
        while frame in self._parent_from_child and len(chain) < _MAX_CHAIN:
            frame, parent_from_frame = self._parent_from_child[frame]
            if frame in chain:
                break  # a loop, which only a broken publisher makes
            motion = parent_from_frame @ motion
            chain[frame] = motion
        return chain


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the moving frame is.

    Attributes:
        child: the frame that moves in ``odom``.
        motion: (4, 4) odom_from_child.
        covariance: (6, 6) of (x, y, z, rotation about x, y, z) along the axes of odom, or None.
        transform: (parent, child, parent_from_child) for /tf.
        tf_refused: why it must not be published there, or "".
        remark: what is missing in the tree, or "".
        settled: False for a moment after the start, while /tf_static may still connect the camera
            with a base and ``child`` change.
    """

    child: str
    motion: np.ndarray
    covariance: np.ndarray | None
    transform: tuple[str, str, np.ndarray]
    tf_refused: str
    remark: str
    settled: bool


class OdometryFrame:
    """Places the poses of one stream in the odometry frame.

    Args:
        sent: what this node publishes on /tf; it outlives the stream, because a transform of the
            stream before may still be on its way when the next one begins.
    """

    def __init__(
        self,
        odom_frame: str,
        base_frame: str,
        tree: StaticTree,
        sent: SentTransforms | None = None,
        *,
        inverted: bool = False,
    ) -> None:
        self.odom_frame = odom_frame
        self.sent = sent or SentTransforms()
        self._inverted = inverted
        self._base_frame = base_frame
        self._tree = tree
        self._moving_parents: dict[str, str] = {}
        self._odom_from_world: np.ndarray | None = None
        self._started_s = time.monotonic()

    def hear(self, message: TFMessage) -> None:
        """Remember who places which frame on /tf, this node aside."""
        for transform in message.transforms:
            parent = transform.header.frame_id.lstrip("/")
            child = transform.child_frame_id.lstrip("/")
            if not self.sent.take(transform):
                while len(self._moving_parents) >= _MAX_FRAMES:  # the oldest goes
                    del self._moving_parents[next(iter(self._moving_parents))]
                self._moving_parents[child] = parent

    def place(self, pose: Pose, camera_frame: str) -> Placement:
        """Where the robot's base, or else the camera, is at a pose of the stream."""
        world_from_camera = rigid(quaternion_to_matrix(pose.quaternion), pose.translation)
        base_from_camera = None
        if self._base_frame != camera_frame:
            base_from_camera = self._tree.lookup(self._base_frame, camera_frame)
        if base_from_camera is None:
            child, camera_from_child = camera_frame, np.eye(4)
        else:
            child, camera_from_child = self._base_frame, rigid_inverse(base_from_camera)
        world_from_child = world_from_camera @ camera_from_child
        if self._odom_from_world is None:
            # Kept for the life of the stream: a base that becomes known later must not bend the
            # path that was already published.
            upright = rigid(FLU_FROM_OPTICAL, np.zeros(3))
            self._odom_from_world = upright if base_from_camera is None else base_from_camera
        motion = self._odom_from_world @ world_from_child
        parent_and_child = (self.odom_frame, child)
        transform = (*parent_and_child, motion)
        if self._inverted:
            parent_and_child = (child, self.odom_frame)
            transform = (*parent_and_child, rigid_inverse(motion))
        lever = world_from_child[:3, 3] - world_from_camera[:3, 3]
        return Placement(
            child=child,
            motion=motion,
            covariance=_moved_covariance(pose.covariance, lever, self._odom_from_world[:3, :3]),
            transform=transform,
            tf_refused=self._refusal(*parent_and_child),
            remark=self._missing_link(camera_frame) if base_from_camera is None else "",
            settled=base_from_camera is not None
            or time.monotonic() - self._started_s > _SETTLING_S,
        )

    def _missing_link(self, camera_frame: str) -> str:
        """Words for a robot that publishes its tree, and the camera is not in it."""
        if self._base_frame == camera_frame or self._base_frame not in self._tree:
            return ""
        return (
            f"no static transform connects '{self._base_frame}' with '{camera_frame}': the pose is "
            f"that of '{camera_frame}'; publish the transform (robot_state_publisher or "
            "static_transform_publisher), or correct base_frame or the driver's frame_id"
        )

    def _refusal(self, parent: str, child: str) -> str:
        if not (parent and child):
            return "the images carry no frame_id: nothing is published on /tf; set it in the driver"
        if child == parent:
            return (
                f"'{child}' is odom_frame itself: nothing is published on /tf; rename one of them"
            )
        other = self._tree.parent(child) or self._moving_parents.get(child)
        if other is None:
            return ""
        if other == parent:
            also = "" if self._inverted else " and tf_inverted to true"
            return (
                f"somebody else publishes '{parent}' -> '{child}': nothing is published on /tf; "
                "stop that publisher and activate again, or set publish_tf to false, or odom_frame "
                f"to another name{also}"
            )
        root = self._tree.root(child)
        if self._inverted:
            advice = "set tf_inverted or publish_tf to false"
        elif root != child:
            advice = f"set base_frame to '{root}', or publish_tf to false"
        else:
            advice = "stop the other publisher, or set publish_tf to false"
        return (
            f"'{child}' already has the parent '{other}' and would get a second one, "
            f"'{parent}': nothing is published on /tf; {advice}"
        )


def _moved_covariance(
    covariance: np.ndarray | None, lever: np.ndarray, rotation: np.ndarray
) -> np.ndarray | None:
    """Covariance of a point rigidly attached at ``lever`` from the camera, in rotated axes.

    Along the world's axes: d(point) = d(camera) + d(angle) x lever.
    """
    if covariance is None:
        return None
    x, y, z = lever
    jacobian = np.eye(6)
    jacobian[:3, 3:] = np.array([[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]])
    turned = np.zeros((6, 6))
    turned[:3, :3] = turned[3:, 3:] = rotation
    jacobian = turned @ jacobian
    return jacobian @ covariance @ jacobian.T
