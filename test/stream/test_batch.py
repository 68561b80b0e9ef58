# SPDX-License-Identifier: Apache-2.0
"""Many cameras in one step: each must get what it would have got alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnistream_ros.model import ModelConfig, OmniStream, build_model
from omnistream_ros.model.cache_policy import Full, Policy, Window, WindowMemory
from omnistream_ros.stream.batch import StreamBatch
from omnistream_ros.stream.device_memory import StreamMemoryError
from omnistream_ros.stream.epochs import EpochReason
from omnistream_ros.stream.frame import Frame, Intrinsics
from omnistream_ros.stream.result import Outputs, StreamResult
from omnistream_ros.stream.session import StreamSession

CONFIG = {"width": 32, "depth": 2, "heads": 2, "taps": (0, 0, 1, 1), "model_pixels": 64 * 48}
TINY = ModelConfig(name="tiny", head_width=16, metric=True, **CONFIG)  # type: ignore[arg-type]
GEOMETRIC = ModelConfig(
    name="geometric",
    head_width=16,
    matching_width=8,
    patch_embed="efficientnet_lite0",
    metric=True,
    **CONFIG,  # type: ignore[arg-type]
)
EVERYTHING = Outputs(features=((0, "patch"), (-1, "cls", True)))  # type: ignore[arg-type]


def lively(config: ModelConfig) -> OmniStream:
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> OmniStream:
    return lively(TINY)


def frame(camera: int, i: int, size: tuple[int, int] = (96, 128)) -> Frame:
    """Cameras look at different things; the second and later do not know their lens."""
    texture = np.random.default_rng(camera).integers(0, 256, (*size, 3), np.uint8)
    lens = Intrinsics(100.0, 99.0, 63.0, 48.5, 128, 96) if camera == 0 else None
    return Frame(np.roll(texture, 3 * i, axis=1), 10**18 + i * 33_333_333 + camera, lens)


def assert_same(ours: StreamResult, alone: StreamResult) -> None:
    for name in ("stamp_ns", "epoch", "frame_index", "epoch_reason", "context_frames", "metric"):
        assert getattr(ours, name) == getattr(alone, name), name
    assert ours.intrinsics.fx == pytest.approx(alone.intrinsics.fx, rel=1e-4)
    torch.testing.assert_close(ours.depth, alone.depth, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.confidence, alone.confidence, rtol=1e-4, atol=1e-5)
    for key, tensor in alone.features.items():
        torch.testing.assert_close(ours.features[key], tensor, rtol=1e-4, atol=1e-5)
    assert ours.pose is not None
    assert alone.pose is not None
    np.testing.assert_allclose(ours.pose.translation, alone.pose.translation, atol=1e-4)
    np.testing.assert_allclose(ours.pose.quaternion, alone.pose.quaternion, atol=1e-4)


@pytest.mark.parametrize(
    "policy", [Window(1, 3), Full(4), WindowMemory(1, 2, 2, 2)], ids=lambda policy: str(policy)
)
def test_each_camera_gets_what_it_would_have_got_alone(model: OmniStream, policy: Policy) -> None:
    """One joins late, one misses frames, one is reset and one has a gap while the rest go on."""
    batch = StreamBatch(model, 3, policy=policy)
    alone = {name: StreamSession(model, policy=policy) for name in ("front", "left", "rear")}
    numbers = {"front": 0, "left": 1, "rear": 2}
    for name in ("front", "rear"):
        batch.join(name)
    for i in range(12):
        if i == 3:
            batch.join("left")
        if i == 6:
            batch.reset("rear")
            alone["rear"].reset()
        late = 10**2 if i >= 8 else 0  # "left" was silent for longer than a gap
        frames = {
            name: frame(numbers[name], i + (late if name == "left" else 0))
            for name in batch.cameras
            if not (name == "front" and i in (4, 5))
        }
        results = batch.step(frames, EVERYTHING)
        assert set(results) == set(frames)
        for name, one in frames.items():
            assert_same(results[name], alone[name].step(one, EVERYTHING))
    assert batch.step({}) == {}


def test_the_pose_of_a_solver_is_the_cameras_own() -> None:
    model = lively(GEOMETRIC)
    batch = StreamBatch(model, 2)
    alone = [StreamSession(model), StreamSession(model)]
    for name in "ab":
        batch.join(name)
    for i in range(4):
        frames = {name: frame(camera, i) for camera, name in enumerate("ab")}
        if i == 2:
            del frames["a"]
        results = batch.step(frames)
        for camera, name in enumerate("ab"):
            if name in frames:
                assert_same(results[name], alone[camera].step(frames[name]))


def test_joining_and_leaving_allocates_nothing(model: OmniStream) -> None:
    batch = StreamBatch(model, 2)
    batch.join("a")
    batch.step({"a": frame(0, 0)})
    cache, size = batch._cache, batch.cache_bytes("a")
    for i in range(1, 6):
        batch.join(f"b{i}")
        results = batch.step({"a": frame(0, i), f"b{i}": frame(1, i)})
        # Whoever had the place before has left no trace.
        assert_same(results[f"b{i}"], StreamSession(model).step(frame(1, i)))
        assert results["a"].frame_index == i
        batch.leave(f"b{i}")
    assert batch._cache is cache
    assert batch.cache_bytes("a") == size
    assert batch.cameras == ("a",)


def test_the_weights_are_read_once(model: OmniStream, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = StreamBatch(model, 3)
    for name in "abc":
        batch.join(name)
    shapes = []
    forward = model.backbone.blocks[0].mlp.fc1.forward
    monkeypatch.setattr(
        model.backbone.blocks[0].mlp.fc1,
        "forward",
        lambda x: (shapes.append(x.shape), forward(x))[1],
    )
    batch.step({name: frame(camera, 0) for camera, name in enumerate("abc")})
    assert [shape[0] for shape in shapes] == [3]


def test_what_each_step_took_is_told(model: OmniStream) -> None:
    batch = StreamBatch(model, 2)
    batch.join("a")
    batch.join("b")
    results = batch.step({"a": frame(0, 0), "b": frame(1, 0)})
    stages = ["preprocess", "backbone", "heads", "others", "pose", "postprocess"]
    for result in results.values():
        assert list(result.timings) == stages
    assert results["a"].timings["backbone"] == results["b"].timings["backbone"]
    assert results["b"].timings["others"] >= results["a"].timings["pose"]


def test_misuse_is_explained(model: OmniStream) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        StreamBatch(model, 0)
    batch = StreamBatch(model, 1)
    batch.join("a")
    with pytest.raises(ValueError, match="joined already"):
        batch.join("a")
    with pytest.raises(ValueError, match=r"no room for camera 'b': the batch was made for 1 \(a\)"):
        batch.join("b")
    with pytest.raises(KeyError, match="stranger"):
        batch.step({"stranger": frame(0, 0)})
    with pytest.raises(KeyError):
        batch.leave("stranger")


def test_an_image_that_cannot_be_seen_moves_no_stream(model: OmniStream) -> None:
    batch = StreamBatch(model, 2)
    batch.join("a")
    batch.join("b")
    batch.step({"a": frame(0, 0)})
    with pytest.raises(ValueError, match="too elongated"):
        batch.step({"a": frame(0, 1), "b": frame(1, 1, (10, 200))})
    results = batch.step({"a": frame(0, 1), "b": frame(1, 1)})
    assert (results["a"].epoch, results["a"].frame_index) == (0, 1)
    assert (results["b"].epoch, results["b"].frame_index) == (0, 0)


def test_a_camera_of_another_shape_goes_alone(model: OmniStream) -> None:
    """It changes its shape in mid-stream, and back: epochs of its own, nothing for the others."""
    batch = StreamBatch(model, 3)
    alone = {name: StreamSession(model) for name in "abc"}
    for name in "abc":
        batch.join(name)
    upright, usual = (128, 96), (96, 128)
    for i, size in enumerate([usual, upright, upright, usual, usual]):
        frames = {name: frame(1 + camera, i) for camera, name in enumerate("ac")}
        frames["b"] = frame(5, i, size)
        results = batch.step(frames, EVERYTHING)
        for name, one in frames.items():
            assert_same(results[name], alone[name].step(one, EVERYTHING))
        if size == upright:
            assert batch.cache_bytes("b") == batch.cache_bytes("a")  # as many patches
    assert results["b"].epoch_reason is None
    assert (results["b"].epoch, results["b"].frame_index) == (2, 1)


def test_each_camera_gets_what_was_asked_for_it(model: OmniStream) -> None:
    batch = StreamBatch(model, 2)
    batch.join("a", resolution="source")
    batch.join("b")
    nothing = Outputs(depth=False, pose=False)
    results = batch.step({"a": frame(0, 0), "b": frame(1, 0)}, {"a": EVERYTHING, "b": nothing})
    assert results["a"].depth is not None
    assert tuple(results["a"].depth.shape) == (96, 128)
    assert results["b"].depth is None
    assert results["b"].pose is None
    assert not results["b"].features


def test_a_saved_stream_goes_on_in_a_batch_and_in_a_session(model: OmniStream) -> None:
    """To the last bit, beside streams that stay as they were."""
    batch, session = StreamBatch(model, 2), StreamSession(model)
    for name in "ab":
        batch.join(name)
    for i in range(3):
        batch.step({"a": frame(0, i), "b": frame(1, i)})
    saved = batch.state_dict("b")
    other = StreamBatch(model, 3)
    for name in "xyz":
        other.join(name)
    other.step({"x": frame(2, 0), "y": frame(3, 0), "z": frame(4, 0)})
    other.load_state_dict("y", saved)
    session.load_state_dict(saved)
    there = other.step({"y": frame(1, 3)}, EVERYTHING)["y"]
    here = batch.step({"b": frame(1, 3)}, EVERYTHING)["b"]
    assert_same(there, here)
    assert_same(session.step(frame(1, 3), EVERYTHING), here)
    assert other.step({"z": frame(4, 1)})["z"].frame_index == 1
    back = session.state_dict()
    other.load_state_dict("z", back)
    assert other.step({"z": frame(1, 4)})["z"].frame_index == 4
    with pytest.raises(ValueError, match="does not fit"):
        StreamSession(model, window=3).load_state_dict(saved)


def test_out_of_memory_ends_all_epochs_and_the_batch_goes_on(
    model: OmniStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = StreamBatch(model, 2)
    batch.join("a")
    batch.join("b")
    batch.step({"a": frame(0, 0)})

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model.backbone.blocks[1].mlp, "forward", fail)
        with pytest.raises(StreamMemoryError, match="with 2 cameras"):
            batch.step({"a": frame(0, 1), "b": frame(1, 1)})
    assert batch.cache_bytes("a") == 0
    results = batch.step({"a": frame(0, 2), "b": frame(1, 2)})
    assert (results["a"].epoch, results["a"].epoch_reason) == (1, EpochReason.OUT_OF_MEMORY)
    assert (results["b"].epoch, results["b"].epoch_reason) == (0, EpochReason.START)
