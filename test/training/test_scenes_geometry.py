# SPDX-License-Identifier: Apache-2.0
"""Rooms, meshes, paths and sensor: everything of the generator that needs no OpenGL."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnistream_ros.training import textures
from omnistream_ros.training.assets import LICENCES, Asset, AssetError, FurnitureLibrary
from omnistream_ros.training.camera_path import MOTIONS, clearance, make_path
from omnistream_ros.training.clip_recording import ClipSettings
from omnistream_ros.training.clips import pinhole, seeds
from omnistream_ros.training.furnish import Item
from omnistream_ros.training.mesh import Mesh, pack, unit_box
from omnistream_ros.training.render import View, look_at, projection
from omnistream_ros.training.roles import roles
from omnistream_ros.training.room import SIZES, Opening, Room, make_room
from omnistream_ros.training.scenes import Scene
from omnistream_ros.training.sensor import Sensor, expose, flow
from omnistream_ros.training.shell import build_shell
from omnistream_ros.training.wavefront import read_obj, simplify


def box_room(items: tuple[Item, ...] = (), size: float = 4.0) -> Scene:
    """A square room with the given items; enough for camera paths."""
    half = size / 2
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    nothing = np.zeros(3)
    return Scene(
        seed=0,
        room=Room("office", corners, 2.6, ()),
        items=items,
        fitted={},
        lights=(),
        ambient_up=tuple(nothing),
        ambient_down=tuple(nothing),
        panes=(),
        sun=None,
        shell=unit_box(),
        floor=unit_box(),
        polish=0.0,
        fixtures=unit_box(),
        coverings=(),
        grain=np.zeros((256, 256, 4), np.uint8),
    )


@pytest.mark.parametrize("kind", SIZES)
def test_rooms_have_the_size_of_their_kind_and_openings_inside_their_walls(kind: str) -> None:
    for seed in range(20):
        room = make_room(kind, np.random.default_rng(seed))
        low, high = SIZES[kind][1]
        assert low <= room.height <= high
        x, y = room.corners.T
        area = 0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))
        assert area > 0, "corners run counter-clockwise"
        assert 0.4 * SIZES[kind][0][0] < area < 1.3 * SIZES[kind][0][1]
        for o in room.openings:
            assert 0 < o.s0 < o.s1 < room.length(o.wall)
            assert 0 <= o.z0 < o.z1 < room.height
            others = [p for p in room.openings if p.wall == o.wall and p is not o]
            assert all(p.s1 < o.s0 or p.s0 > o.s1 for p in others)


def test_wall_distance_against_dense_sampling_of_the_outline() -> None:
    rng = np.random.default_rng(3)
    for seed in range(10):
        room = make_room("living room", np.random.default_rng(seed))
        ends = np.roll(room.corners, -1, axis=0)
        t = np.linspace(0, 1, 2000)[:, None]
        outline = np.concatenate([a + t * (b - a) for a, b in zip(room.corners, ends, strict=True)])
        points = rng.uniform(room.corners.min(0) - 1, room.corners.max(0) + 1, (60, 2))
        true = np.linalg.norm(points[:, None] - outline, axis=-1).min(axis=1)
        # Inside by the winding number of the outline around the point.
        angle = np.unwrap(np.arctan2(*(outline - points[:, None]).transpose(2, 0, 1)[::-1]), axis=1)
        inside = np.abs(angle[:, -1] - angle[:, 0]) > np.pi
        got = room.wall_distance(points)
        np.testing.assert_allclose(np.abs(got), true, atol=5e-3)
        assert ((got > 0) == inside)[true > 0.01].all()


def test_the_shell_surrounds_the_room_and_windows_let_light_in() -> None:
    corners = np.array([[0, 0], [4, 0], [4, 3], [0, 3]], np.float64)
    window = Opening(2, 1.0, 2.5, 0.9, 2.1, "window")
    room = Room("office", corners, 2.5, (window, Opening(0, 0.5, 1.4, 0.0, 2.0, "door")))
    shell = build_shell(room, np.random.default_rng(0), pictures=False, daylight=2.0)
    assert np.isfinite(shell.mesh.vertices).all()
    assert shell.mesh.indices.max() < len(shell.mesh.vertices)
    (light,) = shell.lights
    assert light.aim[1] < 0, "wall 2 is at y = 3: light goes to -y"
    assert room.wall_distance(np.array([light.position[:2]]))[0] > 0
    dark = build_shell(room, np.random.default_rng(0), pictures=False, daylight=0.0)
    assert dark.lights == ()


def test_some_floors_are_of_two_kinds_and_flat_all_the_same() -> None:
    two = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        room = make_room(("office", "kitchen", "corridor")[seed % 3], rng)
        floor = build_shell(room, rng, pictures=False, daylight=1.0).floor
        layers, places = floor.vertices[:, 12], floor.vertices[:, :3]
        assert set(layers) == set(range(len(floor.images)))
        assert ((places[:, 2] >= 0) & (places[:, 2] <= 0.002)).all()
        assert (floor.vertices[:, 5] > 0.99).all(), "it faces up"
        if len(floor.images) == 1:
            continue
        two += 1
        second = places[layers == 1]
        assert second[:, 2].min() > 0, "or the first would show through"
        low, high = room.corners.min(axis=0) - 1e-3, room.corners.max(axis=0) + 1e-3
        slack = 0.3 * (high - low)  # walls that are skewed hide what lies outside
        assert (second[:, :2] > low - slack).all()
        assert (second[:, :2] < high + slack).all()
    assert 10 < two < 35


def test_textures_repeat_without_a_seam() -> None:
    rng = np.random.default_rng(0)
    for maker in (textures.plaster, textures.concrete, textures.carpet, textures.grain):
        image = maker(rng)[0][..., :3].astype(np.float64)
        seam = np.abs(image[:, 0] - image[:, -1]).mean()
        inner = np.abs(np.diff(image, axis=1)).mean()
        assert seam < 2 * inner + 1, maker.__name__
    for maker in {*textures.FLOORS, *textures.WALLS, *textures.WET_WALLS, *textures.COVERINGS}:
        image, period = maker(rng)
        assert image.shape == (256, 256, 4)
        assert image.dtype == np.uint8
        assert (image[..., 3] == 255).all()
        assert 0.1 < period < 5


CUBE = "".join(f"v {x} {y} {z}\n" for x in (0, 2) for y in (0, 4) for z in (0, 6)) + (
    "vt 0 0\nvn 0 0 1\n"
    "f 1 2 4 3\nf 5/1 7/1 8/1 6/1\nf 1/1/1 5/1/1 6/1/1 2/1/1\n"
    "f -6//1 -5//1 -1//1 -2//1\nf 1 3 7 5\nf 2 6 8 4\n"
)


def test_obj_reader_takes_all_forms_of_faces() -> None:
    mesh = read_obj(CUBE, {})
    assert len(mesh.indices) == 12
    low, high = mesh.bounds()
    np.testing.assert_array_equal(low, [0, 0, 0])
    np.testing.assert_array_equal(high, [2, 4, 6])
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices[:, 3:6], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("text", ["", "v 0 0 0\n", "v 0 0 x\nf 1 1 1\n", "v 0 0 0\nf 1 2 3\n"])
def test_obj_without_faces_or_with_wrong_numbers_is_refused(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        read_obj(text, {})


def test_simplify_keeps_size_and_materials() -> None:
    n = 80
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, n), np.linspace(0, np.pi, n))
    ball = np.stack([np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v)], -1).reshape(-1, 3)
    colours = np.where(ball[:, 2:] > 0, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    i = np.arange(n * n).reshape(n, n)
    a, b, c, d = i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    mesh = Mesh(
        pack(ball, ball, ball[:, :2], colours),
        faces.astype(np.uint32),
        np.zeros((0, 256, 256, 4), np.uint8),
    )
    small = simplify(mesh, 1000)
    assert 200 < len(small.indices) <= 1000
    np.testing.assert_allclose(small.bounds()[0], -1, atol=0.1)
    np.testing.assert_allclose(small.bounds()[1], 1, atol=0.1)
    assert set(map(tuple, small.vertices[:, 8:11])) == {(1, 0, 0), (0, 0, 1)}
    assert simplify(mesh, 10**6) is mesh


def test_missing_and_broken_furniture_name_the_package(tmp_path) -> None:
    with pytest.raises(AssetError, match="apt-get install sweethome3d-furniture"):
        FurnitureLibrary(tmp_path)
    for library in LICENCES:
        (tmp_path / f"{library}.sh3f").write_bytes(b"PK not a zip file")
    with pytest.raises(AssetError, match="reinstall"):
        FurnitureLibrary(tmp_path)
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    for library in LICENCES:
        (tmp_path / f"{library}.sh3f").write_bytes(empty.getvalue())
    with pytest.raises(AssetError, match="PluginFurnitureCatalog"):
        FurnitureLibrary(tmp_path)


def test_an_asset_stands_upright_with_its_back_to_positive_y(tmp_path) -> None:
    catalogue = (
        "name#1=Thing\ncategory#1=Office\nmodel#1=/thing.obj\nwidth#1=20\ndepth#1=60\nheight#1=40\n"
    )
    for library in LICENCES:
        with zipfile.ZipFile(tmp_path / f"{library}.sh3f", "w") as archive:
            archive.writestr("PluginFurnitureCatalog.properties", catalogue)
            archive.writestr("thing.obj", CUBE)
    library = FurnitureLibrary(tmp_path, cache=tmp_path / "cache")
    first = library.mesh("Scopia/thing")
    low, high = first.bounds()
    np.testing.assert_allclose(low, [-0.1, -0.3, 0.0], atol=1e-6)
    np.testing.assert_allclose(high, [0.1, 0.3, 0.4], atol=1e-6)
    again = FurnitureLibrary(tmp_path, cache=tmp_path / "cache").mesh("Scopia/thing")
    np.testing.assert_array_equal(again.vertices, first.vertices)


@pytest.mark.parametrize(("category", "floor"), [("Kitchen", False), ("Bedroom", True)])
def test_nothing_of_a_kitchen_stands_on_the_floor(category: str, floor: bool) -> None:
    """A set of plates is for a worktop, however large; a basket of a bedroom may stand there."""
    size = (0.3, 0.3, 0.3)
    found = roles(Asset("a/b", "set", category, "a", "", size, 0.0, None, "b.obj", None))
    assert ("thing" in found) == floor
    assert "small" in found


@pytest.mark.parametrize("motion", MOTIONS)
def test_paths_keep_clear_and_are_smooth(motion: str) -> None:
    table = Item("box:0", "table", (0.8, 0.5, 0.0), 0.3, (1.0, 0.6, 0.75))
    scene = box_room((table,))
    frames = 150 if motion == "loop" else 30  # a loop turns all the way round
    for seed in range(6):
        path = make_path(scene, np.random.default_rng(seed), frames, 15.0, motion)
        places = path.poses[:, :3, 3]
        assert clearance(scene, places).min() > 0.1
        turns = path.poses[:, :3, :3]
        np.testing.assert_allclose(
            turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (frames, 1, 1)), atol=1e-9
        )
        np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-9)
        assert np.linalg.norm(np.diff(places, axis=0), axis=1).max() * 15 < 4, "metres a second"
        trace = np.trace(turns[:-1].transpose(0, 2, 1) @ turns[1:], axis1=1, axis2=2)
        angle = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1))) * 15
        assert np.median(angle) < 120, "degrees a second"
        assert (turns[:, 2, 1] < 0.3).all(), "the image's down points down"


@pytest.mark.parametrize("motion", sorted(set(MOTIONS) - {"inspect"}))
def test_a_path_begins_as_high_as_a_camera_is_held(motion: str) -> None:
    """What a network takes for the distance of the floor depends on it."""
    scene = box_room((Item("box:0", "table", (0.8, 0.5, 0.0), 0.3, (1.0, 0.6, 0.75)),))
    starts = [
        make_path(scene, np.random.default_rng(seed), 8, 15.0, motion).poses[0, 2, 3]
        for seed in range(30)
    ]
    low, high = (0.2, 1.3) if motion == "drive" else (1.15, 1.85)
    assert low - 0.1 < min(starts)  # a hand shakes, a step bounces
    assert max(starts) < high + 0.1
    assert max(starts) - min(starts) > 0.6 * (high - low)


def test_a_loop_sees_its_start_again() -> None:
    path = make_path(box_room(size=6.0), np.random.default_rng(1), 126, 10.0, "loop")
    lap = 100  # of 125 intervals: the path is a lap and a quarter
    moved = np.linalg.norm(path.poses[lap:, :3, 3] - path.poses[: 126 - lap, :3, 3], axis=1)
    assert moved.max() < 0.05  # the hand still shakes
    ahead = (path.poses[lap:, :3, 2] * path.poses[: 126 - lap, :3, 2]).sum(axis=1)
    assert ahead.min() > np.cos(np.radians(6))
    assert np.linalg.norm(path.poses[50, :3, 3] - path.poses[0, :3, 3]) > 0.8
    assert MOTIONS["loop"] == 0  # training clips are as they were


def test_a_survey_looks_across_the_room() -> None:
    """Seen by a ray through the middle of the image: further than half of the room, on average."""
    scene, size = box_room(size=6.0), 6.0
    seen = {"survey": [], "inspect": []}
    for motion, distances in seen.items():
        table = Item("box:0", "table", (0.8, 0.5, 0.0), 0.3, (1.0, 0.6, 0.75))
        room = box_room((table,), size=size)
        for seed in range(20):
            pose = make_path(room, np.random.default_rng(seed), 8, 15.0, motion).poses[4]
            reach = np.linspace(0, 3 * size, 2000)
            ray = pose[:3, 3] + reach[:, None] * pose[:3, 2]
            distances.append(reach[np.argmax(clearance(scene, ray) <= 0)])
    assert np.median(seen["survey"]) > 0.7 * size
    assert np.median(seen["survey"]) > 1.5 * np.median(seen["inspect"])


def test_clearance_is_the_distance_to_boxes_walls_floor_and_ceiling() -> None:
    scene = box_room((Item("box:0", "cube", (0.0, 0.0, 0.5), np.pi / 4, (1.0, 1.0, 1.0)),))
    points = [
        [0, 0, 1.0],
        [np.sqrt(0.5) + 0.3, 0, 1.0],
        [0, 0, 1.8],
        [1.9, 1.9, 1.0],
        [1.5, 1.5, 0.1],
    ]
    np.testing.assert_allclose(
        clearance(scene, np.array(points)), [0, 0.3, 0.3, 0.1, 0.1], atol=1e-9
    )


def test_an_unknown_motion_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no motion 'fly': use one of walk"):
        make_path(box_room(), np.random.default_rng(0), 10, 10.0, "fly")


@given(
    st.floats(-2, 2), st.floats(-2, 2), st.floats(0.2, 20), st.floats(30, 120), st.integers(16, 300)
)
@settings(max_examples=50)
def test_projection_puts_points_where_the_pinhole_does(x, y, z, fov, width) -> None:
    height = width // 2 + 3
    fx, fy, cx, cy = pinhole(width, height, fov)
    clip = projection(fx, fy, cx, cy, width, height) @ [x, y, z, 1]
    column = (clip[0] / clip[3] + 1) / 2 * width - 0.5
    row = (clip[1] / clip[3] + 1) / 2 * height - 0.5
    assert abs(column - (fx * x / z + cx)) < 1e-6 * width
    assert abs(row - (fy * y / z + cy)) < 1e-6 * height
    assert clip[3] == pytest.approx(z)


def test_flow_of_a_known_motion() -> None:
    depth = np.full((4, 6), 2.0)
    here, there = np.eye(4), np.eye(4)
    there[:3, 3] = [0.1, 0, 0.5]  # right and forward
    pixels, z = flow(depth, here, there, (10.0, 10.0, 2.5, 1.5))
    np.testing.assert_allclose(z, 1.5)
    np.testing.assert_allclose(
        pixels[1, 5], [10 * (2.5 * 0.2 - 0.1) / 1.5 + 2.5, -10 * 0.1 / 1.5 + 1.5]
    )


def test_exposure_brings_dark_and_bright_scenes_to_the_same_level() -> None:
    rng = np.random.default_rng(0)
    pattern = rng.uniform(0.2, 1.0, (24, 32, 1)) * np.ones(3)
    depth = np.full((24, 32), 2.0, np.float32)
    still = np.tile(np.eye(4), (2, 1, 1))
    camera = pinhole(32, 24, 60)
    means = []
    for level in (0.01, 1.0, 30.0):
        views = [View((pattern * level).astype(np.float32), depth)] * 2
        pictures = expose(views, still, camera, Sensor(), np.random.default_rng(1))
        assert pictures.dtype == np.uint8
        assert pictures.shape == (2, 24, 32, 3)
        means.append(pictures.mean())
    assert max(means) - min(means) < 12
    assert 80 < means[1] < 170


def test_motion_blur_smears_along_the_motion_only() -> None:
    light = np.zeros((40, 40, 3), np.float32)
    light[:, 20] = 1.0  # a vertical line
    view = View(light + 0.05, np.full((40, 40), 1.0, np.float32))
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = 0.15  # six pixels at this focal length
    camera = (40.0, 40.0, 19.5, 19.5)
    sharp, blurred = (
        expose([view, view], poses, camera, Sensor(shutter=s), rng=np.random.default_rng(0))[0]
        for s in (0.0, 1.0)
    )
    width = [(image[20, :, 0] > image[20, 0, 0] + 5).sum() for image in (sharp, blurred)]
    assert width[0] == 1
    assert 4 <= width[1] <= 9
    np.testing.assert_array_equal(blurred[10:30].std(axis=0), 0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"width": 33}, "even size"),
        ({"height": 0}, "even size"),
        ({"rate": 0.0}, "at least two frames"),
        ({"seconds": 0.01}, "at least two frames"),
        ({"fov": 180.0}, "field of view"),
    ],
)
def test_clip_settings_are_checked(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ClipSettings(seed=0, **wrong)


@pytest.mark.parametrize("text", ["", "5", "5:", "5:5", "7:3", "-1:4", "a:b"])
def test_seed_ranges_are_checked(text: str) -> None:
    with pytest.raises(ValueError, match="FIRST:LAST"):
        seeds(text)


def test_camera_looks_where_it_is_told() -> None:
    pose = look_at(np.array([1.0, 2.0, 1.5]), np.array([4.0, 2.0, 1.5]))
    np.testing.assert_allclose(pose[:3, 2], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(pose[:3, 1], [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(pose[:3, 0], [0, -1, 0], atol=1e-12)
