# SPDX-License-Identifier: Apache-2.0
"""Losses against plain numpy, their gradients, and what they must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from omnistream_ros.model import CameraPrediction
from omnistream_ros.model.config import NANO
from omnistream_ros.training.losses import (
    camera_losses,
    canonical_log_depth,
    confidence_loss,
    field_of_view,
    gradient_matching,
    log_l1,
    masked_mean,
    quaternion_from_matrix,
    ray_targets,
    scale_invariant_l1,
)


def _random(
    seed: int, shape: tuple[int, ...] = (2, 3, 12, 16)
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=shape)), torch.from_numpy(rng.random(shape) < 0.7)


def test_log_l1_matches_numpy() -> None:
    residual, valid = _random(0)
    expected = np.abs(residual.numpy()[valid.numpy()]).mean()
    assert log_l1(residual, valid).item() == pytest.approx(expected, rel=1e-12)


def test_scale_invariant_matches_numpy() -> None:
    residual, valid = _random(1)
    r, v = residual.numpy(), valid.numpy()
    errors = [np.abs(r[b][v[b]] - r[b][v[b]].mean()) for b in range(len(r))]
    expected = np.concatenate(errors).mean()
    assert scale_invariant_l1(residual, valid).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_matching_matches_plain_loops() -> None:
    residual, valid = _random(2, (1, 2, 9, 11))
    r, v = residual.numpy()[0], valid.numpy()[0]
    expected = 0.0
    for step in (1, 2):
        rows, columns = range(0, 9, step), range(0, 11, step)
        for dy, dx in ((0, step), (step, 0)):
            found = [
                abs(r[t, y + dy, x + dx] - r[t, y, x])
                for t in range(2)
                for y in rows
                for x in columns
                if y + dy < 9 and x + dx < 11 and v[t, y, x] and v[t, y + dy, x + dx]
            ]
            expected += sum(found) / len(found) / 2
    assert gradient_matching(residual, valid, scales=2).item() == pytest.approx(expected, rel=1e-12)


@given(st.integers(0, 1000), st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_scale_of_a_clip_changes_only_the_metric_term(seed: int, offset: float) -> None:
    residual, valid = _random(seed)
    torch.testing.assert_close(
        scale_invariant_l1(residual + offset, valid), scale_invariant_l1(residual, valid)
    )
    torch.testing.assert_close(
        gradient_matching(residual + offset, valid), gradient_matching(residual, valid)
    )
    constant = torch.full_like(residual, offset)
    assert log_l1(constant, valid).item() == pytest.approx(abs(offset))


def test_scale_that_flickers_between_frames_costs() -> None:
    residual = torch.zeros(1, 2, 4, 4)
    residual[:, 1] = 0.5
    everywhere = torch.ones_like(residual, dtype=torch.bool)
    assert scale_invariant_l1(residual, everywhere).item() == pytest.approx(0.25)


@pytest.mark.parametrize("loss", [log_l1, scale_invariant_l1, gradient_matching])
def test_invalid_pixels_neither_count_nor_get_gradient(loss) -> None:  # type: ignore[no-untyped-def]
    residual, valid = _random(3)
    spoiled = torch.where(valid, residual, torch.full_like(residual, 1e6)).requires_grad_()
    torch.testing.assert_close(loss(spoiled, valid), loss(residual, valid))
    loss(spoiled, valid).backward()
    assert spoiled.grad is not None
    assert (spoiled.grad[~valid] == 0).all()
    assert (spoiled.grad[valid] != 0).any()


def test_nothing_valid_gives_zero_and_finite_gradient() -> None:
    residual = torch.randn(1, 1, 8, 8, requires_grad=True)
    nowhere = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    total = log_l1(residual, nowhere) + scale_invariant_l1(residual, nowhere)
    (total + gradient_matching(residual, nowhere)).backward()
    assert total.item() == 0
    assert residual.grad is not None
    assert (residual.grad == 0).all()


@pytest.mark.parametrize("loss", [log_l1, scale_invariant_l1, gradient_matching])
def test_gradients_are_right(loss) -> None:  # type: ignore[no-untyped-def]
    residual, valid = _random(4, (1, 2, 5, 6))
    assert torch.autograd.gradcheck(lambda r: loss(r, valid), residual.requires_grad_())


def test_confidence_settles_at_one_over_the_error() -> None:
    error = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    logit = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logit], lr=0.1)
    for _ in range(400):
        optimiser.zero_grad()
        confidence_loss(error, logit.exp() + 1, torch.ones(1, dtype=torch.bool)).backward()
        optimiser.step()
    assert (logit.exp() + 1).item() == pytest.approx(10, rel=1e-2)
    assert error.grad is None, "the confidence must not push the depth"


def test_masked_mean_ignores_nan_outside_the_mask() -> None:
    values = torch.tensor([1.0, float("nan"), 3.0])
    assert masked_mean(values, torch.isfinite(values)).item() == 2.0


@given(st.floats(0.3, 3), st.floats(0.3, 20))
@settings(max_examples=25, deadline=None)
def test_canonical_depth_does_not_see_the_lens(zoom: float, metres: float) -> None:
    """The same picture, taken from twice as far with twice the focal length, has one target."""
    depth = torch.full((1, 1, 4, 6), metres, dtype=torch.float64)
    focal = torch.full((1, 1), 5.0, dtype=torch.float64)
    near, _ = canonical_log_depth(depth, focal, 0.9)
    far, _ = canonical_log_depth(depth * zoom, focal * zoom, 0.9)
    torch.testing.assert_close(near, far)
    own, _ = canonical_log_depth(depth, torch.full_like(focal, 0.9), 0.9)
    torch.testing.assert_close(own.exp(), depth)


def test_canonical_depth_goes_with_size_in_pixels() -> None:
    """What spans so many pixels has one target, in a small image as in the large one."""
    depth = torch.full((1, 1, 4, 6), 3.0)
    large, _ = canonical_log_depth(2 * depth, torch.full((1, 1), 160.0), 172.8)
    small, _ = canonical_log_depth(depth[..., :2, :3], torch.full((1, 1), 80.0), 172.8)
    torch.testing.assert_close(large[..., :2, :3], small)
    assert NANO.canonical_fx == pytest.approx(0.9 * 192)


def test_unknown_depth_is_masked() -> None:
    depth = torch.tensor([[[[1.0, float("nan"), 0.0, -1.0, float("inf"), 2.0]]]])
    target, valid = canonical_log_depth(depth, torch.ones(1, 1), 0.9)
    assert valid.flatten().tolist() == [True, False, False, False, False, True]
    assert torch.isfinite(target).all()


def test_rays_meet_the_points_they_come_from() -> None:
    rng = np.random.default_rng(5)
    rotation, translation = Rotation.random(random_state=6).as_matrix(), rng.normal(size=3)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, translation
    rays = ray_targets(
        torch.from_numpy(pose)[None, None],
        torch.tensor([[[70.0, 71.0, 30.5, 22.0]]], dtype=torch.float64),
        (48, 64),
    )[0, 0].numpy()
    for u, v, depth in ((0, 0, 1.0), (63, 47, 2.5), (17, 40, 0.3)):
        camera = depth * np.array([(u - 30.5) / 70, (v - 22) / 71, 1])
        expected = rotation @ camera + translation
        np.testing.assert_allclose(rays[3:, v, u] + depth * rays[:3, v, u], expected, atol=1e-12)


@given(st.lists(st.floats(-math.pi, math.pi), min_size=3, max_size=3))
@settings(max_examples=100, deadline=None)
def test_quaternions_agree_with_scipy(rotation_vector: list[float]) -> None:
    reference = Rotation.from_rotvec(rotation_vector)
    found = quaternion_from_matrix(torch.from_numpy(reference.as_matrix())).numpy()
    assert abs(np.dot(found, reference.as_quat())) == pytest.approx(1, abs=1e-9)
    assert found[3] >= 0


def test_quaternion_of_half_turns() -> None:
    for axis in range(3):
        half_turn = torch.diag(torch.tensor([1.0 if i == axis else -1.0 for i in range(3)]))
        expected = torch.eye(4)[axis]
        torch.testing.assert_close(quaternion_from_matrix(half_turn).abs(), expected)


def _camera(translation: torch.Tensor, quaternion: torch.Tensor, fov: torch.Tensor):  # type: ignore[no-untyped-def]
    return CameraPrediction(translation=translation, quaternion=quaternion, fov=fov)


def test_camera_loss_is_zero_for_the_truth_and_blind_to_the_sign_of_quaternions() -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 3, 1, 1)
    poses[0, 1:, :3, :3] = torch.from_numpy(Rotation.random(2, random_state=7).as_matrix())
    poses[0, 1:, :3, 3] = torch.randn(2, 3, dtype=torch.float64)
    intrinsics = torch.tensor([60.0, 60.0, 31.5, 23.5], dtype=torch.float64).repeat(1, 3, 1)
    fov = field_of_view(intrinsics, (48, 64))
    assert fov[0, 0, 0].item() == pytest.approx(2 * math.atan(32 / 60))
    for sign in (1, -1):
        camera = _camera(poses[..., :3, 3], sign * quaternion_from_matrix(poses[..., :3, :3]), fov)
        for value in camera_losses(camera, poses, intrinsics, (48, 64)).values():
            assert value.item() == pytest.approx(0, abs=1e-9)


def test_single_frame_trains_the_field_of_view_alone() -> None:
    translation = torch.ones(1, 1, 3, requires_grad=True)
    fov = torch.ones(1, 1, 2, requires_grad=True)
    camera = _camera(translation, torch.tensor([[[0.0, 0, 0, 1]]]), fov)
    parts = camera_losses(
        camera, torch.eye(4)[None, None], torch.tensor([[[60.0, 60, 31.5, 23.5]]]), (48, 64)
    )
    assert parts["translation"].item() == parts["rotation"].item() == 0
    parts["field_of_view"].backward()
    assert fov.grad is not None
