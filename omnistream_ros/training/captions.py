# SPDX-License-Identifier: Apache-2.0
"""A sentence about what is seen in a room: which things, where they stand, how the camera moves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omnistream_ros.training.relations import Places

_MOST = 5  # things that one sentence tells of
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
# What begins with the sound of a vowel, as far as the catalogue goes.
_VOWEL = r"(?!uri|ute|uni)[aeiou]|mp3"
# "chair" of "chair with cushion", "sofa" of "sofa 2 seats": what becomes plural.
_HEAD = r"(.+?)((?: (?:with|on|of)\b| \d| -).*)?"
_MOTIONS = {
    "walk": "walks through",
    "wander": "wanders through",
    "orbit": "circles around a thing in",
    "rotate": "turns around on the spot in",
    "drive": "drives through",
    "sway": "sways in the hand in",
    "tour": "is carried all around",
    "inspect": "looks closely at a thing in",
    "survey": "looks across",
}
#: Relations of `Places` in the order in which they are tried: the more telling ones first.
_PAIRS = ("on", "at", "under", "beside")
_ALONE = {
    "on_wall": "on the wall",
    "from_ceiling": "hanging from the ceiling",
    "at_wall": "at the wall",
}


@dataclass
class _Kind:
    """Visible things of one name, and what is told of them.

    members: their indices, told: those that the sentence is about; where: how these are placed, a
    key of _PAIRS or _ALONE or nothing yet; bears: the kinds that are placed by them.
    """

    name: str
    members: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    where: str = ""
    bears: list[_Kind] = field(default_factory=list)

    def mention(self) -> str:
        return counted(self.name, len(self.told), len(self.members))


def sentence(
    room: str,
    names: Sequence[str],
    stand: Places,
    motion: str | None = None,
    moves: Sequence[tuple[str, str]] = (),
) -> str:
    """A sentence about N things by name, most prominent first, which stand in a kind of room so.

    No name comes twice: a relation takes the place of the plain mention of both its things.
    With the `motion` of a take it tells that as well, without one it is about a picture. `moves`
    are the names of further things and what each does, such as "moving to the left".
    """
    kinds: dict[str, _Kind] = {}
    for index, name in enumerate(names):
        kinds.setdefault(name, _Kind(name)).members.append(index)
    chosen = list(kinds.values())[:_MOST]
    for kind in chosen:
        kind.told = kind.members
    _place_by_others(chosen, stand)
    for kind in chosen:
        _place_alone(kind, stand)
    seen = counted(room, 1)
    if chosen:
        placed = any(k.where for k in chosen)
        seen += f" with {_listed(_phrases(chosen), ', and ' if placed else ' and ')}"
    if moves:
        before = [kind.name for kind in chosen] + [name for name, _ in moves]
        first = len(chosen)
        told = [_moving(*move, move[0] in before[: first + i]) for i, move in enumerate(moves)]
        seen += f"; {_listed(told)}"
    return f"the camera {_MOTIONS[motion]} {seen}" if motion in _MOTIONS else seen


def _moving(name: str, how: str, further: bool) -> str:
    """ "a chair is turning", or "another chair" where one was told of before."""
    one = counted(name, 1)
    if one == name:  # scissors
        return f"{'other ' if further else ''}{name} are {how}"
    return f"{f'another {name}' if further else one} is {how}"


def _place_by_others(kinds: list[_Kind], stand: Places) -> None:
    """Find for each kind another by which half of it or more is placed.

    What is placed by others places none itself. All kinds that one places are placed by the same
    of its things: "a lamp on one of two desks, a chair at it" is about one desk.
    """
    for relation in _PAIRS:
        holds: NDArray[np.bool_] = getattr(stand, relation)
        for kind in kinds:
            if kind.where or kind.bears:
                continue
            best: tuple[_Kind, NDArray[np.bool_]] | None = None
            most = (len(kind.members) - 1) // 2  # fewer than half
            for other in (k for k in kinds if k is not kind and not k.where):
                pairs = holds[np.ix_(kind.members, other.told)]
                count = int(pairs.any(axis=1).sum())
                if count > most and (not other.bears or pairs.any(axis=0).all()):
                    best, most = (other, pairs), count
            if best is None:
                continue
            other, pairs = best
            kind.where = relation
            kind.told = list(np.array(kind.members)[pairs.any(axis=1)])
            other.told = list(np.array(other.told)[pairs.any(axis=0)])
            other.bears.append(kind)


def _place_alone(kind: _Kind, stand: Places) -> None:
    """Where a kind without a place stands or hangs in the room, if half of it or more does."""
    # "A wall lamp on the wall" would say it twice.
    if kind.where or re.search(r"wall|ceiling|hang", kind.name):
        return
    for where in _ALONE:
        there = [m for m in kind.told if getattr(stand, where)[m]]
        # What others are placed by is at the wall only where all of it is.
        if len(there) > (len(kind.told) - 1 if kind.bears else (len(kind.told) - 1) // 2):
            kind.where, kind.told = where, there
            return


def _phrases(kinds: list[_Kind]) -> list[str]:
    """The parts of the list of things: pairs, then what is placed by the room, then the rest."""
    phrases = []
    walls = True
    for other in (k for k in kinds if k.bears):
        named = other.mention()
        if other.where and walls:
            named += f" {_ALONE[other.where]}"
            walls = False  # once is enough: more makes a litany
        for relation in _PAIRS:
            subjects = [k.mention() for k in other.bears if k.where == relation]
            if subjects:
                phrases.append(f"{_listed(subjects)} {relation} {named}")
                named = "it" if len(other.told) == 1 else "them"
    alone = [k for k in kinds if not k.bears and k.where not in _PAIRS]
    for where, words in _ALONE.items():
        subjects = [k.mention() for k in alone if k.where == where]
        if subjects:
            phrases.append(f"{_listed(subjects)} {words}")
    return phrases + [k.mention() for k in alone if not k.where]


def _listed(parts: Sequence[str], before_last: str = " and ") -> str:
    *most, last = parts
    return f"{', '.join(most)}{before_last}{last}" if most else last


def counted(name: str, count: int, of: int | None = None) -> str:
    """A number of things: "a lamp", "two lamps", "one of two lamps", "scissors"."""
    number = _number(count)
    if of is not None and of > count and _number(of) != number:
        return f"{number} of {counted(name, of)}"
    match = re.fullmatch(_HEAD, name)
    head, rest = (match[1], match[2] or "") if match else (name, "")
    plural = re.search(r"[^su]s$", head) is not None  # not "glass", "cactus"
    if count == 1:
        article = "an " if re.match(_VOWEL, name) else "a "
        return ("" if plural else article) + name
    return f"{number} {head if plural else _plural(head)}{rest}"


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else "many"


def _plural(name: str) -> str:
    for end, ends in (("man", "men"), ("knife", "knives"), ("shelf", "shelves")):
        if re.search(rf"(\b|snow|wo){end}$", name):
            return name[: -len(end)] + ends
    if re.search(r"[^aeiou]y$", name):
        return name[:-1] + "ies"
    return name + ("es" if name.endswith(("x", "s", "sh", "ch")) else "s")
