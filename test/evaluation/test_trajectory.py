# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from omnistream_ros.evaluation.rotations import quaternions_of, rotation_angles, rotation_matrices
from omnistream_ros.evaluation.trajectory import (
    Trajectory,
    TrajectoryError,
    associate,
    format_stamp,
    interpolate,
    parse_stamp,
    read_tum,
    write_tum,
)

INT64 = st.integers(-(2**62), 2**62)


def random_trajectory(count: int, seed: int = 0) -> Trajectory:
    rng = np.random.default_rng(seed)
    stamps = 10**18 + np.cumsum(rng.integers(1, 10**8, count))
    return Trajectory(stamps, rng.normal(size=(count, 3)), Rotation.random(count, rng).as_quat())


def test_rotations_agree_with_scipy() -> None:
    rotations = Rotation.random(500, np.random.default_rng(1))
    assert np.allclose(rotation_matrices(rotations.as_quat()), rotations.as_matrix(), atol=1e-14)
    quaternions = quaternions_of(rotations.as_matrix())
    assert np.allclose(quaternions, rotations.as_quat(canonical=True), atol=1e-12)
    assert np.allclose(rotation_angles(rotations.as_matrix()), rotations.magnitude(), atol=1e-12)


@pytest.mark.parametrize("axis", np.eye(3))
def test_half_turns_and_tiny_turns_are_exact(axis: np.ndarray) -> None:
    for angle in (np.pi, np.pi - 1e-7, 1e-9, 0.0):
        matrix = Rotation.from_rotvec(angle * axis).as_matrix()
        assert np.allclose(rotation_matrices(quaternions_of(matrix)), matrix, atol=1e-12)
        assert rotation_angles(matrix) == pytest.approx(angle, abs=1e-12)


@settings(deadline=None)
@given(INT64)
def test_stamps_survive_text_exactly(stamp: int) -> None:
    assert parse_stamp(format_stamp(stamp)) == stamp


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1.5", 1_500_000_000),
        ("-0.000000001", -1),
        ("1305031229.528748", 1305031229528748000),
        ("2.", 2 * 10**9),
        ("1e2", 10**11),
        ("0.0000000019", 1),
    ],
)
def test_stamps_as_people_write_them(text: str, expected: int) -> None:
    assert parse_stamp(text) == expected


@pytest.mark.parametrize("text", ["", "abc", "nan", "inf", "1.2.3", "--5"])
def test_no_stamp_is_made_of_nonsense(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (float's own message)
        parse_stamp(text)


def test_tum_file_round_trip(tmp_path) -> None:
    before = random_trajectory(50)
    write_tum(tmp_path / "a.txt", before)
    after = read_tum(tmp_path / "a.txt")
    assert np.array_equal(before.stamps_ns, after.stamps_ns)
    assert np.allclose(before.matrices(), after.matrices(), atol=1e-11)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1.0 0 0 0 0 0 0", "7 fields"),
        ("1.0 0 0 zero 0 0 0 1", "a.txt:2"),
        ("1.0 0 0 0 0 0 0 2", "length 2"),
        ("1.0 0 0 0 0 0 0 0", "length 0"),
        ("1.0 nan 0 0 0 0 0 1", "not finite"),
        ("0.5 0 0 0 0 0 0 1", "increase"),
        ("0.6 0 0 0 0 0 0 1", "increase"),
    ],
)
def test_bad_tum_lines_are_named(tmp_path, line: str, words: str) -> None:
    (tmp_path / "a.txt").write_text(f"0.6 1 2 3 0 0 0 1\n{line}\n")
    with pytest.raises(TrajectoryError, match=words):
        read_tum(tmp_path / "a.txt")


def test_slightly_rounded_quaternions_are_normalised() -> None:
    path = Trajectory(np.array([1]), np.zeros((1, 3)), np.array([[0, 0, 0, 1.004]]))
    assert np.linalg.norm(path.quaternions[0]) == pytest.approx(1.0, abs=1e-15)


def test_matrices_must_be_rigid() -> None:
    scaled, mirrored = 1.1 * np.eye(4), np.diag([1.0, 1.0, -1.0, 1.0])
    for matrix in (scaled, mirrored):
        with pytest.raises(TrajectoryError, match="pose 1 is not a rigid motion"):
            Trajectory.from_matrices(np.array([0, 1]), np.stack([np.eye(4), matrix]))


def test_interpolation_agrees_with_scipy_and_does_not_extrapolate() -> None:
    path = random_trajectory(20)
    stamps = np.linspace(path.stamps_ns[0], path.stamps_ns[-1], 101).astype(np.int64)
    stamps = np.clip(stamps, path.stamps_ns[0], path.stamps_ns[-1])
    start = path.stamps_ns[0]
    seconds, wanted = (path.stamps_ns - start) / 1e9, (stamps - start) / 1e9
    reference = Slerp(seconds, Rotation.from_quat(path.quaternions))(wanted)
    result = interpolate(path, stamps)
    assert np.allclose(result.rotations(), reference.as_matrix(), atol=1e-9)
    for axis in range(3):
        expected = np.interp(wanted, seconds, path.translations[:, axis])
        assert np.allclose(result.translations[:, axis], expected, atol=1e-9)
    for outside in (path.stamps_ns[0] - 1, path.stamps_ns[-1] + 1):
        with pytest.raises(TrajectoryError, match="outside"):
            interpolate(path, np.array([outside]))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2000), unique=True, max_size=30),
    st.lists(st.integers(0, 2000), unique=True, max_size=30),
    st.integers(0, 60),
)
def test_association_is_one_to_one_within_tolerance_and_maximal(
    first: list[int], second: list[int], tolerance: int
) -> None:
    a, b = np.array(sorted(first), dtype=np.int64), np.array(sorted(second), dtype=np.int64)
    left, right = associate(a, b, tolerance)
    assert len(left) == len(right) == len(set(left)) == len(set(right))
    assert (np.diff(left) > 0).all()
    assert (np.diff(right) > 0).all()
    assert (np.abs(a[left] - b[right]) <= tolerance).all()
    free_a = np.delete(a, left)
    free_b = np.delete(b, right)
    if len(free_a) and len(free_b):  # nothing that could have been paired was left alone
        assert np.abs(free_a[:, None] - free_b[None]).min() > tolerance


def test_association_takes_the_closest_first() -> None:
    left, right = associate(np.array([0, 10]), np.array([9, 30]), 20)
    assert list(zip(left, right, strict=True)) == [(1, 0)]
    with pytest.raises(ValueError, match="negative"):
        associate(np.array([0]), np.array([0]), -1)
