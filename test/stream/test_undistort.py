# SPDX-License-Identifier: Apache-2.0
"""Undistorted images against a scene that is known at every ray; distortion written out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omnistream_ros.stream.calibration import (
    Calibration,
    CalibrationError,
    Distortion,
    calibration_of,
)
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.undistort import Undistorter

CAMERA = Intrinsics(150.0, 155.0, 101.0, 73.0, 200, 150)
LENSES = {
    "plumb_bob": (-0.28, 0.07, 0.001, -0.0008, 0.01),
    "rational_polynomial": (0.4, -0.1, 0.0005, 0.0003, 0.01, 0.75, 0.05, 0.002),
    "equidistant": (-0.02, 0.005, -0.003, 0.0004),
}


def bend(model: str, c: tuple[float, ...], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where the lens puts the ray (x, y, 1), in normalised coordinates; from the definitions."""
    r2 = x * x + y * y
    if model == "equidistant":
        r = np.sqrt(np.maximum(r2, 1e-18))
        t = np.arctan(r)
        factor = t * (1 + c[0] * t**2 + c[1] * t**4 + c[2] * t**6 + c[3] * t**8) / r
        return x * factor, y * factor
    k1, k2, p1, p2, k3 = c[:5]
    k4, k5, k6 = c[5:8] if len(c) > 5 else (0.0, 0.0, 0.0)
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


def unbend(
    model: str, c: tuple[float, ...], u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The ray that the lens puts at (u, v): the inverse, by iteration."""
    x, y = u.copy(), v.copy()
    for _ in range(80):
        bu, bv = bend(model, c, x, y)
        x, y = x + 0.5 * (u - bu), y + 0.5 * (v - bv)
    return x, y


def scene(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth brightness of every ray, (H, W, 3) uint8."""
    waves = [np.sin(6 * x + 1) * np.cos(5 * y), np.cos(7 * x * y + y), np.sin(4 * x - 6 * y)]
    return np.rint(128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def rays() -> tuple[np.ndarray, np.ndarray]:
    columns, rows = np.meshgrid(np.arange(CAMERA.width), np.arange(CAMERA.height))
    return (columns - CAMERA.cx) / CAMERA.fx, (rows - CAMERA.cy) / CAMERA.fy


@pytest.mark.parametrize("model", LENSES)
def test_undistorted_image_is_that_of_the_pinhole(model: str) -> None:
    coefficients = LENSES[model]
    u, v = rays()
    x, y = unbend(model, coefficients, u, v)
    distorted = scene(x, y)
    undistorter = Undistorter(Calibration(CAMERA, Distortion(model, coefficients)))
    assert undistorter.intrinsics == CAMERA
    image = undistorter.image(distorted).astype(int)
    expected = scene(u, v).astype(int)
    bent = bend(model, coefficients, u, v)
    columns, rows = CAMERA.fx * bent[0] + CAMERA.cx, CAMERA.fy * bent[1] + CAMERA.cy
    seen = (columns > 0) & (columns < CAMERA.width - 1) & (rows > 0) & (rows < CAMERA.height - 1)
    assert seen.mean() > 0.7
    assert np.abs(image - expected)[seen].max() <= 3
    assert np.abs(distorted.astype(int) - expected)[seen].max() > 30  # it was worth it
    depth = undistorter.depth(2.0 + x.astype(np.float32))
    assert np.abs(depth - (2.0 + u))[seen].max() < 1.5 / CAMERA.fx
    outside = (columns < -1) | (columns > CAMERA.width) | (rows < -1) | (rows > CAMERA.height)
    assert np.isnan(depth[outside]).all()
    assert (image[outside] == 0).all()


def test_where_a_polynomial_folds_back_nothing_is_shown() -> None:
    """With k1 alone the image radius r (1 + k1 r^2) grows up to r = 1 / sqrt(-3 k1) only."""
    wide = Intrinsics(60.0, 60.0, 99.5, 74.5, 200, 150)
    undistorter = Undistorter(Calibration(wide, Distortion("plumb_bob", (-0.3, 0, 0, 0, 0))))
    depth = undistorter.depth(np.ones((150, 200), np.float32))
    columns, rows = np.meshgrid(np.arange(200), np.arange(150))
    radius = np.hypot(columns - 99.5, rows - 74.5) / 60.0
    limit = 1 / math.sqrt(0.9)
    assert np.isnan(depth[radius > 1.01 * limit]).all()
    assert (depth[radius < 0.97 * limit] == 1).all()


@pytest.mark.parametrize(
    ("model", "count", "words"),
    [("kannala", 4, "model 'kannala' is not known"), ("plumb_bob", 3, "has 4 or 5 coefficients")],
)
def test_unknown_lenses_are_refused(model: str, count: int, words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        Undistorter(Calibration(CAMERA, Distortion(model, (0.1,) * count)))
    with pytest.raises(ValueError, match="no distortion"):
        Undistorter(Calibration(CAMERA))


def info(**fields: object) -> SimpleNamespace:
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    k = [150.0, 0, 101, 0, 155, 73, 0, 0, 1]
    p = [140.0, 0, 100, 0, 0, 141, 74, 0, 0, 0, 1, 0]
    values = {
        "k": k, "p": p, "d": [0.1, 0, 0, 0, 0], "r": [1.0] * 9, "width": 200, "height": 150,
        "binning_x": 0, "binning_y": 0, "roi": roi, "distortion_model": "plumb_bob",
    }  # fmt: skip
    return SimpleNamespace(**{**values, **fields})


def test_what_a_camera_info_says() -> None:
    raw = calibration_of(info(), rectified=False)
    assert raw == Calibration(CAMERA, Distortion("plumb_bob", (0.1, 0, 0, 0, 0)))
    rectified = calibration_of(info(), rectified=True)
    assert rectified == Calibration(Intrinsics(140.0, 141.0, 100.0, 74.0, 200, 150))
    without_p = calibration_of(info(p=[0.0] * 12), rectified=True)
    assert without_p == Calibration(CAMERA)
    assert calibration_of(info(d=[0.0] * 5), rectified=False) == Calibration(CAMERA)
    nameless = calibration_of(info(d=[], width=0, height=0), rectified=False, size=(200, 150))
    assert nameless == Calibration(CAMERA)
    assert calibration_of(info(k=[0.0] * 9), rectified=False) is None
    with pytest.raises(CalibrationError, match="not finite"):
        calibration_of(info(d=[math.nan]), rectified=False)
    smaller = raw.resized(100, 75) if raw else None
    assert smaller is not None
    assert smaller.distortion == raw.distortion


@pytest.mark.parametrize("model", LENSES)
def test_a_device_undistorts_like_the_host(model: str) -> None:
    lens = Undistorter(Calibration(CAMERA, Distortion(model, LENSES[model])))
    v, u = np.mgrid[0 : CAMERA.height, 0 : CAMERA.width]
    image = scene((u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy)
    there = lens.image_on_device(torch.from_numpy(image)).numpy()
    here = lens.image(image)
    # The host interpolates in steps of 1/32 pixel; at the border of what was seen both fade.
    inside = lens.seen(CAMERA.height, CAMERA.width)
    inside[[0, -1]] = inside[:, [0, -1]] = False
    assert np.abs(there.astype(int) - here)[inside].max() <= 3
    far = ~lens.seen(CAMERA.height, CAMERA.width)
    assert there[far].sum() == 0


def test_what_a_lens_did_not_see_is_told_at_every_size() -> None:
    """Barrel distortion is bent outwards: the corners of the undistorted image lie inside. A lens
    the other way round leaves them empty."""
    pincushion = Undistorter(Calibration(CAMERA, Distortion("plumb_bob", (0.5, 0.0, 0.0, 0.0))))
    white = np.full((CAMERA.height, CAMERA.width, 3), 255, np.uint8)
    black = pincushion.image(white)[..., 0] == 0
    assert 0.02 < black.mean() < 0.5
    seen = pincushion.seen(CAMERA.height, CAMERA.width)
    assert not (black & seen).any()
    small = pincushion.seen(CAMERA.height // 5, CAMERA.width // 5)
    assert abs(small.mean() - seen.mean()) < 0.02
    assert not small[0, 0]
    assert small[15, 20]
    rows, columns = pincushion.places(np.array([[0, 73]]), np.array([[0, 101]]))
    assert (rows[0, 1], columns[0, 1]) == (73, 101)
    assert (rows[0, 0], columns[0, 0]) == (0, 0)
