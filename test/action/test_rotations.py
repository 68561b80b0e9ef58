# SPDX-License-Identifier: Apache-2.0
"""Rotations against scipy, and against what a mean has to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from omnistream_ros.action import rotations

_numbers = st.floats(-1.8, 1.8)
_vectors = st.tuples(_numbers, _numbers, _numbers).map(np.array)


@given(_vectors)
@settings(deadline=None, max_examples=50)
def test_there_and_back(vector: np.ndarray) -> None:
    reference = Rotation.from_rotvec(vector)
    q = rotations.to_quaternion(vector)
    assert Rotation.from_quat(q).approx_equal(reference, 1e-9)
    back = rotations.to_vector(q)
    assert Rotation.from_rotvec(back).approx_equal(reference, 1e-9)
    assert np.linalg.norm(back) <= np.pi + 1e-9


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-8, 1e-5])
def test_tiny_rotations_are_not_lost(size: float) -> None:
    vector = np.array([size, -size, size])
    assert rotations.to_vector(rotations.to_quaternion(vector)) == pytest.approx(vector, rel=1e-9)


@given(_vectors, _vectors, st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=50)
def test_the_mean_of_two_is_their_slerp(a: np.ndarray, b: np.ndarray, share: float) -> None:
    pair = Rotation.from_rotvec([a, b])
    if (pair[0].inv() * pair[1]).magnitude() > 3.0:
        return  # nearly opposite: both arcs are right
    q = rotations.to_quaternion(np.array([a, b]))
    mean = Rotation.from_quat(rotations.mean(q, np.array([1.0 - share, share])))
    assert mean.approx_equal(Slerp([0.0, 1.0], pair)(share), 1e-6)


@given(st.lists(_vectors, min_size=3, max_size=8), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_the_mean_does_not_depend_on_order_or_sign(vectors: list[np.ndarray], random) -> None:
    q = rotations.to_quaternion(0.4 * np.array(vectors))
    weights = np.exp(-0.1 * np.arange(len(q)))
    order = list(range(len(q)))
    random.shuffle(order)
    signs = np.array([random.choice([-1.0, 1.0]) for _ in order])[:, None]
    one = Rotation.from_quat(rotations.mean(q, weights))
    other = Rotation.from_quat(rotations.mean(signs * q[order], weights[order]))
    assert one.approx_equal(other, 1e-6)
    # No worse in its own measure than scipy's mean, which minimises chords instead of angles.
    rotated = Rotation.from_quat(q)

    def spread(centre: Rotation) -> float:
        return float(weights @ (rotated * centre.inv()).magnitude() ** 2)

    assert spread(one) <= spread(rotated.mean(weights)) + 1e-9
