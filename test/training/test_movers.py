# SPDX-License-Identifier: Apache-2.0
"""What moves besides the camera: its way, its pictures, its labels and the sentence about it."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_clips import write_clip

from omnistream_ros.model import NANO, build_model
from omnistream_ros.training import clips as clips_module
from omnistream_ros.training import movers as movers_module
from omnistream_ros.training.annotations import (
    Annotation,
    back_project,
    inside,
    label,
    read_annotation,
)
from omnistream_ros.training.augment import AugmentSettings, mirror
from omnistream_ros.training.camera_path import CameraPath, PathError, make_path
from omnistream_ros.training.clip_files import Clip, read_clip
from omnistream_ros.training.clips import (
    RenderedClip,
    SeedError,
    pinhole,
    training_clip,
    write_training_clip,
)
from omnistream_ros.training.data import ClipSampler
from omnistream_ros.training.furnish import Item
from omnistream_ros.training.matching_pairs import PairSampler, hide_movers, observe
from omnistream_ros.training.mesh import MeshBuilder, Paint
from omnistream_ros.training.movement import Mover, movement
from omnistream_ros.training.movers import find_movers, moved
from omnistream_ros.training.render import Renderer, look_at
from omnistream_ros.training.scenes import SceneMaker, transform
from omnistream_ros.training.stage import Instance, Light, Pane, Stage, Sun
from omnistream_ros.training.train_matching import MatchingSettings, observe_clips
from omnistream_ros.training.words import Words, describe

SEED = 10000023  # the first that is tried
WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def clip(maker: SceneMaker, renderer: Renderer) -> RenderedClip:
    """The first in which something moves in some takes, and in others nothing."""
    for seed in range(SEED, SEED + 20):
        with contextlib.suppress(SeedError):
            made = training_clip(seed, maker, renderer)
            if any(made.moving) and not all(made.moving):
                return made
    pytest.fail("in twenty clips nothing moves")


def _takes(clip: RenderedClip) -> list[slice]:
    bounds = [*clip.cuts, len(clip.rgb)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def _points(clip: RenderedClip, depth: np.ndarray, frame: int) -> np.ndarray:
    """Where in the room each pixel lies, (H * W, 3)."""
    rows, columns = np.arange(HEIGHT), np.arange(WIDTH)
    camera = np.array(clip.intrinsics)
    return back_project(depth[frame], clip.poses[frame], camera, rows, columns)


def test_a_seed_moves_the_same_things_the_same_way(clip, maker, renderer) -> None:
    again = training_clip(clip.scene.seed, maker, renderer)
    assert again.info() == clip.info()
    np.testing.assert_array_equal(again.rgb, clip.rgb)
    np.testing.assert_array_equal(again.depth, clip.depth)


def test_all_else_is_as_if_nothing_moved(clip, maker, renderer, monkeypatch) -> None:
    monkeypatch.setattr(clips_module, "find_movers", lambda *_: ())
    still = training_clip(clip.scene.seed, maker, renderer)
    assert still.scene.items == clip.scene.items
    assert still.motions == clip.motions
    assert "moving" not in still.info()
    assert {**still.info(), "moving": clip.info()["moving"]} == clip.info()
    np.testing.assert_array_equal(still.poses, clip.poses)
    np.testing.assert_array_equal(still.stamps, clip.stamps)
    moved_pixels = 0
    for movers, take in zip(clip.moving, _takes(clip), strict=True):
        same = slice(take.start, take.start + 1) if movers else take
        np.testing.assert_array_equal(still.rgb[same], clip.rgb[same])
        np.testing.assert_array_equal(still.depth[same], clip.depth[same])
        # Depth changes where something comes to be, or was, and nowhere else.
        for frame in range(take.start + 1, take.stop) if movers else ():
            new, old = (_points(clip, c.depth, frame) for c in (clip, still))
            changed = (np.abs(clip.depth[frame] / still.depth[frame] - 1) > 0.01).ravel()
            explained = np.zeros(len(new), bool)
            for mover in movers:
                now = inside(new, mover.boxes[frame - take.start], 0.02, -0.02)
                moved_pixels += (now & changed).sum()
                explained |= now | inside(old, mover.boxes[0], 0.02, -0.02)
            # A pixel of an edge lies between.
            near = cv2.dilate(explained.reshape(HEIGHT, WIDTH).astype(np.uint8), np.ones((3, 3)))
            assert (near.ravel() > 0)[changed].all()
    assert moved_pixels > 100


def test_every_frame_is_of_its_own_moment(clip, maker, renderer) -> None:
    """As if all had been put where it is by then, which a frame earlier it was not."""
    for movers, take in zip(clip.moving, _takes(clip), strict=True):
        stage = maker.stage(clip.scene, clip.poses[take, :3, 3], clip.intrinsics[0])
        for frame in range(take.start + 1, take.stop) if movers else ():
            depths = []
            for moment in (frame, frame - 1):
                instances = list(stage.instances)
                for mover in movers:
                    x, y, z, yaw, *_ = mover.boxes[moment - take.start]
                    item = replace(clip.scene.items[mover.index], position=(x, y, z), yaw=yaw)
                    known = maker.library.assets.get(item.key)
                    place = transform(item, np.ones(3) if known is None else np.array(known.size))
                    instances[mover.index] = replace(instances[mover.index], transform=place)
                renderer.load(replace(stage, instances=instances))
                depths.append(renderer.view(clip.poses[frame], clip.intrinsics).depth)
            right, late = (np.abs(clip.depth[frame] / depth - 1) > 1e-3 for depth in depths)
            assert right.mean() < 1e-3
            assert late.mean() > 5 * right.mean()


def _filled(box: np.ndarray) -> np.ndarray:
    """Points all over a box (7,)."""
    x, y, z, yaw, *size = box
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 6)] * 3), -1).reshape(-1, 3) * size
    c, s = np.cos(yaw), np.sin(yaw)
    across, along, up = grid.T
    return np.stack(
        [x + c * across - s * along, y + s * across + c * along, z + up + size[2] / 2], 1
    )


def test_ways_are_free_and_of_the_speeds_of_a_room(maker, monkeypatch) -> None:
    """Told by points of the movers in the boxes of others, which is not how ways are found."""
    monkeypatch.setattr(movers_module, "_SHARE", 1.0)
    monkeypatch.setattr(movers_module, "_seen", lambda scene, *_: list(range(len(scene.items))))
    kinds, pairs = set(), 0
    for seed in range(10):
        scene, rng = maker.make(seed), np.random.default_rng(seed)
        try:
            path = make_path(scene, rng, 16, 6.0)
        except PathError:
            continue
        movers = find_movers(scene, path, {}, pinhole(WIDTH, HEIGHT, 70), rng)
        pairs += len(movers) == 2
        rest = np.array([item.box for item in scene.items])
        for mover in movers:
            boxes = np.repeat(rest[None], 16, axis=0)
            for other in movers:
                boxes[:, other.index] = other.boxes
            np.testing.assert_array_equal(mover.boxes[0], rest[mover.index])
            for frame, (_, _, z, *_, height) in enumerate(mover.boxes):
                points = _filled(mover.boxes[frame])
                assert scene.room.wall_distance(points[:, :2]).min() > 0
                assert -0.001 < z < scene.room.height - height - 0.2
                above = points[points[:, 2] > z + 0.021]  # it may stand on things
                for number in set(range(len(rest))) - {mover.index}:
                    assert not inside(above, boxes[frame, number], 0, 0).any(), (seed, frame)
                camera = path.poses[frame, :3, 3]
                assert np.linalg.norm(points - camera, axis=1).min() > 0.4
            steps = np.linalg.norm(np.diff(mover.boxes[:, :3], axis=0), axis=1)
            turns = np.diff(mover.boxes[:, 3])
            if steps.max() > 0:
                assert 0.0999 < steps.min() * 6 <= steps.max() * 6 < 0.8001
            else:
                assert np.degrees(np.abs(turns).min()) * 6 > 19.9
            rises = mover.boxes[-1, 2] > mover.boxes[0, 2]
            kinds.add("carried" if rises else "pushed" if steps.max() > 0 else "turned")
    assert kinds == {"carried", "pushed", "turned"}
    assert pairs


def test_what_moves_keeps_clear_of_the_camera(maker, monkeypatch) -> None:
    monkeypatch.setattr(movers_module, "_SHARE", 1.0)
    monkeypatch.setattr(movers_module, "_seen", lambda *_: [0])
    rooms = (maker.make(seed, "living room") for seed in range(SEED, SEED + 20))
    scene = next(s for s in rooms if s.room.wall_distance(np.zeros((1, 2)))[0] > 1)
    box = Item("box:0", "box", (0.0, 0.0, 0.0), 0.0, (0.3, 0.3, 0.3))
    alone = replace(scene, items=(box,))
    pose = look_at(np.array([0.65, 0, 0.3]), np.zeros(3))
    path = CameraPath("sway", np.arange(16) / 6, np.repeat(pose[None], 16, axis=0))
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        for mover in find_movers(alone, path, {}, pinhole(WIDTH, HEIGHT, 70), rng):
            found += 1
            points = np.concatenate([_filled(b) for b in mover.boxes])
            assert np.linalg.norm(points - pose[:3, 3], axis=1).min() > 0.4
    assert found > 30


def _cube(size: float) -> MeshBuilder:
    builder = MeshBuilder()
    builder.box(np.array([-size, -size, 0]), np.array([size, size, 2 * size]), np.eye(4), Paint())
    return builder


def _lit_floor(cube: np.ndarray, sun: Sun | None) -> Stage:
    """A cube, at `cube` (4, 4), and a lamp above a floor; another cube bounds where the sun is."""
    no_images = np.zeros((0, 256, 256, 4), np.uint8)
    floor = MeshBuilder()
    floor.polygon(np.array([[-5, -5, 0.0], [5, -5, 0], [5, 5, 0], [-5, 5, 0]]), Paint((1.0,) * 3))
    far = np.eye(4)
    far[:2, 3] = 3
    return Stage(
        [
            Instance(_cube(0.2).mesh(no_images), cube),
            Instance(_cube(0.2).mesh(no_images), far),
            Instance(floor.mesh(no_images), np.eye(4), shades_sun=False),
        ],
        (Light((0.0, 0.0, 2.0), (2.0, 2.0, 2.0), None, 150.0),),
        (0.2,) * 3,
        (0.2,) * 3,
        np.full((256, 256, 4), 128, np.uint8),
        (Pane((3.0, 0, 3.0), (0, 3.0, 0), (0, 0, 3.0), (0,) * 3, True),),
        sun,
    )


@pytest.mark.parametrize("sun", [None, Sun((0.6, 0.0, 0.8), (2.0,) * 3)])
def test_what_has_moved_is_drawn_as_if_it_had_always_stood_there(renderer, sun) -> None:
    boxes = np.array([[-0.6, 0, 0, 0.3, 0.4, 0.4, 0.4], [0.5, 0.3, 0.4, 1.1, 0.4, 0.4, 0.4]])
    first = np.eye(4)
    first[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    first[:3, 3] = boxes[0, :3]
    second = moved(first, Mover(0, boxes), 1)
    np.testing.assert_allclose(second[:3, 3], boxes[1, :3])
    assert np.arctan2(second[1, 0], second[0, 0]) == pytest.approx(1.1)
    np.testing.assert_allclose(moved(first, Mover(0, boxes), 0), first, atol=1e-12)

    camera, pose = pinhole(WIDTH, HEIGHT, 70), look_at(np.array([0, -3.0, 2.5]), np.zeros(3))
    renderer.load(_lit_floor(first, sun))
    before = renderer.view(pose, camera)
    renderer.move({0: second})
    after = renderer.view(pose, camera)
    renderer.load(_lit_floor(second, sun))
    anew = renderer.view(pose, camera)
    np.testing.assert_array_equal(after.depth, anew.depth)
    assert (after.depth != before.depth).mean() > 0.01
    if sun is None:
        np.testing.assert_array_equal(after.radiance, anew.radiance)
    # The map of the sun keeps the extent that it had: edges of shadows may be a texel off.
    wrong = np.abs(after.radiance - anew.radiance).max(axis=2) > 0.1
    assert wrong.mean() < 0.005
    assert (np.abs(after.radiance - before.radiance).max(axis=2) > 0.1).mean() > 0.03


RIGHT, AHEAD, UP = np.eye(3)[[0, 1, 2]]


@pytest.mark.parametrize(
    ("shift", "turn", "expected"),
    [
        (0.2 * RIGHT, 0.0, "moving to the right"),
        (-0.2 * RIGHT + 0.1 * UP, 0.0, "moving to the left"),
        (0.2 * AHEAD + 0.1 * RIGHT, 2.0, "moving away from the camera"),
        (-0.2 * AHEAD, 0.0, "moving towards the camera"),
        (0.2 * UP + 0.1 * RIGHT, 0.0, "moving up"),
        (-0.2 * UP, 0.0, "moving down"),
        (0.04 * RIGHT, 0.2, "turning"),
        (0.04 * RIGHT, -0.2, "turning"),
        (0.04 * RIGHT, 0.05, ""),
    ],
)
@pytest.mark.parametrize("pitch", [0.0, -0.9, 0.4])
@pytest.mark.parametrize("heading", [0.0, 2.0])
def test_directions_are_those_of_the_camera(
    shift: np.ndarray, turn: float, expected: str, pitch: float, heading: float
) -> None:
    c, s = np.cos(heading), np.sin(heading)
    around = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    eye = np.array([1.0, -2, 1.5])
    view = look_at(eye, eye + around @ [0, np.cos(pitch), np.sin(pitch)])
    boxes = np.tile([*(eye + around @ [0.3, 2, -1]), 0, 0.4, 0.4, 0.4], (5, 1))
    boxes[:, :3] += np.linspace(0, 1, 5)[:, None] * (around @ shift)
    boxes[:, 3] += np.linspace(0, turn, 5)
    assert movement(boxes, view) == expected
    swap = {"right": "left", "left": "right", "up": "down", "down": "up"}
    swap |= {"away from": "towards", "towards": "away from"}
    other = next((expected.replace(a, b) for a, b in swap.items() if a in expected), expected)
    assert movement(boxes[::-1], view) == other
    # Left and right change in a mirror, nothing else does.
    flip = np.diag([-1.0, 1, 1, 1])
    seen = movement(Mover(0, boxes).mirrored().boxes, flip @ view @ flip)
    aside = "right" in expected or "left" in expected
    assert seen == (other if aside else expected)
    assert movement(boxes[:1], view) == ""


def test_too_little_for_its_distance_is_not_told_nor_the_way_of_what_comes_back() -> None:
    view = look_at(np.zeros(3), AHEAD)
    boxes = np.tile([0, 6.0, 0, 0, 0.4, 0.4, 0.4], (3, 1))
    boxes[:, 0] = [0, 0.05, 0.1]
    assert movement(boxes, view) == ""
    boxes[:, 1] = 2
    assert movement(boxes, view) == "moving to the right"
    boxes[:, 0] = [0, 0.1, 0.02]
    assert movement(boxes, view) == "moving"


def test_a_camera_that_looks_down_and_a_little_backwards_keeps_its_ahead() -> None:
    view = look_at(np.array([0.0, 0, 2]), np.array([0.0, 0.2, 0]))
    c, s = np.cos(0.4), np.sin(0.4)
    view[:3, :3] = view[:3, :3] @ [[1, 0, 0], [0, c, s], [0, -s, c]]
    assert view[1, 2] < -0.1, "the optical axis points backwards"
    boxes = np.zeros((2, 7))
    boxes[1, 1] = 0.3
    assert movement(boxes, view) == "moving away from the camera"


# A camera that looks along y at a wall 4 m away, which passes to the left while a chair, 2 m away,
# moves to the right: two takes of six frames, the chair moves in the second. A chair stands still.
FRAMES, STEP = 6, 0.1


def _tiny_clip(path: Path) -> Clip:
    size, focal = (96, 128), 100.0
    camera = np.array([focal, focal, 63.5, 47.5])
    poses = np.repeat(look_at(UP, UP + AHEAD)[None], 2 * FRAMES, axis=0)
    # The middle of the room is x = 0: a mirror must be told from where the camera is.
    poses[:, 0, 3] = -1.0 + 0.02 * np.arange(2 * FRAMES)
    u, v = np.meshgrid(np.arange(128), np.arange(96))
    depth = np.full((2 * FRAMES, *size), 4.0, np.float32)
    still = [-1.8, 2.2, 0.5, 0.0, 0.4, 0.4, 1.0]
    boxes = np.tile([-1.2, 2.2, 0.5, 0.0, 0.4, 0.4, 1.0], (FRAMES, 1))
    boxes[:, 0] += STEP * np.arange(FRAMES)
    for frame in range(2 * FRAMES):
        place = boxes[max(frame - FRAMES, 0)]
        for x in (place[0], still[0]):
            shown = np.abs((u - camera[2]) / focal * 2 + poses[frame, 0, 3] - x) < 0.2
            depth[frame][shown & (np.abs((v - camera[3]) / focal * 2) < 0.5)] = 2.0
    rgb = np.random.default_rng(0).integers(0, 255, (*depth.shape, 3)).astype(np.uint8)
    clip = Clip(rgb, depth, poses, camera)
    write_clip(path, clip, cuts=np.array([0, FRAMES]))
    with np.load(path) as arrays:
        stored = dict(arrays)
    info = {
        "room": "office",
        "motion": "walk, walk",
        "height": 2.5,
        "corners": [[-9, -4], [9, -4], [9, 4], [-9, 4]],
        "objects": ["Chair", "Chair"],
        "boxes": [boxes[0].tolist(), still],
        "moving": [[], [{"object": 0, "boxes": boxes.tolist()}]],
    }
    stored["info"] = np.frombuffer(json.dumps(info).encode(), np.uint8)
    np.savez(path, **stored)
    return clip


def _words(path: Path, clip: Clip, take: int, frames: list[int], mirrored: bool = False) -> Words:
    chosen = clip.frames(np.array(frames) + take * FRAMES)
    words = describe(path, take, np.array(frames), chosen, mirror(chosen) if mirrored else chosen)
    assert words is not None
    return words


def test_captions_tell_what_moves_and_where_to(tmp_path: Path) -> None:
    path = tmp_path / "clip_000001.npz"
    clip = _tiny_clip(path)

    def told(take: int, frames: list[int], mirrored: bool = False) -> str:
        caption = _words(path, clip, take, frames, mirrored).caption
        return caption.removeprefix("the camera walks through an office with ")

    assert told(0, [0, 1, 2, 3]) == told(0, [3, 0], True) == "two chairs"
    assert told(1, [0, 1, 2, 3]) == "a chair; another chair is moving to the right"
    assert told(1, [3, 2, 1, 0]) == "a chair; another chair is moving to the left"
    assert told(1, [0, 1, 2, 3], True) == "a chair; another chair is moving to the left"
    assert told(1, [3, 2, 1, 0], True) == "a chair; another chair is moving to the right"
    assert told(1, [0, 3, 0]) == "a chair; another chair is moving"
    assert _words(path, clip, 1, [2]).caption == "an office with two chairs"
    # Where it cannot be seen, or in one frame only, it is not told.
    hidden = replace(clip, depth=np.minimum(clip.depth, 1.5))
    assert "moving" not in _words(path, hidden, 1, [0, 1, 2, 3]).caption
    hidden.depth[FRAMES] = clip.depth[FRAMES]
    assert "moving" not in _words(path, hidden, 1, [0, 1, 2, 3]).caption


def test_drawn_clips_know_which_frames_they_are(tmp_path: Path) -> None:
    """Of all takes, forwards, backwards and mirrored: left and right are those of the pictures."""
    _tiny_clip(tmp_path / "clip_000001.npz")
    settings = AugmentSettings(zoom_probability=0, roll_probability=0, photometric=False)
    sampler = ClipSampler(
        tmp_path, seed=0, frames_per_step=2, lengths={2: 1.0}, settings=settings, described=True
    )
    sampler.refresh()
    told = []
    for step in range(30):
        batch = sampler.batch(step)
        assert batch.words is not None
        words = batch.words[0]
        assert words is not None
        told.append(re.sub(r".*to the |.*chairs", "", words.caption))
        if not told[-1]:
            continue
        # The gap between the chairs grows to that side of the one that stands, which is the outer.
        near = [np.flatnonzero(d[48] < 3) for d in batch.depth[0].numpy()]
        gaps = [int(np.diff(columns).max()) for columns in near]
        assert gaps[0] != gaps[1]
        other_is_left = near[0].mean() < 63.5
        assert (told[-1] == "right") == ((gaps[1] > gaps[0]) == other_is_left)
    assert set(told) == {"", "left", "right"}


def test_labels_follow_what_moves(tmp_path: Path) -> None:
    path = tmp_path / "clip_000001.npz"
    clip = _tiny_clip(path)
    annotation = read_annotation(path)
    assert annotation is not None
    frames = np.array([0, 3, 5])
    seen = clip.frames(frames + FRAMES)
    boxes = annotation.boxes_in(1, frames)
    labels = label(annotation, seen.depth, seen.poses, seen.intrinsics, boxes=boxes)
    for t, depth in enumerate(seen.depth):
        near = depth < 3
        assert (labels.objects[t][near] >= 0).all()
        assert (labels.objects[t][~near] == -1).all()
        assert {0, 1} == set(labels.objects[t][near].tolist())
    # Boxes that stay where they were would miss it.
    still = label(annotation, seen.depth, seen.poses, seen.intrinsics)
    assert (still.objects[2] == 0).sum() == 0
    flipped = mirror(seen)
    other = annotation.mirrored()
    found = label(
        other, flipped.depth, flipped.poses, flipped.intrinsics, boxes=other.boxes_in(1, frames)
    )
    np.testing.assert_array_equal(found.objects[:, :, ::-1], labels.objects)


def test_a_rendered_clip_tells_its_movers_to_who_reads_it(clip, tmp_path: Path) -> None:
    path = tmp_path / "clip_000001.npz"
    write_training_clip(clip, path)
    annotation = read_annotation(path)
    assert annotation is not None
    told = 0
    for number, (movers, take) in enumerate(zip(clip.moving, _takes(clip), strict=True)):
        frames = np.arange(take.stop - take.start)
        stored = read_clip(path, lambda bounds, take=take: np.arange(take.start, take.stop))
        boxes = annotation.boxes_in(number, frames)
        labels = label(annotation, stored.depth, stored.poses, stored.intrinsics, boxes=boxes)
        for mover in movers:
            np.testing.assert_allclose(boxes[:, mover.index], mover.boxes, atol=6e-4)
            assert (labels.objects == mover.index).mean(axis=(1, 2)).max() > 0.004
        words = describe(path, number, frames, stored, stored)
        assert words is not None
        told += "moving" in words.caption or "turning" in words.caption
        assert movers or "; " not in words.caption
    assert told


def test_clips_of_a_time_when_nothing_moved_are_read_as_ever() -> None:
    info = {
        "room": "office",
        "motion": "walk",
        "height": 2.5,
        "corners": [[0, 0], [4, 0], [4, 3], [0, 3]],
        "objects": ["Chair"],
        "boxes": [[2, 1.5, 0, 0, 0.4, 0.4, 0.9]],
    }
    annotation = Annotation.of_info(info)
    assert annotation is not None
    assert annotation.movers(0) == annotation.mirrored().movers(3) == ()
    np.testing.assert_array_equal(annotation.boxes_in(2, np.arange(5))[4], annotation.boxes)


def test_pairs_for_matching_leave_movers_out(tmp_path: Path) -> None:
    """They are not where depth and the camera's motion say."""
    path = tmp_path / "clip_000001.npz"
    _tiny_clip(path)
    annotation = read_annotation(path)
    assert annotation is not None
    second = read_clip(path, lambda bounds: np.arange(bounds[1], bounds[2]))
    (mover,) = annotation.movers(1)
    hidden = hide_movers(second, annotation.movers(1))
    rows, columns = np.arange(96), np.arange(128)
    for t in range(FRAMES):
        points = back_project(second.depth[t], second.poses[t], second.intrinsics, rows, columns)
        on_it = inside(points, mover.boxes[t], 0.01, -0.01).reshape(96, 128)
        assert on_it.sum() > 200
        assert np.isnan(hidden.depth[t][on_it]).all()
        assert np.isnan(hidden.depth[t]).sum() < 1.5 * on_it.sum()
    assert np.isfinite(second.depth).all()
    assert hide_movers(second, ()) is second

    torch.manual_seed(0)
    tiny = replace(NANO, name="tiny", width=24, heads=3, head_width=8, depth=1, taps=(0,) * 4)
    model = build_model(tiny).eval()

    def share_that_moves(clip: Clip) -> float:
        """Of the places that pairs say to see again, the share that lie on the mover."""
        observed = observe(model, clip)
        batch = PairSampler([observed], seed=0, pairs=8).batch(0)
        near = (batch.points[..., 2] < 3) & (batch.points[..., 0].abs() < 0.55)
        return float((near & batch.visible).float().mean())

    assert share_that_moves(second) > 0.02
    assert share_that_moves(hidden) < 0.2 * share_that_moves(second)
    settings = MatchingSettings(
        clips=tmp_path, run=tmp_path / "run", clip_count=1, frames_per_clip=12
    )
    observed = list(observe_clips(model, settings, [path.name]))
    unknown = sorted(bool(take.true_depth.isnan().any()) for take in observed)
    assert unknown == [False, True]  # of the take in which nothing moves all is kept
