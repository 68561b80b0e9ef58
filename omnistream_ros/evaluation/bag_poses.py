# SPDX-License-Identifier: Apache-2.0
"""The path of a camera out of a bag: from TF, odometry or stamped poses."""

from __future__ import annotations

import numpy as np

from omnistream_ros.evaluation.bag_messages import ODOMETRY, POSE, TF, stamp_of, xyz, xyzw
from omnistream_ros.evaluation.bag_reader import BagReader
from omnistream_ros.evaluation.trajectory import Trajectory, TrajectoryError
from omnistream_ros.evaluation.transforms import PoseSeries, TransformTree


def read_poses(bag: BagReader, topic: str, camera: str) -> tuple[Trajectory | None, list[str]]:
    """Camera-to-world poses from one topic, and notes on what was assumed or left out.

    Odometry and stamped poses are of a frame of their own; fixed transforms (``/tf_static``) lead
    from there to the camera.

    Args:
        camera: frame of the camera, in optical axes.

    Returns:
        None where TF says nothing about the camera, or nothing that moves.

    Raises:
        TrajectoryError: no way from the posed frame to the camera, or poses that are none.
    """
    kind = bag.topics[topic][0]
    tree = _transform_tree(bag, topic)
    if kind == TF:
        if camera not in tree:
            return None, [f"TF has no frame {camera!r}: no pose"]
        return tree.path_of(camera)
    series, child = PoseSeries(), camera
    for _, _, message in bag.messages([topic]):
        pose = message.pose.pose if kind == ODOMETRY else message.pose
        if kind == ODOMETRY:
            child = message.child_frame_id
        series.append(stamp_of(message.header), xyz(pose.position), xyzw(pose.orientation))
    trajectory, notes = series.trajectory()
    if kind == POSE:
        notes.append(f"{topic} names no child frame: taken for the pose of {camera!r}")
    mount = np.eye(4) if child == camera else tree.fixed_transform(child, camera)
    if mount is None:
        raise TrajectoryError(
            f"poses are of frame {child!r} and no fixed transform leads from there to the "
            f"camera {camera!r}; record /tf_static or name the frame with --camera-frame"
        )
    return Trajectory.from_matrices(trajectory.stamps_ns, trajectory.matrices() @ mount), notes


def _transform_tree(bag: BagReader, pose_topic: str) -> TransformTree:
    """The fixed transforms of a bag and, where the pose comes from TF, the moving ones."""
    tree = TransformTree()
    topics = [name for name, (kind, _) in bag.topics.items() if kind == TF]
    topics = [name for name in topics if name == pose_topic or _is_static(name)]
    for name, _, message in bag.messages(topics) if topics else ():
        for one in message.transforms:
            tree.add(
                one.header.frame_id,
                one.child_frame_id,
                stamp_of(one.header),
                xyz(one.transform.translation),
                xyzw(one.transform.rotation),
                fixed=_is_static(name),
            )
    return tree


def _is_static(topic: str) -> bool:
    return topic.endswith("tf_static")
