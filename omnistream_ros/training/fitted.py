# SPDX-License-Identifier: Apache-2.0
"""What is built in along a wall: fitted kitchens and kitchenettes, built-in wardrobes.

Rows of fronts that look alike, a worktop between lower and upper cupboards, and dark gaps between:
what is near there looks to a network that never saw such a wall like the next room.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from omnistream_ros.training.joiner import BLACK, HIGHEST_TOP, STEEL, Fitted, Joiner
from omnistream_ros.training.mesh import MeshBuilder, Paint
from omnistream_ros.training.room import Room
from omnistream_ros.training.textures import Rng

# How often a kind of room has a kitchen, and built-in wardrobes.
KITCHENS = {"kitchen": 0.85, "office": 0.3, "living room": 0.25, "dining room": 0.35}
WARDROBES = {"bedroom": 0.25, "office": 0.15, "corridor": 0.2, "storage room": 0.15}


def fit(room: Room, rng: Rng) -> Fitted:
    """Build in what a room of this kind may have; mostly nothing."""
    makers = []
    if rng.random() < KITCHENS.get(room.kind, 0.0):
        makers += [_kitchen] * (1 + (room.kind == "kitchen" and rng.random() < 0.5))
    if rng.random() < WARDROBES.get(room.kind, 0.0):
        makers.append(_wardrobe)
    if not makers:
        return Fitted()
    joiner = Joiner(room, rng)
    for make in makers:
        depth = rng.uniform(0.35, 0.65) if make is _wardrobe else rng.uniform(0.55, 0.66)
        if joiner.choose_wall(depth, high=make is _wardrobe):
            make(joiner)
    return joiner.fitted()


def _kitchen(j: Joiner) -> None:
    """Lower cupboards under a worktop, upper ones over it, high ones at the end."""
    rng, room, depth = j.rng, j.room, j.depth
    top, thick = rng.uniform(0.84, HIGHEST_TOP), rng.uniform(0.02, 0.05)
    plinth, high = rng.uniform(0.06, 0.16), min(rng.uniform(1.9, 2.35), room.height - 0.03)
    tall = 0 if rng.random() < 0.5 else int(rng.integers(1, 3))
    places = list(j.widths())
    at_first = rng.random() < 0.5
    ends = places[:tall] if at_first else places[len(places) - tall :]
    low = [s for s in places if s not in ends or j.covers(s, depth, 0.0, high)]
    for s in places:
        unit = MeshBuilder()
        if s not in low:
            _column(j, unit, s, plinth, high)
            continue
        j.box(unit, s, (0, depth - 0.02), (plinth, top - thick), j.style.body)
        j.box(unit, s, (0.02, depth - 0.08), (0, plinth), Paint((0.1, 0.1, 0.1)))
        z, kind = (plinth, top - thick), rng.random()
        name = "kitchen cupboard"
        if kind < 0.4:
            j.drawers(unit, s, z, depth - 0.02)
        elif kind < 0.85 or s[1] - s[0] < 0.44:
            j.doors(unit, s, z, depth - 0.02)
        else:
            name = _appliance(j, unit, s, z, depth - 0.02)
        j.keep(unit, name, s, depth, (0.0, top - thick))
    if not low:
        return
    s = (low[0][0], low[-1][1])
    worktop = MeshBuilder()
    j.box(worktop, s, (0, depth + rng.uniform(0.0, 0.03)), (top - thick, top), j.style.top)
    _sink_and_hob(j, worktop, s, top)
    z, gloss = (top - thick, top), j.style.gloss_of_top
    j.carries(j.keep(worktop, "kitchen worktop", s, depth, z, gloss))
    _upper(j, low, top, high)


def _column(
    j: Joiner, unit: MeshBuilder, s: tuple[float, float], plinth: float, high: float
) -> None:
    """A high cupboard, some with an oven at the height of the chest."""
    y, rng = j.depth - 0.02, j.rng
    j.box(unit, s, (0, y), (plinth, high), j.style.body)
    j.box(unit, s, (0.02, y - 0.06), (0, plinth), Paint((0.1, 0.1, 0.1)))
    edges = [plinth, *sorted(rng.uniform(0.6, 1.7, int(rng.integers(0, 3)))), high]
    oven = rng.random() < 0.4 and s[1] - s[0] > 0.5
    if oven:
        below = rng.uniform(0.7, 1.1)
        edges = [plinth, below, below + rng.uniform(0.38, 0.6), high]
    for number, z in enumerate(itertools.pairwise(edges)):
        if oven and number == 1:
            _appliance(j, unit, s, z, y)
        else:
            j.doors(unit, s, z, y)
    j.keep(unit, "high kitchen cupboard", s, j.depth, (0.0, high))


def _appliance(
    j: Joiner, unit: MeshBuilder, s: Sequence[float], z: Sequence[float], y: float
) -> str:
    """The front of an oven or a dishwasher: glass in steel, or a plain plate, with a bar."""
    rng = j.rng
    plate = STEEL if rng.random() < 0.5 else BLACK
    j.box(unit, (s[0] + 0.003, s[1] - 0.003), (y, y + 0.02), (z[0], z[1] - 0.003), plate)
    if rng.random() < 0.75:
        pane = (z[0] + 0.06, z[1] - 0.14) if z[1] - z[0] > 0.3 else (z[0] + 0.03, z[1] - 0.05)
        j.box(unit, (s[0] + 0.05, s[1] - 0.05), (y + 0.02, y + 0.024), pane, BLACK)
    bar = z[1] - 0.1 if z[1] - z[0] > 0.3 else z[1] - 0.03
    j.box(unit, (s[0] + 0.06, s[1] - 0.06), (y + 0.03, y + 0.05), (bar, bar + 0.015), STEEL)
    return "oven" if rng.random() < 0.6 else "dishwasher"


def _sink_and_hob(j: Joiner, unit: MeshBuilder, s: tuple[float, float], top: float) -> None:
    """A plate of steel with a dark basin and a tap, and one of black glass, where there is room."""
    rng, depth = j.rng, j.depth
    for kind in rng.permutation(["sink", "hob"]):
        wide = rng.uniform(0.45, 0.85)
        if rng.random() < 0.3 or s[1] - s[0] < wide + 0.2:
            continue
        a = rng.uniform(s[0] + 0.05, s[1] - wide - 0.05)
        y = (0.09, depth - 0.08)
        if kind == "hob":
            j.box(unit, (a, a + wide), y, (top, top + 0.006), BLACK)
            continue
        j.box(unit, (a, a + wide), y, (top, top + 0.004), STEEL)
        basin = (a + 0.04, a + wide * rng.uniform(0.5, 0.95))
        dark = Paint((0.28, 0.28, 0.29))
        j.box(unit, basin, (y[0] + 0.04, y[1] - 0.03), (top + 0.004, top + 0.005), dark)
        tap, tall = sum(basin) / 2, rng.uniform(0.15, 0.35)
        steel = Paint((0.75, 0.75, 0.76))
        j.box(unit, (tap - 0.012, tap + 0.012), (0.1, 0.125), (top, top + tall), steel)
        reach = (top + tall - 0.02, top + tall)
        j.box(unit, (tap - 0.01, tap + 0.01), (0.1, 0.1 + rng.uniform(0.12, 0.25)), reach, steel)


def _upper(j: Joiner, low: Sequence[tuple[float, float]], top: float, high: float) -> None:
    """What hangs over the worktop, the wall between, and where nothing hangs, perhaps a shelf."""
    rng, room = j.rng, j.room
    foot = top + rng.uniform(0.42, 0.66)
    head = max(high if rng.random() < 0.6 else foot + rng.uniform(0.35, 0.9), foot + 0.3)
    head = min(head, room.height - 0.03)
    depth, missing = (
        rng.uniform(0.28, 0.4),
        rng.choice([0.0, 0.15, 0.5, 1.0], p=[0.5, 0.3, 0.1, 0.1]),
    )
    for s in low:
        window = j.covers(s, depth + 0.1, foot, head)
        if not j.covers(s, 0.012, top, foot):
            back = MeshBuilder()
            j.box(back, s, (0, 0.012), (top, foot), j.style.back)
            j.keep(back, "splashback", s, 0.012, (top, foot))
        if window or rng.random() < missing or head - foot < 0.25:
            continue
        unit, kind = MeshBuilder(), rng.random()
        wide = s[1] - s[0]
        if kind < 0.12 and wide > 0.44:
            j.box(unit, s, (0, depth + 0.1), (foot, foot + 0.08), STEEL)
            chimney = (sum(s) / 2 - 0.14, sum(s) / 2 + 0.14)
            j.box(unit, chimney, (0, 0.28), (foot + 0.08, head), STEEL)
            j.keep(unit, "extractor hood", s, depth + 0.1, (foot, head))
        elif kind < 0.24 and wide > 0.4:
            niche = foot + min(0.39, 0.6 * (head - foot))
            j.box(unit, s, (0, depth), (niche, head), j.style.body)
            j.doors(unit, s, (niche, head), depth)
            oven = (s[0] + 0.01, s[1] - 0.01)
            j.box(unit, oven, (0.02, depth + 0.03), (foot + 0.012, niche - 0.01), BLACK)
            door = (s[0] + 0.03, s[1] - 0.25 * wide)
            pane = (foot + 0.04, niche - 0.04)
            j.box(unit, door, (depth + 0.03, depth + 0.036), pane, Paint((0.07, 0.07, 0.08)))
            j.box(unit, s, (0, depth), (foot, foot + 0.012), j.style.body)
            j.keep(unit, "microwave oven", s, depth + 0.03, (foot, head))
        elif kind < 0.34:
            for z in np.linspace(foot, head - 0.02, int(rng.integers(2, 4))):
                j.box(unit, s, (0, depth), (z, z + 0.02), j.style.body)
            j.keep(unit, "kitchen shelf", s, depth, (foot, head))
        else:
            j.box(unit, s, (0, depth), (foot, head), j.style.body)
            if rng.random() < 0.8 or head - foot < 0.5:
                j.doors(unit, s, (foot, head), depth)
            else:
                middle = foot + 0.55 * (head - foot)
                j.doors(unit, s, (foot, middle), depth)
                j.doors(unit, s, (middle, head), depth)
            j.keep(unit, "wall cupboard", s, depth + 0.02, (foot, head))


def _wardrobe(j: Joiner) -> None:
    """Doors from the floor to the ceiling or below it, in one or two tiers."""
    rng, room = j.rng, j.room
    high = (
        room.height - 0.02 if rng.random() < 0.5 else min(rng.uniform(1.9, 2.4), room.height - 0.02)
    )
    plinth, split = rng.uniform(0.02, 0.1), high * rng.uniform(0.6, 0.85)
    tiers = [plinth, split, high] if rng.random() < 0.4 else [plinth, high]
    y = j.depth - 0.02
    for s in j.widths():
        unit = MeshBuilder()
        j.box(unit, s, (0, y), (0, high), j.style.body)
        for z in itertools.pairwise(tiers):
            j.doors(unit, s, z, y)
        j.keep(unit, "built-in wardrobe", s, j.depth, (0.0, high))
