# SPDX-License-Identifier: Apache-2.0
"""Sentences about rooms: what stands where is told once, in English."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnistream_ros.training.annotations import Annotation
from omnistream_ros.training.camera_path import MOTIONS
from omnistream_ros.training.captions import counted, sentence
from omnistream_ros.training.relations import Places
from omnistream_ros.training.room import Room

ROOM = Room("office", np.array([[0.0, 0.0], [9, 0], [9, 8], [0, 8]]), 2.5, ())
DESK = ("Desk", (3, 2.5, 0, 0, 1.6, 0.8, 0.75))
OTHER_DESK = ("Desk", (7, 2.5, 0, 0, 1.6, 0.8, 0.75))
DESK_AT_WALL = ("Desk", (3, 0.45, 0, 0, 1.6, 0.8, 0.75))
CHAIR, OTHER_CHAIR = (("Chair", (x, 3.0, 0, 0, 0.45, 0.45, 0.9)) for x in (2.6, 3.4))
FAR_CHAIR = ("Chair", (6, 6, 0, 0, 0.45, 0.45, 0.9))
LAMP = ("Lamp", (3.5, 2.5, 0.751, 0, 0.2, 0.2, 0.4))
BOX = ("box", (2.5, 2.5, 0.751, 0, 0.2, 0.2, 0.2))
RUG = ("Rug", (3, 2.5, 0.002, 0, 2, 2, 0.01))
PICTURE = ("Picture", (5, 0.02, 1.4, 0, 0.6, 0.03, 0.4))
PENDANT = ("Pendant", (5, 5, 2.1, 0, 0.4, 0.4, 0.4))
CABINET = ("Cabinet", (6, 7.75, 0, 0, 1, 0.4, 1.8))
PLANT = ("Ficus", (7, 7.7, 0, 0, 0.4, 0.4, 1))
SOFA = ("Sofa 2 seats", (8.5, 5, 0, np.pi / 2, 1.8, 0.9, 0.8))

CROWDED = "a lamp on a desk, two pendants hanging from the ceiling, a sofa 2 seats at the wall, "
CROWDED += "and a chair"


def _annotation(*things: tuple[str, tuple[float, ...]]) -> Annotation:
    boxes = np.array([box for _, box in things], np.float64).reshape(-1, 7)
    return Annotation(ROOM, ("walk",), tuple(name for name, _ in things), boxes)


def _whole(things: list[tuple[str, tuple[float, ...]]]) -> str:
    return _annotation(*things).caption(np.arange(len(things)))


def _moved(
    thing: tuple[str, tuple[float, ...]], x: float, y: float = 0.0
) -> tuple[str, tuple[float, ...]]:
    name, box = thing
    return name, (box[0] + x, box[1] + y, *box[2:])


@pytest.mark.parametrize(
    ("things", "expected"),
    [
        ([], ""),
        ([FAR_CHAIR], "a chair"),
        ([LAMP, DESK], "a lamp on a desk"),
        ([DESK, LAMP, BOX], "a lamp and a box on a desk"),
        ([DESK, RUG, CHAIR, LAMP], "a lamp on a desk, a chair at it, and a rug under it"),
        ([RUG, DESK, PICTURE], "a rug under a desk, and a picture on the wall"),
        ([DESK_AT_WALL, PENDANT], "a pendant hanging from the ceiling, and a desk at the wall"),
        ([DESK, CHAIR, OTHER_CHAIR], "two chairs at a desk"),
        ([CHAIR, DESK, FAR_CHAIR, OTHER_CHAIR], "two of three chairs at a desk"),
        ([CHAIR, OTHER_DESK, DESK, FAR_CHAIR], "one of two chairs at one of two desks"),
        # Less than half of the chairs are at the desk: not worth telling.
        ([CHAIR, FAR_CHAIR, FAR_CHAIR, DESK], "three chairs and a desk"),
        ([PLANT, CABINET, FAR_CHAIR], "a ficus beside a cabinet at the wall, and a chair"),
        ([SOFA, CABINET], "a sofa 2 seats and a cabinet at the wall"),
        # Five names, however many things.
        ([SOFA, FAR_CHAIR, PENDANT, PENDANT, DESK, LAMP, BOX], CROWDED),
    ],
)
def test_rooms_by_hand(things: list[tuple[str, tuple[float, ...]]], expected: str) -> None:
    assert _whole(things) == f"an office with {expected}".removesuffix(" with ")


def test_pronouns_are_about_the_desks_that_were_named() -> None:
    other_lamp, chair_there = _moved(LAMP, 4), _moved(CHAIR, 4)
    one = [DESK, OTHER_DESK, chair_there, LAMP]
    assert _whole(one) == "an office with a lamp on one of two desks, and a chair"
    both = [DESK, OTHER_DESK, CHAIR, LAMP, other_lamp]
    assert _whole(both) == "an office with two lamps on two desks, and a chair"
    both.append(chair_there)
    assert _whole(both) == "an office with two lamps on two desks, and two chairs at them"


def test_what_is_placed_by_another_places_nothing() -> None:
    ficus = ("Ficus", (3.4, 3.9, 0, 0, 0.2, 0.2, 0.8))  # beside the chair, too far from the desk
    things = [OTHER_CHAIR, DESK, ficus]
    assert _whole(things) == "an office with a chair at a desk, and a ficus"


def test_what_bears_others_is_at_the_wall_if_all_of_it_is_and_that_is_said_once() -> None:
    lamp = _moved(LAMP, 0, -2.05)
    assert _whole([DESK_AT_WALL, lamp]) == "an office with a lamp on a desk at the wall"
    things = [DESK_AT_WALL, OTHER_DESK, lamp, _moved(LAMP, 4)]
    assert _whole(things) == "an office with two lamps on two desks"
    things = [DESK_AT_WALL, lamp, CABINET, PLANT]
    expected = "an office with a lamp on a desk at the wall, and a ficus beside a cabinet"
    assert _whole(things) == expected


def test_what_is_not_seen_is_not_told() -> None:
    annotation = _annotation(DESK, LAMP, CHAIR, PICTURE)
    assert (
        annotation.caption(np.array([1, 3])) == "an office with a picture on the wall, and a lamp"
    )
    assert annotation.caption(np.array([2, 0]), "walk") == (
        "the camera walks through an office with a chair at a desk"
    )


def test_what_moves_is_told_by_itself_and_apart_from_its_like() -> None:
    things = [CHAIR, FAR_CHAIR, DESK, LAMP, ("Scissors", BOX[1]), OTHER_CHAIR, PLANT]
    moving = {1: "turning", 4: "moving up", 6: "moving to the left"}
    assert _annotation(*things).caption(np.arange(7), moving=moving) == (
        "an office with a lamp on a desk, and two chairs at it; another chair is turning, scissors "
        "are moving up and a ficus is moving to the left"
    )
    alone = _annotation(FAR_CHAIR, CHAIR).caption(np.arange(2), moving={0: "turning", 1: "moving"})
    assert alone == "an office; a chair is turning and another chair is moving"
    # Not seen, not told.
    assert "moving" not in _annotation(DESK, CHAIR).caption(np.array([0]), moving={1: "moving"})


def test_names_that_tell_their_place_do_not_tell_it_twice() -> None:
    lamp = ("Wall lamp", PICTURE[1])
    assert _annotation(lamp).caption(np.arange(1)) == "an office with a wall lamp"


@pytest.mark.parametrize(
    ("name", "one", "three"),
    [
        ("box", "a box", "three boxes"),
        ("chair with cushion", "a chair with cushion", "three chairs with cushion"),
        ("sofa 2 seats", "a sofa 2 seats", "three sofas 2 seats"),
        ("table on trestles", "a table on trestles", "three tables on trestles"),
        ("headphones", "headphones", "three headphones"),
        ("shelf", "a shelf", "three shelves"),
        ("kitchen knife", "a kitchen knife", "three kitchen knives"),
        ("double vanity", "a double vanity", "three double vanities"),
        ("sushi tray", "a sushi tray", "three sushi trays"),
        ("ficus", "a ficus", "three ficuses"),
        ("snowman", "a snowman", "three snowmen"),
        ("armchair ottoman", "an armchair ottoman", "three armchair ottomans"),
        ("safe", "a safe", "three safes"),
        ("umbrella", "an umbrella", "three umbrellas"),
        ("urinal", "a urinal", "three urinals"),
    ],
)
def test_english(name: str, one: str, three: str) -> None:
    assert counted(name, 1) == one
    assert counted(name, 3) == three
    assert counted(name, 1, 3) == f"one of {three}"
    assert counted(name, 8, 9) == counted(name, 9)


NAMES = ("Desk", "Table", "Chair", "Stool", "Rug", "Lamp", "Vase", "Sofa", "Cabinet", "Picture")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_room_has_a_sentence_that_names_nothing_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 24))
    # A room of one to nine metres, so that things crowd or stand alone.
    wide, deep = rng.uniform(1, 9, 2)
    room = Room("office", np.array([[0.0, 0], [wide, 0], [wide, deep], [0, deep]]), 2.5, ())
    boxes = rng.uniform([0, 0, 0, -7, 0, 0, 0], [wide, deep, 2.4, 7, 1.5, 1.5, 2], (count, 7))
    boxes[rng.random(count) < 0.7, 2] = 0
    for i in np.flatnonzero(rng.random(count) < 0.4):
        j = rng.integers(count)
        boxes[i, :3] = [*boxes[j, :2], boxes[j, 2] + boxes[j, 6]]
        boxes[i, 4:6] = boxes[j, 4:6] * 0.3
    names = tuple(rng.choice(NAMES[: rng.integers(1, len(NAMES) + 1)], count).tolist())
    annotation = Annotation(room, ("walk",), names, boxes)
    visible = rng.permutation(count)[: rng.integers(0, count + 1)]
    caption = annotation.caption(visible, "walk")
    words = re.findall(r"[a-z]+", caption.replace("of many", "of"))
    # The five most prominent names, each once, and no other.
    seen = list(dict.fromkeys(names[i].lower() for i in visible))[:5]
    named = [n for n in map(str.lower, NAMES) for w in words if w in (n, f"{n}s")]
    assert sorted(named) == sorted(seen)
    assert caption == annotation.caption(visible, "walk")
    assert caption == annotation.mirrored().caption(visible, "walk")
    assert not re.search(r"left|right|  |,,|with$|and$", caption)
    # A pronoun never comes before what it is about.
    if found := re.search(r"\b(it|them)\b", caption):
        number = "a|one|two|three|four|five|six|many"
        assert re.search(rf"\b(on|at|under|beside) ({number}) ", caption[: found.start()])


def test_every_motion_that_training_clips_have_is_told() -> None:
    pairs, alone = np.zeros((0, 0), bool), np.zeros(0, bool)
    nothing = Places(*[pairs] * 4, *[alone] * 3)
    for motion, weight in MOTIONS.items():
        told = sentence("office", [], nothing, motion)
        assert told.startswith("the camera ") == (weight > 0), motion
