# SPDX-License-Identifier: Apache-2.0
"""Odometry in an exact room with exact depth: what it must get right and must admit."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from box_room import CAMERA, PointHead, Seen, look, render, shade

from omnistream_ros.stream import geometry, keyframe_map
from omnistream_ros.stream.keyframes import depth_at_cells
from omnistream_ros.stream.odometry import Odometry
from omnistream_ros.stream.result import Pose

STEP_NS = 50_000_000
METRES, DEGREES = 0.02, 0.4  # on 36 frames, 1 m and 40 degrees


@pytest.fixture(scope="module")
def head() -> PointHead:
    return PointHead().requires_grad_(False)


def wander(count: int) -> list[np.ndarray]:
    """A smooth hand-held path from the identity: about 4 cm and 1.5 degrees per frame."""
    t = 0.05 * np.arange(count)
    return [
        look(0.5 * np.sin(s), 0.2 * np.sin(1.7 * s), 0.4 * (1 - np.cos(1.3 * s)),
             (10 * np.sin(1.1 * s), 25 * np.sin(0.9 * s), 8 * np.sin(1.9 * s)))
        for s in t
    ]  # fmt: skip


class Follower:
    """Feeds rendered frames to an Odometry."""

    def __init__(self, head: PointHead) -> None:
        self.odometry = Odometry(head)
        self.frame = 0
        self.depths_asked = 0

    def see(self, seen: Seen, step_ns: int = STEP_NS) -> Pose:
        def give_depth() -> torch.Tensor:
            self.depths_asked += 1
            return torch.from_numpy(seen.depth).float()

        self.frame += 1
        pyramid = {4: torch.from_numpy(seen.points).float()[None]}
        grey = torch.from_numpy(seen.grey).float()
        return self.odometry.update(pyramid, grey, give_depth, CAMERA, self.frame * step_ns)

    def follow(self, path: Iterable[np.ndarray]) -> list[Pose]:
        return [self.see(render(pose)) for pose in path]


def errors(poses: list[Pose], path: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Distances in metres and angles in degrees."""
    metres = [np.linalg.norm(p.translation - t[:3, 3]) for p, t in zip(poses, path, strict=True)]
    degrees = [
        np.degrees(np.linalg.norm(geometry.rotation_vector(matrix(p)[:3, :3].T @ t[:3, :3])))
        for p, t in zip(poses, path, strict=True)
    ]
    return np.array(metres), np.array(degrees)


def matrix(pose: Pose) -> np.ndarray:
    return geometry.rigid(geometry.quaternion_to_matrix(pose.quaternion), pose.translation)


def test_a_hand_held_path(head: PointHead) -> None:
    path = wander(36)
    follower = Follower(head)
    poses = follower.follow(path)
    metres, degrees = errors(poses, path)
    assert all(pose.tracked for pose in poses)
    assert metres.max() < METRES
    assert degrees.max() < DEGREES
    assert 3 <= follower.depths_asked < 40  # several keyframes, but not every frame
    assert follower.odometry.lost_frames == 0


def test_the_covariance_covers_the_error(head: PointHead) -> None:
    path = wander(36)
    poses = Follower(head).follow(path)
    for pose, truth in zip(poses[1:], path[1:], strict=True):
        assert pose.covariance is not None
        assert np.allclose(pose.covariance, pose.covariance.T)
        assert np.linalg.eigvalsh(pose.covariance).min() > 0
        error = pose.translation - truth[:3, 3]
        # within a few standard deviations: the descriptors' bias is not random
        assert error @ np.linalg.solve(pose.covariance[:3, :3], error) < 40.0
    first, last = (np.trace(poses[i].covariance[:3, :3]) for i in (1, -1))  # type: ignore[index]
    assert first < last < 0.3**2


def test_keyframes_that_went_still_say_how_large_the_room_is(
    head: PointHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Depth is too small in the first half of the way and too large in the second."""
    monkeypatch.setattr(keyframe_map, "_KEPT", 3)
    path = wander(96)
    factors = np.where(np.arange(96) < 48, 0.8, 1.25)
    sizes = {}
    for remembered in (48, 1):
        monkeypatch.setattr(keyframe_map, "_REMEMBERED", remembered)
        follower = Follower(head)
        poses = [
            follower.see(seen._replace(depth=factor * seen.depth))
            for seen, factor in zip(map(render, path), factors, strict=True)
        ]
        ours, true = (
            np.linalg.norm(np.diff(places[-20:], axis=0), axis=1).sum()
            for places in ([p.translation for p in poses], [t[:3, 3] for t in path])
        )
        sizes[remembered] = ours / true
    assert sizes[48] == pytest.approx(1.0, abs=0.1)
    assert sizes[1] > sizes[48] + 0.05


def test_pure_rotation_stays_in_place(head: PointHead) -> None:
    path = [look(turn=(0, 1.5 * i, 0.4 * i)) for i in range(24)]
    poses = Follower(head).follow(path)
    metres, degrees = errors(poses, path)
    assert metres.max() < METRES
    assert degrees.max() < DEGREES


def test_a_camera_that_stands_still_does_not_drift(head: PointHead) -> None:
    follower = Follower(head)
    seen = render(look())
    rng = np.random.default_rng(0)
    poses = [
        follower.see(
            Seen(
                seen.points + rng.normal(0, 0.01, seen.points.shape),
                seen.grey + rng.normal(0, 4, seen.grey.shape),
                seen.depth,
            )
        )
        for _ in range(20)
    ]
    metres, degrees = errors(poses, [look()] * 20)
    assert metres.max() < 0.01
    assert degrees.max() < 0.2
    assert follower.depths_asked == 1


def test_somebody_walks_through_the_picture(head: PointHead) -> None:
    path = wander(24)
    follower = Follower(head)
    v, u = np.mgrid[:24, :9] * 0.06
    person = np.stack([u + 10.0, v, 0.2 * np.sin(u)])
    poses = []
    for i, pose in enumerate(path):
        points, grey, depth = render(pose)
        left = i % 23
        points[:, 3:, left : left + 9] = person[:, 3:]  # a quarter of the image, moving
        columns = slice(4 * left, 4 * left + 36)
        grey[12:, columns] = shade(np.kron(person, np.ones((1, 4, 4))))[12:]
        depth[12:, columns] = 0.7
        poses.append(follower.see(Seen(points, grey, depth)))
    metres, degrees = errors(poses, path)
    assert metres.max() < 2 * METRES
    assert degrees.max() < 2 * DEGREES


def one_colour(seen: Seen) -> Seen:
    return Seen(np.full_like(seen.points, 0.5), np.full_like(seen.grey, 90.0), seen.depth)


def black(seen: Seen) -> Seen:
    return Seen(np.full_like(seen.points, np.nan), np.zeros_like(seen.grey), seen.depth)


def noise(seen: Seen) -> Seen:
    rng = np.random.default_rng(int(1e6 * seen.grey.sum()))
    points, grey = (rng.normal(0, 9, image.shape) for image in (seen.points, seen.grey))
    return Seen(points, 128 + 5 * grey, seen.depth)


@pytest.mark.parametrize("blind", [one_colour, black, noise])
def test_without_anything_to_see_it_says_lost_and_finds_back(
    head: PointHead, blind: Callable[[Seen], Seen]
) -> None:
    path = wander(20)
    follower = Follower(head)
    before = follower.follow(path[:12])
    dark = [follower.see(blind(render(pose))) for pose in path[12:14]]
    after = follower.follow(path[14:])
    assert all(pose.tracked for pose in before)
    assert not any(pose.tracked for pose in dark)
    assert follower.odometry.lost_frames == 2
    # The camera goes on as it did, and less is known.
    metres, _ = errors(dark, path[12:14])
    assert metres.max() < 0.1
    variances = [np.trace(pose.covariance) for pose in (before[-1], *dark)]  # type: ignore[arg-type]
    assert variances[0] < variances[1] < variances[2]
    # The keyframe has survived two blind frames: nothing is lost for good.
    metres, degrees = errors(after, path[14:])
    assert all(pose.tracked for pose in after)
    assert metres.max() < METRES
    assert degrees.max() < DEGREES


def test_never_a_texture_is_never_an_error(head: PointHead) -> None:
    follower = Follower(head)
    wall = one_colour(render(look()))
    poses = [follower.see(wall) for _ in range(12)]
    assert all(np.isfinite(matrix(pose)).all() for pose in poses)
    assert all(np.isfinite(pose.covariance).all() for pose in poses)  # type: ignore[arg-type]
    assert not any(pose.tracked for pose in poses[1:])
    assert np.linalg.norm(poses[-1].translation) < 1e-6
    assert follower.odometry.lost_frames == 11


def test_after_a_long_blindness_it_tracks_again_from_where_it_guessed(head: PointHead) -> None:
    path = wander(30)
    follower = Follower(head)
    follower.follow(path[:8])
    for pose in path[8:16]:
        follower.see(black(render(pose)))
    poses = follower.follow(path[16:])
    assert follower.odometry.lost_frames <= 8 + 4
    assert all(pose.tracked for pose in poses[4:])
    # Motion relative to the first frame after it can see again is right.
    start, truth = matrix(poses[5]), path[21]
    found = np.linalg.inv(start) @ matrix(poses[-1])
    expected = np.linalg.inv(truth) @ path[-1]
    assert np.linalg.norm(found[:3, 3] - expected[:3, 3]) < 0.05


def test_a_new_epoch_goes_on_from_the_last_pose(head: PointHead) -> None:
    path = wander(20)
    follower = Follower(head)
    last = follower.follow(path[:10])[-1]
    follower.odometry.begin_epoch()
    poses = follower.follow(path[12:])  # two frames were missed
    assert np.allclose(matrix(poses[0]), matrix(last), atol=1e-12)
    found = np.linalg.inv(matrix(poses[0])) @ matrix(poses[-1])
    expected = np.linalg.inv(path[12]) @ path[-1]
    assert np.linalg.norm(found[:3, 3] - expected[:3, 3]) < 0.03


@pytest.mark.parametrize("step_ns", [0, 1, 10**12])
def test_strange_clocks(head: PointHead, step_ns: int) -> None:
    follower = Follower(head)
    path = wander(8)
    poses = [follower.see(render(pose), step_ns) for pose in path]
    metres, _ = errors(poses, path)
    assert metres.max() < 0.05


def test_save_and_restore_to_the_last_bit(head: PointHead) -> None:
    path = wander(24)
    first, second = Follower(head), Follower(head)
    first.follow(path[:12])
    buffer = io.BytesIO()
    torch.save(first.odometry.state_dict(), buffer)
    buffer.seek(0)
    second.odometry.load_state_dict(torch.load(buffer, weights_only=False))
    second.frame = first.frame
    for a, b in zip(first.follow(path[12:]), second.follow(path[12:]), strict=True):
        assert np.array_equal(matrix(a), matrix(b))
        assert np.array_equal(a.covariance, b.covariance)  # type: ignore[arg-type]


def test_depth_at_cells_is_exact_on_planes() -> None:
    rays = geometry.pixel_rays(CAMERA, dtype=torch.float64)
    normal = torch.tensor([0.2, -0.3, 1.0], dtype=torch.float64)
    depth = 2.0 / torch.einsum("i,ihw->hw", normal, rays)
    cells = CAMERA.resized(CAMERA.width // 4, CAMERA.height // 4)
    points = geometry.back_project(depth_at_cells(depth), cells)
    distance = torch.einsum("i,ihw->hw", normal, points)
    assert torch.allclose(distance, torch.full_like(distance, 2.0), rtol=1e-9)
