# SPDX-License-Identifier: Apache-2.0
"""The model for fast inference on a CPU computes what the plain one does, in every mode."""

from __future__ import annotations

import pytest
import torch
from tiny_models import lively

from omnistream_ros.model import ModelConfig, OmniStream, native
from omnistream_ros.model.cache_policy import Policy, Window, WindowMemory
from omnistream_ros.model.cache_storage import TensorStorage
from omnistream_ros.model.fast_cpu import fast_model
from omnistream_ros.model.native import build
from omnistream_ros.model.packed_storage import PackedStorage
from omnistream_ros.model.rope import Rotation

H, W = 48, 64
CONV = ModelConfig(
    name="conv", width=128, depth=3, heads=2, taps=(0, 1, 1, 2), model_pixels=H * W, head_width=8
)
TRUNK = ModelConfig(
    name="trunk",
    width=128,
    depth=2,
    heads=2,
    taps=(0, 0, 1, 1),
    model_pixels=H * W,
    patch_embed="efficientnet_lite0",
    head_width=8,
    matching_width=8,
)

# Feature cosine and relative error of depth, at worst.
ROUNDED = (0.9999, 0.01)
EXACT = (0.9999999, 1e-5)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> str:
    try:
        return str(build.build(tmp_path_factory.mktemp("native")))
    except build.BuildError as error:
        return f"cannot be built: {error}"


@pytest.fixture(params=["kernel", "torch"])
def attention(request, built, monkeypatch):
    """With the kernel, and without it as on a machine that cannot run it."""
    monkeypatch.setenv("OMNISTREAM_KERNEL", built if request.param == "kernel" else "off")
    native.load.cache_clear()
    yield request.param
    native.load.cache_clear()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request, built, monkeypatch):
    """The types in which the kernel can hold a cache, where it can be built and run."""
    monkeypatch.setenv("OMNISTREAM_KERNEL", built)
    native.load.cache_clear()
    if native.load() is None:
        pytest.skip(f"no kernel: {built}")
    yield request.param
    native.load.cache_clear()


def clip(frames: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, frames, 3, H, W, generator=generator)


def stream(model: OmniStream, policy: Policy, pixels: torch.Tensor) -> list:
    cache = model.backbone.allocate_cache(H, W, policy=policy, batch=len(pixels))
    return [model.step(frame, cache, rays=True) for frame in pixels.unbind(1)]


def assert_close(got, want, limits) -> None:
    cosine, depth = limits
    for a, b in zip(got, want, strict=True):
        for x, y in ((a.features.patches, b.features.patches), (a.features.cls, b.features.cls)):
            x, y = x.double().flatten(), y.double().flatten()
            assert torch.cosine_similarity(x, y, dim=0) > cosine
        assert ((a.depth - b.depth) / b.depth).abs().mean() < depth
        assert a.camera.quaternion.dtype == b.camera.quaternion.dtype


@pytest.mark.parametrize("policy", [Window(0, 4), Window(2, 3), WindowMemory(1, 2, 3, 2)])
@pytest.mark.parametrize("config", [CONV, TRUNK], ids=lambda config: config.name)
@pytest.mark.parametrize("batch", [1, 2])
def test_bfloat16_follows_the_plain_model(attention, config, policy, batch):
    plain, pixels = lively(config), clip(9, batch)
    fast = fast_model(plain)
    assert fast.backbone.storage is (TensorStorage if native.load() is None else PackedStorage)
    assert_close(stream(fast, policy, pixels), stream(plain, policy, pixels), ROUNDED)


@pytest.mark.parametrize("policy", [Window(1, 3), WindowMemory(1, 2, 3, 2)])
@pytest.mark.parametrize("config", [CONV, TRUNK], ids=lambda config: config.name)
@pytest.mark.parametrize("batch", [1, 2])
def test_float32_is_exact(attention, config, policy, batch):
    plain, pixels = lively(config), clip(9, batch)
    fast = fast_model(plain, torch.float32)
    assert fast.backbone.storage is (TensorStorage if native.load() is None else PackedStorage)
    assert_close(stream(fast, policy, pixels), stream(plain, policy, pixels), EXACT)


def test_streams_advance_one_by_one(attention):
    """Each stream at its own frame: rotations differ within a batch."""
    plain = lively(CONV)
    fast, pixels = fast_model(plain), clip(6, 3)
    results = []
    for model in (fast, plain):
        cache = model.backbone.allocate_cache(H, W, window=3, batch=3)
        for t in range(6):
            rows = [row for row in range(3) if t % (row + 1) == 0]
            last = model.backbone.step(pixels[rows, t], cache, rows=rows)
        results.append(last.patches)
    cosine = torch.cosine_similarity(results[0].flatten(1), results[1].flatten(1))
    assert cosine.min() > ROUNDED[0]


def test_a_clip_can_be_run_as_well(attention):
    plain, pixels = lively(CONV), clip(4, 2)
    fast = fast_model(plain)
    a, b = fast.forward_clip(pixels), plain.forward_clip(pixels)
    assert_close([a], [b], ROUNDED)


def test_the_plain_model_is_left_as_it_was(attention):
    plain, pixels = lively(TRUNK), clip(3)
    before = stream(plain, Window(), pixels)
    fast = fast_model(plain, convolutions=torch.bfloat16)
    stream(fast, Window(), pixels.bfloat16())
    after = stream(plain, Window(), pixels)
    assert all(torch.equal(a.depth, b.depth) for a, b in zip(before, after, strict=True))
    assert all(p.dtype == torch.float32 and p.requires_grad for p in plain.parameters())


def test_what_is_not_packed_is_shared():
    plain = lively(TRUNK)
    fast = fast_model(plain)
    assert fast.backbone.cls_token.data_ptr() == plain.backbone.cls_token.data_ptr()


def test_image_sizes_may_change(attention):
    plain = lively(TRUNK)
    fast = fast_model(plain)
    for h, w in ((48, 64), (64, 48), (32, 96), (48, 64)):
        frame = torch.randn(1, 3, h, w)
        got = fast.step(frame, fast.backbone.allocate_cache(h, w))
        want = plain.step(frame, plain.backbone.allocate_cache(h, w))
        assert_close([got], [want], ROUNDED)


@pytest.mark.parametrize("saved_at", [0, 2, 7])
def test_a_restored_stream_is_the_same_to_the_last_bit(dtype, saved_at):
    fast, pixels = fast_model(lively(CONV), dtype), clip(saved_at + 4)
    cache = fast.backbone.allocate_cache(H, W, sink=1, window=3)
    for t in range(saved_at):
        fast.backbone.step(pixels[:, t], cache)
    state = cache.state_dict()
    rest = [fast.backbone.step(p, cache) for p in pixels[:, saved_at:].unbind(1)]
    other = fast.backbone.allocate_cache(H, W, sink=1, window=3)
    fast.backbone.step(pixels[:, 1], other)
    other.load_state_dict(state)
    for p, expected in zip(pixels[:, saved_at:].unbind(1), rest, strict=True):
        assert torch.equal(fast.backbone.step(p, other).hidden[-1], expected.hidden[-1])


def test_packed_storage_gives_back_what_was_written(dtype):
    storage = PackedStorage(2, 3, 2, 50, 64, device=torch.device("cpu"), dtype=dtype)
    k, v = torch.randn(2, 1, 2, 17, 64).to(dtype).unbind(0)
    storage.write(1, slice(2, 3), 29, k, v)
    for got, want in zip(storage.read(1, slice(2, 3), 29, 17), (k, v), strict=True):
        assert torch.equal(got, want)
    channels = torch.randn(1, 2, 17, 16).to(dtype)
    nothing = Rotation(torch.ones(1, 16), torch.zeros(1, 16))
    storage.turn(1, slice(2, 3), 29, channels, 17, nothing, 0)
    k[..., 3::4] = channels
    assert torch.equal(storage.read(1, slice(2, 3), 29, 17)[0], k)
    assert not storage.read(1, slice(0, 2), 0, 50)[0].any()


def test_what_cannot_be_packed_is_refused(attention):
    with pytest.raises(ValueError, match="only a float32 model on the CPU"):
        fast_model(lively(CONV).set_compute_dtype(torch.bfloat16))
    with pytest.raises(ValueError, match="only a float32 model on the CPU"):
        fast_model(lively(CONV).to("meta"))
    with pytest.raises(ValueError, match="cannot hold 32 channels"):
        PackedStorage(1, 1, 1, 8, 32, device=torch.device("cpu"), dtype=torch.bfloat16)
