# SPDX-License-Identifier: Apache-2.0
"""The pose of a stream from the network's camera head, joined over epochs.

The head says where the camera is relative to the first camera of the epoch. What is published is
relative to the first camera of the stream: each epoch is hung onto the last pose before it, so the
published pose never jumps because an epoch began.
"""

from __future__ import annotations

import numpy as np

from omnistream_ros.model import CameraPrediction
from omnistream_ros.stream import geometry
from omnistream_ros.stream.result import Pose, Tracking


class HeadPose:
    """Poses of one stream; feed it the head's output of the frames whose pose is wanted."""

    def __init__(self) -> None:
        self._last = np.eye(4)  # world_from_camera as last published
        self._anchor = np.eye(4)  # world_from_epoch

    def begin_epoch(self) -> None:
        """The next prediction is relative to a new first camera: take it to be the last pose."""
        self._anchor = self._last

    def update(self, prediction: CameraPrediction, frame_index: int) -> Pose:
        """The pose of a frame from the prediction of one stream, tensors of shape (1, ...).

        A prediction that is not finite leaves the pose where it was, and the result says so.
        """
        translation = prediction.translation[0].double().cpu().numpy()
        quaternion = prediction.quaternion[0].double().cpu().numpy()
        if not (np.isfinite(translation).all() and np.isfinite(quaternion).all()):
            return to_pose(self._last, tracking=Tracking.LOST)
        epoch_from_camera = geometry.rigid(geometry.quaternion_to_matrix(quaternion), translation)
        if frame_index == 0:
            # The head's own first pose is only nearly the identity; what is off must not show.
            self._anchor = self._last @ geometry.rigid_inverse(epoch_from_camera)
        self._last = geometry.orthonormalised(self._anchor @ epoch_from_camera)
        return to_pose(self._last)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The state as float64 arrays."""
        return {"last": self._last.copy(), "anchor": self._anchor.copy()}

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        self._last = np.array(state["last"])
        self._anchor = np.array(state["anchor"])


def to_pose(
    world_from_camera: np.ndarray,
    covariance: np.ndarray | None = None,
    tracking: Tracking = Tracking.GOOD,
) -> Pose:
    """A rigid motion (4, 4) as the pose that is handed out."""
    return Pose(
        translation=world_from_camera[:3, 3].copy(),
        quaternion=geometry.matrix_to_quaternion(world_from_camera[:3, :3]),
        covariance=covariance,
        tracking=tracking,
    )
