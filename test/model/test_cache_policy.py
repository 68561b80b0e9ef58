# SPDX-License-Identifier: Apache-2.0
"""The policies: what is kept, at which times; and that attention sees that and nothing else."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_backbone import embed_patches, run
from tiny_models import TINY, lively

from omnistream_ros.model import Backbone, KVCache, ModelConfig
from omnistream_ros.model.cache_policy import (
    Full,
    Keyframe,
    StreamState,
    Window,
    WindowMemory,
    describe_policy,
    make_policy,
)
from omnistream_ros.model.cache_storage import TensorStorage, turned
from omnistream_ros.model.kv_cache import _means, _pool
from omnistream_ros.model.rope import TIME_CHANNELS

SMALL = ModelConfig(name="small", width=16, depth=2, heads=2, taps=(0, 0, 1, 1), model_pixels=512)
H, W = 32, 48


def clip(frames: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, 3, H, W, dtype=torch.float64, generator=generator)


def backbone() -> Backbone:
    return lively(SMALL).double().backbone


def drive(policy, appearances: list[torch.Tensor]) -> StreamState:
    """A stream in plain numbers: what `KVCache` does with the policy, without any key."""
    state = StreamState()
    for _ in appearances:
        leaving = policy.leaving(state)
        if leaving is not None:
            frame, _ = leaving
            entry = policy.entry_for(state, appearances[frame])
            if entry is not None:
                state.keep(entry, Keyframe(frame, appearances[frame]))
        policy.plan(state)
        state.frames_seen += 1
    return state


memories = st.builds(
    WindowMemory,
    sink=st.integers(0, 2),
    window=st.integers(1, 4),
    entries=st.integers(1, 4),
    cell=st.integers(1, 3),
)


@settings(deadline=None)
@given(policy=memories, frames=st.integers(1, 40), seed=st.integers(0, 9))
def test_kept_frames_stand_in_order_without_gaps_and_end_with_the_newest(policy, frames, seed):
    generator = torch.Generator().manual_seed(seed)
    state = drive(policy, [torch.randn(3, generator=generator) for _ in range(frames)])
    kept = policy.kept(state)
    times = [entry.time for entry in kept]
    assert times == list(range(frames - len(kept), frames))
    seen = [entry.frame for entry in kept]
    assert seen == sorted(set(seen))
    assert seen[-min(policy.window, frames) :] == list(
        range(max(0, frames - policy.window), frames)
    )
    assert seen[: policy.sink] == list(range(min(policy.sink, frames)))
    # Nothing is thrown away while there is room.
    assert len(kept) == min(frames, policy.slots + policy.entries)


def test_the_memory_spreads_over_what_was_seen():
    """A camera that stands still for long, moves once, and stands again: both places are kept."""
    places = [0.0] * 30 + [10.0] * 30 + [20.0] * 30 + [20.1] * 30
    appearances = [torch.tensor([place, 0.0]) for place in places]
    state = drive(WindowMemory(sink=1, window=2, entries=3), appearances)
    assert {round(float(key.appearance[0])) for key in state.keyframes} == {0, 10, 20}


@settings(deadline=None)
@given(policy=memories, wanted=st.sets(st.integers(0, 30)), seed=st.integers(0, 9))
def test_told_what_the_pose_keeps_the_memory_keeps_nothing_else(policy, wanted, seed):
    generator = torch.Generator().manual_seed(seed)
    looks = [torch.randn(3, generator=generator) for _ in range(30)]
    state = StreamState(landmarks=frozenset(wanted))
    for _ in looks:
        if (leaving := policy.leaving(state)) is not None:
            entry = policy.entry_for(state, looks[leaving[0]])
            if entry is not None:
                state.keep(entry, Keyframe(leaving[0], looks[leaving[0]]))
        state.frames_seen += 1
    left = {f for f in wanted if policy.sink <= f < 30 - policy.window}
    kept = {key.frame for key in state.keyframes}
    assert kept <= left
    assert len(kept) == min(len(left), policy.entries)


def test_what_the_pose_has_given_up_goes_first():
    policy = WindowMemory(sink=0, window=1, entries=3)
    state = drive(policy, [torch.tensor([float(x)]) for x in (0, 50, 100, 0)])
    assert [key.frame for key in state.keyframes] == [0, 1, 2]
    state.landmarks = frozenset({0, 2, 3})
    # By looks frame 3 adds nothing to frame 0; but frame 1 serves nobody any more.
    assert policy.entry_for(state, torch.tensor([0.0])) == 1
    state.landmarks = frozenset({0, 1, 2})
    assert policy.entry_for(state, torch.tensor([-99.0])) is None


def test_what_adds_nothing_writes_nothing():
    policy = WindowMemory(sink=0, window=1, entries=3)
    state = drive(policy, [torch.tensor([float(x)]) for x in (0, 5, 10, 10)])
    assert policy.entry_for(state, torch.tensor([5.01])) is None
    assert policy.entry_for(state, torch.tensor([-7.0])) is not None


@settings(deadline=None, max_examples=12)
@given(
    sink=st.integers(0, 2),
    window=st.integers(1, 4),
    entries=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_keyframes_in_full_resolution_are_attended_to_at_their_times(sink, window, entries, seed):
    model, pixels = backbone(), clip(12, seed=seed)[..., :16, :32]
    policy = WindowMemory(sink=sink, window=window, entries=entries, cell=1)
    cache = model.allocate_cache(16, 32, policy=policy)
    steps, contexts = [], []
    for frame in pixels[0]:
        steps.append(model.step(frame[None], cache).patches[0].numpy())
        contexts.append(cache.kept_frames())
        assert cache.context_frames() == len(contexts[-1])
    weights = {n: t.numpy() for n, t in model.state_dict().items()}
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    patches = np.array([embed_patches(image, kernel, bias) for image in pixels[0].numpy()])
    expected = run(weights, SMALL.heads, patches, (1, 2), contexts.__getitem__)["patches"]
    np.testing.assert_allclose(np.array(steps), expected, atol=1e-11)


def test_a_memory_with_room_for_everything_forgets_nothing():
    model, pixels = backbone(), clip(10)
    cache = model.allocate_cache(H, W, policy=WindowMemory(sink=1, window=2, entries=7, cell=1))
    full = model.forward_clip(pixels).patches
    for t in range(10):
        step = model.step(pixels[:, t], cache).patches
        torch.testing.assert_close(step, full[:, t], atol=1e-12, rtol=0)


def test_pooling_is_the_mean_over_squares_and_leaves_the_other_tokens():
    x = torch.randn(2, 3, 2 + 5 * 7, 4, dtype=torch.float64)
    pooled = _pool(x, 2, _means(5, 3), _means(7, 3))
    assert torch.equal(pooled[:, :, :2], x[:, :, :2])
    plane = x[:, :, 2:].unflatten(2, (5, 7))
    rows, columns = ((0, 3), (3, 5)), ((0, 3), (3, 6), (6, 7))
    expected = [plane[:, :, a:b, c:d].mean(dim=(2, 3)) for a, b in rows for c, d in columns]
    torch.testing.assert_close(pooled[:, :, 2:], torch.stack(expected, dim=2))


def test_a_token_that_stands_for_several_counts_like_them():
    torch.manual_seed(0)
    counts = torch.tensor([1, 1, 3, 2])
    k, v = torch.randn(2, 1, 2, 4, 8, dtype=torch.float64)
    q = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    kind = {"device": torch.device("cpu"), "dtype": torch.float64}
    pooled = TensorStorage(1, 1, 2, 4, 8, counts=counts, **kind)
    alone = TensorStorage(1, 1, 2, 7, 8, **kind)
    rows = slice(0, 1)
    pooled.write(0, rows, 0, k, v)
    alone.write(0, rows, 0, *(x.repeat_interleave(counts, dim=2) for x in (k, v)))
    for visible in (2, 3, 4):
        expected = alone.attend(0, rows, q, int(counts[:visible].sum()))
        torch.testing.assert_close(pooled.attend(0, rows, q, visible), expected)


def test_pooled_patches_that_agree_are_attended_to_as_if_they_were_all_there():
    """Where nothing differs inside a square, pooling loses nothing."""
    model, pixels = backbone(), clip(8)
    pooled = model.allocate_cache(H, W, policy=WindowMemory(0, 2, 8, cell=3))
    whole = model.allocate_cache(H, W, policy=WindowMemory(0, 2, 8, cell=1))

    def flat(write):
        def written(layer, rows, first, k, v):
            prefix = pooled.prefix
            if k.shape[2] == pooled.tokens_per_frame:
                k, v = k.clone(), v.clone()
                k[:, :, prefix:] = k[:, :, prefix:].mean(dim=2, keepdim=True)
                v[:, :, prefix:] = v[:, :, prefix:].mean(dim=2, keepdim=True)
            write(layer, rows, first, k, v)

        return written

    for cache in (pooled, whole):
        cache.storage.write = flat(cache.storage.write)
    for t in range(8):
        few = model.step(pixels[:, t], pooled).patches
        many = model.step(pixels[:, t], whole).patches
        torch.testing.assert_close(few, many, atol=1e-12, rtol=0)
    assert pooled.nbytes < 0.7 * whole.nbytes


def test_the_full_cache_keeps_everything_and_says_when_it_is_full():
    model, pixels = backbone(), clip(5)
    cache = model.allocate_cache(H, W, policy=Full(4))
    full = model.forward_clip(pixels).patches
    for t in range(4):
        step = model.step(pixels[:, t], cache).patches
        torch.testing.assert_close(step, full[:, t], atol=1e-12, rtol=0)
    before = cache.state_dict()
    for _ in range(2):
        with pytest.raises(ValueError, match="holds 4: it is full"):
            model.step(pixels[:, 4], cache)
    assert cache.frames_seen == 4
    assert torch.equal(before["storage"]["keys"], cache.storage.keys)
    cache.reset()
    torch.testing.assert_close(model.step(pixels[:, 0], cache).patches, full[:, 0])


def test_limits():
    assert Full(7).limit == 7
    assert Window().limit == WindowMemory().limit == math.inf


def test_policies_by_name():
    numbers = {"sink": 2, "window": 5, "keyframes": 7, "cell": 3}
    assert make_policy("window", **numbers) == Window(2, 5)
    assert make_policy("full", **numbers) == Full(5)
    assert make_policy("window+memory", **numbers) == WindowMemory(2, 5, 7, 3)
    with pytest.raises(ValueError, match=r"window, full, window\+memory"):
        make_policy("everything", **numbers)


def test_a_policy_is_described_by_what_makes_it():
    unused = {"sink": 8, "window": 8, "keyframes": 8, "cell": 8}
    for policy in (Window(2, 5), Full(5), WindowMemory(2, 5, 7, 3)):
        described = describe_policy(policy)
        assert make_policy(**{**unused, **described}) == policy
        assert 8 not in described.values()
    assert describe_policy(Full(5)) == {"name": "full", "window": 5}  # and nothing without a use


@pytest.mark.parametrize("policy", [Window(1, 99), Full(99), WindowMemory(1, 99, 4, 2)], ids=str)
def test_a_budget_shortens_the_window_and_nothing_else(policy):
    fitted = KVCache.fit(policy, 0.1, SMALL, (2, 3))
    assert 1 < fitted.window < 99
    assert dataclasses.replace(fitted, window=99) == policy
    size = KVCache.allocate(SMALL, (2, 3), policy=fitted, device="meta").nbytes
    assert 0.95e5 < size <= 1e5
    assert KVCache.fit(policy, 10, SMALL, (2, 3)) == policy
    with pytest.raises(ValueError, match="cannot hold one frame"):
        KVCache.fit(policy, 0.001, SMALL, (2, 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Full(0), "at least 1"),
        (lambda: Window(-1, 3), "at least"),
        (lambda: WindowMemory(1, 0), "at least"),
        (lambda: WindowMemory(entries=0), "at least"),
        (lambda: WindowMemory(cell=0), "at least"),
    ],
)
def test_impossible_sizes(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# --- streams of one cache, each at its own place ---

POLICIES = [Window(1, 3), Full(12), WindowMemory(1, 2, 3, 2)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_streams_of_a_batch_join_miss_frames_and_reset_on_their_own(policy):
    model, pixels = backbone(), clip(12, batch=3)
    together = model.allocate_cache(H, W, policy=policy, batch=3)
    alone = [model.allocate_cache(H, W, policy=policy) for _ in range(3)]
    for t in range(12):
        rows = [0, 1, 2]
        if t < 4 or t == 8:
            rows.remove(1)  # joins late, and misses a frame
        if t == 6:
            rows = [2, 0]  # in any order
        if t == 7:
            together.reset(2)
            alone[2].reset()
        step = model.step(pixels[rows, t], together, rows=rows)
        for i, row in enumerate(rows):
            one = model.step(pixels[row : row + 1, t], alone[row])
            for ours, theirs in zip(step.hidden, one.hidden, strict=True):
                torch.testing.assert_close(ours[i : i + 1], theirs, atol=1e-12, rtol=0)
    for row in range(3):
        assert together.streams[row].frames_seen == alone[row].frames_seen
        assert together.kept_frames(row) == alone[row].kept_frames()


def test_counts_of_streams_that_differ_are_not_mixed_up():
    model, pixels = backbone(), clip(2, batch=2)
    cache = model.allocate_cache(H, W, batch=2)
    model.step(pixels[1:, 0], cache, rows=[1])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        _ = cache.frames_seen
    with pytest.raises(ValueError, match="allocated for 1 image"):
        model.step(pixels[:, 1], cache, rows=[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("saved_at", [3, 7])
def test_a_restored_stream_is_the_same_to_the_last_bit(policy, saved_at, dtype):
    model = lively(TINY).set_compute_dtype(dtype).backbone
    pixels = clip(12, batch=2).float()
    cache = model.allocate_cache(H, W, policy=policy, batch=2)
    for t in range(saved_at):
        model.step(pixels[:, t], cache)
    model.step(pixels[1:, saved_at], cache, rows=[1])
    state = cache.state_dict()
    other = model.allocate_cache(H, W, policy=policy, batch=2)
    expected = [model.step(p, cache).patches for p in pixels[:, saved_at + 1 :].unbind(1)]
    other.load_state_dict(state)
    again = [model.step(p, other).patches for p in pixels[:, saved_at + 1 :].unbind(1)]
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_a_state_of_another_policy_is_refused():
    cache = backbone().allocate_cache(H, W, policy=WindowMemory(1, 2, 3, 2))
    for policy in (WindowMemory(1, 2, 3, 3), Window(1, 2), Full(3)):
        with pytest.raises(ValueError, match="does not fit"):
            cache.load_state_dict(backbone().allocate_cache(H, W, policy=policy).state_dict())


@pytest.mark.parametrize("fails_at", [2, 3, 4, 7, 10])
def test_a_step_that_fails_half_way_can_be_tried_again(fails_at, monkeypatch):
    model, pixels, policy = backbone(), clip(12), WindowMemory(1, 2, 3, 2)
    undisturbed = model.allocate_cache(H, W, policy=policy)
    cache = model.allocate_cache(H, W, policy=policy)
    for t in range(12):
        expected = model.step(pixels[:, t], undisturbed).patches
        if t == fails_at:
            with monkeypatch.context() as patch:
                patch.setattr(model.blocks[1].mlp, "forward", lambda x: 1 / 0)
                for _ in range(2):
                    with pytest.raises(ZeroDivisionError):
                        model.step(pixels[:, 11 - t], cache)
        assert torch.equal(model.step(pixels[:, t], cache).patches, expected)


def test_three_years_later_the_memory_stands_where_it_should():
    policy = WindowMemory(sink=1, window=2, entries=3)
    now, later = 10, 10 + 3 * 10**9
    keyframes = [Keyframe(frame, torch.zeros(1)) for frame in (5, 2, 7)]
    plan, far = (policy.plan(StreamState(frames, keyframes)) for frames in (now, later))
    assert plan.keyframe_shifts == (7 - 5, 6 - 2, 8 - 7)
    assert plan.sink_shift == 5
    moved = [b - a for a, b in zip(plan.keyframe_shifts, far.keyframe_shifts, strict=True)]
    assert moved == [later - now] * 3
    assert far.sink_shift - plan.sink_shift == later - now


def test_memory_stands_still():
    model, pixels = lively(TINY).backbone, clip(8).float()
    cache = model.allocate_cache(H, W, policy=WindowMemory(1, 2, 3, 2))

    def footprint() -> tuple:
        held = (cache.storage.keys, cache.storage.values, cache.sink_time, cache.keyframe_time)
        sizes = len(cache.streams[0].keyframes), len(cache._appearances[0])
        return cache.nbytes, sizes, *(t.data_ptr() for t in held)

    for t in range(10):
        model.step(pixels[:, t % 8], cache)
    before = footprint()
    for t in range(100):
        model.step(pixels[:, t % 8], cache)
    assert footprint() == before


def test_every_policy_runs_in_any_storage():
    """The memory reads back what it pools: through the interface alone."""

    class Reversed(TensorStorage):
        """Tokens lie in the opposite order; attention does not care, the rest must not either."""

        def __init__(self, *sizes, **kind):
            super().__init__(*sizes, **kind)
            self.tokens = sizes[3]

        def write(self, layer, rows, first, k, v):
            super().write(layer, rows, self.tokens - first - k.shape[2], k.flip(2), v.flip(2))

        def read(self, layer, rows, first, count):
            kept = super().read(layer, rows, self.tokens - first - count, count)
            return tuple(x.flip(2) for x in kept)

        def turn(self, layer, rows, first, written, n, turn, still):
            channels, end = turned(written, n, turn, still), self.tokens - first
            tokens = slice(end - channels.shape[2], end)
            self.keys[layer, rows, :, tokens, TIME_CHANNELS] = channels.flip(2)

    model, pixels, policy = backbone(), clip(10), WindowMemory(1, 2, 3, 2)
    shape = {"policy": policy, "dtype": torch.float64}
    plain = KVCache.allocate(SMALL, (2, 3), **shape)
    other = KVCache.allocate(SMALL, (2, 3), storage=Reversed, **shape)
    for t in range(10):
        expected = model.step(pixels[:, t], plain).patches
        torch.testing.assert_close(
            model.step(pixels[:, t], other).patches, expected, atol=1e-12, rtol=0
        )
