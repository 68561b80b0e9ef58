# SPDX-License-Identifier: Apache-2.0
"""What a stream does when memory is short: budgets, full caches, running out in mid-stream."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from omnistream_ros.model import ModelConfig, OmniStream, build_model
from omnistream_ros.model.cache_policy import Full, Window, WindowMemory
from omnistream_ros.stream import device_memory, session
from omnistream_ros.stream.device_memory import (
    StreamMemoryError,
    available_bytes,
    is_out_of_memory,
)
from omnistream_ros.stream.epochs import EpochReason
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.result import FeatureKey, FeatureKind, Outputs, StreamResult
from omnistream_ros.stream.session import StreamSession

TINY = ModelConfig(
    name="tiny", width=32, depth=2, heads=2, taps=(0, 0, 1, 1), head_width=16, model_pixels=64 * 48
)


@pytest.fixture(scope="module")
def model() -> OmniStream:
    torch.manual_seed(0)
    return build_model(TINY).eval()


def frame(i: int, size: tuple[int, int] = (96, 128)) -> Frame:
    rng = np.random.default_rng(i)
    return Frame(rng.integers(0, 256, (*size, 3), np.uint8), 10**18 + i * 33_333_333)


def place(result: StreamResult) -> tuple:
    return result.epoch, result.frame_index, result.epoch_reason, result.context_frames


def test_a_full_cache_begins_a_new_epoch_and_says_why(model: OmniStream) -> None:
    stream = StreamSession(model, policy=Full(3))
    places = [place(stream.step(frame(i))) for i in range(7)]
    assert places == [
        (0, 0, EpochReason.START, 1),
        (0, 1, None, 2),
        (0, 2, None, 3),
        (1, 0, EpochReason.CONTEXT_FULL, 1),
        (1, 1, None, 2),
        (1, 2, None, 3),
        (2, 0, EpochReason.CONTEXT_FULL, 1),
    ]


def test_a_full_cache_says_why_even_if_the_first_step_fails(
    model: OmniStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = StreamSession(model, policy=Full(2))
    for i in range(2):
        stream.step(frame(i))

    def fail(*_: object, **__: object) -> None:
        raise ValueError("a failure")

    with monkeypatch.context() as patch:
        patch.setattr(model.backbone, "step", fail)
        with pytest.raises(ValueError, match="a failure"):
            stream.step(frame(2))
    assert place(stream.step(frame(2))) == (1, 0, EpochReason.CONTEXT_FULL, 1)


def test_released_memory_is_allocated_anew_in_a_new_epoch(model: OmniStream) -> None:
    stream = StreamSession(model)
    for i in range(2):
        stream.step(frame(i))
    stream.release()
    assert stream.cache_bytes == 0
    assert place(stream.step(frame(2))) == (1, 0, EpochReason.REQUEST, 1)


def test_a_state_is_loaded_into_the_memory_that_is_there(model: OmniStream) -> None:
    stream = StreamSession(model)
    stream.step(frame(0))
    wanted = Outputs(depth=False, pose=False, features=(FeatureKey(-1, FeatureKind.PATCH),))
    state, (expected,) = stream.state_dict(), stream.step(frame(1), wanted).features.values()
    cache = stream._cache
    stream.load_state_dict(state)
    assert stream._cache is cache
    (again,) = stream.step(frame(1), wanted).features.values()
    assert torch.equal(again, expected)


def test_a_memory_counts_its_keyframes(model: OmniStream) -> None:
    stream = StreamSession(model, policy=WindowMemory(sink=1, window=2, entries=2, cell=2))
    assert stream.context_capacity == 5
    seen = [stream.step(frame(i)).context_frames for i in range(8)]
    assert seen == [1, 2, 3, 4, 5, 5, 5, 5]


def test_a_budget_shortens_the_window(model: OmniStream) -> None:
    whole = StreamSession(model, policy=Window(1, 40))
    whole.step(frame(0))
    megabytes = whole.cache_bytes / 2e6
    stream = StreamSession(model, policy=Window(1, 40), cache_megabytes=megabytes)
    stream.step(frame(0))
    assert 0.9 * megabytes * 1e6 < stream.cache_bytes <= megabytes * 1e6
    assert stream.policy == Window(1, 19)
    assert stream.context_capacity == 20
    # Another shape of image has another number of tokens.
    stream.step(frame(1, (64, 128)))
    assert stream.cache_bytes <= megabytes * 1e6


def test_a_budget_too_small_for_one_frame_is_refused_with_what_it_takes(model: OmniStream) -> None:
    stream = StreamSession(model, cache_megabytes=0.001)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"cannot hold one frame of 3x4 patches .* takes 0\.0"):
            stream.step(frame(0))
    assert stream.cache_bytes == 0
    with pytest.raises(ValueError, match="above 0"):
        StreamSession(model, cache_megabytes=0.0)


def test_more_than_the_machine_has_is_refused_before_it_is_touched(
    model: OmniStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = StreamSession(model, window=10**9)
    with pytest.raises(StreamMemoryError, match=r"takes \d+ MB, and cpu has \d+ MB left"):
        stream.step(frame(0))
    stream = StreamSession(model)
    monkeypatch.setattr(session, "available_bytes", lambda device: 1e6)
    with pytest.raises(StreamMemoryError, match="image of 8000x8000"):
        stream.step(Frame(np.broadcast_to(np.uint8(9), (8000, 8000, 3)), 0))
    monkeypatch.undo()
    assert place(stream.step(frame(1))) == (0, 0, EpochReason.START, 1)


def test_an_image_that_does_not_fit_ends_the_epoch_and_the_next_one_works(
    model: OmniStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = StreamSession(model)
    for i in range(3):
        stream.step(frame(i))
    monkeypatch.setattr(session, "available_bytes", lambda device: 1e6 - stream.cache_bytes)
    with pytest.raises(StreamMemoryError, match="takes"):
        stream.step(Frame(np.broadcast_to(np.uint8(9), (800, 800, 3)), 10**18 + 10**8))
    assert stream.cache_bytes == 0
    monkeypatch.undo()
    assert place(stream.step(frame(4))) == (1, 0, EpochReason.OUT_OF_MEMORY, 1)


FAILURES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    MemoryError("std::bad_alloc"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("fails_at", [0, 3])
def test_out_of_memory_in_mid_stream(
    model: OmniStream, monkeypatch: pytest.MonkeyPatch, failure: Exception, fails_at: int
) -> None:
    stream = StreamSession(model)
    for i in range(fails_at):
        stream.step(frame(i))
    held = []

    def fail(x: torch.Tensor) -> torch.Tensor:
        activations = x * 2  # what a failed step holds must not outlive it
        held.append(weakref.ref(activations))
        held.append(weakref.ref(stream._cache.storage.keys))  # type: ignore[union-attr]
        raise failure.with_traceback(None)

    gc.disable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(model.backbone.blocks[1].mlp, "forward", fail)
            with pytest.raises(StreamMemoryError, match=r"out of memory on cpu .* 128x96") as told:
                stream.step(frame(fails_at))
        assert told.value.__cause__ is None
        assert stream.cache_bytes == 0
        failure.with_traceback(None)  # this test's own hold on the step
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()
    after = stream.step(frame(fails_at + 1))
    reason = EpochReason.OUT_OF_MEMORY if fails_at else EpochReason.START
    assert place(after) == (int(fails_at > 0), 0, reason, 1)
    fresh = StreamSession(model).step(frame(fails_at + 1))
    assert torch.equal(after.depth, fresh.depth)  # type: ignore[arg-type]


def test_other_faults_are_not_taken_for_it(
    model: OmniStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = StreamSession(model)
    stream.step(frame(0))
    size = stream.cache_bytes

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with monkeypatch.context() as patch:
        patch.setattr(model.backbone.blocks[1].mlp, "forward", fail)
        with pytest.raises(RuntimeError, match="device-side"):
            stream.step(frame(1))
    assert stream.cache_bytes == size
    assert place(stream.step(frame(1))) == (0, 1, None, 2)


def test_restart_is_as_new_in_the_same_memory(model: OmniStream) -> None:
    stream, fresh = StreamSession(model), StreamSession(model)
    for i in range(4):
        stream.step(frame(i))
    cache = stream._cache
    stream.restart()
    for i in range(5, 9):
        ours, theirs = stream.step(frame(i)), fresh.step(frame(i))
        assert place(ours) == place(theirs)
        assert torch.equal(ours.depth, theirs.depth)  # type: ignore[arg-type]
        assert np.array_equal(ours.pose.translation, theirs.pose.translation)  # type: ignore[union-attr]
    assert stream._cache is cache


def test_a_new_shape_frees_the_old_cache_before_it_allocates(
    model: OmniStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = StreamSession(model)
    stream.step(frame(0), Outputs(depth=False, pose=False))
    old = weakref.ref(stream._cache)  # type: ignore[arg-type]
    allocate = model.backbone.allocate_cache
    there = []

    def watch(*args: object, **kwargs: object) -> object:
        there.append(old() is not None)
        return allocate(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(model.backbone, "allocate_cache", watch)
    stream.step(frame(1, (128, 96)), Outputs(depth=False, pose=False))
    assert there == [False]


def test_what_running_out_looks_like() -> None:
    assert all(is_out_of_memory(failure) for failure in FAILURES)
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises((RuntimeError, MemoryError)) as real:
        torch.empty(1 << 60)
    assert is_out_of_memory(real.value)


def test_what_is_left_is_the_least_of_machine_and_container(tmp_path, monkeypatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    monkeypatch.setattr(device_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(device_memory, "_CGROUP", tmp_path)
    cpu = torch.device("cpu")
    assert available_bytes(cpu) == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(cpu) == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert available_bytes(cpu) == 1_500_000
    (tmp_path / "meminfo").unlink()
    (tmp_path / "memory.max").unlink()
    assert available_bytes(cpu) == float("inf")
