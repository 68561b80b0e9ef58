# SPDX-License-Identifier: Apache-2.0
"""Where things stand: boxes laid out by hand, each relation with what just misses it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnistream_ros.training.annotations import Annotation
from omnistream_ros.training.relations import Places, places
from omnistream_ros.training.room import Room

# 6 x 5 x 2.5 m, counter-clockwise.
ROOM = Room("office", np.array([[0.0, 0.0], [6, 0], [6, 5], [0, 5]]), 2.5, ())
DESK = (3.0, 2.5, 0.0, 0.0, 1.6, 0.8, 0.75)
PAIRS = ("on", "under", "at", "beside")
ALONE = ("at_wall", "on_wall", "from_ceiling")


def _told(
    *things: tuple[str, tuple[float, ...]], turn: float = 0.0, room: Room = ROOM
) -> set[tuple[object, ...]]:
    """All that holds, as (relation, first, second) and (place, which); the room may be turned."""
    c, s = np.cos(turn), np.sin(turn)
    boxes = np.array([box for _, box in things])
    boxes[:, :2] = boxes[:, :2] @ [[c, s], [-s, c]]
    boxes[:, 3] += turn
    turned = Room(room.kind, room.corners @ [[c, s], [-s, c]], room.height, ())
    return _all(places(boxes, [name for name, _ in things], turned))


def _all(stand: Places) -> set[tuple[object, ...]]:
    pairs = {(k, *map(int, ij)) for k in PAIRS for ij in np.argwhere(getattr(stand, k))}
    return pairs | {(k, int(i)) for k in ALONE for (i,) in np.argwhere(getattr(stand, k))}


@pytest.mark.parametrize("turn", [0.0, 0.7, np.pi / 2, 4.0])
@pytest.mark.parametrize(
    ("lamp", "on"),
    [
        ((3.6, 2.7, 0.751, 0.4, 0.2, 0.2, 0.4), True),
        ((3.6, 2.7, 0.45, 0.4, 0.2, 0.2, 0.4), True),  # the desk's box ends in a hutch
        ((3.6, 2.7, 0.80, 0.4, 0.2, 0.2, 0.4), False),  # hovers
        ((3.6, 2.7, 0.0, 0.4, 0.2, 0.2, 0.4), False),  # under the desk
        ((3.75, 2.7, 0.751, 0.0, 0.2, 0.2, 0.4), False),  # over the edge
        ((3.0, 3.7, 0.751, 0.0, 0.2, 0.2, 0.4), False),  # inside, if the desk were turned
    ],
)
def test_a_lamp_on_a_desk(lamp: tuple[float, ...], on: bool, turn: float) -> None:
    told = _told(("lamp", lamp), ("table", DESK), turn=turn)
    assert {t for t in told if t[0] == "on"} == ({("on", 0, 1)} if on else set())


def test_turned_furniture_carries_where_it_is() -> None:
    turned = (*DESK[:3], np.pi / 2, *DESK[4:])
    along_y, along_x = (3.0, 3.2, 0.75, 0, 0.1, 0.1, 0.1), (3.7, 2.5, 0.75, 0, 0.1, 0.1, 0.1)
    assert _told(("box", along_y), ("box", along_x), ("table", turned)) == {("on", 0, 2)}
    assert _told(("box", along_y), ("box", along_x), ("table", DESK)) == {("on", 1, 2)}
    slanted = (*DESK[:3], np.pi / 4, *DESK[4:])
    corner, other = (3.5, 3.0, 0.75, 0, 0.1, 0.1, 0.1), (3.5, 2.0, 0.75, 0, 0.1, 0.1, 0.1)
    assert _told(("box", corner), ("box", other), ("table", slanted)) == {("on", 0, 2)}


def test_a_thing_at_the_edge_is_on_the_table_and_not_on_the_chair_below() -> None:
    chair = (3.0, 2.0, 0.0, 0.0, 0.45, 0.45, 0.9)
    box = (3.0, 2.17, 0.751, 0.0, 0.1, 0.1, 0.1)
    told = _told(("box", box), ("chair", chair), ("table", DESK))
    assert told == {("on", 0, 2), ("at", 1, 2)}
    with_hutch = (*DESK[:6], 1.3)
    told = _told(("box", box), ("chair", chair), ("table", with_hutch))
    assert told == {("on", 0, 2), ("at", 1, 2)}


def test_a_thing_on_a_stool_under_a_table_is_on_the_stool() -> None:
    stool = (3.0, 2.5, 0.0, 0.0, 0.4, 0.4, 0.45)
    told = _told(("box", (3.0, 2.5, 0.451, 0, 0.1, 0.1, 0.1)), ("table", DESK), ("box", stool))
    assert told == {("on", 0, 2), ("beside", 2, 1)}


@pytest.mark.parametrize(
    ("rug", "under"),
    [
        (("rug", (3.0, 2.5, 0.002, 0.0, 2.0, 1.5, 0.01)), True),
        (("rug", (3.0, 2.5, 0.002, 0.0, 0.9, 3.0, 0.01)), True),  # a runner under most of it
        (("rug", (3.0, 2.5, 0.002, np.pi / 2, 3.0, 0.3, 0.01)), False),  # a runner under little
        (("rug", (3.9, 2.5, 0.002, 0.0, 1.0, 1.5, 0.01)), False),  # under one end
        (("rug", (3.0, 2.5, 0.002, 0.0, 2.0, 1.5, 0.5)), False),  # a rolled one, or no rug
        (("box", (3.0, 2.5, 0.002, 0.0, 2.0, 1.5, 0.01)), False),
    ],
)
def test_a_rug_under_a_table(rug: tuple[str, tuple[float, ...]], under: bool) -> None:
    told = _told(rug, ("table", DESK))
    assert (("under", 0, 1) in told) == under
    assert not {t for t in told if t[0] == "on"}


@pytest.mark.parametrize("turn", [0.0, 1.1])
def test_beside_is_within_half_a_metre_and_the_smaller_is_beside_the_larger(turn: float) -> None:
    def plant(x: float, z: float = 0.0) -> tuple[str, tuple[float, ...]]:
        return ("plant", (x, 2.5, z, 0.0, 0.4, 0.4, 1.0))

    table = ("table", DESK)  # ends at x = 3.8
    assert _told(plant(4.45), table, turn=turn) == {("beside", 0, 1)}
    assert _told(table, plant(4.45), turn=turn) == {("beside", 1, 0)}
    assert _told(plant(4.55), table, turn=turn) == set()
    assert _told(plant(4.45, 0.5), table, turn=turn) == set()
    # Turned by 45 degrees a corner reaches 8 cm further.
    name, box = plant(4.55)
    assert _told((name, (*box[:3], np.pi / 4, *box[4:])), table, turn=turn) == {("beside", 0, 1)}
    # The corner of a turned table points between the ends of a thin screen, 45 cm away.
    reach = 0.4 * np.sqrt(2)
    square = ("table", (3.0, 2.5, 0.0, np.pi / 4, 0.8, 0.8, 0.75))
    screen = ("other thing", (3.0 + reach + 0.45, 2.75, 0.0, np.pi / 2, 2.0, 0.002, 1.5))
    assert _told(screen, square, turn=turn) == {("beside", 0, 1)}
    # Long things that cross like a plus have no corner in one another.
    bench = ("other thing", (3.0, 2.5, 0.0, np.pi / 2, 3.0, 0.2, 0.4))
    assert _told(bench, table, turn=turn) == {("beside", 0, 1)}


def test_chairs_stand_at_tables_and_beside_low_ones() -> None:
    chair = ("chair", (3.0, 1.9, 0.0, 0.2, 0.45, 0.45, 0.9))
    assert _told(chair, ("table", DESK)) == {("at", 0, 1)}
    assert _told(("chair", (3.0, 1.2, 0.0, 0.0, 0.45, 0.45, 0.9)), ("table", DESK)) == set()
    assert _told(chair, ("table", (*DESK[:6], 0.4))) == {("beside", 0, 1)}
    assert _told(chair, ("cabinet", DESK)) == {("beside", 0, 1)}
    large = ("chair", (3.0, 1.6, 0.0, 0.0, 1.6, 1.0, 1.2))
    assert _told(large, ("table", DESK)) == {("at", 0, 1)}


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((2.0, 0.25, 0.0, 0.0, 0.8, 0.4, 1.8), {("at_wall", 0)}),
        ((2.0, 0.28, 0.0, 0.04, 0.8, 0.4, 1.8), {("at_wall", 0)}),  # a little askew
        ((5.75, 2.0, 0.0, np.pi / 2, 0.8, 0.4, 1.8), {("at_wall", 0)}),
        ((2.0, 0.40, 0.0, 0.0, 0.8, 0.4, 1.8), set()),  # 20 cm away
        ((2.0, 0.45, 0.0, np.pi / 4, 0.6, 0.6, 1.8), set()),  # only a corner at the wall
        ((2.0, 0.75, 0.002, 0.0, 2.0, 1.4, 0.01), set()),  # lies flat
        ((2.0, 0.02, 1.2, 0.0, 0.8, 0.03, 0.6), {("on_wall", 0)}),
        ((2.0, 0.10, 1.2, 0.0, 0.8, 0.03, 0.6), set()),  # hovers before it
        ((2.0, 2.00, 1.9, 0.0, 0.4, 0.4, 0.6), {("from_ceiling", 0)}),
        ((2.0, 2.00, 1.8, 0.0, 0.4, 0.4, 0.6), set()),  # hovers below it
        ((2.0, 0.22, 0.0, 0.0, 0.8, 0.4, 2.5), {("at_wall", 0)}),  # from floor to ceiling
    ],
)
@pytest.mark.parametrize("turn", [0.0, 2.2])
def test_walls_and_ceiling(box: tuple[float, ...], expected: set[object], turn: float) -> None:
    assert _told(("other thing", box), turn=turn) == expected


def test_a_thing_on_a_shelf_at_the_wall_does_not_hang() -> None:
    shelf = (2.0, 0.21, 0.0, 0.0, 0.8, 0.4, 1.8)
    vase = (2.0, 0.06, 1.0, 0.0, 0.1, 0.1, 0.2)
    assert _told(("other thing", vase), ("cabinet", shelf)) == {("on", 0, 1), ("at_wall", 1)}


def test_inner_corners_have_walls_too() -> None:
    corners = np.array([[0.0, 0.0], [6, 0], [6, 2], [3, 2], [3, 5], [0, 5]])
    room = Room("office", corners, 2.5, ())
    cabinet = ("cabinet", (4.5, 1.75, 0.0, np.pi, 0.8, 0.4, 1.8))
    assert _told(cabinet, room=room) == {("at_wall", 0)}
    assert _told(cabinet) == set()


def test_an_empty_room() -> None:
    assert _all(places(np.zeros((0, 7)), (), ROOM)) == set()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_mirror_changes_no_relation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 12))
    boxes = rng.uniform([0, 0, 0, -7, 0.05, 0.05, 0.05], [6, 5, 0, 7, 2, 2, 2], (count, 7))
    boxes[:, 2] = rng.choice([0.0, 0.002, 0.5, 1.0], count)
    boxes[boxes[:, 2] == 0.002, 6] = 0.01
    boxes[1, [2, 6]] = 0.0, 0.8
    boxes[0] = [
        *boxes[1, :2],
        0.8,
        1.0,
        *(boxes[1, 4:6].min() / [3, 3]),
        0.3,
    ]  # at least one on another
    names = rng.choice(["rug", "chair", "table", "lamp"], count).tolist()
    mirrored = Annotation(ROOM, ("walk",), tuple(names), boxes).mirrored()
    told = _all(places(boxes, names, ROOM))
    assert told == _all(places(mirrored.boxes, names, mirrored.room))
    assert any(relation == "on" for relation, *_ in told)
