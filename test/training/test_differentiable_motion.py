# SPDX-License-Identifier: Apache-2.0
"""The motion solver on exact projections, with everything that can be wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from omnistream_ros.stream import geometry
from omnistream_ros.training.differentiable_motion import exponential, project, solve_motion

CAMERA = torch.tensor([[40.0, 41.0, 24.0, 18.0]])


def cloud(count: int = 400, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    rays = np.stack([rng.uniform(-0.6, 0.6, count), rng.uniform(-0.45, 0.45, count)], -1)
    depth = rng.uniform(0.8, 5.0, (count, 1))
    return torch.from_numpy(np.hstack([rays * depth, depth])).float()[None]


def motion(translation: list, degrees: list) -> torch.Tensor:
    rotation = Rotation.from_rotvec(degrees, degrees=True).as_matrix()
    return torch.from_numpy(geometry.rigid(rotation, np.array(translation))).float()[None]


def solve(points: torch.Tensor, places: torch.Tensor, weights: torch.Tensor | None = None, **kw):  # type: ignore[no-untyped-def]
    weights = torch.ones(points.shape[:2]) if weights is None else weights
    return solve_motion(points, places, weights, CAMERA, torch.eye(4)[None], **kw)


numbers = st.floats(-1.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(*[numbers] * 6)
def test_exact_places_give_the_exact_motion(a, b, c, d, e, f) -> None:  # type: ignore[no-untyped-def]
    truth = motion([0.2 * a, 0.2 * b, 0.2 * c], [8 * d, 8 * e, 8 * f])
    points = cloud()
    found = solve(points, project(points, CAMERA, truth), rounds=8)
    assert torch.allclose(found.matrix, truth, atol=2e-4)
    assert found.error < 1e-2
    assert found.support == pytest.approx(400, rel=0.05)


def test_pure_rotation_has_no_translation() -> None:
    truth = motion([0, 0, 0], [3, -6, 2])
    points = cloud()
    found = solve(points, project(points, CAMERA, truth), rounds=8)
    assert found.matrix[0, :3, 3].norm() < 2e-4


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_outliers_are_outvoted(share: float) -> None:
    truth = motion([0.1, -0.05, 0.08], [2, 3, -2])
    points = cloud()
    places = project(points, CAMERA, truth)
    rng = np.random.default_rng(1)
    wrong = torch.from_numpy(rng.random(400) < share)
    # an object that moves on its own, the worst kind of outlier: consistent
    places[0, wrong] += torch.tensor([6.0, -4.0])
    found = solve(points, places, rounds=10)
    assert torch.allclose(found.matrix, truth, atol=5e-3)
    assert found.support < 400 * (1 - share) * 1.1


def test_weights_choose_the_motion() -> None:
    """Of two motions that each explain half of the points, the trusted half decides."""
    points = cloud()
    first, second = motion([0.1, 0, 0], [0, 2, 0]), motion([0, 0.1, 0], [2, 0, 0])
    half = torch.arange(400) < 200
    places = torch.where(
        half[:, None], project(points, CAMERA, first), project(points, CAMERA, second)
    )
    found = solve(points, places, torch.where(half, 1.0, 0.05)[None], rounds=10)
    assert torch.allclose(found.matrix, first, atol=5e-3)


def test_left_out_points_may_hold_anything() -> None:
    truth = motion([0.1, 0, 0.05], [1, 2, 3])
    points = cloud()
    places = project(points, CAMERA, truth)
    weights = torch.ones(1, 400)
    weights[0, :50] = 0.0
    points[0, :25] = torch.nan
    places[0, 25:50] = torch.inf
    found = solve(points, places, weights, rounds=8)
    assert torch.allclose(found.matrix, truth, atol=2e-4)


@pytest.mark.parametrize("kind", ["no weight", "behind", "one point", "all the same"])
def test_hopeless_input_gives_finite_numbers_and_no_information(kind: str) -> None:
    points = cloud()
    places = project(points, CAMERA, torch.eye(4)[None]) + 1.0
    weights = torch.ones(1, 400)
    if kind == "no weight":
        weights = torch.zeros(1, 400)
    elif kind == "behind":
        points = -points
    elif kind == "one point":
        weights[0, 1:] = 0.0
    else:
        points, places = points[:, :1].expand(-1, 400, -1), places[:, :1].expand(-1, 400, -1)
    found = solve(points, places, weights)
    assert found.matrix.isfinite().all()
    assert found.information.isfinite().all()
    smallest = torch.linalg.eigvalsh(found.information.double())[0, 0]
    assert smallest < 1e-3 * max(1.0, found.information.diagonal(dim1=1, dim2=2).max().item())


def test_information_is_that_of_the_projection() -> None:
    """Against numerical derivatives of the error around the solution."""
    points = cloud(50)
    truth = motion([0.1, 0, 0.05], [1, 2, 3])
    found = solve(points, project(points, CAMERA, truth), rounds=8)
    columns = []
    for i in range(6):
        for sign in (1.0, -1.0):
            twist = torch.zeros(1, 6, dtype=torch.float64)
            twist[0, i] = sign * 1e-5
            moved = exponential(twist) @ found.matrix.double()
            columns.append(sign * project(points.double(), CAMERA.double(), moved).flatten())
    jacobian = torch.stack([(columns[2 * i] + columns[2 * i + 1]) / 2e-5 for i in range(6)], -1)
    expected = jacobian.T @ jacobian
    assert torch.allclose(
        found.information[0].double(), expected, rtol=0.02, atol=expected.max() * 1e-3
    )


def test_a_batch_is_the_same_as_one_by_one() -> None:
    points = torch.cat([cloud(seed=1), cloud(seed=2)])
    truth = torch.cat([motion([0.1, 0, 0], [0, 3, 0]), motion([0, 0, 0.2], [0, 0, 4])])
    places = project(points, CAMERA, truth)
    both = solve_motion(
        points, places, torch.ones(2, 400), CAMERA.expand(2, -1), torch.eye(4).expand(2, -1, -1)
    )
    for i in range(2):
        alone = solve(points[i : i + 1], places[i : i + 1])
        assert torch.allclose(both.matrix[i], alone.matrix[0], atol=1e-5)


def test_gradients_reach_places_and_weights() -> None:
    points = cloud()
    places = project(points, CAMERA, motion([0.1, 0, 0], [0, 3, 0]))
    places = (places + 0.3 * torch.randn(places.shape)).requires_grad_()
    weights = torch.full((1, 400), 0.7, requires_grad=True)
    solve(points, places, weights).matrix[0, :3, 3].sum().backward()
    for tensor in (places, weights):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


def test_exponential_is_a_rotation_and_exact() -> None:
    twist = torch.tensor(
        [[1.0, 2.0, 3.0, 0.3, -0.8, 1.1], [0, 0, 0, 0, 0, 0], [0, 0, 0, 1e-8, 0, 0]]
    )
    found = exponential(twist.double())
    expected = Rotation.from_rotvec(twist[:, 3:].double().numpy()).as_matrix()
    assert np.allclose(found[:, :3, :3], expected, atol=1e-12)
    assert torch.allclose(found[:, :3, 3], twist[:, :3].double())
