# SPDX-License-Identifier: Apache-2.0
"""What is built in along walls: it must fit the room, and furniture must fit around it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from omnistream_ros.training.fitted import KITCHENS, WARDROBES, fit
from omnistream_ros.training.furnish import Item, clear_of_openings, overlap
from omnistream_ros.training.joiner import Fitted
from omnistream_ros.training.movers import _loose
from omnistream_ros.training.room import SIZES, Room, make_room
from omnistream_ros.training.scenes import SceneMaker


def rooms(kind: str, count: int) -> Iterator[tuple[Room, Fitted]]:
    """Rooms of a kind that have something built in."""
    found = 0
    for seed in range(20 * count):
        room = make_room(kind, np.random.default_rng(seed))
        fitted = fit(room, np.random.default_rng([seed, 1]))
        if fitted.items:
            yield room, fitted
            found += 1
        if found == count:
            return
    raise AssertionError(f"too few {kind}s have anything built in")


def in_item(item: Item, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) of the room in the axes of an item, its foot at the origin."""
    c, s = np.cos(item.yaw), np.sin(item.yaw)
    local = points - item.position
    return np.stack([c * local[:, 0] + s * local[:, 1], c * local[:, 1] - s * local[:, 0],
                     local[:, 2]], axis=1)  # fmt: skip


@pytest.mark.parametrize("kind", sorted({*KITCHENS, *WARDROBES}))
def test_units_stay_in_the_room_and_clear_of_doors_and_windows(kind: str) -> None:
    for room, fitted in rooms(kind, 12):
        zones = clear_of_openings(room)
        for item in fitted.items:
            assert room.wall_distance(item.corners()).min() > -1e-6
            assert item.position[2] + item.size[2] <= room.height
            assert not any(overlap(item.corners(-0.001), zone) for zone in zones)
            for opening in room.openings:
                axes, (s0, s1) = room.frame(opening.wall), (opening.s0, opening.s1)
                strip = [(s0, 0.0), (s1, 0.0), (s1, 0.04), (s0, 0.04)]
                before = overlap(
                    item.corners(), np.array([(axes @ [s, y, 0, 1])[:2] for s, y in strip])
                )
                high = item.position[2] + item.size[2]
                rises = high > opening.z0 and item.position[2] < opening.z1
                assert not (before and rises), f"a {item.name} covers a {opening.kind}"


@pytest.mark.parametrize("kind", ["kitchen", "bedroom"])
def test_boxes_hold_what_is_drawn_and_units_do_not_stand_in_each_other(kind: str) -> None:
    for _, fitted in rooms(kind, 12):
        for item in fitted.items:
            points = fitted.meshes[item.key].vertices[:, :3].astype(float)
            local, half = in_item(item, points), np.array(item.size[:2]) / 2
            assert (np.abs(local[:, :2]) <= half + 0.06).all()  # handles stand out
            over = 0.36 if "worktop" in item.name else 0.01  # taps do
            assert local[:, 2].min() > -0.01
            assert local[:, 2].max() < item.size[2] + over
        for i, a in enumerate(fitted.items):
            for b in fitted.items[:i]:
                low = max(a.position[2], b.position[2])
                high = min(a.position[2] + a.size[2], b.position[2] + b.size[2])
                apart = high - low < 1e-6 or not overlap(a.corners(-0.001), b.corners(-0.001))
                assert apart, f"a {a.name} in a {b.name}"


def test_one_can_stand_before_a_row() -> None:
    for room, fitted in rooms("kitchen", 12):
        for print_ in fitted.footprints:
            back, front = print_[1] - print_[2], print_[2:]
            out = front - 0.75 * back / np.linalg.norm(back)
            assert room.wall_distance(out).min() > 0


def test_things_stand_on_worktops_and_below_what_hangs() -> None:
    for _, fitted in rooms("kitchen", 12):
        for item, top in fitted.surfaces:
            at = item.position[2] + top
            assert 0.8 < at < 1.0
            for other in fitted.items:
                if "cupboard" in other.name and other.position[2] > 0.5:
                    assert other.position[2] > at + 0.4


def test_the_same_generator_builds_the_same() -> None:
    room = make_room("kitchen", np.random.default_rng(3))
    one, two = (fit(room, np.random.default_rng(5)) for _ in range(2))
    assert one.items == two.items
    for key, mesh in one.meshes.items():
        np.testing.assert_array_equal(mesh.vertices, two.meshes[key].vertices)


def test_rooms_without_joiners_have_nothing() -> None:
    for kind in set(SIZES) - {*KITCHENS, *WARDROBES}:
        for seed in range(30):
            room = make_room(kind, np.random.default_rng(seed))
            assert not fit(room, np.random.default_rng(seed)).items


def test_units_have_names() -> None:
    names = {
        item.name for kind in ("kitchen", "office") for _, f in rooms(kind, 20) for item in f.items
    }
    assert {"kitchen cupboard", "wall cupboard", "kitchen worktop", "built-in wardrobe"} <= names


def test_furniture_stands_around_it_and_on_it(maker: SceneMaker) -> None:
    carried = found = 0
    for seed in range(12):
        scene = maker.make(seed, "kitchen")
        if not scene.fitted:
            continue
        found += 1
        built = [item for item in scene.items if item.key in scene.fitted]
        loose = [item for item in scene.items if item.key not in scene.fitted]
        low = [item for item in built if item.position[2] == 0]
        for item in loose:
            if item.position[2] == 0 and item.size[2] > 0.05:
                assert not any(overlap(item.corners(-0.01), unit.corners()) for unit in low)
        tops = [item for item in built if "worktop" in item.name]
        carried += sum(
            abs(item.position[2] - top.position[2] - top.size[2]) < 0.01
            and overlap(item.corners(), top.corners())
            for item in loose
            for top in tops
        )
        stage = maker.stage(scene)
        for index, (item, instance) in enumerate(zip(scene.items, stage.instances, strict=False)):
            if item.key in scene.fitted:
                assert instance.mesh is scene.fitted[item.key]
                assert not _loose(scene, index), f"a {item.name} may be moved"
    assert found > 5
    assert carried > 10
