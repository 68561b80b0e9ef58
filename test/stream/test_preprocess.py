# SPDX-License-Identifier: Apache-2.0
"""Preprocessing against PIL, the size rule, and the affine between model and source pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.preprocess import Preprocessor, model_size, model_to_source

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
NANO = 192 * 144


def scene(height: int, width: int) -> np.ndarray:
    """A colourful image with smooth parts, edges and noise."""
    rng = np.random.default_rng(7)
    v, u = np.mgrid[:height, :width]
    image = np.stack([u * 255 / width, v * 255 / height, 127 + 100 * np.sin(u / 9)], -1)
    image[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 30)
    return np.clip(image + rng.normal(0, 15, image.shape), 0, 255).astype(np.uint8)


def as_grey_levels(pixels: torch.Tensor) -> np.ndarray:
    return (pixels[0].permute(1, 2, 0).double().numpy() * STD + MEAN) * 255.0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((480, 640), (144, 192)),
        ((144, 192), (144, 192)),
        ((720, 1280), (128, 224)),
        ((1080, 1920), (128, 224)),
        ((640, 480), (192, 144)),
        ((512, 512), (160, 160)),
        ((1, 1), (160, 160)),
    ],
)
def test_known_sizes(source: tuple, expected: tuple) -> None:
    assert model_size(*source, NANO) == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([NANO, 224 * 224, 512 * 512]))
def test_size_rule(height: int, width: int, pixels: int) -> None:
    assume(max(height, width) <= 8 * min(height, width))
    h, w = model_size(height, width, pixels)
    assert h % 16 == 0
    assert w % 16 == 0
    scale = (pixels / (height * width)) ** 0.5
    assert abs(h - scale * height) <= 8 + 1e-6
    assert abs(w - scale * width) <= 8 + 1e-6
    assert (w, h) == model_size(width, height, pixels)


def test_elongated_and_empty_images_are_refused() -> None:
    model_size(100, 800, NANO)
    with pytest.raises(ValueError, match="801x100 is too elongated"):
        model_size(100, 801, NANO)
    with pytest.raises(ValueError, match="positive"):
        model_size(0, 10, NANO)


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 900), st.integers(20, 900))
def test_resize_matches_pil(height: int, width: int) -> None:
    assume(max(height, width) <= 8 * min(height, width))
    image = scene(height, width)
    size = model_size(height, width, NANO)
    ours = as_grey_levels(Preprocessor((height, width), size)(image))
    pil = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    # Both round after each of two passes, in another order.
    assert np.abs(ours - pil).max() <= 2.01
    assert np.abs(ours - pil).mean() <= 0.5


def test_halving_is_close_to_the_mean_of_blocks() -> None:
    image = scene(288, 384)
    ours = as_grey_levels(Preprocessor((288, 384), (144, 192))(image))
    blocks = image.reshape(144, 2, 192, 2, 3).mean((1, 3))
    # The triangle filter is a little wider than the block, so noise and edges differ somewhat.
    assert np.abs(ours - blocks).mean() < 4.0
    assert abs((ours - blocks).mean()) < 0.3


def test_no_resize_is_exact() -> None:
    image = scene(144, 192)
    pixels = Preprocessor((144, 192), (144, 192))(image)
    expected = ((image / 255.0 - MEAN) / STD).transpose(2, 0, 1)[None]
    assert pixels.dtype == torch.float32
    assert np.abs(pixels.numpy() - expected).max() < 1e-6


def test_awkward_memory_gives_the_same_result_and_is_not_kept() -> None:
    image = scene(96, 128)
    expected = Preprocessor((96, 128), (144, 192))(image)
    read_only = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
    flipped = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    bgr_view = np.ascontiguousarray(image[..., ::-1])[..., ::-1]
    preprocess = Preprocessor((96, 128), (144, 192))
    for awkward in (read_only, flipped, bgr_view):
        assert torch.equal(preprocess(awkward), expected)
    first = preprocess(image)
    preprocess(np.zeros_like(image))
    assert torch.equal(first, expected)


def test_other_dtype_of_the_model() -> None:
    pixels = Preprocessor((96, 128), (144, 192), dtype=torch.bfloat16)(scene(96, 128))
    assert pixels.dtype == torch.bfloat16
    assert pixels.shape == (1, 3, 144, 192)


def test_wrong_image_is_refused() -> None:
    preprocess = Preprocessor((96, 128), (144, 192))
    with pytest.raises(ValueError, match=r"expected .*\(96, 128, 3\), got uint8 \(128, 96, 3\)"):
        preprocess(scene(128, 96))
    with pytest.raises(ValueError, match="float64"):
        preprocess(scene(96, 128).astype(np.float64))


sides = st.integers(1, 4000)


@given(sides, sides, sides, sides, st.floats(-50, 5000), st.floats(-50, 5000))
def test_affine_there_and_back(a: int, b: int, c: int, d: int, u: float, v: float) -> None:
    there, back = model_to_source((a, b), (c, d)), model_to_source((c, d), (a, b))
    source = there @ [u, v, 1.0]
    assert np.allclose(back @ [*source, 1.0], [u, v], rtol=1e-9, atol=1e-6)
    # borders to borders
    assert np.allclose(there @ [-0.5, -0.5, 1.0], [-0.5, -0.5])
    assert np.allclose(there @ [b - 0.5, a - 0.5, 1.0], [d - 0.5, c - 0.5])


@given(sides, sides, sides, sides, st.floats(0, 4000), st.floats(0, 4000))
def test_affine_agrees_with_the_intrinsics(
    h: int, w: int, sh: int, sw: int, u: float, v: float
) -> None:
    source = Intrinsics(0.8 * sw, 0.9 * sh, 0.47 * sw, 0.52 * sh, sw, sh)
    model = source.resized(w, h)
    us, vs = model_to_source((h, w), (sh, sw)) @ [u, v, 1.0]
    assert (u - model.cx) / model.fx == pytest.approx((us - source.cx) / source.fx, abs=1e-6)
    assert (v - model.cy) / model.fy == pytest.approx((vs - source.cy) / source.fy, abs=1e-6)


def test_the_affine_points_at_what_the_resize_did() -> None:
    """A bright blob lands where the affine says, to a small fraction of a pixel."""
    height, width, (u, v) = 300, 500, (371.0, 84.0)
    y, x = np.mgrid[:height, :width]
    blob = 255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 12.0**2))
    image = np.repeat(blob[..., None], 3, -1).astype(np.uint8)
    size = model_size(height, width, NANO)
    grey = as_grey_levels(Preprocessor((height, width), size)(image))[..., 0]
    my, mx = np.mgrid[: size[0], : size[1]]
    centre = [(grey * mx).sum() / grey.sum(), (grey * my).sum() / grey.sum()]
    assert np.allclose(model_to_source(size, (height, width)) @ [*centre, 1.0], [u, v], atol=0.05)
