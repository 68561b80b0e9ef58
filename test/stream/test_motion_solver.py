# SPDX-License-Identifier: Apache-2.0
"""The motion solver on exact projections, with everything that can be wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from omnistream_ros.stream import geometry
from omnistream_ros.stream.keyframes import project
from omnistream_ros.stream.motion_solver import (
    Sightings,
    exponential,
    linearise,
    logarithm,
    robust_weights,
    solve_motion,
)

CAMERA = np.array([40.0, 41.0, 24.0, 18.0])
PRECISE = np.array([30.0, 0.0, 30.0])  # places are good to a thirtieth of a cell


def cloud(count: int = 300, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rays = np.stack([rng.uniform(-0.6, 0.6, count), rng.uniform(-0.45, 0.45, count)], -1)
    depth = rng.uniform(0.8, 5.0, (count, 1))
    return np.hstack([rays * depth, depth])


def motion(translation: list, degrees: list) -> np.ndarray:
    rotation = Rotation.from_rotvec(degrees, degrees=True).as_matrix()
    return geometry.rigid(rotation, np.array(translation))


def sightings(points: np.ndarray, truth: np.ndarray, noise: float = 0.0) -> Sightings:
    position, _ = project(points, CAMERA, truth)
    position = position + noise * np.random.default_rng(2).normal(size=position.shape)
    return Sightings(position, np.tile(PRECISE, (len(points), 1)))


def solve(points, seen, deviation=0.0, start=None):  # type: ignore[no-untyped-def]
    variance = np.full(len(points), deviation**2)
    start = np.eye(4) if start is None else start
    return solve_motion(points, points, variance, seen, CAMERA, start)


def distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Metres and degrees between two motions."""
    gap = logarithm(a @ geometry.rigid_inverse(b))
    return float(np.linalg.norm(gap[:3])), float(np.degrees(np.linalg.norm(gap[3:])))


numbers = st.floats(-1.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(*[numbers] * 6)
def test_exact_places_give_the_exact_motion(a, b, c, d, e, f) -> None:  # type: ignore[no-untyped-def]
    truth = motion([0.2 * a, 0.2 * b, 0.2 * c], [8 * d, 8 * e, 8 * f])
    points = cloud()
    found = solve(points, sightings(points, truth))
    assert np.allclose(found.matrix, truth, atol=1e-4)
    assert found.support == pytest.approx(300, rel=0.02)


def test_pure_rotation_has_no_translation_whatever_the_depth() -> None:
    truth = motion([0, 0, 0], [3, -6, 2])
    points = cloud()
    wrong = points * np.random.default_rng(1).uniform(0.7, 1.4, (300, 1))
    found = solve(wrong, sightings(points, truth), 0.2)
    assert distance(found.matrix, truth) < (1e-3, 0.02)


def test_depth_that_may_be_wrong_costs_less_than_depth_that_may_not() -> None:
    """Depths wrong by 20 % each: direction and rotation are right to what the places allow."""
    truth = motion([0.25, -0.1, 0.15], [2, -4, 1])
    points = cloud()
    wrong = points * np.exp(np.random.default_rng(1).normal(0, 0.2, (300, 1)))
    seen = sightings(points, truth)
    loose, stiff = solve(wrong, seen, 0.2).matrix, solve(wrong, seen, 1e-3).matrix
    assert distance(loose, truth)[1] < 0.25 * distance(stiff, truth)[1]
    assert distance(loose, truth)[1] < 0.1
    assert distance(loose, truth)[0] < 0.01


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_outliers_are_outvoted(share: float) -> None:
    truth = motion([0.1, -0.05, 0.08], [2, 3, -2])
    points = cloud()
    seen = sightings(points, truth)
    wrong = np.random.default_rng(1).random(300) < share
    # an object that moves on its own, the worst kind of outlier: consistent
    seen.position[wrong] += [6.0, -4.0]
    found = solve(points, seen, 0.05)
    assert distance(found.matrix, truth) < (5e-3, 0.2)
    assert found.support < 300 * (1 - share) * 1.1


def test_the_covariance_is_that_of_the_noise() -> None:
    """Over many draws of noise, errors have the size that is claimed, times the caution."""
    points, truth = cloud(200), motion([0.1, 0, 0.05], [1, 2, 3])
    errors, claimed = [], []
    clean, _ = project(points, CAMERA, truth)
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(0, 1 / 30, clean.shape)
        found = solve(points, Sightings(clean + noise, np.tile(PRECISE, (200, 1))))
        errors.append(logarithm(found.matrix @ geometry.rigid_inverse(truth)))
        claimed.append(np.diag(found.covariance))
    ratio = np.var(errors, axis=0) / np.mean(claimed, axis=0)
    # neighbours of a real image are not independent: six count as one
    assert (ratio * 6 > 0.4).all()
    assert (ratio * 6 < 2.5).all()


def test_what_was_not_seen_may_hold_anything() -> None:
    truth = motion([0.1, 0, 0.05], [1, 2, 3])
    points = cloud()
    seen = sightings(points, truth)
    seen.whitening[:50] = 0.0
    points[:25] = np.nan
    seen.position[25:50] = np.inf
    assert np.allclose(solve(points, seen).matrix, truth, atol=1e-4)


@pytest.mark.parametrize(
    "kind", ["nothing seen", "behind", "one point", "all the same", "too large", "not a number"]
)
def test_hopeless_input_gives_finite_numbers_and_a_large_covariance(kind: str) -> None:
    points = cloud()
    seen = Sightings(sightings(points, np.eye(4)).position + 1.0, np.tile(PRECISE, (300, 1)))
    if kind == "nothing seen":
        seen.whitening[:] = 0.0
    elif kind == "behind":
        points = -points
    elif kind == "one point":
        seen.whitening[1:] = 0.0
    elif kind == "too large":
        seen.position[:] = 1e200
    elif kind == "not a number":
        points[:] = np.nan
    else:
        points = np.tile(points[:1], (300, 1))
        seen.position[:] = seen.position[0]
    found = solve(points, seen, 0.1)
    assert np.isfinite(found.matrix).all()
    assert np.isfinite(found.covariance).all()
    assert found.covariance.diagonal().max() > 0.1


def test_derivatives_are_those_of_the_residual() -> None:
    points = cloud(40)
    truth = motion([0.1, 0, 0.05], [1, 2, 3])
    seen = sightings(points, truth, noise=0.2)
    whitening = np.tile([20.0, 5.0, 12.0], (40, 1))

    def residual(matrix: np.ndarray, growth: float = 0.0) -> np.ndarray:
        scaled = points * np.exp(growth)
        return linearise(scaled, scaled, seen.position, whitening, CAMERA, matrix)[0]

    _, jacobian, by_depth, _ = linearise(points, points, seen.position, whitening, CAMERA, truth)
    h = 1e-6
    for i in range(6):
        step = h * np.eye(6)[i]
        numeric = residual(exponential(step) @ truth) - residual(exponential(-step) @ truth)
        assert np.allclose(numeric / (2 * h), jacobian[..., i, :], rtol=1e-4, atol=1e-3)
    numeric = (residual(truth, h) - residual(truth, -h)) / (2 * h)
    assert np.allclose(numeric, by_depth, rtol=1e-4, atol=1e-3)


def test_the_median_is_over_what_counts() -> None:
    errors = np.array([[1.0, 4.0, 9.0, 1e9], [2.0, 2.0, 2.0, 2.0]])
    usable = np.array([[True, True, True, False], [False] * 4])
    factor, weights = robust_weights(errors, usable)
    assert factor[0] == pytest.approx(4.0 / 1.18**2)
    assert np.isfinite(factor).all()
    assert weights[0, 3] == 0.0
    assert (np.diff(weights[0, :3]) < 0).all()
    assert (weights[1] == 0.0).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(numbers, min_size=6, max_size=6))
def test_exponential_and_logarithm_are_inverse(twist: list) -> None:
    assert np.allclose(logarithm(exponential(np.array(twist))), twist, atol=1e-9)
