# SPDX-License-Identifier: Apache-2.0
"""Depth that agrees with the keyframes: in an exact room, by a network that is wrong on purpose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from box_room import CAMERA, PointHead, look, render
from hypothesis import given, settings
from hypothesis import strategies as st

from omnistream_ros.model import ModelConfig, OmniStream, build_model
from omnistream_ros.stream import geometry
from omnistream_ros.stream.frame import Frame, Intrinsics
from omnistream_ros.stream.keyframes import Keyframe, View, make_keyframe
from omnistream_ros.stream.odometry import Odometry
from omnistream_ros.stream.result import Outputs
from omnistream_ros.stream.room_depth import corrected, correction
from omnistream_ros.stream.session import StreamSession

CELLS = CAMERA.resized(32, 24)
HERE = look()
THERE = look(0.1, 0.05, 0.1, (2, -6, 1))
EDGE = 4  # pixels that lie outside of the outermost cells' centres and more


@pytest.fixture(scope="module")
def head() -> PointHead:
    return PointHead().requires_grad_(False)


def keyframe(head: PointHead, pose: np.ndarray, number: int = 0) -> Keyframe:
    """One with true depth."""
    seen = render(pose)
    with torch.no_grad():
        descriptors = head.describe({4: torch.from_numpy(seen.points).float()[None]})
    view = View(descriptors, torch.from_numpy(seen.grey).float())
    depth = torch.from_numpy(seen.depth).float()
    return make_keyframe(number, view, depth, CELLS, geometry.rigid_inverse(pose), np.zeros((6, 6)))


def error(depth: torch.Tensor, pose: np.ndarray) -> np.ndarray:
    """Log of depth over truth, (H, W) without the edge."""
    ratio = depth.double().numpy() / render(pose).depth
    return np.log(ratio)[EDGE:-EDGE, EDGE:-EDGE]


def slanted(log_scale: float, right: float, down: float) -> torch.Tensor:
    """What a scale and slopes do to depth, (96, 128)."""
    y, x = np.mgrid[-1:1:96j, -1:1:128j]
    return torch.from_numpy(np.exp(log_scale + right * x + down * y)).float()


@settings(max_examples=12, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(-0.15, 0.15), st.floats(-0.15, 0.15))
def test_a_scale_and_slopes_are_taken_back(log_scale: float, right: float, down: float) -> None:
    head = PointHead().requires_grad_(False)
    keys = [keyframe(head, HERE), keyframe(head, look(0.05, 0, 0, (0, 4, 0)), 1)]
    wrong = torch.from_numpy(render(THERE).depth).float() * slanted(log_scale, right, down)
    bend = correction(wrong, keys, geometry.rigid_inverse(THERE))
    assert bend is not None
    assert bend.shape == (24, 32)
    left = error(corrected(wrong, bend), THERE)
    assert np.abs(left).mean() < 0.01
    assert np.quantile(np.abs(left), 0.95) < 0.04  # the edges of the room are rounded off


def test_what_is_right_stays(head: PointHead) -> None:
    right = torch.from_numpy(render(THERE).depth).float()
    bend = correction(right, [keyframe(head, HERE)], geometry.rigid_inverse(THERE))
    assert bend is not None
    assert np.abs(bend).max() < 0.06
    assert np.abs(bend).mean() < 0.005


def test_a_wall_that_is_wrong_by_itself_is_moved(head: PointHead) -> None:
    """What scale and slopes cannot say is carried from place to place."""
    wrong = torch.from_numpy(render(THERE).depth).float()
    wrong[:, 64:] *= 1.25
    keys = [keyframe(head, look(0.02 * i, 0, 0), i) for i in range(6)]
    bend = correction(wrong, keys, geometry.rigid_inverse(THERE))
    assert bend is not None
    before, after = error(wrong, THERE), error(corrected(wrong, bend), THERE)
    assert np.abs(after).mean() < 0.25 * np.abs(before).mean()


def test_somebody_in_front_does_not_move_the_room(head: PointHead) -> None:
    true = render(THERE).depth
    with_somebody = torch.from_numpy(true).float()
    with_somebody[20:70, 10:45] = 0.4  # where the keyframe saw the wall
    bend = correction(with_somebody, [keyframe(head, HERE)], geometry.rigid_inverse(THERE))
    assert bend is not None
    left = error(corrected(with_somebody, bend), THERE)
    assert np.abs(left[:, 60:]).mean() < 0.02  # far from the person


def test_somebody_who_leaves_leaves_no_ghost(head: PointHead) -> None:
    """A camera that stands still, with one keyframe in which a person hides a quarter of a wall."""
    key = keyframe(head, HERE)
    column, row = key.cells.T
    hidden = (column > 8) & (column < 20) & (row > 6)
    key.predicted = np.where(hidden, key.predicted - 0.7, key.predicted)
    empty = torch.from_numpy(render(HERE).depth).float()
    bend = correction(empty, [key], geometry.rigid_inverse(HERE))
    assert bend is not None
    assert np.abs(error(corrected(empty, bend), HERE)).max() < 0.05


def test_depth_that_is_no_number_spoils_nothing_else(head: PointHead) -> None:
    broken = 1.2 * torch.from_numpy(render(THERE).depth).float()
    broken[40:60, 40:60] = torch.nan
    bend = correction(broken, [keyframe(head, HERE)], geometry.rigid_inverse(THERE))
    assert bend is not None
    assert np.nanmean(np.abs(error(corrected(broken, bend), THERE))) < 0.02
    assert correction(broken * torch.nan, [keyframe(head, HERE)], np.eye(4)) is None


def test_too_little_in_common_says_nothing(head: PointHead) -> None:
    depth = torch.from_numpy(render(HERE).depth).float()
    away = geometry.rigid_inverse(look(turn=(0, 150, 0)))
    assert correction(depth, [keyframe(head, HERE)], away) is None
    assert correction(depth, [], np.eye(4)) is None


def test_walls_stop_breathing(head: PointHead) -> None:
    """A network whose every frame has a scale of its own, and what the odometry makes of it."""
    rng = np.random.default_rng(3)
    odometry = Odometry(head)
    raw, agreeing = [], []
    for i in range(40):
        s = 0.05 * i
        turn = (6 * np.sin(s), 20 * np.sin(0.9 * s), 4 * np.sin(1.9 * s))
        pose = look(0.4 * np.sin(s), 0.1 * np.sin(1.7 * s), 0.3 * (1 - np.cos(s)), turn)
        seen = render(pose)
        network = torch.from_numpy(seen.depth).float() * float(np.exp(rng.normal(0, 0.2)))
        pyramid = {4: torch.from_numpy(seen.points).float()[None]}
        grey = torch.from_numpy(seen.grey).float()
        odometry.update(pyramid, grey, lambda depth=network: depth, CAMERA, i * 50_000_000)
        raw.append(np.median(error(network, pose)))
        agreeing.append(np.median(error(odometry.agreeing(network), pose)))
    assert np.std(raw) > 0.15
    # From one frame to the next; over all of them the room's size settles slowly.
    assert np.std(np.diff(agreeing)) < 0.25 * np.std(np.diff(raw))
    assert np.std(agreeing[10:]) < 0.5 * np.std(raw[10:])


def test_lost_means_as_predicted(head: PointHead) -> None:
    odometry = Odometry(head)
    seen = render(HERE)
    depth = torch.from_numpy(seen.depth).float()
    points = torch.from_numpy(seen.points).float()[None]
    grey = torch.from_numpy(seen.grey).float()
    odometry.update({4: points}, grey, lambda: depth, CAMERA, 0)
    elsewhere = torch.from_numpy(np.random.default_rng(0).normal(50, 20, points.shape)).float()
    noise = torch.from_numpy(np.random.default_rng(1).uniform(0, 1, grey.shape)).float()
    pose = odometry.update({4: elsewhere}, noise, lambda: depth, CAMERA, 50_000_000)
    assert not pose.tracked
    assert odometry.agreeing(depth) is depth


@pytest.fixture(scope="module")
def model() -> OmniStream:
    torch.manual_seed(0)
    config = ModelConfig(
        name="tiny", width=32, depth=2, heads=2, taps=(0, 0, 1, 1), head_width=16,
        model_pixels=64 * 96, patch_embed="efficientnet_lite0", matching_width=8,
    )  # fmt: skip
    return build_model(config).eval()


def frames(count: int) -> list[Frame]:
    """A picture that slides by."""
    rng = np.random.default_rng(5)
    wide = np.kron(rng.integers(0, 256, (16, 40, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    camera = Intrinsics(130.0, 130.0, 95.5, 63.5, 192, 128)
    return [
        Frame(np.ascontiguousarray(wide[:, 3 * i : 3 * i + 192]), i * 50_000_000, camera)
        for i in range(count)
    ]


def test_depth_does_not_depend_on_who_wants_the_pose(model: OmniStream) -> None:
    alone, both = StreamSession(model), StreamSession(model)
    bent = False
    plain = StreamSession(model, consistent_depth=False)
    for frame in frames(6):
        depth_only = alone.step(frame, Outputs(pose=False))
        everything = both.step(frame)
        assert depth_only.pose is None
        assert everything.pose is not None
        assert depth_only.depth is not None
        assert everything.depth is not None
        assert torch.equal(depth_only.depth, everything.depth)
        as_predicted = plain.step(frame).depth
        assert as_predicted is not None
        bent = bent or not torch.equal(as_predicted, everything.depth)
    assert bent


def test_without_it_only_a_wanted_pose_is_found(model: OmniStream) -> None:
    session = StreamSession(model, consistent_depth=False)
    for frame in frames(3):
        result = session.step(frame, Outputs(pose=False))
        assert result.pose is None
    assert session.state_dict()["pose"]["map"]["made"] == 0


def test_the_head_keeps_no_keyframes(model: OmniStream) -> None:
    with pytest.raises(ValueError, match="consistent_depth=False"):
        StreamSession(model, pose="head", consistent_depth=True)
    session = StreamSession(model, pose="head")
    assert session.step(frames(1)[0]).depth is not None
