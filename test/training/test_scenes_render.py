# SPDX-License-Identifier: Apache-2.0
"""Rendering: exact depth, agreement of pose and depth, reproducible scenes, recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnistream_ros.evaluation.recordings import open_recording
from omnistream_ros.training.assets import attribution
from omnistream_ros.training.camera_path import make_path
from omnistream_ros.training.clip_recording import ClipSettings, render_clip, write_recording
from omnistream_ros.training.clips import (
    SeedError,
    pinhole,
    training_clip,
    write_training_clip,
)
from omnistream_ros.training.furnish import _zone, overlap
from omnistream_ros.training.mesh import MeshBuilder, Paint
from omnistream_ros.training.render import Renderer, look_at
from omnistream_ros.training.room import RADIATOR_DEPTH
from omnistream_ros.training.scenes import SceneMaker
from omnistream_ros.training.stage import Instance, Light, Pane, Stage, Sun

WIDTH, HEIGHT = 96, 72


def plain_stage(builder: MeshBuilder, lights: tuple[Light, ...] = ()) -> Stage:
    mesh = builder.mesh(np.zeros((0, 256, 256, 4), np.uint8))
    grain = np.full((256, 256, 4), 128, np.uint8)
    return Stage([Instance(mesh, np.eye(4))], lights, (0.3,) * 3, (0.3,) * 3, grain)


def warped_depth_error(depth: np.ndarray, poses: np.ndarray, camera) -> np.ndarray:
    """Relative difference (H, W) of depth carried from view 1 into view 0 to depth seen there.

    NaN where it leaves the image. Points between pixels are compared to bilinear inverse depth,
    which is exact on planes.
    """
    fx, fy, cx, cy = camera
    height, width = depth.shape[1:]
    v, u = np.mgrid[0:height, 0:width]
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u, float)], -1)
    world = (rays * depth[1][..., None]) @ poses[1, :3, :3].T + poses[1, :3, 3]
    there = (world - poses[0, :3, 3]) @ poses[0, :3, :3]
    x, y = fx * there[..., 0] / there[..., 2] + cx, fy * there[..., 1] / there[..., 2] + cy
    seen = (x > 0) & (x < width - 1.001) & (y > 0) & (y < height - 1.001) & (there[..., 2] > 0)
    i, j = np.where(seen, y, 0).astype(int), np.where(seen, x, 0).astype(int)
    a, b = np.where(seen, y, 0) - i, np.where(seen, x, 0) - j
    inverse = 1 / depth[0]
    found = (
        inverse[i, j] * (1 - a) * (1 - b)
        + inverse[i, j + 1] * (1 - a) * b
        + inverse[i + 1, j] * a * (1 - b)
        + inverse[i + 1, j + 1] * a * b
    )
    return np.where(seen, np.abs(there[..., 2] * found - 1), np.nan)


def test_depth_of_a_slanted_plane_is_exact(renderer: Renderer) -> None:
    builder = MeshBuilder()
    corners = np.array([[-20, -20, 0.0], [20, -20, 0], [20, 20, 0], [-20, 20, 0]])
    builder.polygon(corners, Paint())
    renderer.load(plain_stage(builder))
    camera = pinhole(WIDTH, HEIGHT, 70)
    pose = look_at(np.array([0.3, -1.0, 1.4]), np.array([0.8, 1.0, 0.0]))
    depth = renderer.view(pose, camera).depth
    fx, fy, cx, cy = camera
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u, float)], -1) @ pose[:3, :3].T
    true = -1.4 / rays[..., 2]
    hit = (true > 0.1) & (true < 4)  # beyond, one pixel spans more than an edge's 5 %
    assert hit.mean() > 0.6
    assert np.abs(depth / true - 1)[hit].max() < 1e-3
    assert np.median(np.abs(depth / true - 1)[hit]) < 5e-5


def test_edges_belong_to_one_side_and_not_to_the_air_between(renderer: Renderer) -> None:
    builder = MeshBuilder()
    far = np.array([[3, 9, -9], [3, -9, -9], [3, -9, 9.0], [3, 9, 9]])
    near = np.array([[1, 0.4, -0.3], [1, -0.2, -0.33], [1, -0.25, 0.3], [1, 0.35, 0.35]])
    builder.polygon(far, Paint())
    builder.polygon(near, Paint())
    renderer.load(plain_stage(builder))
    pose = look_at(np.zeros(3), np.array([1.0, 0, 0]))
    depth = renderer.view(pose, pinhole(WIDTH, HEIGHT, 80)).depth
    assert (np.abs(depth - 1) < 1e-3).any()
    assert ((np.abs(depth - 1) < 2e-3) | (np.abs(depth - 3) < 6e-3)).all()


def test_light_falls_off_and_shadows_fall(renderer: Renderer) -> None:
    builder = MeshBuilder()
    floor = np.array([[-5, -5, 0.0], [5, -5, 0], [5, 5, 0], [-5, 5, 0]])
    builder.polygon(floor, Paint((1.0, 1.0, 1.0)))
    builder.box(np.array([-0.3, -0.3, 1.0]), np.array([0.3, 0.3, 1.1]), np.eye(4), Paint())
    lamp = Light((0.0, 0.0, 2.0), (4.0, 4.0, 4.0), None, 150.0)
    camera = pinhole(WIDTH, HEIGHT, 60)
    pose = look_at(np.array([0.0, -3.0, 0.9]), np.array([0.0, 0.0, 0.0]))
    looks = []
    for view in (None, 150.0):
        light = Light(lamp.position, lamp.colour, None, view)
        renderer.load(plain_stage(builder, (light,)))
        looks.append(renderer.view(pose, camera))
    row, column = HEIGHT // 2, WIDTH // 2  # the floor's origin, under the box
    assert looks[0].depth[row, column] == pytest.approx(np.hypot(3, 0.9), rel=0.02)
    shaded = looks[1].radiance[row, column].mean() / looks[0].radiance[row, column].mean()
    assert shaded < 0.5
    beside = looks[1].radiance[row, 4].mean() / looks[0].radiance[row, 4].mean()
    assert beside == pytest.approx(1, abs=0.1)
    assert looks[0].radiance[row, column].mean() > 1.3 * looks[0].radiance[row, 2].mean()


def _on_floor(pose: np.ndarray, camera: tuple[float, ...], depth: np.ndarray) -> np.ndarray:
    """Where in the world each pixel lies, (H, W, 3)."""
    fx, fy, cx, cy = camera
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u, float)], -1)
    return (rays * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]


def test_the_sun_draws_the_window_on_the_floor_and_a_box_shades_it(renderer: Renderer) -> None:
    floor, box = MeshBuilder(), MeshBuilder()
    floor.polygon(np.array([[-5, -5, 0.0], [5, -5, 0], [5, 5, 0], [-5, 5, 0]]), Paint((1.0,) * 3))
    box.box(np.array([-0.2, -0.2, 0.3]), np.array([0.2, 0.2, 0.5]), np.eye(4), Paint())
    no_images = np.zeros((0, 256, 256, 4), np.uint8)
    window = Pane((2.0, 0, 2.0), (0, 0.8, 0), (0, 0, 0.5), (0,) * 3, True)
    half = np.sqrt(0.5)
    stage = Stage(
        [
            Instance(floor.mesh(no_images), np.eye(4), shades_sun=False),
            Instance(box.mesh(no_images), np.eye(4)),
        ],
        (),
        (0.3,) * 3,
        (0.3,) * 3,
        np.full((256, 256, 4), 128, np.uint8),
        (window,),
        Sun((half, 0.0, half), (2.0,) * 3),
    )
    renderer.load(stage)
    camera = pinhole(WIDTH, HEIGHT, 60)
    pose = look_at(np.array([-0.4, -3.0, 2.5]), np.array([0.0, 0.0, 0.0]))
    view = renderer.view(pose, camera)
    x, y, z = np.moveaxis(_on_floor(pose, camera, view.depth), -1, 0)
    ground = np.abs(z) < 0.01
    # At 45 degrees the window, z 1.5 to 2.5, falls on x -0.5 to 0.5, the box on -0.7 to -0.1.
    bright = view.radiance.mean(axis=2) > 0.6
    lit = ground & (x > 0.05) & (x < 0.4) & (np.abs(y) < 0.7)
    shaded = ground & (x > -0.45) & (x < -0.3) & (np.abs(y) < 0.12)
    outside = ground & ((np.abs(x) > 0.65) | (np.abs(y) > 0.95))
    assert min(lit.sum(), shaded.sum(), outside.sum()) > 10
    assert bright[lit].mean() > 0.98
    top = (np.abs(z - 0.5) < 0.01) & (x > 0.05) & (x < 0.15) & (np.abs(y) < 0.15)
    assert top.sum() > 5
    assert bright[top].all()
    assert not bright[shaded].any()
    assert not bright[outside].any()


@pytest.mark.parametrize("height", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("room", [3.0, 9.0])
def test_what_the_sun_lights_does_not_shade_itself(
    renderer: Renderer, height: float, room: float
) -> None:
    box, far = MeshBuilder(), MeshBuilder()
    box.box(np.array([-0.5, -0.5, 0.3]), np.array([0.5, 0.5, 0.7]), np.eye(4), Paint((1.0,) * 3))
    far.box(np.array([room, room, 0]), np.array([room + 0.3, room + 0.3, 0.3]), np.eye(4), Paint())
    no_images = np.zeros((0, 256, 256, 4), np.uint8)
    towards = np.array([np.cos(height), 0.0, np.sin(height)])
    window = Pane(tuple(3 * towards), (0, 3.0, 0), (0, 0, 3.0), (0,) * 3, True)
    looks = []
    for sun in (None, Sun(tuple(towards), (2.0,) * 3)):
        instances = [Instance(mesh.mesh(no_images), np.eye(4)) for mesh in (box, far)]
        grain = np.full((256, 256, 4), 128, np.uint8)
        renderer.load(Stage(instances, (), (0.3,) * 3, (0.3,) * 3, grain, (window,), sun))
        pose = look_at(np.array([0.3, -1.5, 1.9]), np.array([0.0, 0.0, 0.6]))
        camera = pinhole(WIDTH, HEIGHT, 60)
        looks.append(renderer.view(pose, camera))
    x, y, z = np.moveaxis(_on_floor(pose, camera, looks[0].depth), -1, 0)
    top = (np.abs(z - 0.7) < 0.01) & (np.maximum(np.abs(x), np.abs(y)) < 0.45)
    more = (looks[1].radiance - looks[0].radiance).mean(axis=2)[top]
    assert top.sum() > 100
    right = np.abs(more / (2.0 * np.sin(height)) - 1) < 0.03
    assert right.mean() > 0.9  # in light that grazes, the far edge may be a texel off


def test_no_sun_comes_through_a_curtain(renderer: Renderer) -> None:
    builder = MeshBuilder()
    builder.polygon(np.array([[-5, -5, 0.0], [5, -5, 0], [5, 5, 0], [-5, 5, 0]]), Paint((1.0,) * 3))
    floor = Instance(builder.mesh(np.zeros((0, 256, 256, 4), np.uint8)), np.eye(4))
    grain = np.full((256, 256, 4), 128, np.uint8)
    pose = look_at(np.array([-0.4, -3.0, 2.5]), np.array([0.0, 0.0, 0.0]))
    half = np.sqrt(0.5)
    brightest = []
    for clear in (True, False):
        pane = Pane((2.0, 0, 2.0), (0, 0.8, 0), (0, 0, 0.5), (0,) * 3, clear)
        sun = Sun((half, 0.0, half), (2.0,) * 3)
        renderer.load(Stage([floor], (), (0.3,) * 3, (0.3,) * 3, grain, (pane,), sun))
        brightest.append(renderer.view(pose, pinhole(WIDTH, HEIGHT, 60)).radiance.max())
    assert brightest[0] > 2 * brightest[1]


def test_a_polished_floor_mirrors_a_lamp_where_the_law_of_reflection_wants_it(
    renderer: Renderer,
) -> None:
    builder = MeshBuilder()
    builder.polygon(np.array([[-5, -5, 0.0], [5, -5, 0], [5, 5, 0], [-5, 5, 0]]), Paint((0.2,) * 3))
    mesh = builder.mesh(np.zeros((0, 256, 256, 4), np.uint8))
    grain = np.full((256, 256, 4), 128, np.uint8)
    lamp = Pane((0.3, 2.0, 1.0), (0.3, 0, 0), (0, 0.3, 0), (20.0,) * 3, False)
    camera = pinhole(WIDTH, HEIGHT, 60)
    pose = look_at(np.array([0.0, -1.0, 1.0]), np.array([0.0, 0.5, 0.0]))
    looks = []
    for polish in (0.0, 1.0):
        instance = Instance(mesh, np.eye(4), gloss=polish)
        renderer.load(Stage([instance], (), (0.3,) * 3, (0.3,) * 3, grain, (lamp,)))
        looks.append(renderer.view(pose, camera))
    more = (looks[1].radiance - looks[0].radiance).mean(axis=2)
    places = _on_floor(pose, camera, looks[0].depth)
    brightest = places[np.unravel_index(more.argmax(), more.shape)]
    # Eye and lamp are a metre high: the mirror image lies half way between their feet.
    np.testing.assert_allclose(brightest[:2], [0.15, 0.5], atol=0.2)
    assert more.max() > 0.5
    np.testing.assert_array_equal(looks[0].depth, looks[1].depth)


def test_a_scene_is_the_same_for_the_same_seed_and_nothing_overlaps(maker: SceneMaker) -> None:
    first, again, other = (maker.make(seed, "office") for seed in (7, 7, 8))
    assert first.items == again.items
    assert first.items
    np.testing.assert_array_equal(first.shell.vertices, again.shell.vertices)
    np.testing.assert_array_equal(first.floor.vertices, again.floor.vertices)
    assert (first.sun, first.panes, first.polish) == (again.sun, again.panes, again.polish)
    np.testing.assert_array_equal(first.shell.images, again.shell.images)
    assert first.items != other.items
    for item in first.items:
        assert first.room.wall_distance(item.corners()).min() > -0.01, item
        assert -0.001 <= item.position[2] < first.room.height
    with pytest.raises(ValueError, match="no room kind 'cave'"):
        maker.make(0, "cave")


def test_pose_and_depth_agree_between_frames_of_a_furnished_room(maker, renderer) -> None:
    camera = pinhole(WIDTH, HEIGHT, 70)
    medians = []
    for seed in (10_000_016, 10_000_001):
        scene = maker.make(seed, "living room")
        path = make_path(scene, np.random.default_rng(seed), 8, 10.0, "wander")
        renderer.load(maker.stage(scene))
        depth = np.stack([renderer.view(pose, camera).depth for pose in path.poses[[0, 2]]])
        assert np.isfinite(depth).all()
        assert (depth > 0).all()
        medians.append(np.nanmedian(warped_depth_error(depth, path.poses[[0, 2]], camera)))
    assert max(medians) < 1e-3


def test_training_clips_are_written_whole_and_read_back(maker, renderer, tmp_path: Path) -> None:
    seed, clip = 10_000_020, None
    while clip is None:
        try:
            clip = training_clip(seed, maker, renderer)
        except SeedError:
            seed += 1
    write_training_clip(clip, tmp_path / "clip_000001.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["clip_000001.npz"]
    with np.load(tmp_path / "clip_000001.npz") as stored:
        assert stored["rgb"].shape == (len(clip.rgb), HEIGHT, WIDTH, 3)
        assert stored["rgb"].std() > 5, "not a blank picture"
        np.testing.assert_allclose(stored["depth"], clip.depth, rtol=1e-3)
        np.testing.assert_allclose(np.linalg.norm(stored["poses"][:, 3:], axis=1), 1, atol=1e-6)
        assert 45 <= 2 * np.degrees(np.arctan(WIDTH / 2 / stored["intrinsics"][0])) <= 95.01


def test_a_recording_reads_back_as_it_was_rendered(maker, renderer, tmp_path: Path) -> None:
    wanted = ClipSettings(
        10_000_016, "living room", "tour", seconds=0.3, rate=10.0, width=96, height=72
    )
    clip = render_clip(wanted, maker.library)
    assert not clip.moving  # poses and depth of a recording are of one still room
    credits = attribution(maker.used(clip.scene))
    write_recording(clip, tmp_path / "clip", credits)
    recording = open_recording(tmp_path / "clip")
    frames = list(recording.frames())
    assert len(frames) == 3
    assert frames[0].image.shape == (72, 96, 3)
    assert frames[0].intrinsics is not None
    assert frames[0].intrinsics.fx == pytest.approx(clip.intrinsics[0])
    assert np.abs(frames[1].image.astype(int) - clip.rgb[1]).mean() < 8
    depths = list(recording.depths())
    assert [d.stamp_ns for d in depths] == [f.stamp_ns for f in frames]
    assert depths[0].depth.shape == (36, 48)
    assert depths[0].intrinsics is not None
    assert depths[0].intrinsics.cx == pytest.approx(23.5)
    assert np.nanmedian(np.abs(depths[0].depth / clip.depth[0][::2, ::2] - 1)) < 0.02
    trajectory = recording.trajectory()
    assert trajectory is not None
    np.testing.assert_allclose(trajectory.translations, clip.poses[:, :3, 3], atol=1e-9)
    with pytest.raises(FileExistsError, match="remove it or choose another"):
        write_recording(clip, tmp_path / "clip", credits)
    assert "CC BY 3.0" in (tmp_path / "clip" / "ATTRIBUTION.txt").read_text()


def test_nothing_stands_in_a_radiator_and_no_sun_comes_through_walls(maker: SceneMaker) -> None:
    radiators = suns = 0
    for seed in range(60):
        scene = maker.make(seed)
        suns += scene.sun is not None
        if scene.sun is not None:
            assert all(scene.room.outer(wall) for wall in range(scene.room.walls))
        for opening in scene.room.openings:
            if not opening.radiator:
                continue
            radiators += 1
            assert opening.kind == "window"
            zone = _zone(scene.room, opening, RADIATOR_DEPTH - 0.01)
            for item in scene.items:
                if item.position[2] < 0.01 < item.size[2] - 0.01:  # stands; rugs lie
                    assert not overlap(item.corners(), zone), (seed, item.name)
    assert radiators > 3
    assert suns > 3
