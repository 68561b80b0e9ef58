# SPDX-License-Identifier: Apache-2.0
"""The camera of a stream that nobody calibrated: what the model thinks, averaged over an epoch."""

from __future__ import annotations

import math

from omnistream_ros.model import CameraPrediction
from omnistream_ros.stream.frame import Intrinsics


class CameraEstimate:
    """Running mean of the field of view that the camera head sees.

    The lens does not change within an epoch, but single predictions differ by some percent; used
    one by one they would make the scale of depth flicker.

    Args:
        canonical_focal: focal length in image widths that is assumed as long as nothing is known.
    """

    def __init__(self, canonical_focal: float) -> None:
        self._canonical_focal = canonical_focal
        self.reset()

    def reset(self) -> None:
        """Forget the camera: a new epoch may have another one."""
        self._tangents = [0.0, 0.0]  # sums of tan(fov / 2), horizontal and vertical
        self._count = 0

    def update(self, prediction: CameraPrediction) -> None:
        """Take in the prediction of one frame, ``fov`` (1, 2) radians; nonsense is left out."""
        tangents = [math.tan(0.5 * angle) for angle in prediction.fov[0].tolist()]
        if all(0.01 < tangent < 100.0 for tangent in tangents):
            self._tangents = [s + t for s, t in zip(self._tangents, tangents, strict=True)]
            self._count += 1

    def intrinsics(self, width: int, height: int) -> Intrinsics:
        """The camera at an image size: principal point in the middle, no distortion."""
        if self._count == 0:
            focal = self._canonical_focal * width
            return Intrinsics(focal, focal, 0.5 * (width - 1), 0.5 * (height - 1), width, height)
        horizontal, vertical = (2.0 * math.atan(s / self._count) for s in self._tangents)
        return Intrinsics.from_fov(horizontal, vertical, width, height)

    def state_dict(self) -> dict[str, object]:
        """The state as plain numbers."""
        return {"tangents": list(self._tangents), "count": self._count}

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        self._tangents = list(state["tangents"])
        self._count = int(state["count"])
