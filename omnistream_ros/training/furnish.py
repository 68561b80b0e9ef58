# SPDX-License-Identifier: Apache-2.0
"""Furnishing: where the objects of a room stand, without touching each other.

Footprints are oriented rectangles; what stands on the floor never overlaps, what stands on
furniture never overlaps there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from omnistream_ros.training.assets import Asset, FurnitureLibrary
from omnistream_ros.training.roles import CARRIERS, PLANS
from omnistream_ros.training.room import RADIATOR_DEPTH, Opening, Room
from omnistream_ros.training.textures import Rng

if TYPE_CHECKING:
    from omnistream_ros.training.joiner import Fitted

COVERINGS = 8  # textures that boxes and cylinders of a scene are covered with


@dataclass(frozen=True)
class Item:
    """An object: model `key` (or "box:N", "cylinder:N" with covering N), `size` (3,) in metres.

    position (3,) is the middle of its foot in the room, yaw in radians about z.
    """

    key: str
    name: str
    position: tuple[float, float, float]
    yaw: float
    size: tuple[float, float, float]
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    grain: float = 0.0
    gloss: float = 0.0

    @property
    def box(self) -> tuple[float, ...]:
        """Middle of the foot x, y, z, yaw, width, depth, height: as `Annotation` has it."""
        return (*self.position, self.yaw, *self.size)

    def corners(self, margin: float = 0.0) -> np.ndarray:
        """The footprint grown by a margin, (4, 2)."""
        w, d = self.size[0] / 2 + margin, self.size[1] / 2 + margin
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return (
            np.array([[w, d], [-w, d], [-w, -d], [w, -d]]) @ [[c, s], [-s, c]] + self.position[:2]
        )


def overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two rectangles (4, 2) overlap (separating axes)."""
    for corners in (a, b):
        for axis in (corners[0] - corners[1], corners[1] - corners[2]):
            pa, pb = a @ axis, b @ axis
            if pa.max() <= pb.min() or pb.max() <= pa.min():
                return False
    return True


class Furnisher:
    """Places objects one after the other; `items` grows."""

    def __init__(
        self,
        room: Room,
        library: FurnitureLibrary,
        by_role: dict[str, list[Asset]],
        rng: Rng,
        fitted: Fitted,
    ) -> None:
        self.room, self.library, self.by_role, self.rng = room, library, by_role, rng
        self.items = list(fitted.items)
        self._solid = [*clear_of_openings(room), *fitted.footprints]
        self._surfaces = list(fitted.surfaces)
        self._local: dict[str, Asset] = {}  # a room tends to hold several of one model

    def furnish(self) -> list[Item]:
        """Carry out the plan of the room's kind, then rugs, wall objects and clutter."""
        rng = self.rng
        density = rng.uniform(0.6, 1.6)
        for role, where, fewest, most in PLANS[self.room.kind]:
            count = int(np.ceil(density * rng.integers(fewest, most + 1)))
            getattr(self, f"_place_{where}")(role, count)
        self._place_rugs()
        self._place_on_walls()
        self._place_ceiling()
        self._clutter(rng.choice([0.3, 1.0, 2.0, 4.0]))
        return self.items

    def _choose(self, role: str, narrow: float = np.inf) -> tuple[Asset | None, Item]:
        """A model (or box) for a role, as an item not yet placed."""
        rng = self.rng
        if role == "box" or (role == "small" and rng.random() < 0.45):
            return None, self._box(role)
        known = self._local.get(role)
        if known is None or rng.random() < (
            0.85 if role in ("small", "thing", "storage") else 0.25
        ):
            fitting = [a for a in self.by_role[role] if max(a.size[:2]) < narrow]
            known = fitting[rng.integers(len(fitting))] if fitting else None
            if known is None or not self.library.usable(known.key):
                return None, self._box(role)
            self._local[role] = known
        scale = rng.uniform(0.93, 1.07) * np.array(known.size)
        tint = (1.0, 1.0, 1.0)
        if rng.random() < 0.5:
            value, saturation = rng.uniform(0.6, 1.3), rng.choice([0.15, 0.6])
            if rng.random() < 0.25:  # dark fronts, black chairs
                value = rng.uniform(0.08, 0.4)
            hsv = np.array([[[rng.random() * 360, saturation * rng.random(), value]]], np.float32)
            tint = tuple(float(v) for v in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0])
        gloss = rng.uniform(0.1, 0.9) if rng.random() < 0.5 else 0.0
        grain = rng.uniform(0.1, 0.7) if rng.random() < 0.6 else 0.0
        return known, Item(known.key, known.name, (0, 0, 0), 0.0, tuple(scale), tint, grain, gloss)

    def _box(self, role: str) -> Item:
        rng = self.rng
        size = np.exp(rng.uniform(np.log(0.03), np.log(0.35), 3))
        if role != "small":
            size = rng.uniform(0.2, 0.8, 3)
        elif rng.random() < 0.3:  # a lying book or sheet
            size = np.array(
                [rng.uniform(0.1, 0.3), rng.uniform(0.14, 0.4), rng.uniform(0.002, 0.05)]
            )
        shape = "cylinder" if rng.random() < 0.25 else "box"
        if shape == "cylinder":
            size[1] = size[0] = min(size[0], size[1])
        value = rng.uniform(0.5, 1.2)
        key = f"{shape}:{rng.integers(COVERINGS)}"
        return Item(key, shape, (0, 0, 0), 0.0, tuple(size), (value,) * 3)

    def _try(self, item: Item, margin: float = 0.02, solid: bool = True) -> bool:
        """Keep the item if it lies in the room and touches nothing."""
        corners = item.corners(margin)
        if self.room.wall_distance(item.corners(0.0)).min() < 0.003:
            return False
        if solid:
            if any(overlap(corners, other) for other in self._solid):
                return False
            self._solid.append(item.corners())
        self.items.append(item)
        return True

    def _note_surface(self, role: str, asset: Asset | None, item: Item) -> None:
        if role not in CARRIERS:
            return
        top = item.size[2]
        if asset is not None:
            if asset.top is None:
                return
            top = asset.top * item.size[2] / asset.size[2]
        if 0.15 < top < 1.6 and min(item.size[:2]) > 0.2:
            self._surfaces.append((item, top))

    def _place_wall(self, role: str, count: int) -> None:
        for _ in range(count):
            asset, item = self._choose(role, 3.0)
            for _ in range(12):
                wall = int(self.rng.integers(self.room.walls))
                s = self.rng.uniform(0, self.room.length(wall))
                placed = self._at_wall(item, wall, s, self.rng.uniform(0.01, 0.08), 0.03)
                if not self._blocks_window(placed, wall) and self._try(placed):
                    self._note_surface(role, asset, placed)
                    break

    def _at_wall(self, item: Item, wall: int, s: float, gap: float, wobble: float) -> Item:
        axes = self.room.frame(wall)
        yaw = np.arctan2(-axes[1, 0], -axes[0, 0]) + self.rng.normal(0, wobble)
        where = axes @ [s, item.size[1] / 2 + gap + 0.5 * abs(wobble) * item.size[0], 0, 1]
        return _moved(item, where[:3], yaw)

    def _blocks_window(self, item: Item, wall: int) -> bool:
        axes = self.room.frame(wall)
        s = (item.corners() - axes[:2, 3]) @ axes[:2, 0]
        return any(
            o.wall == wall
            and o.z0 < item.position[2] + item.size[2] - 0.2
            and s.min() < o.s1
            and s.max() > o.s0
            for o in self.room.openings
        )

    def _place_free(self, role: str, count: int) -> None:
        for _ in range(count):
            asset, item = self._choose(role)
            for _ in range(12):
                placed = _moved(item, (*self._spot(), 0.0), self.rng.uniform(0, 2 * np.pi))
                if self._try(placed, 0.1):
                    self._note_surface(role, asset, placed)
                    break

    def _spot(self) -> np.ndarray:
        low, high = self.room.corners.min(axis=0), self.room.corners.max(axis=0)
        return self.rng.uniform(low, high)

    def _place_set(self, role: str, count: int) -> None:
        """Tables with chairs around them, some pulled out."""
        rng = self.rng
        for _ in range(count):
            asset, table = self._choose(role)
            straight = np.arctan2(*self.room.frame(0)[[1, 0], 0]) + rng.integers(4) * np.pi / 2
            for _ in range(12):
                yaw = straight + rng.normal(0, 0.1) if rng.random() < 0.7 else rng.uniform(0, 6.28)
                placed = _moved(table, (*self._spot(), 0.0), yaw)
                if self._try(placed, 0.1):
                    self._note_surface(role, asset, placed)
                    for side in range(4):
                        self._chairs(placed, side)
                    break

    def _chairs(self, table: Item, side: int) -> None:
        rng = self.rng
        along, across = (table.size[0], table.size[1]) if side % 2 == 0 else table.size[1::-1]
        for i in range(int(along // 0.65)):
            if rng.random() < 0.25:
                continue
            _, chair = self._choose("chair", 0.75)
            angle = table.yaw + side * np.pi / 2
            out = across / 2 + chair.size[1] * rng.uniform(0.25, 0.8)
            shift = (i + 0.5) * along / (along // 0.65) - along / 2
            c, s = np.cos(angle), np.sin(angle)
            offset = np.array([c * shift - s * out, s * shift + c * out])
            # A chair's front is -y: standing on the +y side it faces the table.
            placed = _moved(
                chair, (*(table.position[:2] + offset), 0.0), angle + rng.normal(0, 0.2)
            )
            others = [r for r in self._solid if not np.array_equal(r, table.corners())]
            if self.room.wall_distance(placed.corners()).min() > 0.02 and not any(
                overlap(placed.corners(), other) for other in others
            ):
                self.items.append(placed)
                self._solid.append(placed.corners())

    def _place_desk(self, role: str, count: int) -> None:
        """Desks at walls or free, each with a chair and a screen."""
        rng = self.rng
        for _ in range(count):
            asset, desk = self._choose(role, 2.6)
            for _ in range(12):
                if rng.random() < 0.7:
                    wall = int(rng.integers(self.room.walls))
                    s = rng.uniform(0, self.room.length(wall))
                    placed = self._at_wall(desk, wall, s, rng.uniform(0.01, 0.1), 0.02)
                else:
                    placed = _moved(desk, (*self._spot(), 0.0), rng.integers(4) * np.pi / 2)
                if not self._try(placed, 0.03):
                    continue
                self._note_surface(role, asset, placed)
                _, chair = self._choose("chair", 0.8)
                away = placed.size[1] / 2 + chair.size[1] * rng.uniform(0.2, 0.9)
                c, s = np.cos(placed.yaw), np.sin(placed.yaw)
                at = (placed.position[0] + s * away, placed.position[1] - c * away, 0.0)
                chair = _moved(chair, at, placed.yaw + np.pi + rng.normal(0, 0.4))
                others = [r for r in self._solid if not np.array_equal(r, placed.corners())]
                if self.room.wall_distance(chair.corners()).min() > 0.02 and not any(
                    overlap(chair.corners(), other) for other in others
                ):
                    self.items.append(chair)
                    self._solid.append(chair.corners())
                break

    def _place_row(self, role: str, count: int) -> None:
        """Units side by side along one wall, others hung above them."""
        rng = self.rng
        wall = int(
            rng.choice(np.argsort([-self.room.length(w) for w in range(self.room.walls)])[:3])
        )
        s = rng.uniform(0.05, 0.4)
        for _ in range(count):
            asset, item = self._choose(role, 1.2)
            s += item.size[0] / 2
            placed = self._at_wall(item, wall, s, 0.01, 0.0)
            s += item.size[0] / 2 + 0.005
            if self._blocks_window(placed, wall) or not self._try(placed, 0.0):
                continue
            self._note_surface(role, asset, placed)
            if item.size[2] < 1.1 and rng.random() < 0.6:
                self._hang("upper unit", wall, s - item.size[0] / 2)

    def _hang(self, role: str, wall: int, s: float) -> None:
        asset, item = self._choose(role)
        if asset is None:
            return
        z = min(asset.elevation, self.room.height - item.size[2] - 0.05)
        placed = self._at_wall(item, wall, s, 0.005, 0.0)
        placed = _moved(placed, (*placed.position[:2], z), placed.yaw)
        footprint = placed.corners()
        for other in self.items:
            lower, upper = other.position[2], other.position[2] + other.size[2]
            if lower < z + item.size[2] and upper > z and overlap(footprint, other.corners()):
                return
        if z > 0 and not self._blocks_window(placed, wall):
            self._try(placed, solid=False)

    def _place_on_walls(self) -> None:
        for _ in range(int(self.rng.integers(0, 7))):
            wall = int(self.rng.integers(self.room.walls))
            self._hang("on wall", wall, self.rng.uniform(0, self.room.length(wall)))

    def _place_rugs(self) -> None:
        for _ in range(int(self.rng.choice([0, 0, 1, 2]))):
            _, rug = self._choose("rug")
            if rug.key.startswith(("box", "cylinder")):
                continue
            grow = self.rng.uniform(0.8, 1.6)
            rug = Item(
                rug.key,
                rug.name,
                rug.position,
                0.0,
                (rug.size[0] * grow, rug.size[1] * grow, 0.01),
                rug.tint,
            )
            for _ in range(6):
                placed = _moved(rug, (*self._spot(), 0.002), self.rng.integers(2) * np.pi / 2)
                if not any(r.name == rug.name for r in self.items) and self._try(
                    placed, solid=False
                ):
                    break

    def _place_ceiling(self) -> None:
        for _ in range(int(self.rng.choice([0, 1, 1, 2]))):
            asset, lamp = self._choose("ceiling")
            if asset is None:
                continue
            room = self.room.height
            drop = min(lamp.size[2], room - 1.75)
            lamp = Item(lamp.key, lamp.name, (0, 0, 0), 0.0, (*lamp.size[:2], drop), lamp.tint)
            self._try(_moved(lamp, (*self._spot(), room - drop), 0.0), solid=False)

    def _clutter(self, amount: float) -> None:
        """Small things on everything that can carry them, and some on the floor."""
        rng = self.rng
        for carrier, top in list(self._surfaces):
            area = carrier.size[0] * carrier.size[1]
            footprints: list[np.ndarray] = []
            for _ in range(min(int(rng.poisson(amount * (1.0 + 4 * area))), 22)):
                _, item = self._choose("small", min(carrier.size[:2]) * 0.9)
                free = np.array(carrier.size[:2]) / 2 - np.hypot(*item.size[:2]) / 2 - 0.01
                if (free < 0).any():
                    continue
                x, y = rng.uniform(-free, free)
                c, s = np.cos(carrier.yaw), np.sin(carrier.yaw)
                at = carrier.position[:2] + np.array([c * x - s * y, s * x + c * y])
                yaw = carrier.yaw + (
                    rng.normal(0, 0.4) if rng.random() < 0.6 else rng.uniform(0, 6.28)
                )
                item = _moved(item, (*at, carrier.position[2] + top + 0.001), yaw)
                corners = item.corners(0.005)
                if not any(overlap(corners, other) for other in footprints):
                    footprints.append(corners)
                    self.items.append(item)
        for _ in range(int(rng.poisson(amount))):
            _, item = self._choose("small")
            self._try(_moved(item, (*self._spot(), 0.0), rng.uniform(0, 6.28)))


def _moved(item: Item, position: Sequence[float], yaw: float) -> Item:
    x, y, z = (float(v) for v in position)
    return Item(
        item.key, item.name, (x, y, z), float(yaw), item.size, item.tint, item.grain, item.gloss
    )


def clear_of_openings(room: Room) -> list[np.ndarray]:
    """The floor before doors and under windows with a radiator, (4, 2) each: it stays free."""
    return [
        _zone(room, o, 0.7 if o.z0 == 0 else RADIATOR_DEPTH)
        for o in room.openings
        if o.z0 == 0 or o.radiator
    ]


def along_wall(room: Room, wall: int, start: float, end: float, depth: float) -> np.ndarray:
    """The floor along a part of a wall, so deep into the room: (4, 2)."""
    axes = room.frame(wall)
    local = [(start, 0.0), (end, 0.0), (end, depth), (start, depth)]
    return np.array([(axes @ [s, y, 0, 1])[:2] for s, y in local])


def _zone(room: Room, opening: Opening, depth: float) -> np.ndarray:
    """The floor before a door or under a window that stays free: (4, 2)."""
    return along_wall(room, opening.wall, opening.s0, opening.s1, depth)
