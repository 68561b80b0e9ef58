# SPDX-License-Identifier: Apache-2.0
"""A camera stream through a tiny model: results, epochs, continuity, save and restore, memory."""

from __future__ import annotations

import dataclasses
import gc
import io
import multiprocessing
import resource
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

from omnistream_ros.model import ModelConfig, OmniStream, build_model
from omnistream_ros.stream import geometry
from omnistream_ros.stream.calibration import Calibration, Distortion
from omnistream_ros.stream.depth_resize import resize_depth
from omnistream_ros.stream.epochs import EpochReason
from omnistream_ros.stream.frame import Frame, Intrinsics
from omnistream_ros.stream.preprocess import Preprocessor
from omnistream_ros.stream.result import FeatureKey, FeatureKind, Outputs, Pose, StreamResult
from omnistream_ros.stream.session import StreamSession
from omnistream_ros.stream.undistort import Undistorter

TINY = ModelConfig(
    name="tiny",
    width=32,
    depth=4,
    heads=2,
    taps=(0, 1, 2, 3),
    head_width=16,
    model_pixels=64 * 48,
    metric=True,
)
CAMERA = Intrinsics(100.0, 99.0, 63.0, 48.5, 128, 96)
NOTHING = Outputs(depth=False, pose=False)


@pytest.fixture(scope="module")
def model() -> OmniStream:
    torch.manual_seed(0)
    model = build_model(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh heads answer the same to everything: give every weight something to say.
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def frames(count: int, size: tuple = (96, 128), camera: Intrinsics | None = CAMERA) -> list[Frame]:
    rng = np.random.default_rng(3)
    texture = rng.integers(0, 256, (*size, 3), np.uint8)
    if camera is not None and (camera.height, camera.width) != size:
        camera = None
    return [
        Frame(np.roll(texture, 3 * i, axis=1), 10**18 + i * 33_333_333, camera)
        for i in range(count)
    ]


def at(frame: Frame, stamp_ns: int) -> Frame:
    return dataclasses.replace(frame, stamp_ns=stamp_ns)


def motion(pose: Pose | None) -> np.ndarray:
    assert pose is not None
    return geometry.rigid(geometry.quaternion_to_matrix(pose.quaternion), pose.translation)


def test_streaming_equals_the_clip(model: OmniStream) -> None:
    clip = frames(6)
    preprocess = Preprocessor((96, 128), (48, 64))
    pixels = torch.stack([preprocess(frame.image)[0] for frame in clip])
    with torch.no_grad():
        expected = model.forward_clip(pixels[None])
    assert expected.depth is not None
    assert expected.depth_confidence is not None
    assert expected.camera is not None

    session = StreamSession(model)
    keys = [FeatureKey(2, FeatureKind.PATCH), FeatureKey(-1, FeatureKind.CAMERA, normed=True)]
    results = [session.step(frame, Outputs(features=tuple(keys))) for frame in clip]

    scale = CAMERA.resized(64, 48).fx / TINY.canonical_fx
    world = geometry.rigid_inverse(head_motion(expected, 0))
    for i, result in enumerate(results):
        assert result.depth is not None
        assert result.confidence is not None
        torch.testing.assert_close(result.depth, expected.depth[0, i] * scale, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            result.confidence, expected.depth_confidence[0, i], rtol=1e-4, atol=1e-5
        )
        assert np.allclose(motion(result.pose), world @ head_motion(expected, i), atol=1e-5)
        raw = expected.features.hidden[2][0, i, 6:].unflatten(0, (3, 4))
        torch.testing.assert_close(result.features[keys[0]], raw, rtol=1e-4, atol=1e-5)
        assert expected.features.camera is not None
        torch.testing.assert_close(
            result.features[keys[1]], expected.features.camera[0, i], rtol=1e-4, atol=1e-5
        )
    # The frames are not all the same to the model, or the comparison above would be worth nothing.
    assert np.linalg.norm(results[5].pose.translation) > 1e-4  # type: ignore[union-attr]
    assert (results[5].depth - results[0].depth).abs().max() > 1e-4  # type: ignore[operator]


def head_motion(prediction: object, i: int) -> np.ndarray:
    camera = prediction.camera  # type: ignore[attr-defined]
    rotation = geometry.quaternion_to_matrix(camera.quaternion[0, i].numpy())
    return geometry.rigid(rotation, camera.translation[0, i].numpy())


def test_what_a_result_says_about_itself(model: OmniStream) -> None:
    session = StreamSession(model, sink=1, window=3)
    results = [session.step(frame) for frame in frames(6)]
    assert [r.frame_index for r in results] == [0, 1, 2, 3, 4, 5]
    assert [r.context_frames for r in results] == [1, 2, 3, 4, 4, 4]
    assert [r.epoch_reason for r in results] == [EpochReason.START, *[None] * 5]
    assert {r.epoch for r in results} == {0}
    assert session.context_capacity == 4
    result = results[-1]
    assert result.stamp_ns == frames(6)[-1].stamp_ns
    assert result.metric
    assert result.grid == (3, 4)
    assert result.model_size == (48, 64)
    assert result.source_size == (96, 128)
    assert result.intrinsics == CAMERA.resized(64, 48)
    assert result.depth is not None
    assert result.depth.shape == (48, 64)
    assert result.depth.dtype == torch.float32
    assert np.allclose(result.model_to_source, [[2, 0, 0.5], [0, 2, 0.5]])
    stages = ["preprocess", "backbone", "heads", "pose", "postprocess"]
    assert list(result.timings) == stages
    assert all(seconds >= 0.0 for seconds in result.timings.values())


def test_first_pose_is_the_identity(model: OmniStream) -> None:
    pose = StreamSession(model).step(frames(1)[0]).pose
    assert np.allclose(motion(pose), np.eye(4), atol=1e-12)


breaks: list[tuple[EpochReason, Callable[[StreamSession, Frame], Frame]]] = [
    (EpochReason.REQUEST, lambda session, frame: (session.reset(), frame)[1]),
    (EpochReason.IMAGE_SIZE, lambda _, frame: at(frames(1, (128, 96))[0], frame.stamp_ns)),
    (EpochReason.IMAGE_SIZE, lambda _, frame: at(frames(1, (98, 128))[0], frame.stamp_ns)),
    (EpochReason.CAMERA_CHANGE, lambda _, frame: dataclasses.replace(frame, intrinsics=None)),
    (EpochReason.TIME_JUMP_BACK, lambda _, frame: at(frame, 5)),
    (EpochReason.GAP, lambda _, frame: at(frame, frame.stamp_ns + 60 * 10**9)),
]


@pytest.mark.parametrize(("reason", "break_with"), breaks)
def test_every_reason_for_an_epoch(
    model: OmniStream, reason: EpochReason, break_with: Callable
) -> None:
    session = StreamSession(model)
    before = [session.step(frame) for frame in frames(4)][-1]
    first = break_with(session, frames(5)[-1])
    after = session.step(first)
    assert (after.epoch, after.frame_index, after.epoch_reason) == (1, 0, reason)
    assert after.context_frames == 1
    # Nothing of the past is left: a new session says the same about this image.
    fresh = StreamSession(model).step(first)
    assert torch.equal(after.depth, fresh.depth)  # type: ignore[arg-type]
    # but the pose goes on from where it was
    assert np.linalg.norm(before.pose.translation) > 1e-4  # type: ignore[union-attr]
    assert np.allclose(motion(after.pose), motion(before.pose), atol=1e-9)
    following = session.step(at(first, first.stamp_ns + 1))
    assert (following.epoch, following.frame_index, following.epoch_reason) == (1, 1, None)
    fresh_session = StreamSession(model)
    fresh_session.step(first)
    alone = fresh_session.step(at(first, first.stamp_ns + 1))
    assert np.allclose(motion(following.pose), motion(before.pose) @ motion(alone.pose), atol=1e-6)


def test_the_cache_is_only_allocated_for_a_new_grid(model: OmniStream) -> None:
    session = StreamSession(model)
    assert session.cache_bytes == 0
    session.step(frames(1)[0], NOTHING)
    first, size = session._cache, session.cache_bytes
    assert size > 0
    session.reset()
    session.step(frames(2)[1], NOTHING)
    session.step(frames(1, (98, 128))[0], NOTHING)  # another image, the same grid
    assert session._cache is first
    session.step(frames(1, (128, 96))[0], NOTHING)
    assert session._cache is not first
    assert session.cache_bytes == size


def test_only_what_is_wanted_is_computed(
    model: OmniStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = model.predict

    def record(features: object, **what: bool) -> object:
        asked.append(what)
        return original(features, **what)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "predict", record)
    session = StreamSession(model)
    result = session.step(frames(1)[0], NOTHING)
    assert result.depth is result.confidence is result.pose is None
    assert result.features == {}
    session.step(frames(2)[1], Outputs(pose=False))
    session.step(frames(3)[2], Outputs(depth=False))
    assert asked == [
        {"depth": False, "rays": False, "camera": False},
        {"depth": True, "rays": False, "camera": False},
        {"depth": False, "rays": False, "camera": True},
    ]


def test_outputs_do_not_change_the_stream(model: OmniStream) -> None:
    full, lazy = StreamSession(model), StreamSession(model)
    for frame in frames(5):
        full.step(frame)
        lazy.step(frame, NOTHING)
    last = frames(6)[-1]
    assert torch.equal(full.step(last).depth, lazy.step(last).depth)  # type: ignore[arg-type]


def test_every_kind_of_feature(model: OmniStream) -> None:
    shapes = {
        FeatureKind.PATCH: (3, 4, 32),
        FeatureKind.CLS: (32,),
        FeatureKind.REGISTER: (4, 32),
        FeatureKind.CAMERA: (32,),
    }
    raw = [FeatureKey(3, kind) for kind in shapes]
    normed = [FeatureKey(-1, kind, normed=True) for kind in shapes]
    session = StreamSession(model)
    result = session.step(frames(1)[0], Outputs(False, False, (*raw, *normed)))
    for a, b in zip(raw, normed, strict=True):
        assert result.features[a].shape == shapes[a.kind]
        expected = model.backbone.post_layernorm(result.features[a])
        torch.testing.assert_close(result.features[b], expected, rtol=1e-5, atol=1e-6)
    for layer, wanted in ((3, raw), (-1, normed)):
        key = FeatureKey(layer, FeatureKind.POOLED, wanted is normed)
        again = StreamSession(model).step(frames(1)[0], Outputs(False, False, (key,)))
        mean = result.features[wanted[0]].mean((0, 1))
        torch.testing.assert_close(again.features[key], mean)
    # no copies: all raw tokens of a block share one storage
    assert len({result.features[key].untyped_storage().data_ptr() for key in raw}) == 1
    # and they stay what they were while the stream goes on
    kept = {key: tensor.clone() for key, tensor in result.features.items()}
    for frame in frames(4)[1:]:
        session.step(frame, Outputs(features=tuple(raw)))
    for key, tensor in kept.items():
        assert torch.equal(result.features[key], tensor)
    # plain tuples ask for the same
    assert Outputs(features=((3, "patch"),)).features == (raw[0],)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ((4, "patch"), "blocks 0 to 3"),
        ((-5, "patch"), "blocks 0 to 3"),
        ((0, "patch", True), "final LayerNorm belongs to block 3"),
    ],
)
def test_features_that_do_not_exist(model: OmniStream, key: tuple, message: str) -> None:
    session = StreamSession(model)
    with pytest.raises(ValueError, match=message):
        session.step(frames(1)[0], Outputs(features=(key,)))
    assert session.step(frames(1)[0]).frame_index == 0
    with pytest.raises(ValueError, match="unknown feature 'patches'; known: patch, cls"):
        Outputs(features=((0, "patches"),))  # type: ignore[arg-type]


def test_a_backbone_alone_says_what_to_ask_for() -> None:
    bare = build_model(dataclasses.replace(TINY, head_width=0)).eval()
    session = StreamSession(bare)
    with pytest.raises(ValueError, match="no depth head; ask with"):
        session.step(frames(1)[0])
    with pytest.raises(ValueError, match="no camera head; ask with"):
        session.step(frames(1)[0], Outputs(depth=False))
    result = session.step(frames(1)[0], NOTHING)
    assert result.frame_index == 0
    assert result.epoch_reason is EpochReason.START


@pytest.fixture(scope="module")
def matching_model() -> OmniStream:
    """A model that can match, with random weights: good for wiring, not for poses."""
    torch.manual_seed(0)
    config = dataclasses.replace(
        TINY, name="matching", patch_embed="efficientnet_lite0", matching_width=16
    )
    return build_model(config).eval()


def test_geometric_pose_is_the_default_where_the_model_can(
    model: OmniStream, matching_model: OmniStream
) -> None:
    clip = frames(3)
    results = [StreamSession(matching_model).step(clip[0])]
    assert results[0].pose is not None
    assert results[0].pose.covariance is not None  # the camera head knows none
    head = StreamSession(matching_model, pose="head").step(clip[0])
    assert head.pose is not None
    assert head.pose.covariance is None
    blind = build_model(dataclasses.replace(matching_model.config, head_width=0)).eval()
    with pytest.raises(ValueError, match="has no depth head"):
        StreamSession(blind, pose="geometric")
    with pytest.raises(ValueError, match="'tiny' has no matching head"):
        StreamSession(model, pose="geometric")
    with pytest.raises(ValueError, match="pose must be one of"):
        StreamSession(model, pose="magic")


def test_geometric_pose_computes_depth_for_keyframes_only(
    matching_model: OmniStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = matching_model.predict

    def record(features: object, **what: bool) -> object:
        asked.append(what.get("depth", True))
        return original(features, **what)  # type: ignore[arg-type]

    monkeypatch.setattr(matching_model, "predict", record)
    session = StreamSession(matching_model, pose="geometric")
    frame = frames(1)[0]
    session.step(frame, Outputs(depth=False))
    assert asked == [False, True]
    for i in range(1, 3):  # nothing moves
        result = session.step(at(frame, frame.stamp_ns + i), Outputs(depth=False))
        assert result.depth is None
    assert asked.count(True) == 1 or not result.pose.tracked  # type: ignore[union-attr]


def test_geometric_streams_are_saved_and_restored(matching_model: OmniStream) -> None:
    first, second = StreamSession(matching_model), StreamSession(matching_model)
    clip = frames(8)
    for frame in clip[:4]:
        first.step(frame)
    second.load_state_dict(first.state_dict())
    for frame in clip[4:]:
        assert_same(first.step(frame), second.step(frame))
    other = StreamSession(matching_model, pose="head")
    with pytest.raises(ValueError, match="create the session with the same `pose`"):
        other.load_state_dict(first.state_dict())


def test_an_unknown_camera(model: OmniStream) -> None:
    clip = frames(4, camera=None)
    session = StreamSession(model)
    results = [session.step(frame) for frame in clip]
    assert not any(r.metric for r in results)
    # the field of view is the mean of what the head saw so far
    preprocess = Preprocessor((96, 128), (48, 64))
    pixels = torch.stack([preprocess(frame.image)[0] for frame in clip])
    with torch.no_grad():
        prediction = model.forward_clip(pixels[None])
    tangents = torch.tan(prediction.camera.fov[0] / 2).double().mean(0)  # type: ignore[union-attr]
    camera = results[-1].intrinsics
    assert camera.fx == pytest.approx(32 / tangents[0].item(), rel=1e-4)
    assert camera.fy == pytest.approx(24 / tangents[1].item(), rel=1e-4)
    assert (camera.cx, camera.cy) == (31.5, 23.5)
    scale = camera.fx / TINY.canonical_fx
    torch.testing.assert_close(
        results[-1].depth, prediction.depth[0, -1] * scale, rtol=1e-4, atol=1e-5
    )


def test_depth_follows_the_focal_length(model: OmniStream) -> None:
    wide, tele = frames(1)[0], frames(1)[0]
    tele = dataclasses.replace(tele, intrinsics=dataclasses.replace(CAMERA, fx=200.0, fy=198.0))
    near = StreamSession(model).step(wide).depth
    far = StreamSession(model).step(tele).depth
    torch.testing.assert_close(far, 2.0 * near)  # type: ignore[operator]


def test_source_resolution(model: OmniStream) -> None:
    frame = frames(1)[0]
    at_model = StreamSession(model).step(frame)
    at_source = StreamSession(model, resolution="source").step(frame)
    assert at_source.intrinsics == CAMERA
    assert at_source.depth is not None
    assert at_source.depth.shape == at_source.confidence.shape == (96, 128)  # type: ignore[union-attr]
    assert at_model.depth is not None
    assert torch.equal(at_source.depth, resize_depth(at_model.depth, (96, 128)))
    # 2 x 2 source pixels lie around the centre of a model pixel and have its depth on average
    blocks = at_source.depth.unflatten(0, (48, 2)).unflatten(2, (64, 2)).mean((1, 3))
    assert (blocks / at_model.depth - 1.0).abs().median() < 0.01


def test_save_and_restore_to_the_last_bit(model: OmniStream) -> None:
    first = StreamSession(model, window=3)
    for frame in frames(5):
        first.step(frame)
    first.reset()
    for frame in frames(11)[5:]:
        first.step(frame)
    first.reset()  # a pending request is part of the state
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = StreamSession(model, window=3)
    second.step(frames(1, (128, 96))[0])  # something else was going on
    second.load_state_dict(torch.load(buffer, weights_only=False))
    for frame in frames(17)[11:]:
        assert_same(first.step(frame), second.step(frame))


def test_saved_state_is_a_copy(model: OmniStream) -> None:
    session, again = StreamSession(model, window=3), StreamSession(model, window=3)
    clip = frames(8)
    for frame in clip[:4]:
        session.step(frame)
    state = session.state_dict()
    expected = [session.step(frame) for frame in clip[4:]]
    again.load_state_dict(state)
    for frame, result in zip(clip[4:], expected, strict=True):
        assert_same(again.step(frame), result)


def test_saving_before_the_first_frame(model: OmniStream) -> None:
    session = StreamSession(model)
    session.step(frames(1)[0])
    session.load_state_dict(StreamSession(model).state_dict())
    result = session.step(frames(1)[0])
    assert (result.epoch, result.epoch_reason) == (0, EpochReason.START)


def assert_same(a: StreamResult, b: StreamResult) -> None:
    assert (a.epoch, a.frame_index, a.epoch_reason, a.context_frames) == (
        (b.epoch, b.frame_index, b.epoch_reason, b.context_frames)
    )
    assert torch.equal(a.depth, b.depth)  # type: ignore[arg-type]
    assert np.array_equal(motion(a.pose), motion(b.pose))


def test_states_that_do_not_fit_are_refused_and_change_nothing(model: OmniStream) -> None:
    session, twin = StreamSession(model, window=3), StreamSession(model, window=3)
    for frame in frames(3):
        session.step(frame)
        twin.step(frame)
    other = build_model(dataclasses.replace(TINY, name="other", depth=5)).eval()
    with pytest.raises(ValueError, match="belongs to model 'other'"):
        session.load_state_dict(StreamSession(other).state_dict())
    longer = StreamSession(model, window=5)
    longer.step(frames(1)[0])
    with pytest.raises(ValueError, match="does not fit"):
        session.load_state_dict(longer.state_dict())
    assert_same(session.step(frames(4)[3]), twin.step(frames(4)[3]))


def test_a_frame_that_fails_leaves_no_trace(model: OmniStream) -> None:
    session, twin = StreamSession(model), StreamSession(model)
    for frame in frames(3):
        session.step(frame)
        twin.step(frame)
    with pytest.raises(ValueError, match="too elongated"):
        session.step(Frame(np.zeros((10, 100, 3), np.uint8), 10**18 + 10**8))
    assert_same(session.step(frames(4)[3]), twin.step(frames(4)[3]))


@pytest.mark.parametrize(
    "wrong", [dict(sink=-1), dict(window=0), dict(max_gap_s=0.0), dict(resolution="full")]
)
def test_wrong_arguments_are_refused(model: OmniStream, wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StreamSession(model, **wrong)


def test_a_stream_that_has_run_for_years(model: OmniStream) -> None:
    """Far out the clock may not matter: same context, same result as early in the stream."""

    def after(start: int) -> list[StreamResult]:
        session = StreamSession(model, sink=0, window=3)
        session.step(frames(1)[0])
        state = session.state_dict()
        state["cache"]["streams"][0]["frames_seen"] = start
        session.load_state_dict(state)
        return [session.step(frame) for frame in frames(8)[1:]]

    early, late = after(6), after(3 * 10**9)
    assert late[-1].frame_index == 3 * 10**9 + 6
    torch.testing.assert_close(early[-1].depth, late[-1].depth, rtol=1e-3, atol=1e-4)


def test_an_undistorted_frame_is_that_of_the_pinhole(model: OmniStream) -> None:
    """The same as undistorting it before; depth is unknown where the lens saw nothing."""
    camera = Intrinsics(90.0, 90.0, 63.5, 47.5, 128, 96)
    lens = Undistorter(Calibration(camera, Distortion("plumb_bob", (0.4, 0.0, 0.0, 0.0))))
    bent = frames(1)[0].image
    ours = StreamSession(model, resolution="source").step(Frame(bent, 1, camera, lens))
    theirs = StreamSession(model, resolution="source").step(Frame(lens.image(bent), 1, camera))
    unseen = ~torch.from_numpy(lens.seen(96, 128))
    assert unseen.any()
    torch.testing.assert_close(ours.depth[~unseen], theirs.depth[~unseen])
    assert ours.depth[unseen].isnan().all()
    assert (ours.confidence[unseen] == 1.0).all()
    with pytest.raises(ValueError, match="those of the lens"):
        Frame(bent, 1, None, lens)


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def memory_of_thousands_of_steps() -> tuple[tuple[int, int], tuple[int, int]]:
    """Peak memory in kilobytes and number of tensors, after 1000 steps and after 4000."""
    smallest = dataclasses.replace(TINY, depth=1, taps=(0, 0, 0, 0))
    session = StreamSession(build_model(smallest).eval(), window=2)
    clip = frames(50, (48, 64))

    def run(steps: int, first: int) -> tuple[int, int]:
        for i in range(first, first + steps):
            outputs = NOTHING if i % 10 else Outputs()
            result = session.step(at(clip[i % 50], 10**18 + i * 33_333_333), outputs)
        assert result.context_frames == 3
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, live_tensors()

    return run(1000, 0), run(3000, 1000)


def test_thousands_of_steps_in_the_same_memory() -> None:
    """In a process of its own: what other tests have left behind would move meanwhile."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        before, after = alone.submit(memory_of_thousands_of_steps).result()
    assert after[1] <= before[1]
    assert after[0] - before[0] < 1024


def test_memory_is_freed_with_the_session(model: OmniStream) -> None:
    session = StreamSession(model)
    session.step(frames(1)[0])
    assert session._cache is not None
    cache = weakref.ref(session._cache.storage.keys)
    gc.disable()
    try:
        del session
        assert cache() is None  # at once, without waiting for the garbage collector
    finally:
        gc.enable()
