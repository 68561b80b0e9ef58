# SPDX-License-Identifier: Apache-2.0
"""Geometry and camera head together: geometry where it can follow, the head where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from box_room import CAMERA, PointHead, Seen, look, render

from omnistream_ros.model import CameraPrediction
from omnistream_ros.stream import geometry
from omnistream_ros.stream.fused_pose import FusedPose
from omnistream_ros.stream.result import Pose, Tracking

STEP_NS = 50_000_000
PATH = [look(0.03 * i, 0, 0.01 * i, (0, 1.2 * i, 0)) for i in range(10)]


def black() -> Seen:
    seen = render(look())
    return Seen(np.full_like(seen.points, np.nan), np.zeros_like(seen.grey), seen.depth)


def says(pose: np.ndarray) -> CameraPrediction:
    """A camera head that predicts this pose."""
    return CameraPrediction(
        translation=torch.from_numpy(pose[:3, 3])[None].float(),
        quaternion=torch.from_numpy(geometry.matrix_to_quaternion(pose[:3, :3]))[None].float(),
        fov=torch.ones(1, 2),
    )


def see(fused: FusedPose, number: int, seen: Seen, predicted: np.ndarray) -> Pose:
    return fused.update(
        {4: torch.from_numpy(seen.points).float()[None]},
        torch.from_numpy(seen.grey).float(),
        lambda: torch.from_numpy(seen.depth).float(),
        CAMERA,
        (number + 1) * STEP_NS,
        says(predicted),
        number,
    )


@pytest.fixture
def fused() -> FusedPose:
    return FusedPose(PointHead().requires_grad_(False))


def test_while_it_can_see_geometry_decides(fused: FusedPose) -> None:
    nonsense = look(5, 5, 5, (0, 90, 0))
    poses = [see(fused, i, render(pose), nonsense) for i, pose in enumerate(PATH[:6])]
    assert all(pose.tracking is Tracking.GOOD for pose in poses)
    assert np.linalg.norm(poses[-1].translation - PATH[5][:3, 3]) < 0.01


def test_blind_it_goes_on_as_the_head_says(fused: FusedPose) -> None:
    for i, pose in enumerate(PATH[:6]):
        see(fused, i, render(pose), pose)
    # The camera turns back, which no velocity could know.
    turned = PATH[5] @ look(0, -0.1, 0, (0, -10, 0))
    blind = see(fused, 6, black(), turned)
    assert blind.tracking is Tracking.LOST
    assert not blind.tracked
    assert np.linalg.norm(blind.translation - turned[:3, 3]) < 0.02
    again = see(fused, 7, render(turned), turned)
    assert again.tracked
    assert np.linalg.norm(again.translation - turned[:3, 3]) < 0.02


def test_a_head_that_is_not_finite_is_not_asked(fused: FusedPose) -> None:
    for i, pose in enumerate(PATH[:3]):
        see(fused, i, render(pose), pose)
    prediction = says(PATH[3])
    prediction.translation[:] = torch.nan
    seen = black()
    pose = fused.update(
        {4: torch.from_numpy(seen.points).float()[None]},
        torch.from_numpy(seen.grey).float(),
        lambda: torch.from_numpy(seen.depth).float(),
        CAMERA,
        4 * STEP_NS,
        prediction,
        3,
    )
    assert np.isfinite(pose.translation).all()


def test_it_continues_to_the_last_bit(fused: FusedPose) -> None:
    other = FusedPose(PointHead().requires_grad_(False))
    for i, pose in enumerate(PATH[:5]):
        see(fused, i, render(pose), pose)
    other.load_state_dict(fused.state_dict())
    for i, pose in enumerate(PATH[5:], start=5):
        a, b = (see(f, i, render(pose), pose) for f in (fused, other))
        assert np.array_equal(a.translation, b.translation)
        assert np.array_equal(a.quaternion, b.quaternion)
