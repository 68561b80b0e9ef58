# SPDX-License-Identifier: Apache-2.0
"""The backbone as a clip and by steps: against the released numbers and a float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy_backbone import embed_patches, run
from tiny_models import TINY, TINY_TRUNK, lively

from omnistream_ros.model import LARGE, ModelConfig, build_model
from omnistream_ros.model.verify import CASES, verify

TAPS = (0, 1, 2, 3)


def numpy_weights(model) -> dict[str, np.ndarray]:
    return {n: t.double().numpy() for n, t in model.backbone.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_released_implementation(shared, case):
    differences = verify(shared / "golden" / "official_tiny")
    of_case = [d for d in differences if d.name.startswith(f"{case}.")]
    outputs = {d.name.removeprefix(f"{case}.") for d in of_case}
    expected = {"last_hidden_state", "pooler_output"}
    expected |= {"camera_token"} if case != "plain" else set()
    expected |= {"hidden_states"} if case == "camera" else set()
    assert outputs == expected
    for difference in of_case:
        assert difference.clip < 1e-5, difference
        assert difference.steps < 1e-5, difference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_equations(case, dtype):
    camera_token, told = CASES[case]
    model = lively(TINY).to(dtype)
    pixels = torch.randn(2, 4, 3, 32, 48, dtype=dtype)
    ratio = torch.tensor([0.7, 1.6], dtype=dtype) if told else None
    clip = model.backbone.forward_clip(pixels, ratio, camera_token=camera_token)
    cache = model.backbone.allocate_cache(32, 48, batch=2, camera_token=camera_token)
    steps = [model.backbone.step(frame, cache, ratio) for frame in pixels.unbind(1)]

    weights = numpy_weights(model)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    for b in range(2):
        patches = np.array(
            [
                embed_patches(
                    image, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
                )
                for image in pixels[b].double().numpy()
            ]
        )
        expected = run(
            weights,
            TINY.heads,
            patches,
            (2, 3),
            camera_token=camera_token,
            aspect_ratio=float(ratio[b]) if told else None,
        )
        for name in expected:
            if name == "hidden":
                ours = torch.stack(clip.hidden)[:, b]
                stepped = torch.stack([torch.stack(s.hidden)[:, b] for s in steps], dim=1)
            else:
                ours = getattr(clip, name)[b]
                stepped = torch.stack([getattr(s, name)[b] for s in steps])
            for result in (ours, stepped):
                np.testing.assert_allclose(
                    result.detach().double().numpy(), expected[name], atol=tolerance, err_msg=name
                )
    assert (clip.camera is None) is (not camera_token)


def test_one_aspect_ratio_serves_all_streams():
    model = lively(TINY)
    pixels = torch.randn(2, 3, 3, 32, 48)
    one = model.backbone.forward_clip(pixels, 0.75)
    each = model.backbone.forward_clip(pixels, torch.tensor([0.75, 0.75]))
    assert torch.equal(one.patches, each.patches)


def test_trunk_feeds_the_same_backbone():
    model = lively(TINY_TRUNK).double()
    pixels = torch.randn(2, 3, 3, 48, 64, dtype=torch.float64)
    clip = model.backbone.forward_clip(pixels)
    assert {s: tuple(f.shape) for s, f in clip.pyramid.items()} == {
        2: (2, 3, 16, 24, 32),
        4: (2, 3, 24, 12, 16),
        8: (2, 3, 40, 6, 8),
        16: (2, 3, 112, 3, 4),
    }
    cache = model.backbone.allocate_cache(48, 64, batch=2)
    for t in range(3):
        step = model.backbone.step(pixels[:, t], cache)
        torch.testing.assert_close(step.patches, clip.patches[:, t], atol=1e-12, rtol=0)
        for stride, features in step.pyramid.items():
            torch.testing.assert_close(features, clip.pyramid[stride][:, t])


def test_later_frames_do_not_change_earlier_ones():
    model = lively(TINY)
    pixels = torch.randn(1, 4, 3, 32, 48)
    other = pixels.clone()
    other[:, 2:] += 1
    a, b = (model.backbone.forward_clip(p).patches for p in (pixels, other))
    assert torch.equal(a[:, :2], b[:, :2])
    assert not torch.allclose(a[:, 2:], b[:, 2:])


def test_every_weight_of_a_clip_learns():
    model = lively(TINY_TRUNK).train()
    out = model.forward_clip(torch.randn(1, 2, 3, 32, 48), 0.7)
    assert out.camera is not None
    outputs = [out.depth.log(), out.depth_confidence, out.rays, out.ray_confidence]
    outputs += [out.camera.translation, out.camera.quaternion, out.camera.fov]
    outputs += [out.features.patches, out.features.cls, out.features.registers]
    sum((o * torch.randn_like(o)).sum() for o in outputs).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == ["backbone.mask_token"]  # it waits for masked training


def test_a_step_leaves_no_graph():
    model = lively(TINY).train()
    cache = model.backbone.allocate_cache(32, 48)
    out = model.step(torch.randn(1, 3, 32, 48), cache)
    assert not out.features.patches.requires_grad
    assert not out.depth.requires_grad
    assert not cache.storage.keys.requires_grad


def test_bfloat16_keeps_what_must_be_exact_in_float32():
    exact = lively(TINY_TRUNK)
    pixels = torch.randn(1, 4, 3, 32, 48)
    expected = exact.forward_clip(pixels, 0.7)
    model = lively(TINY_TRUNK).set_compute_dtype(torch.bfloat16)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert kinds["backbone.blocks.0.attn.qkv.weight"] == torch.bfloat16
    for name, dtype in kinds.items():
        exact_parts = ("norm", "gamma", "token", "ar_embedder")
        if any(part in name for part in exact_parts):
            assert dtype == torch.float32, name
    cache = model.backbone.allocate_cache(32, 48)
    assert cache.storage.keys.dtype == torch.bfloat16
    for t in range(4):
        out = model.step(pixels[:, t], cache, 0.7, rays=True)
    features = out.features
    assert all(h.dtype == torch.float32 for h in features.hidden)
    assert features.patches.dtype == features.cls.dtype == torch.float32
    assert out.depth.dtype == out.rays.dtype == out.camera.translation.dtype == torch.float32
    cosine = torch.cosine_similarity(features.patches, expected.features.patches[:, -1], dim=-1)
    assert cosine.min() > 0.999
    # A residual stream in bfloat16 could hold no other values than these.
    assert not torch.equal(features.hidden[-1], features.hidden[-1].bfloat16().float())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 3, 30, 48), "multiples of 16"),
        ((1, 2, 3, 0, 48), "multiples of 16"),
        ((1, 2, 1, 32, 48), r"\(B, T, 3, H, W\)"),
        ((2, 3, 32, 48), r"\(B, T, 3, H, W\)"),
        ((2, 0, 3, 32, 48), r"\(B, T, 3, H, W\)"),
    ],
)
def test_clips_of_a_wrong_shape(shape, message):
    with pytest.raises(ValueError, match=message):
        lively(TINY).backbone.forward_clip(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 48, 32), "allocate a new cache"),
        ((2, 3, 32, 48), "allocate a new cache"),
        ((1, 4, 32, 48), r"\(B, 3, H, W\)"),
        ((3, 32, 48), r"\(B, 3, H, W\)"),
    ],
)
def test_steps_of_a_wrong_shape_leave_the_cache_alone(shape, message):
    model = lively(TINY)
    cache = model.backbone.allocate_cache(32, 48)
    with pytest.raises(ValueError, match=message):
        model.backbone.step(torch.zeros(shape), cache)
    assert cache.frames_seen == 0


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_aspect_ratios_that_no_camera_has(ratio):
    with pytest.raises(ValueError, match="aspect_ratio"):
        lively(TINY).backbone.forward_clip(torch.zeros(1, 1, 3, 32, 48), ratio)


def test_omnistream_l_has_the_released_layout():
    D = 1024
    expected = {
        "patch_embed.proj.weight": (D, 3, 16, 16),
        "patch_embed.proj.bias": (D,),
        "cls_token": (1, 1, D),
        "camera_token": (1, 2, 1, D),
        "register_token": (1, 2, 4, D),
        "mask_token": (1, D),
        "ar_embedder.weight": (D, 1),
        "ar_embedder.bias": (D,),
        "post_layernorm.weight": (D,),
        "post_layernorm.bias": (D,),
    }
    for n in range(24):
        block = {
            "norm1.weight": (D,),
            "norm1.bias": (D,),
            "attn.qkv.weight": (3 * D, D),
            "attn.qkv.bias": (3 * D,),
            "attn.proj.weight": (D, D),
            "attn.proj.bias": (D,),
            "ls1.gamma": (D,),
            "norm2.weight": (D,),
            "norm2.bias": (D,),
            "mlp.fc1.weight": (4 * D, D),
            "mlp.fc1.bias": (4 * D,),
            "mlp.fc2.weight": (D, 4 * D),
            "mlp.fc2.bias": (D,),
            "ls2.gamma": (D,),
        }
        expected |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
    model = build_model("omnistream-l", device="meta")
    ours = {n.removeprefix("backbone."): tuple(t.shape) for n, t in model.state_dict().items()}
    assert ours == expected
    assert len(ours) == 346
    assert sum(p.numel() for p in model.parameters()) == 303_162_368
    assert all(p.device.type == "meta" for p in model.parameters())
    assert LARGE.taps == (11, 15, 19, 23)


def test_nano_is_small():
    model = build_model("omnistream-nano", device="meta")
    assert 5e6 < sum(p.numel() for p in model.parameters()) < 6e6


def test_unknown_name():
    with pytest.raises(ValueError, match="omnistream-nano"):
        build_model("omnistream-xl")


def test_config_survives_json():
    assert ModelConfig.from_dict(LARGE.to_dict()) == LARGE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 33}, "not divisible"),
        ({"width": 24}, "multiple of 8"),
        ({"depth": 0}, "depth"),
        ({"depth": True}, "depth"),
        ({"taps": (0, 1, 2, 9)}, "taps"),
        ({"taps": (0, 1)}, "taps"),
        ({"patch_embed": "resnet"}, "patch_embed"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"canonical_focal": -1.0}, "canonical_focal"),
        ({"head_width": 6}, "head_width"),
        ({"colour": "red"}, "colour"),
        ({"taps": None}, "missing or malformed"),
    ],
)
def test_configs_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict({**TINY.to_dict(), **change})
