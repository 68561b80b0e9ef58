# SPDX-License-Identifier: Apache-2.0
"""The cache: what it keeps, when it is seen, and that it never grows, drifts or surprises."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_backbone import embed_patches, run, turn
from tiny_models import TINY, lively

from omnistream_ros.model import NANO, Backbone, KVCache, ModelConfig
from omnistream_ros.model.cache_policy import Window
from omnistream_ros.model.rope import TIME_CHANNELS

SMALL = ModelConfig(name="small", width=16, depth=2, heads=2, taps=(0, 0, 1, 1), model_pixels=512)
H, W = 16, 32


def clip(frames: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, 3, H, W, dtype=torch.float64, generator=generator)


def backbone() -> Backbone:
    return lively(SMALL).double().backbone


def sink_and_window(sink: int, window: int):
    """What frame f should see: the rule of the design, written down once more."""

    def context(f: int) -> list[tuple[int, int]]:
        seen = [g for g in range(f + 1) if g < sink or g > f - window]
        forgotten = f + 1 - len(seen)
        return [(g, g + forgotten if g < sink else g) for g in seen]

    return context


def expected_patches(model: Backbone, pixels: torch.Tensor, context) -> np.ndarray:
    weights = {n: t.numpy() for n, t in model.state_dict().items()}
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    patches = np.array([embed_patches(image, kernel, bias) for image in pixels.numpy()])
    return run(weights, SMALL.heads, patches, (1, 2), context)["patches"]


@settings(deadline=None, max_examples=25)
@given(sink=st.integers(0, 3), window=st.integers(1, 5), frames=st.integers(1, 12))
def test_equals_attention_over_exactly_the_kept_frames(sink, window, frames):
    model, pixels = backbone(), clip(frames)
    cache = model.allocate_cache(H, W, sink=sink, window=window)
    context = sink_and_window(sink, window)
    steps = []
    for t in range(frames):
        steps.append(model.step(pixels[:, t], cache).patches[0].numpy())
        assert cache.kept_frames() == context(t)
        assert cache.context_frames() == len(context(t))
    expected = expected_patches(model, pixels[0], context)
    np.testing.assert_allclose(np.array(steps), expected, atol=1e-11)


@settings(deadline=None, max_examples=25)
@given(sink=st.integers(0, 3), window=st.integers(1, 6), batch=st.integers(1, 3), data=st.data())
def test_equals_the_full_forward_inside_the_window(sink, window, batch, data):
    frames = data.draw(st.integers(1, sink + window), label="frames")
    model, pixels = backbone(), clip(frames, batch)
    cache = model.allocate_cache(H, W, sink=sink, window=window, batch=batch)
    full = model.forward_clip(pixels)
    for t in range(frames):
        step = model.step(pixels[:, t], cache)
        for ours, theirs in zip(step.hidden, full.hidden, strict=True):
            torch.testing.assert_close(ours, theirs[:, t], atol=1e-12, rtol=0)


def test_streams_of_a_batch_do_not_meet():
    model, pixels = backbone(), clip(7, batch=3)
    together = model.allocate_cache(H, W, window=3, batch=3)
    alone = model.allocate_cache(H, W, window=3)
    for t in range(7):
        both = model.step(pixels[:, t], together).patches
        one = model.step(pixels[1:2, t], alone).patches
        torch.testing.assert_close(both[1:2], one, atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saved_at", [0, 1, 4, 9])
def test_a_restored_stream_is_the_same_to_the_last_bit(saved_at, dtype):
    model = lively(TINY).set_compute_dtype(dtype)
    pixels = clip(saved_at + 6).float()
    cache = model.backbone.allocate_cache(H, W, sink=2, window=3)
    for t in range(saved_at):
        model.backbone.step(pixels[:, t], cache)
    state = cache.state_dict()
    rest = [model.backbone.step(p, cache) for p in pixels[:, saved_at:].unbind(1)]

    other = model.backbone.allocate_cache(H, W, sink=2, window=3)
    model.backbone.step(pixels[:, 3], other)  # whatever was in it before
    other.load_state_dict(state)
    assert other.frames_seen == saved_at
    for p, expected in zip(pixels[:, saved_at:].unbind(1), rest, strict=True):
        again = model.backbone.step(p, other)
        for a, b in zip(again.hidden, expected.hidden, strict=True):
            assert torch.equal(a, b)
    assert torch.equal(cache.storage.keys, other.storage.keys)


def test_a_state_of_another_shape_is_refused_whole():
    cache = backbone().allocate_cache(H, W, window=4)
    before = cache.state_dict()
    for other in (
        backbone().allocate_cache(H, W, window=5),
        backbone().allocate_cache(H, W, sink=2, window=3),
        backbone().allocate_cache(W, H, window=4),
        backbone().allocate_cache(H, W, window=4, camera_token=False),
        lively(SMALL).backbone.allocate_cache(H, W, window=4),  # float32
    ):
        state = other.state_dict()
        state["storage"]["keys"] += 1
        with pytest.raises(ValueError, match="does not fit"):
            cache.load_state_dict(state)
    with pytest.raises(ValueError, match="does not fit"):
        cache.load_state_dict({})
    assert torch.equal(cache.storage.keys, before["storage"]["keys"])


def test_reset_begins_anew():
    model, pixels = backbone(), clip(6)
    cache = model.allocate_cache(H, W, window=2)
    first = [model.step(p, cache).patches for p in pixels.unbind(1)]
    cache.reset()
    assert cache.context_frames() == 0
    assert cache.kept_frames() == []
    again = [model.step(p, cache).patches for p in pixels.unbind(1)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("fails_at", [0, 1, 3, 8])
def test_a_step_that_fails_half_way_can_be_tried_again(fails_at, monkeypatch):
    model, pixels = backbone(), clip(10)
    undisturbed = model.allocate_cache(H, W, sink=2, window=3)
    cache = model.allocate_cache(H, W, sink=2, window=3)
    for t in range(10):
        expected = model.step(pixels[:, t], undisturbed).patches
        if t == fails_at:
            with monkeypatch.context() as patch:
                patch.setattr(model.blocks[1].mlp, "forward", lambda x: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    model.step(pixels[:, 9 - t], cache)  # another image, too
        assert torch.equal(model.step(pixels[:, t], cache).patches, expected)


LATER = 3 * 10**9  # three years at 30 Hz; a multiple of the window, so slots agree


def moved_in_time(cache: KVCache, frames: int) -> dict:
    """The state of a stream that ran `frames` longer: its window's keys turned in float64."""
    d, N = cache.head_dim, cache.tokens_per_frame
    state = cache.state_dict()
    periods = 100.0 ** (2 * np.arange(d // 8) / (d / 2))
    t = 2 * np.pi * np.mod(frames / 16 / periods, 1)
    keys = state["storage"]["keys"].numpy()
    window = keys[:, :, :, cache.policy.sink * N :].reshape(*keys.shape[:3], -1, N, d)
    channels = window[..., cache.prefix :, TIME_CHANNELS]
    flat = channels.reshape(-1, d // 4)
    flat[:] = [turn(v, np.concatenate((t, t))) for v in flat]
    window[..., cache.prefix :, TIME_CHANNELS] = flat.reshape(channels.shape)
    keys[:, :, :, cache.policy.sink * N :] = window.reshape(*keys.shape[:3], -1, d)
    state["storage"]["keys"] = torch.from_numpy(keys)
    state["streams"][0]["frames_seen"] += frames
    return state


def test_three_years_later_nothing_has_drifted():
    model, pixels = backbone(), clip(20)
    cache = model.allocate_cache(H, W, sink=2, window=5)
    for t in range(10):
        model.step(pixels[:, t], cache)
    later = model.allocate_cache(H, W, sink=2, window=5)
    later.load_state_dict(moved_in_time(cache, LATER))
    assert later.frames_seen == LATER + 10
    for t in range(10, 20):
        now = model.step(pixels[:, t], cache).patches
        then = model.step(pixels[:, t], later).patches
        # float64 knows the angle of frame 3e9 to 1e-7 of a turn.
        torch.testing.assert_close(then, now, atol=1e-6, rtol=0)
    assert later.kept_frames()[0] == (0, LATER + 13)


def test_the_sink_is_moved_from_its_original():
    model, pixels = lively(SMALL).backbone, clip(4).float()
    cache = model.allocate_cache(H, W, sink=1, window=2)
    model.step(pixels[:, 0], cache)
    N, prefix = cache.tokens_per_frame, cache.prefix
    original = cache.storage.keys[:, :, :, :N].clone()
    for frame in (1, 2, 3, 1000, 10**9, 10**9 + 1):
        cache.frames_seen = frame
        model.step(pixels[:, frame % 4], cache)
    sink = cache.storage.keys[:, :, :, :N]
    untouched = torch.ones(8, dtype=torch.bool)
    untouched[TIME_CHANNELS] = False
    assert torch.equal(sink[:, :, :, :prefix], original[:, :, :, :prefix])
    assert torch.equal(sink[..., untouched], original[..., untouched])
    turns = np.mod((10**9 + 1 + 1 - 3) / 16, 1)  # d/8 = 1 period, of 1
    angle = np.full(2, 2 * np.pi * turns)
    before = original[:, :, :, prefix:, TIME_CHANNELS].reshape(-1, 2).double().numpy()
    after = sink[:, :, :, prefix:, TIME_CHANNELS].reshape(-1, 2).double().numpy()
    np.testing.assert_allclose(after, [turn(v, angle) for v in before], atol=1e-6)


def test_memory_stands_still():
    model, pixels = lively(TINY).backbone, clip(4).float()
    cache = model.allocate_cache(H, W, sink=1, window=3)

    def footprint() -> tuple:
        gc.collect()
        tensors = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
        held = (cache.storage.keys, cache.storage.values, cache.sink_time)
        return tensors, cache.nbytes, *(t.data_ptr() for t in held), len(vars(cache))

    for t in range(6):
        model.step(pixels[:, t % 4], cache)
    before = footprint()
    for t in range(200):
        model.step(pixels[:, t % 4], cache)
    assert footprint() == before
    assert cache.context_frames() == 4


def test_nbytes_counts_keys_values_and_the_sinks_copy():
    cache = KVCache.allocate(NANO, (9, 12), sink=1, window=16, dtype=torch.float16)
    tokens, layers = 6 + 108, 8
    keys_and_values = 2 * layers * 17 * tokens * 192 * 2
    assert cache.nbytes == keys_and_values + layers * tokens * 192 // 4 * 2


@settings(deadline=None)
@given(
    megabytes=st.floats(0.5, 500),
    sink=st.integers(0, 4),
    batch=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_budget_is_used_and_kept(megabytes, sink, batch, dtype):
    def nbytes(window: int) -> int:
        shape = {"sink": sink, "window": window, "batch": batch, "dtype": dtype}
        return KVCache.allocate(NANO, (9, 12), device="meta", **shape).nbytes

    def window(longest: int = 10**4) -> int:
        policy = Window(sink, longest)
        fitted = KVCache.fit(policy, megabytes, NANO, (9, 12), batch=batch, dtype=dtype)
        assert fitted.sink == sink
        return fitted.window

    if nbytes(1) > megabytes * 1e6:
        with pytest.raises(ValueError, match="MB"):
            window()
    else:
        assert nbytes(window()) <= megabytes * 1e6 < nbytes(window() + 1)
        assert window(longest=1) == 1


@pytest.mark.parametrize("sizes", [{"sink": -1}, {"window": 0}, {"batch": 0}])
def test_impossible_sizes(sizes):
    with pytest.raises(ValueError, match="at least"):
        KVCache.allocate(SMALL, (1, 2), **sizes)
