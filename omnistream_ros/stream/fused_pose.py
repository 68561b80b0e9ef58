# SPDX-License-Identifier: Apache-2.0
"""The pose of a stream from both: geometry where it can follow, the camera head where it cannot.

A place found in two images is measured to a tenth of a pixel; the camera head is a guess from the
whole picture. A mean of both by their covariances would be geometry to all digits, so the head is
asked for what geometry lacks: where to go on when the camera cannot be followed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from omnistream_ros.model import CameraPrediction
from omnistream_ros.model.matching import MatchingHead
from omnistream_ros.stream import geometry
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.head_pose import HeadPose
from omnistream_ros.stream.odometry import Odometry
from omnistream_ros.stream.result import Pose


class FusedPose:
    """Poses of one stream from a matching head and the output of the camera head."""

    def __init__(self, head: MatchingHead) -> None:
        self._odometry = Odometry(head)
        self._head = HeadPose()
        self._last_by_head: np.ndarray | None = None  # world_from_camera (4, 4)

    @property
    def keyframes(self) -> list[int]:
        """As `Odometry.keyframes`."""
        return self._odometry.keyframes

    def begin_epoch(self) -> None:
        """Forget the images; the pose goes on from where it was."""
        self._odometry.begin_epoch()
        self._head.begin_epoch()
        self._last_by_head = None

    def update(
        self,
        pyramid: dict[int, Tensor],
        image: Tensor,
        depth: Callable[[], Tensor],
        camera: Intrinsics,
        stamp_ns: int,
        prediction: CameraPrediction,
        frame_index: int,
    ) -> Pose:
        """The pose of the next frame; arguments as of `Odometry.update` and `HeadPose.update`."""
        pose = self._head.update(prediction, frame_index)
        now = geometry.rigid(geometry.quaternion_to_matrix(pose.quaternion), pose.translation)
        moved = None
        if self._last_by_head is not None and pose.tracked:
            moved = geometry.rigid_inverse(now) @ self._last_by_head
        self._last_by_head = now
        return self._odometry.update(pyramid, image, depth, camera, stamp_ns, fallback=moved)

    def agreeing(self, depth: Tensor) -> Tensor:
        """As `Odometry.agreeing`."""
        return self._odometry.agreeing(depth)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next frame depends on."""
        last = self._last_by_head
        return {
            "odometry": self._odometry.state_dict(),
            "head": self._head.state_dict(),
            "last_by_head": None if last is None else last.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        self._odometry.load_state_dict(state["odometry"])
        self._head.load_state_dict(state["head"])
        last = state["last_by_head"]
        self._last_by_head = None if last is None else np.array(last)
