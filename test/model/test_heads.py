# SPDX-License-Identifier: Apache-2.0
"""Depth, rays and camera: shapes, bounds, edges, and what may be left out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TINY, TINY_TRUNK, lively

from omnistream_ros.model import build_model
from omnistream_ros.model.heads import CameraHead, convex_upsample

CONFIGS = pytest.mark.parametrize("config", [TINY, TINY_TRUNK], ids=lambda c: c.name)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def test_convex_upsampling_follows_its_definition():
    rng = np.random.default_rng(0)
    coarse, logits = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 36, 3, 4))
    fine = convex_upsample(torch.from_numpy(coarse), torch.from_numpy(logits)).numpy()
    assert fine.shape == (2, 6, 8)
    for b, y, x in np.ndindex(fine.shape):
        row, col = y // 2, x // 2
        share = softmax(logits[b].reshape(4, 9, 3, 4)[2 * (y % 2) + x % 2, :, row, col])
        neighbours = [
            coarse[b, min(max(row + i, 0), 2), min(max(col + j, 0), 3)]
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
        assert fine[b, y, x] == pytest.approx(share @ neighbours, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(h=st.integers(1, 5), w=st.integers(1, 5), spread=st.floats(0, 1e4), seed=st.integers(0, 99))
def test_convex_upsampling_never_leaves_the_range(h, w, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, h, w, generator=generator)
    fine = convex_upsample(coarse, spread * torch.randn(1, 36, h, w, generator=generator))
    assert fine.min() >= coarse.min() - 1e-5
    assert fine.max() <= coarse.max() + 1e-5


@CONFIGS
@pytest.mark.parametrize("size", [(16, 16), (48, 80), (80, 48)])
def test_maps_have_the_size_of_the_image(config, size):
    out = lively(config).forward_clip(torch.randn(2, 3, 3, *size))
    assert out.depth.shape == out.depth_confidence.shape == (2, 3, *size)
    assert out.rays.shape == (2, 3, 6, *size)
    assert out.ray_confidence.shape == (2, 3, *size)
    assert out.camera.translation.shape == (2, 3, 3)
    assert out.camera.quaternion.shape == (2, 3, 4)
    assert out.camera.fov.shape == (2, 3, 2)


@CONFIGS
def test_steps_say_what_the_clip_says(config):
    model = lively(config).double()
    pixels = torch.randn(2, 4, 3, 32, 48, dtype=torch.float64)
    clip = model.forward_clip(pixels, 0.8)
    cache = model.backbone.allocate_cache(32, 48, batch=2)
    for t in range(4):
        step = model.step(pixels[:, t], cache, 0.8, rays=True)
        for name in ("depth", "depth_confidence", "rays", "ray_confidence"):
            ours, theirs = getattr(step, name), getattr(clip, name)[:, t]
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        for field in dataclasses.fields(clip.camera):
            ours, theirs = getattr(step.camera, field.name), getattr(clip.camera, field.name)[:, t]
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@CONFIGS
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e8])
def test_outputs_stay_finite_and_in_range(config, scale):
    model = lively(config)
    features = model.backbone.forward_clip(torch.randn(1, 2, 3, 32, 48))
    features.hidden = [scale * h for h in features.hidden]
    features.pyramid = {s: scale * f for s, f in features.pyramid.items()}
    features.camera = scale * features.camera
    out = model.predict(features)
    assert 0.0099 < out.depth.min() <= out.depth.max() < 400.1
    for confidence in (out.depth_confidence, out.ray_confidence):
        assert 1 <= confidence.min() <= confidence.max() < math.inf
    assert out.rays.isfinite().all()
    assert out.camera.translation.isfinite().all()
    torch.testing.assert_close(out.camera.quaternion.norm(dim=-1), torch.ones(1, 2))
    assert (out.camera.fov >= 0).all()
    assert (out.camera.fov <= math.pi + 1e-6).all()


def test_a_quaternion_of_no_length_turns_nothing():
    head = CameraHead(TINY)
    torch.nn.init.zeros_(head.out.weight)
    torch.nn.init.zeros_(head.out.bias)
    camera = head(torch.randn(2, 32))
    assert torch.equal(camera.quaternion, torch.tensor([[0.0, 0, 0, 1]] * 2))
    camera.quaternion.sum().backward()
    assert head.out.weight.grad.isfinite().all()


def test_a_fresh_model_sees_a_room_from_where_it_stands():
    torch.manual_seed(0)
    model = build_model(TINY_TRUNK)
    out = model.forward_clip(torch.randn(1, 2, 3, 48, 64))
    assert 1 < out.depth.median() < 4
    assert out.camera.translation.abs().max() < 0.5
    assert out.camera.quaternion[..., 3].min() > 0.9
    assert torch.equal(out.rays.abs().mean(dim=(0, 1, 3, 4)).argmax(), torch.tensor(2))


def test_what_is_not_asked_for_is_not_computed():
    model = lively(TINY)
    features = model.backbone.forward_clip(torch.randn(1, 2, 3, 32, 48))
    both = model.predict(features)
    depth = model.predict(features, rays=False, camera=False)
    rays = model.predict(features, depth=False)
    assert depth.rays is depth.ray_confidence is depth.camera is None
    assert rays.depth is rays.depth_confidence is None
    assert torch.equal(depth.depth, both.depth)
    assert torch.equal(rays.rays, both.rays)

    def explode(*args):
        raise AssertionError("computed all the same")

    model.depth_head.ray_chain.forward = explode
    model.predict(features, rays=False)
    nothing = model.predict(features, depth=False, rays=False, camera=False)
    assert nothing.depth is nothing.rays is nothing.camera is None


def test_a_backbone_without_heads_has_features_alone():
    model = lively(dataclasses.replace(TINY, head_width=0))
    assert model.depth_head is model.camera_head is None
    out = model.forward_clip(torch.randn(1, 2, 3, 32, 48))
    assert out.depth is out.rays is out.camera is None
    assert out.features.patches.shape == (1, 2, 6, 32)


@pytest.mark.parametrize(
    ("config", "camera", "expected"),
    [
        ({}, True, True),
        ({"matching_width": 8}, True, True),
        ({"matching_width": 8}, False, True),  # matching, on the depth of the model
        ({}, False, False),
        ({"matching_width": 8, "head_width": 0}, True, False),  # matching, and no depth
    ],
)
def test_what_can_follow_the_camera(config: dict, camera: bool, expected: bool):
    model = build_model(dataclasses.replace(TINY_TRUNK, **config))
    if not camera:
        model.camera_head = None
    assert model.has_pose is expected


def test_no_camera_token_no_camera():
    model = lively(TINY)
    features = model.backbone.forward_clip(torch.randn(1, 2, 3, 32, 48), camera_token=False)
    out = model.predict(features)
    assert out.camera is None
    assert out.depth is not None


def test_edges_of_the_trunk_reach_the_depth():
    """A step edge between two coarse cells moves the depth on its own pixels first."""
    model = lively(TINY_TRUNK)
    features = model.backbone.forward_clip(torch.randn(1, 1, 3, 64, 64))
    before = model.predict(features, rays=False).depth
    features.pyramid[2] = features.pyramid[2].clone()
    features.pyramid[2][..., 16:] += 0.5  # right half, at stride 2
    change = (model.predict(features, rays=False).depth - before).abs()[0, 0]
    assert change[:, 36:].mean() > 0
    assert change[:, :24].max() == 0  # beyond the reach of two 3x3 convolutions at stride 2
