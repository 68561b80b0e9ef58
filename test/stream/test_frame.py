# SPDX-License-Identifier: Apache-2.0
"""Frames and intrinsics: conventions and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnistream_ros.stream.frame import Frame, Intrinsics


def image(height: int = 6, width: int = 8) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def test_matrix_projects_the_principal_axis_to_the_principal_point() -> None:
    camera = Intrinsics(100.0, 90.0, 31.5, 23.5, 64, 48)
    assert np.allclose(camera.matrix() @ [0.0, 0.0, 2.0] / 2.0, [31.5, 23.5, 1.0])


def test_fov_of_a_centred_camera() -> None:
    camera = Intrinsics(32.0, 24.0, 31.5, 23.5, 64, 48)
    assert camera.fov() == pytest.approx((math.pi / 2, math.pi / 2))


@given(st.floats(0.05, 3.0), st.floats(0.05, 3.0), st.integers(1, 5000), st.integers(1, 5000))
def test_from_fov_inverts_fov(h: float, v: float, width: int, height: int) -> None:
    assert Intrinsics.from_fov(h, v, width, height).fov() == pytest.approx((h, v), rel=1e-9)


@given(
    st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 4000),
    st.floats(-2, 3), st.floats(-2, 3),
)  # fmt: skip
def test_resizing_keeps_field_of_view_and_goes_back(
    w: int, h: int, w2: int, h2: int, x: float, y: float
) -> None:
    camera = Intrinsics(0.8 * w, 0.9 * h, x * w, y * h, w, h)
    small = camera.resized(w2, h2)
    assert small.fov() == pytest.approx(camera.fov(), abs=1e-9)
    back = small.resized(w, h)
    assert np.allclose(back.matrix(), camera.matrix(), rtol=1e-9, atol=1e-6)


def test_resizing_to_half_keeps_the_ray_through_a_block_of_pixels() -> None:
    # Pixels 0 and 1 become pixel 0: their common border, 0.5, must be its centre.
    camera = Intrinsics(50.0, 50.0, 10.0, 7.0, 20, 14)
    small = camera.resized(10, 7)
    assert (0.0 - small.cx) / small.fx == pytest.approx((0.5 - camera.cx) / camera.fx)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("fx", 0.0, "positive"),
        ("fy", -3.0, "positive"),
        ("fx", math.nan, "finite"),
        ("cy", math.inf, "finite"),
        ("width", 0, "at least 1"),
        ("height", -4, "at least 1"),
        ("fx", 1e-200, "calibrate"),
        ("fy", 1e300, "calibrate"),
        ("cx", -1e30, "calibrate"),
    ],
)
def test_bad_intrinsics_are_refused(field: str, value: float, message: str) -> None:
    good = dict(fx=50.0, fy=50.0, cx=10.0, cy=7.0, width=20, height=14)
    with pytest.raises(ValueError, match=f"{field} .*{message}"):
        Intrinsics(**{**good, field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("angle", [0.0, math.pi, -1.0, math.nan])
def test_impossible_field_of_view_is_refused(angle: float) -> None:
    with pytest.raises(ValueError, match="field of view"):
        Intrinsics.from_fov(angle, 1.0, 10, 10)


def test_frame_accepts_numpy_integers_and_views() -> None:
    frame = Frame(image()[:, ::-1], np.int64(7))  # type: ignore[arg-type]
    assert frame.stamp_ns == 7
    assert type(frame.stamp_ns) is int
    assert (frame.height, frame.width) == (6, 8)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (image().astype(np.float32), "uint8"),
        (image()[..., 0], r"\(H, W, 3\)"),
        (np.zeros((6, 8, 4), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
    ],
)
def test_bad_images_are_refused(bad: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frame(bad, 0)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="numpy array"):
        Frame([[1, 2, 3]], 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="integer"):
        Frame(image(), 0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="integer"):
        Frame(image(), True)
    with pytest.raises(ValueError, match="64 bits"):
        Frame(image(), 2**63)


def test_intrinsics_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="640x480 but the image is 8x6"):
        Frame(image(), 0, Intrinsics(500.0, 500.0, 320.0, 240.0, 640, 480))
