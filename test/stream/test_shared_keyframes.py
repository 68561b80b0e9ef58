# SPDX-License-Identifier: Apache-2.0
"""The memory of the network keeps the frames that the pose is measured by, and no others."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import omnistream_ros
from omnistream_ros.evaluation.recordings import open_recording
from omnistream_ros.model import OmniStream, load_model
from omnistream_ros.model.cache_policy import WindowMemory
from omnistream_ros.stream.batch import StreamBatch
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.result import Outputs
from omnistream_ros.stream.session import StreamSession

CLIP = Path(omnistream_ros.__file__).parent / "data" / "furnished_room"
POLICY = WindowMemory(sink=1, window=3, entries=4, cell=3)
FEATURES = Outputs(depth=False, pose=False)


@pytest.fixture(scope="module")
def model() -> OmniStream:
    loaded, _ = load_model("omnistream-nano")
    if loaded.matching_head is None:
        pytest.skip("the bundled weights have no matching head (omnistream train-matching)")
    return loaded


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return list(islice(open_recording(CLIP).frames(), 0, 60, 3))


def remembered(session: StreamSession) -> set[int]:
    assert session._cache is not None
    return {key.frame for key in session._cache.streams[0].keyframes}


def test_frames_that_left_the_window_are_kept_if_the_pose_kept_them(
    model: OmniStream, frames: list[Frame]
) -> None:
    session = StreamSession(model, policy=POLICY)
    by_pose: set[int] = set()
    for index, frame in enumerate(frames):
        session.step(frame)
        landmarks = session._stream.landmarks
        assert landmarks is not None
        assert max(landmarks) <= index
        by_pose |= landmarks
        assert remembered(session) <= by_pose
    assert 0 < len(by_pose) < len(frames), "some frames became keyframes of the pose, some did not"
    left = {frame for frame in by_pose if POLICY.sink <= frame < len(frames) - POLICY.window}
    assert len(remembered(session)) == min(len(left), POLICY.entries)


def test_a_stream_without_pose_chooses_by_looks(model: OmniStream, frames: list[Frame]) -> None:
    for pose, outputs in (("geometric", FEATURES), ("head", Outputs())):
        session = StreamSession(model, policy=POLICY, pose=pose)
        for frame in frames[:12]:
            session.step(frame, outputs)
        assert session._stream.landmarks is None
        assert len(remembered(session)) == POLICY.entries


def test_frames_whose_pose_is_not_asked_for_are_chosen_by_looks_again(
    model: OmniStream, frames: list[Frame]
) -> None:
    session = StreamSession(model, policy=POLICY)
    for frame in frames[:3]:
        session.step(frame)
    for frame in frames[3:14]:
        session.step(frame, FEATURES)
    assert session._stream.landmarks is None
    assert len(remembered(session)) == POLICY.entries
    session.step(frames[14])
    landmarks = session._stream.landmarks
    assert landmarks is not None
    assert landmarks <= {0, 1, 2, 14}


def test_a_camera_that_was_lost_shares_what_it_found_afterwards(
    model: OmniStream, frames: list[Frame]
) -> None:
    session = StreamSession(model, policy=POLICY)
    for frame in frames[:6]:
        session.step(frame)
    before = session._stream.landmarks
    blind = np.zeros_like(frames[0].image)
    for frame in frames[6:12]:
        session.step(Frame(blind, frame.stamp_ns, frame.intrinsics))
    for frame in frames[12:16]:
        session.step(frame)
    after = session._stream.landmarks
    assert before is not None
    assert after is not None
    assert not before & after, "lost for so long, the pose gives up its keyframes"
    assert min(after) >= 6


def test_a_new_epoch_shares_nothing_with_the_old_one(
    model: OmniStream, frames: list[Frame]
) -> None:
    session = StreamSession(model, policy=POLICY)
    for frame in frames[:8]:
        session.step(frame)
    session.reset()
    session.step(frames[8])
    assert session._stream.landmarks == {0}
    assert remembered(session) == set()


def test_saved_and_restored_it_goes_on_to_the_last_bit(
    model: OmniStream, frames: list[Frame]
) -> None:
    session, other = (StreamSession(model, policy=POLICY) for _ in range(2))
    for frame in frames[:9]:
        session.step(frame)
    other.load_state_dict(session.state_dict())
    for frame in frames[9:]:
        ours, theirs = session.step(frame), other.step(frame)
        assert ours.depth is not None
        assert theirs.depth is not None
        assert torch.equal(ours.depth, theirs.depth)
        assert remembered(session) == remembered(other)


def test_cameras_of_a_batch_do_not_share_with_each_other(
    model: OmniStream, frames: list[Frame]
) -> None:
    alone = StreamSession(model, policy=POLICY)
    batch = StreamBatch(model, 2, policy=POLICY)
    batch.join("moves")
    batch.join("stands")
    for frame in frames:
        alone.step(frame)
        still = Frame(frames[0].image, frame.stamp_ns, frames[0].intrinsics)
        batch.step({"moves": frame, "stands": still})
    assert batch._cache is not None
    moves, stands = batch._cache.streams
    assert {key.frame for key in moves.keyframes} == remembered(alone) != set()
    assert stands.keyframes == [], "nothing new was seen"
