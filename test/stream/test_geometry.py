# SPDX-License-Identifier: Apache-2.0
"""Geometry against scipy and by its invariants; depth resizing on known surfaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from omnistream_ros.stream import geometry
from omnistream_ros.stream.depth_resize import resize_confidence, resize_depth
from omnistream_ros.stream.frame import Intrinsics

components = st.floats(-1.0, 1.0, allow_subnormal=False)
quaternions = (
    st.tuples(components, components, components, components)
    .map(np.array)
    .filter(lambda q: np.linalg.norm(q) > 1e-3)
)
vectors = st.tuples(components, components, components).map(np.array)


@given(quaternions)
def test_quaternions_agree_with_scipy(q: np.ndarray) -> None:
    matrix = geometry.quaternion_to_matrix(q)
    assert np.allclose(matrix, Rotation.from_quat(q).as_matrix(), atol=1e-12)
    back = geometry.matrix_to_quaternion(matrix)
    assert back[3] >= 0.0
    assert np.linalg.norm(back) == pytest.approx(1.0, abs=1e-12)
    assert np.allclose(geometry.quaternion_to_matrix(back), matrix, atol=1e-12)


@pytest.mark.parametrize("axis", np.vstack([np.eye(3), [[1, 1, 0], [1, -1, 1], [-1, 2, 3]]]))
@pytest.mark.parametrize("angle", [0.0, 1e-9, 1.0, np.pi - 1e-9, np.pi])
def test_no_angle_is_special(axis: np.ndarray, angle: float) -> None:
    reference = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis))
    matrix = geometry.quaternion_to_matrix(geometry.matrix_to_quaternion(reference.as_matrix()))
    assert np.allclose(matrix, reference.as_matrix(), atol=1e-12)
    vector = geometry.rotation_vector(reference.as_matrix())
    assert np.allclose(Rotation.from_rotvec(vector).as_matrix(), matrix, atol=1e-12)
    assert np.allclose(geometry.rotation_from_vector(vector), matrix, atol=1e-12)


def test_batches_of_quaternions() -> None:
    q = np.random.default_rng(0).normal(size=(5, 2, 4))
    expected = Rotation.from_quat(q.reshape(-1, 4)).as_matrix().reshape(5, 2, 3, 3)
    assert np.allclose(geometry.quaternion_to_matrix(q), expected)


@pytest.mark.parametrize("bad", [[0, 0, 0, 0], [0, 0, np.nan, 1], [np.inf, 0, 0, 0]])
def test_impossible_quaternions_are_refused(bad: list) -> None:
    with pytest.raises(ValueError, match="quaternion"):
        geometry.quaternion_to_matrix(np.array(bad))


@given(quaternions, vectors)
def test_inverse(q: np.ndarray, t: np.ndarray) -> None:
    motion = geometry.rigid(geometry.quaternion_to_matrix(q), t)
    assert np.allclose(motion @ geometry.rigid_inverse(motion), np.eye(4), atol=1e-12)


def test_long_products_stay_rigid() -> None:
    step = geometry.rigid(geometry.rotation_from_vector([0.01, -0.02, 0.03]), [0.01, 0.0, 0.02])
    step[:3, :3] *= 1.0 + 1e-9  # rounding of a careless source
    motion = np.eye(4)
    for _ in range(10_000):
        motion = geometry.orthonormalised(motion @ step)
    assert np.allclose(motion[:3, :3] @ motion[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(motion[:3, :3]) == pytest.approx(1.0)


def test_optical_axes_in_the_body_frame() -> None:
    right, down, forward = geometry.FLU_FROM_OPTICAL.T
    assert right.tolist() == [0, -1, 0]
    assert down.tolist() == [0, 0, -1]
    assert forward.tolist() == [1, 0, 0]
    assert np.linalg.det(geometry.FLU_FROM_OPTICAL) == pytest.approx(1.0)


def test_back_projection_inverts_projection() -> None:
    camera = Intrinsics(41.0, 43.0, 19.0, 16.5, 40, 30)
    depth = 1.0 + 5.0 * torch.rand(2, 30, 40, generator=torch.Generator().manual_seed(0))
    points = geometry.back_project(depth, camera).double()
    assert points.shape == (2, 3, 30, 40)
    pixels = (
        torch.einsum("ij,bjhw->bihw", torch.from_numpy(camera.matrix()), points) / points[:, 2:]
    )
    v, u = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    assert torch.allclose(pixels[:, 0], u.double().expand(2, -1, -1), atol=1e-4)
    assert torch.allclose(pixels[:, 1], v.double().expand(2, -1, -1), atol=1e-4)
    with pytest.raises(ValueError, match="40x30 but the intrinsics are for 20x15"):
        geometry.back_project(depth, camera.resized(20, 15))


def plane_depth(camera: Intrinsics, normal: np.ndarray, distance: float) -> torch.Tensor:
    """Exact depth of the plane normal . x = distance."""
    rays = geometry.pixel_rays(camera, dtype=torch.float64).numpy()
    return torch.from_numpy(distance / np.einsum("i,ihw->hw", normal, rays)).float()


@settings(max_examples=40, deadline=None)
@given(st.integers(16, 300), st.integers(16, 300), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_a_plane_stays_that_plane_at_any_resolution(
    height: int, width: int, nx: float, ny: float
) -> None:
    model = Intrinsics(150.0, 149.0, 94.0, 73.0, 192, 144)
    source = model.resized(width, height)
    normal = np.array([nx, ny, 1.0])
    depth = resize_depth(plane_depth(model, normal, 2.5), (height, width))
    points = geometry.back_project(depth.double(), source).numpy()
    assert np.allclose(np.einsum("i,ihw->hw", normal, points), 2.5, rtol=1e-4)


def test_edges_stay_edges() -> None:
    depth = torch.full((48, 64), 1.0)
    depth[:, 30:] = 4.0
    large = resize_depth(depth, (480, 640))
    assert set(large.unique().tolist()) == {1.0, 4.0}
    assert (large[:, :300] == 1.0).all()
    assert (large[:, 300:] == 4.0).all()


def test_shrinking_and_keeping_the_size() -> None:
    depth = 1.0 + torch.rand(48, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(resize_depth(depth, (48, 64)), depth)
    small = resize_depth(depth, (12, 16))
    assert small.shape == (12, 16)
    assert small.min() >= depth.min()
    assert small.max() <= depth.max()


def test_confidence_keeps_its_range() -> None:
    confidence = 1.0 + torch.rand(48, 64, generator=torch.Generator().manual_seed(0))
    large = resize_confidence(confidence, (480, 640))
    assert large.shape == (480, 640)
    assert large.min() >= 1.0
    assert large.max() <= confidence.max()
