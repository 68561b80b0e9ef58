# SPDX-License-Identifier: Apache-2.0
"""A joiner: finds where along the walls of a room a row of units has a place, and makes them alike.

Units are made in the frame of their wall: x along it, y into the room, z up, in metres.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from omnistream_ros.training import textures
from omnistream_ros.training.furnish import Item, along_wall, clear_of_openings, overlap
from omnistream_ros.training.mesh import IMAGE_SIZE, Mesh, MeshBuilder, Paint
from omnistream_ros.training.room import Room
from omnistream_ros.training.textures import Rng

HIGHEST_TOP = 0.95  # of lower cupboards; window sills are mostly higher
STEEL, BLACK = Paint((0.62, 0.62, 0.63)), Paint((0.03, 0.03, 0.035))
_WIDTHS = (0.3, 0.4, 0.45, 0.5, 0.6, 0.6, 0.6, 0.8, 0.9, 1.0)
_SHORTEST = 1.4
_IN_FRONT = 0.8  # free space before a row, so that one can stand there


@dataclass(frozen=True)
class Fitted:
    """What a room has built in.

    items: one for each unit, their keys in `meshes`, which stand where they are (world axes);
    footprints: what nothing else may stand on; surfaces: worktops, with the height of their tops.
    """

    items: tuple[Item, ...] = ()
    meshes: dict[str, Mesh] = field(default_factory=dict)
    footprints: tuple[np.ndarray, ...] = ()
    surfaces: tuple[tuple[Item, float], ...] = ()


@dataclass(frozen=True)
class _Style:
    """How all units of a room look."""

    front: Paint
    body: Paint
    top: Paint
    back: Paint  # between worktop and upper cupboards
    handle: Paint
    handles: str  # "bar", "upright", "knob", "none"
    framed: bool
    gap: float
    gloss: float
    gloss_of_top: float


def _style(rng: Rng) -> tuple[_Style, list[np.ndarray]]:
    images: list[np.ndarray] = []

    def texture(found: textures.Texture) -> Paint:
        images.append(found[0])
        return Paint((1.0, 1.0, 1.0), len(images) - 1, found[1])

    def plain(low: float, high: float, saturation: float) -> Paint:
        return Paint(tuple(textures.hue(rng, low, high, saturation)))

    looks = {
        "light": (0.35, lambda: plain(0.75, 0.97, 0.1)),
        "dark": (0.3, lambda: plain(0.06, 0.35, 0.25)),
        "wood": (0.25, lambda: texture(textures.grain(rng))),
        "colour": (0.1, lambda: plain(0.3, 0.9, 0.7)),
    }
    look = rng.choice(list(looks), p=[share for share, _ in looks.values()])
    front = looks[look][1]()
    tops = (textures.grain, textures.stone, textures.concrete)
    top = texture(tops[rng.integers(3)](rng)) if rng.random() < 0.7 else plain(0.05, 0.9, 0.15)
    backs = (textures.tiles, textures.tiles, textures.stone, textures.plaster)
    back = texture(backs[rng.integers(4)](rng)) if rng.random() < 0.6 else plain(0.1, 0.95, 0.3)
    style = _Style(
        front,
        front if rng.random() < 0.5 else plain(0.3, 0.95, 0.1),
        top,
        top if rng.random() < 0.2 else back,
        STEEL if rng.random() < 0.7 else BLACK,
        str(rng.choice(["bar", "upright", "knob", "none"], p=[0.4, 0.25, 0.1, 0.25])),
        bool(rng.random() < 0.25),
        rng.uniform(0.002, 0.006),
        rng.uniform(0.1, 0.9) if rng.random() < 0.6 else 0.0,
        rng.uniform(0.1, 0.8) if rng.random() < 0.6 else 0.0,
    )
    return style, images


class Joiner:
    """Makes units along one wall of a room after the other, all in one style."""

    def __init__(self, room: Room, rng: Rng) -> None:
        self.room, self.rng = room, rng
        self.style, images = _style(rng)
        blank = np.zeros((0, IMAGE_SIZE, IMAGE_SIZE, 4), np.uint8)
        self._images = np.stack(images) if images else blank
        self._items: list[Item] = []
        self._meshes: dict[str, Mesh] = {}
        self._footprints: list[np.ndarray] = []
        self._surfaces: list[tuple[Item, float]] = []
        self._axes = np.eye(4)
        self.wall, self.start, self.end, self.depth = 0, 0.0, 0.0, 0.0

    def fitted(self) -> Fitted:
        return Fitted(
            tuple(self._items), self._meshes, tuple(self._footprints), tuple(self._surfaces)
        )

    def choose_wall(self, depth: float, high: bool) -> bool:
        """Take a free stretch of a wall for a row of this depth; False when there is none.

        `high` rows stand before no window.
        """
        stretches = []
        for wall in range(self.room.walls):
            for start, end in self._free(wall, depth, high):
                if end - start >= _SHORTEST:
                    stretches.append((wall, start, end))
        if not stretches:
            return False
        longest = sorted(stretches, key=lambda s: s[1] - s[2])[:3]
        self.wall, self.start, end = longest[self.rng.integers(len(longest))]
        length = self.rng.uniform(_SHORTEST, min(end - self.start, 5.0))
        if self.rng.random() < 0.5:  # in a corner, or anywhere
            self.start += self.rng.uniform(0, end - self.start - length)
        self.end, self.depth, self._axes = self.start + length, depth, self.room.frame(self.wall)
        self._footprints.append(along_wall(self.room, self.wall, self.start, self.end, depth))
        return True

    def _free(self, wall: int, depth: float, high: bool) -> Iterator[tuple[float, float]]:
        """Stretches of a wall that a row can take, looked for in steps of 10 cm."""
        step, start, s = 0.1, None, 0.02
        kept = clear_of_openings(self.room)
        while s + step < self.room.length(wall):
            room_to_stand = along_wall(self.room, wall, s, s + step, depth + _IN_FRONT)
            own = along_wall(self.room, wall, s, s + step, depth)
            free = (
                self.room.wall_distance(room_to_stand[2:]).min() > 0
                and not any(overlap(own, zone) for zone in (*kept, *self._footprints))
                and not self._covers(own, 0.0, self.room.height if high else HIGHEST_TOP)
            )
            if free and start is None:
                start = s
            if not free and start is not None:
                yield start, s
                start = None
            s += step
        if start is not None:
            yield start, s

    def _covers(self, footprint: np.ndarray, low: float, high: float) -> bool:
        """Whether something from `low` to `high` would hide a part of a door or a window."""
        return any(
            o.z0 < high
            and o.z1 > low
            and overlap(footprint, along_wall(self.room, o.wall, o.s0 - 0.05, o.s1 + 0.05, 0.05))
            for o in self.room.openings
        )

    def covers(self, s: Sequence[float], depth: float, low: float, high: float) -> bool:
        """The same of a unit of this row."""
        return self._covers(along_wall(self.room, self.wall, s[0], s[1], depth), low, high)

    def widths(self) -> Iterator[tuple[float, float]]:
        """From where to where units go, to the end of the row."""
        s, usual = self.start, float(self.rng.choice(_WIDTHS))
        while self.end - s > 0.25:
            wide = usual if self.rng.random() < 0.6 else float(self.rng.choice(_WIDTHS))
            wide = min(wide, self.end - s)
            yield s, s + wide
            s += wide

    def box(
        self, to: MeshBuilder, s: Sequence[float], y: Sequence[float], z: Sequence[float], p: Paint
    ) -> None:
        """A box between two places along the wall, into the room, and up."""
        low, high = np.array([s[0], y[0], z[0]]), np.array([s[1], y[1], z[1]])
        to.box(low, high, self._axes, p)

    def front(
        self, to: MeshBuilder, s: Sequence[float], z: Sequence[float], y: float, hinge: str
    ) -> None:
        """A door or the front of a drawer, 2 cm before y; its handle is not where the `hinge` is,
        "left", "right" or "none"."""
        style, g = self.style, self.style.gap
        a, b, low, high = s[0] + g, s[1] - g, z[0] + g, z[1] - g
        if b - a < 0.05 or high - low < 0.05:
            return
        self.box(to, (a, b), (y, y + 0.02), (low, high), style.front)
        if style.framed and min(b - a, high - low) > 0.2:
            for x in ((a, a + 0.06), (b - 0.06, b)):
                self.box(to, x, (y + 0.02, y + 0.03), (low, high), style.front)
            for h in ((low, low + 0.06), (high - 0.06, high)):
                self.box(to, (a, b), (y + 0.02, y + 0.03), h, style.front)
        self._handle(to, (a, b), (low, high), y + (0.03 if style.framed else 0.02), hinge)

    def _handle(
        self, to: MeshBuilder, s: Sequence[float], z: Sequence[float], y: float, hinge: str
    ) -> None:
        kind, (a, b), (low, high) = self.style.handles, s, z
        middle = (a + b) / 2
        if kind == "none":
            return
        x = {"left": b - 0.05, "right": a + 0.05}.get(hinge, middle)
        # Of doors below at their top, of those above at their foot.
        end = low + 0.06 if low > 1.0 else high - 0.06
        if kind == "knob":
            self.box(
                to, (x - 0.015, x + 0.015), (y, y + 0.025), (end - 0.03, end), self.style.handle
            )
        elif kind == "upright" and hinge in ("left", "right"):
            long = min(0.16, 0.5 * (high - low))
            far = (end, end + long) if low > 1.0 else (end - long, end)
            self.box(to, (x - 0.006, x + 0.006), (y, y + 0.035), far, self.style.handle)
        else:
            half = min(0.09, 0.4 * (b - a))
            x = float(np.clip(x, a + half + 0.02, b - half - 0.02)) if b - a > 0.25 else middle
            self.box(to, (x - half, x + half), (y, y + 0.03), (end - 0.012, end), self.style.handle)

    def doors(self, to: MeshBuilder, s: Sequence[float], z: Sequence[float], y: float) -> None:
        """One door, or two for wide units."""
        if s[1] - s[0] > 0.65:
            middle = (s[0] + s[1]) / 2
            self.front(to, (s[0], middle), z, y, "left")
            self.front(to, (middle, s[1]), z, y, "right")
        else:
            self.front(to, s, z, y, str(self.rng.choice(["left", "right"])))

    def drawers(self, to: MeshBuilder, s: Sequence[float], z: Sequence[float], y: float) -> None:
        """Two to four, the upper ones lower or all alike."""
        count = int(self.rng.integers(2, 5))
        heights = np.ones(count)
        if self.rng.random() < 0.6:
            heights[-1] = 0.5
        edges = z[0] + np.concatenate([[0], np.cumsum(heights / heights.sum())]) * (z[1] - z[0])
        for low, high in itertools.pairwise(edges):
            self.front(to, s, (low, high), y, "none")

    def keep(
        self,
        unit: MeshBuilder,
        name: str,
        s: Sequence[float],
        depth: float,
        z: Sequence[float],
        gloss: float | None = None,
    ) -> Item:
        """Note a unit that is made, with the box around it; as glossy as fronts are or as said."""
        key = f"fitted:{len(self._items)}"
        self._meshes[key] = unit.mesh(self._images)
        axes = self._axes
        at = axes @ [(s[0] + s[1]) / 2, depth / 2, z[0], 1.0]
        yaw = float(np.arctan2(-axes[1, 0], -axes[0, 0]))
        item = Item(
            key,
            name,
            (float(at[0]), float(at[1]), float(at[2])),
            yaw,
            (float(s[1] - s[0]), float(depth), float(z[1] - z[0])),
            gloss=self.style.gloss if gloss is None else gloss,
        )
        self._items.append(item)
        return item

    def carries(self, item: Item) -> None:
        """Things may stand on the item."""
        self._surfaces.append((item, item.size[2]))
