# SPDX-License-Identifier: Apache-2.0
"""The pose of one camera as odometry, path and transform."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PoseStamped, TransformStamped
from nav_msgs.msg import Odometry, Path
from std_msgs.msg import Header

from omnistream_ros.nodes.distribution import (
    Broadcaster,
    destroy_broadcaster,
    fill_transform,
    transform_broadcaster,
)
from omnistream_ros.nodes.frames import OdometryFrame, Placement
from omnistream_ros.nodes.lifecycle import ManagedNode
from omnistream_ros.nodes.output_topic import OutputTopic
from omnistream_ros.stream.result import Pose

_PATH_STEP = 0.02  # metres between the poses of ~/path
# Twist is not estimated: a variance so large that nothing fuses the zeros.
_UNKNOWN_VARIANCE = 1e6


class PoseOutputs:
    """What is published of a pose.

    Args:
        odometry, path: their topics.
        on_tf: whether this camera may place frames on /tf; of several cameras one does.
    """

    def __init__(
        self, node: ManagedNode, odometry: OutputTopic, path: OutputTopic, *, on_tf: bool
    ) -> None:
        self._node = node
        self._odometry = odometry
        self._path_topic = path
        self._tf: Broadcaster | None = transform_broadcaster(node) if on_tf else None
        self.restart()

    def restart(self) -> None:
        """A new stream begins: its path is empty."""
        self._path: list[PoseStamped] = []
        self._path_end = np.zeros(3)
        self._remark = ""  # on the tree, told once
        self._refused = ""  # last reason not to publish on /tf, told once

    def destroy(self) -> None:
        """Take the publisher of /tf off the node."""
        if self._tf is not None:
            destroy_broadcaster(self._node, self._tf)
            self._tf = None

    def wanted(self, publish_tf: bool) -> bool:
        """Whether somebody listens to the pose now."""
        return (
            self._odometry.wanted
            or self._path_topic.wanted
            # Other subscribers of /tf than this node, which listens for second parents.
            or (
                publish_tf and self._tf is not None and self._tf.pub_tf.get_subscription_count() > 1
            )
        )

    def publish(
        self,
        pose: Pose,
        source: Header,
        frame: OdometryFrame,
        *,
        publish_tf: bool,
        path_length: int,
    ) -> None:
        """Publish the pose of the image whose header is ``source``."""
        placement = frame.place(pose, source.frame_id.lstrip("/"))
        header = Header(stamp=source.stamp, frame_id=frame.odom_frame)
        if self._odometry.wanted:
            self._odometry.publish(_odometry_message(header, placement))
        if not placement.settled:
            return
        if placement.remark != self._remark:
            self._remark = placement.remark
            if self._remark:
                self._node.get_logger().warning(self._remark)
        self._extend_path(header, placement.motion, path_length)
        if self._tf is None or not publish_tf:
            return
        if placement.tf_refused:
            if placement.tf_refused != self._refused:
                self._node.get_logger().warning(placement.tf_refused)
            self._refused = placement.tf_refused
            return
        self._refused = ""
        parent, child, motion = placement.transform
        message = TransformStamped(child_frame_id=child)
        message.header.stamp, message.header.frame_id = source.stamp, parent
        fill_transform(motion, message.transform.translation, message.transform.rotation)
        frame.sent.add(message)
        self._tf.sendTransform(message)

    def _extend_path(self, header: Header, motion: np.ndarray, length: int) -> None:
        """Add the pose where it has moved on, forget the oldest beyond ``length``, publish."""
        here = motion[:3, 3]
        if self._path and np.linalg.norm(here - self._path_end) < _PATH_STEP:
            return
        self._path_end = here
        pose = PoseStamped(header=header)
        fill_transform(motion, pose.pose.position, pose.pose.orientation)
        self._path.append(pose)
        del self._path[:-length]
        if self._path_topic.wanted:
            self._path_topic.publish(Path(header=header, poses=self._path))


def _odometry_message(header: Header, placement: Placement) -> Odometry:
    odometry = Odometry(header=header, child_frame_id=placement.child)
    pose = odometry.pose.pose
    fill_transform(placement.motion, pose.position, pose.orientation)
    if placement.covariance is not None:
        odometry.pose.covariance = placement.covariance.reshape(-1)
    odometry.twist.covariance = _UNKNOWN_VARIANCE * np.eye(6).reshape(-1)
    return odometry
