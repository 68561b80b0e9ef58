# SPDX-License-Identifier: Apache-2.0
"""The same tests for every engine: the numbers of eager torch, for as long as a stream runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from engine_models import COMBINATIONS, SHAPE, model_in
from torch import Tensor

from omnistream_ros.model import KVCache, OmniStream, Prediction
from omnistream_ros.model.cache_policy import Window, WindowMemory
from omnistream_ros.stream.engines import Engine, StepShape, TorchEngine
from omnistream_ros.stream.engines.compiled import CompiledEngine
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.result import FeatureKey, FeatureKind, Outputs
from omnistream_ros.stream.session import StreamSession

Engines = Callable[[str, str], tuple[Engine, OmniStream]]
TOLERANCE = {"float32": 2e-5, "float16": 2e-2, "bfloat16": 2e-1}  # of values of about 1


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def combination(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def engine(combination: tuple[str, str], engines: Engines) -> Engine:
    return engines(*combination)[0]


@pytest.fixture
def model(combination: tuple[str, str], engines: Engines) -> OmniStream:
    return engines(*combination)[1]


def pictures(count: int, height: int = 32, width: int = 48, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(1, 3, height, width) for _ in range(count)]


def steps(
    engine: Engine, model: OmniStream, frames: list[Tensor], cache: KVCache | None = None
) -> list[Prediction]:
    if cache is None:
        cache = engine.allocate_cache(SHAPE.height, SHAPE.width, SHAPE.policy)
    dtype = model.backbone.compute_dtype
    return [engine.step(frame.to(dtype), cache, depth=True, camera=True) for frame in frames]


def assert_same(got: Prediction, expected: Prediction, tolerance: float) -> None:
    a, b = got.features, expected.features
    pairs = [(a.patches, b.patches), (a.cls, b.cls), (a.registers, b.registers)]
    pairs += [(a.camera, b.camera), *zip(a.hidden, b.hidden, strict=True)]
    pairs += [(a.pyramid[stride], b.pyramid[stride]) for stride in b.pyramid]
    pairs += [(got.depth.log(), expected.depth.log())]  # type: ignore[union-attr]
    pairs += [(got.depth_confidence.log(), expected.depth_confidence.log())]  # type: ignore[union-attr]
    for name in ("translation", "quaternion", "fov"):
        pairs.append((getattr(got.camera, name), getattr(expected.camera, name)))
    for x, y in pairs:
        assert x.shape == y.shape
        scale = max(1.0, float(y.abs().max()))
        torch.testing.assert_close(x.float(), y.float(), rtol=0.0, atol=tolerance * scale)


def test_equals_eager_float32_through_all_states_of_the_cache(
    engine: Engine, model: OmniStream, combination: tuple[str, str]
) -> None:
    """First frame, filling, full, going round, the sink moving in time."""
    frames = pictures(3 * SHAPE.policy.slots)
    plain = model_in("float32", combination[0])
    expected = steps(TorchEngine(plain), plain, frames)
    for got, wanted in zip(steps(engine, model, frames), expected, strict=True):
        assert_same(got, wanted, TOLERANCE[combination[1]])
    # Frames are not all the same to the model, or this would be worth nothing.
    assert (expected[-1].features.cls - expected[0].features.cls).abs().max() > 0.1


def test_writes_the_cache_as_eager_does(engine: Engine, model: OmniStream) -> None:
    """Its keys, values and the sink's untouched channels: engines may be changed mid-stream."""
    frames = pictures(7)
    mine = engine.allocate_cache(SHAPE.height, SHAPE.width, SHAPE.policy)
    other = TorchEngine(model).allocate_cache(SHAPE.height, SHAPE.width, SHAPE.policy)
    address = mine.storage.keys.data_ptr()
    steps(engine, model, frames, mine)
    steps(TorchEngine(model), model, frames, other)
    assert mine.storage.keys.data_ptr() == address
    assert mine.streams == other.streams
    dtype = model.backbone.cache_dtype
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    for a, b in (
        (mine.storage.keys, other.storage.keys),
        (mine.storage.values, other.storage.values),
        (mine.sink_time, other.sink_time),
    ):
        assert a.dtype == dtype
        assert b.abs().max() > 0.1
        torch.testing.assert_close(a.float(), b.float(), rtol=0.0, atol=tolerance)


def test_can_take_over_and_hand_over_a_stream(
    engine: Engine, model: OmniStream, combination: tuple[str, str]
) -> None:
    frames = pictures(9)
    plain = model_in("float32", combination[0])
    expected = steps(TorchEngine(plain), plain, frames)
    cache = engine.allocate_cache(SHAPE.height, SHAPE.width, SHAPE.policy)
    turns = itertools.cycle([engine, TorchEngine(model)])
    got = [steps(next(turns), model, [frame], cache)[0] for frame in frames]
    for mine, wanted in zip(got, expected, strict=True):
        assert_same(mine, wanted, TOLERANCE[combination[1]])


def test_results_belong_to_the_caller(engine: Engine, model: OmniStream) -> None:
    """No later step changes a tensor that was handed out."""
    first, *later = pictures(6)
    cache = engine.allocate_cache(SHAPE.height, SHAPE.width, SHAPE.policy)
    result = steps(engine, model, [first], cache)[0]
    kept = [t.clone() for t in (*result.features.hidden, result.features.patches, result.depth)]
    steps(engine, model, later, cache)
    now = [*result.features.hidden, result.features.patches, result.depth]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


def test_a_reset_forgets_everything(engine: Engine, model: OmniStream) -> None:
    frames = pictures(6)
    cache = engine.allocate_cache(SHAPE.height, SHAPE.width, SHAPE.policy)
    before = steps(engine, model, frames, cache)
    cache.reset()
    after = steps(engine, model, frames, cache)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a.features.patches, b.features.patches)


def test_only_the_heads_that_are_asked_for(engine: Engine, model: OmniStream) -> None:
    cache = engine.allocate_cache(SHAPE.height, SHAPE.width, SHAPE.policy)
    pixels = pictures(1)[0].to(model.backbone.compute_dtype)
    laps: list[str] = []
    bare = engine.step(pixels, cache, depth=False, camera=False, lap=laps.append)
    assert bare.depth is None
    assert bare.depth_confidence is None
    assert bare.camera is None
    assert laps in (["backbone", "heads"], ["model"])


def test_a_stream_of_another_size_runs_and_is_remarked(engine: Engine, model: OmniStream) -> None:
    frames = pictures(3, 48, 32)
    cache = engine.allocate_cache(48, 32, SHAPE.policy)
    expected = TorchEngine(model).allocate_cache(48, 32, SHAPE.policy)
    a = steps(engine, model, frames, cache)
    b = steps(TorchEngine(model), model, frames, expected)
    for mine, wanted in zip(a, b, strict=True):
        assert torch.equal(mine.features.patches, wanted.features.patches)
    if not isinstance(engine, TorchEngine):
        assert "48x32" in engine.remark or "32x48" in engine.remark
        assert "eagerly" in engine.remark


def test_far_into_a_stream(engine: Engine, model: OmniStream, combination: tuple[str, str]) -> None:
    """After a week at 30 Hz: angles, slots and counters still mean the same."""
    frames = pictures(6)
    plain = model_in("float32", combination[0])
    caches = []
    for other, its in ((engine, model), (TorchEngine(plain), plain)):
        cache = other.allocate_cache(SHAPE.height, SHAPE.width, SHAPE.policy)
        steps(other, its, frames[:2], cache)
        cache.frames_seen = 18_144_000
        caches.append(steps(other, its, frames[2:], cache))
    for mine, wanted in zip(*caches, strict=True):
        assert_same(mine, wanted, TOLERANCE[combination[1]])


def test_a_session_over_it(engine: Engine, model: OmniStream, combination: tuple[str, str]) -> None:
    """All that a user sees: depth, pose, features, over an epoch's end."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (64, 96, 3), np.uint8)
    clip = [Frame(np.roll(texture, 5 * i, axis=1), i * 33_000_000) for i in range(7)]
    clip.append(Frame(clip[0].image, clip[-1].stamp_ns + 10**10))  # after a gap
    key = FeatureKey(-1, FeatureKind.PATCH, normed=True)
    wanted = Outputs(pose=True, features=(key,))
    plain = model_in("float32", combination[0])
    sessions = (
        StreamSession(model, window=3, engine=engine),
        StreamSession(plain, window=3),
    )
    tolerance = TOLERANCE[combination[1]]
    for frame in clip:
        mine, other = (session.step(frame, wanted) for session in sessions)
        assert (mine.epoch, mine.frame_index) == (other.epoch, other.frame_index)
        torch.testing.assert_close(
            mine.features[key].float(), other.features[key], rtol=0.0, atol=5 * tolerance
        )
        torch.testing.assert_close(mine.depth, other.depth, rtol=5 * tolerance, atol=tolerance)
        assert np.allclose(mine.pose.translation, other.pose.translation, atol=5 * tolerance)  # type: ignore[union-attr]
        assert sum(mine.timings.values()) > 0.0


def test_nothing_is_compiled_again_as_the_stream_goes_on(engines: Engines) -> None:
    engine, model = engines("compiled", "float32")
    if isinstance(engine, TorchEngine):
        pytest.skip(engine.remark)
    with torch._dynamo.config.patch(error_on_recompile=True, fail_on_recompile_limit_hit=True):
        torch._dynamo.utils.counters.clear()
        cache = engine.allocate_cache(SHAPE.height, SHAPE.width, SHAPE.policy)
        for _ in range(2):
            steps(engine, model, pictures(3 * SHAPE.policy.slots), cache)
            cache.reset()
        cache = engine.allocate_cache(SHAPE.height, SHAPE.width, SHAPE.policy)  # a new camera
        cache.frames_seen = 10**9
        steps(engine, model, pictures(3), cache)
        counters = torch._dynamo.utils.counters
        assert not counters["stats"].get("unique_graphs")
        assert not counters["graph_break"]


def test_a_policy_of_another_kind_is_stepped_eagerly(engines: Engines) -> None:
    """The graph was not made for it: never wrongly."""
    engine, model = engines("compiled", "float32")
    cache = engine.allocate_cache(SHAPE.height, SHAPE.width, Window(2, 5))
    other = TorchEngine(model).allocate_cache(SHAPE.height, SHAPE.width, Window(2, 5))
    frames = pictures(9)
    for mine, wanted in zip(
        steps(engine, model, frames, cache),
        steps(TorchEngine(model), model, frames, other),
        strict=True,
    ):
        assert torch.equal(mine.features.patches, wanted.features.patches)


def test_a_memory_with_keyframes_in_a_graph(engines: Engines) -> None:
    """Keyframes come in while the stream runs, stand for several tokens each, move in time."""
    _, model = engines("compiled", "float32")
    policy = WindowMemory(1, 2, entries=3, cell=2)
    shape = StepShape(SHAPE.height, SHAPE.width, policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)  # the same arithmetic
        engine = CompiledEngine(model, shape)
    cache = engine.allocate_cache(shape.height, shape.width, policy)
    other = TorchEngine(model).allocate_cache(shape.height, shape.width, policy)
    frames = pictures(12)
    got, expected = (
        steps(e, model, frames, c) for e, c in ((engine, cache), (TorchEngine(model), other))
    )
    assert not engine.remark
    assert any(kept.frame not in (0, 10, 11) for kept in cache.kept_frames())
    for mine, wanted in zip(got, expected, strict=True):
        assert_same(mine, wanted, TOLERANCE["float32"])
