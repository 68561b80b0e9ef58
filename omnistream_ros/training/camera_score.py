# SPDX-License-Identifier: Apache-2.0
"""How far off the camera head is, beside a camera that stands still."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from omnistream_ros.model import CameraPrediction, OmniStream
from omnistream_ros.training.clip_files import Clip
from omnistream_ros.training.data import collate
from omnistream_ros.training.losses import quaternion_from_matrix


@dataclass(frozen=True)
class CameraScore:
    """Mean error against the first frame, metres and degrees; `still_*` that of standing still."""

    translation: float
    rotation: float
    still_translation: float
    still_rotation: float

    def as_dict(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def camera_score(predictions: Iterable[tuple[CameraPrediction, Tensor]]) -> CameraScore:
    """Of predictions (T,) and true poses (T, 4, 4), both relative to the first frame of a clip.

    Raises:
        ValueError: nothing to score on.
    """
    rows = []
    for camera, poses in predictions:
        true_turn = quaternion_from_matrix(poses[1:, :3, :3])
        true_place = poses[1:, :3, 3]
        still = torch.zeros_like(true_turn)
        still[:, 3] = 1
        row = [
            (camera.translation[1:] - true_place).norm(dim=-1),
            _degrees(camera.quaternion[1:], true_turn),
            true_place.norm(dim=-1),
            _degrees(still, true_turn),
        ]
        rows.append(torch.stack(row, dim=-1))
    if not rows:
        raise ValueError("no clip with poses to score the camera on")
    return CameraScore(*torch.cat(rows).mean(dim=0).tolist())


def _degrees(a: Tensor, b: Tensor) -> Tensor:
    return torch.rad2deg(2 * torch.acos((a * b).sum(-1).abs().clamp(max=1)))


@torch.no_grad()
def score_camera_on_clips(model: OmniStream, clips: Iterable[Clip]) -> CameraScore:
    """The camera head on whole clips."""

    def predictions() -> Iterable[tuple[CameraPrediction, Tensor]]:
        for clip in clips:
            batch = collate([clip])
            camera = model.forward_clip(batch.pixels, depth=False, rays=False).camera
            assert camera is not None
            one = CameraPrediction(camera.translation[0], camera.quaternion[0], camera.fov[0])
            yield one, batch.poses[0]

    return camera_score(predictions())
