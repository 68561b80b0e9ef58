# SPDX-License-Identifier: Apache-2.0
"""The empty room in meshes: walls with doors and windows, finishes, what is seen outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from omnistream_ros.training import textures
from omnistream_ros.training.flooring import TWO_FLOORS, second_floor
from omnistream_ros.training.mesh import Mesh, MeshBuilder, Paint
from omnistream_ros.training.room import RADIATOR_DEPTH, Opening, Room
from omnistream_ros.training.stage import Light, Pane
from omnistream_ros.training.textures import Rng

_WALL_THICKNESS = 0.14


@dataclass(frozen=True)
class Shell:
    """The room's own meshes, the light that enters by its windows, and these."""

    mesh: Mesh
    floor: Mesh
    polish: float  # of the floor, 0 for carpet
    lights: tuple[Light, ...]
    windows: tuple[Pane, ...]


class _Finish:
    """Hands out image layers for the textures a room uses."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def paint(self, texture: textures.Texture, colour: float = 1.0, emission: float = 0.0) -> Paint:
        self.images.append(texture[0])
        return Paint((colour,) * 3, len(self.images) - 1, texture[1], emission)


def build_shell(room: Room, rng: Rng, pictures: bool, daylight: float) -> Shell:
    """Build floor, ceiling, walls, doors, windows and the view outside.

    `pictures` allows installed wallpapers as posters and views; `daylight` is the radiance outside
    relative to a lit wall, 0 at night.
    """
    finish, builder = _Finish(), MeshBuilder()
    wet = room.kind in ("bathroom", "kitchen")
    walls: tuple[Callable[[Rng], textures.Texture], ...] = (
        textures.WET_WALLS if wet else textures.WALLS
    )
    main = finish.paint(walls[rng.integers(len(walls))](rng))
    accent = finish.paint(walls[rng.integers(len(walls))](rng)) if rng.random() < 0.4 else main
    flooring = textures.FLOORS[rng.integers(len(textures.FLOORS))]
    floor = finish.paint(flooring(rng))
    polish = float(
        rng.choice([0.0, rng.uniform(0.1, 0.5), rng.uniform(0.5, 1.0)], p=[0.2, 0.4, 0.4])
    )
    if flooring is textures.carpet:
        polish = 0.0
    ceiling = finish.paint(textures.plaster(rng)) if rng.random() < 0.3 else Paint((0.9, 0.9, 0.88))
    if rng.random() < 0.2:
        ceiling = finish.paint(textures.tiles(rng))
    wood = finish.paint(textures.grain(rng))
    trim = wood if rng.random() < 0.4 else Paint(tuple(textures.hue(rng, 0.1, 0.95, 0.2)))

    flat = np.zeros((room.walls, 1))
    ground = MeshBuilder()
    alone = Paint(floor.colour, 0, floor.period)
    ground.polygon(np.hstack([room.corners, flat]), alone)
    builder.polygon(np.hstack([room.corners, flat + room.height]), ceiling)
    lights: list[Light] = []
    windows: list[Pane] = []
    skirting = rng.uniform(0.04, 0.14) if rng.random() < 0.7 else 0.0
    accent_wall = int(rng.integers(room.walls))
    for wall in range(room.walls):
        axes = room.frame(wall)
        openings = [o for o in room.openings if o.wall == wall]
        paint = accent if wall == accent_wall else main
        _wall(builder, room, wall, openings, paint, trim, skirting)
        for opening in openings:
            if opening.kind == "window":
                light, pane = _window(builder, finish, opening, axes, trim, rng, pictures, daylight)
                lights += light
                windows.append(pane)
                if opening.radiator:
                    _radiator(builder, opening, axes, rng)
            elif opening.kind == "door":
                leaf = (
                    wood if rng.random() < 0.4 else Paint(tuple(textures.hue(rng, 0.05, 0.95, 0.3)))
                )
                _door(builder, opening, axes, leaf, trim, rng)
            else:
                _passage(builder, opening, axes, main, floor, ceiling, trim, rng)
        if pictures or rng.random() < 0.7:
            _posters(builder, finish, room, wall, openings, trim, rng, pictures)
    if rng.random() < 0.2 and room.kind != "corridor":
        _beams(builder, room, trim, rng)
    floors = [floor.layer]
    if rng.random() < TWO_FLOORS:
        other = finish.paint(textures.FLOORS[rng.integers(len(textures.FLOORS))](rng))
        floors.append(other.layer)
        second_floor(ground, room, Paint(other.colour, 1, other.period), rng)
    images = np.stack(finish.images)
    bare = ground.mesh(images[floors])
    return Shell(builder.mesh(images), bare, polish, tuple(lights), tuple(windows))


def _quad(axes: np.ndarray, s0: float, s1: float, z0: float, z1: float, y: float) -> np.ndarray:
    """A rectangle parallel to the wall, from top left as seen from inside: (4, 3) in the world."""
    local = np.array([[s1, y, z1], [s0, y, z1], [s0, y, z0], [s1, y, z0]])
    return local @ axes[:3, :3].T + axes[:3, 3]


def _wall(
    builder: MeshBuilder,
    room: Room,
    wall: int,
    openings: list[Opening],
    paint: Paint,
    trim: Paint,
    skirting: float,
) -> None:
    axes, height = room.frame(wall), room.height
    s = 0.0
    for opening in [*sorted(openings, key=lambda o: o.s0), None]:
        end = room.length(wall) if opening is None else opening.s0
        builder.polygon(_quad(axes, s, end, 0, height, 0), paint)
        if skirting:
            low, high = np.array([s, 0, 0]), np.array([end, 0.012, skirting])
            builder.box(low, high, axes, trim)
        if opening is None:
            return
        builder.polygon(_quad(axes, opening.s0, opening.s1, opening.z1, height, 0), paint)
        if opening.z0 > 0:
            builder.polygon(_quad(axes, opening.s0, opening.s1, 0, opening.z0, 0), paint)
        for a, b, z0, z1 in (  # the four sides of the hole
            (opening.s0, opening.s0 + 1e-4, opening.z0, opening.z1),
            (opening.s1 - 1e-4, opening.s1, opening.z0, opening.z1),
            (opening.s0, opening.s1, opening.z0 - 1e-4, opening.z0),
            (opening.s0, opening.s1, opening.z1, opening.z1 + 1e-4),
        ):
            low, high = np.array([a, -_WALL_THICKNESS, z0]), np.array([b, 0, z1])
            builder.box(low, high, axes, paint)
        s = opening.s1


def _frame(
    builder: MeshBuilder, o: Opening, axes: np.ndarray, paint: Paint, y0: float, y1: float, w: float
) -> None:
    """A frame of width w around an opening, between y0 and y1 (into the room)."""
    for a, b, z0, z1 in (
        (o.s0 - w, o.s0, o.z0, o.z1 + w),
        (o.s1, o.s1 + w, o.z0, o.z1 + w),
        (o.s0, o.s1, o.z1, o.z1 + w),
    ):
        builder.box(np.array([a, y0, z0]), np.array([b, y1, z1]), axes, paint)


def _door(
    builder: MeshBuilder, o: Opening, axes: np.ndarray, leaf: Paint, trim: Paint, rng: Rng
) -> None:
    _frame(builder, o, axes, trim, -0.02, 0.015, rng.uniform(0.05, 0.1))
    back = -rng.uniform(0.03, 0.08)
    builder.box(np.array([o.s0, back - 0.04, 0]), np.array([o.s1, back, o.z1]), axes, leaf)
    panels = int(rng.integers(0, 4))
    width = o.s1 - o.s0
    for i in range(panels):
        z0, z1 = (np.array([i, i + 1]) / panels) * (o.z1 - 0.2) + 0.1
        low = np.array([o.s0 + 0.12 * width, back, z0 + 0.06])
        high = np.array([o.s1 - 0.12 * width, back + 0.012, z1 - 0.06])
        builder.box(low, high, axes, leaf)
    s = o.s0 + 0.05 if rng.random() < 0.5 else o.s1 - 0.17
    low, high = np.array([s, back, 1.0]), np.array([s + 0.12, back + 0.05, 1.02])
    builder.box(low, high, axes, Paint((0.7, 0.7, 0.72)))


def _passage(
    builder: MeshBuilder,
    o: Opening,
    axes: np.ndarray,
    wall: Paint,
    floor: Paint,
    ceiling: Paint,
    trim: Paint,
    rng: Rng,
) -> None:
    """An open door to a bare room behind, a little lit by itself."""
    _frame(builder, o, axes, trim, -0.02, 0.015, rng.uniform(0.04, 0.1))
    left, right = o.s0 - rng.uniform(0.1, 2.0), o.s1 + rng.uniform(0.1, 2.0)
    back, top = -rng.uniform(1.2, 4.0) - _WALL_THICKNESS, o.z1 + rng.uniform(0.05, 0.6)
    front = -_WALL_THICKNESS
    glow = rng.uniform(0.1, 0.8)

    def face(points: list[list[float]], paint: Paint) -> None:
        world = np.array(points) @ axes[:3, :3].T + axes[:3, 3]
        lit = Paint(paint.colour, paint.layer, paint.period, glow * rng.uniform(0.6, 1.0))
        builder.polygon(world, lit)

    face([[left, 0, 0], [right, 0, 0], [right, back, 0], [left, back, 0]], floor)
    face([[left, front, top], [right, front, top], [right, back, top], [left, back, top]], ceiling)
    face([[left, back, 0], [right, back, 0], [right, back, top], [left, back, top]], wall)
    face([[left, front, 0], [left, back, 0], [left, back, top], [left, front, top]], wall)
    face([[right, front, 0], [right, back, 0], [right, back, top], [right, front, top]], wall)


def _window(
    builder: MeshBuilder,
    finish: _Finish,
    o: Opening,
    axes: np.ndarray,
    trim: Paint,
    rng: Rng,
    pictures: bool,
    daylight: float,
) -> tuple[list[Light], Pane]:
    """Frame, bars, and a curtain or the view outside; returns the light it lets in, and itself."""
    _frame(builder, o, axes, trim, -0.02, 0.02, rng.uniform(0.03, 0.08))
    bars = int(rng.integers(1, 4))
    width = (o.s1 - o.s0) / bars
    for i in range(bars + 1):
        s = o.s0 + i * width
        low, high = np.array([s - 0.025, -0.1, o.z0]), np.array([s + 0.025, -0.05, o.z1])
        builder.box(low, high, axes, trim)
    for z in (o.z0, o.z1, *([(o.z0 + o.z1) / 2] if rng.random() < 0.3 else [])):
        low, high = np.array([o.s0, -0.1, z - 0.03]), np.array([o.s1, -0.05, z + 0.03])
        builder.box(low, high, axes, trim)
    if rng.random() < 0.5:  # sill
        low, high = np.array([o.s0 - 0.05, -0.14, o.z0 - 0.03]), np.array([o.s1 + 0.05, 0.12, o.z0])
        builder.box(low, high, axes, trim)

    through = 1.0
    glow = max(daylight, 0.03)
    if rng.random() < 0.35:  # curtain, blind or frosted glass
        through = rng.uniform(0.2, 0.7)
        cloth = finish.paint(textures.fabric(rng), 1.0, 0.5 * glow * through)
        if rng.random() < 0.5:
            cloth = Paint(tuple(textures.hue(rng, 0.6, 1.0, 0.2)), -1, 1.0, 0.6 * glow * through)
        builder.polygon(_quad(axes, o.s0, o.s1, o.z0, o.z1, -0.11), cloth)
    else:
        distance = -rng.uniform(3, 14)
        reach = 4 * abs(distance)
        view = textures.picture(rng, 2.0) if pictures and rng.random() < 0.6 else None
        if view is None:
            sky = np.linspace(1.0, 0.75, 256)[:, None] * [0.8, 0.9, 1.0]
            ground = np.linspace(0.5, 0.3, 256)[:, None] * textures.hue(rng, 0.4, 0.9, 0.5)
            row = np.where(np.arange(256)[:, None] < 140, sky, ground)
            field = textures.noise(rng, 1.3)
            far = np.clip(row[:, None] * (1 + 0.12 * field[..., None]), 0, 1) * 255
            view = np.dstack([far, np.full((256, 256), 255)]).astype(np.uint8)
        paint = finish.paint((view, 1.0), 1.0, glow)
        s = (o.s0 + o.s1) / 2
        corners = _quad(axes, s - reach, s + reach, 1.5 - reach / 2, 1.5 + reach / 2, distance)
        builder.picture(corners, paint)
    centre = axes @ [(o.s0 + o.s1) / 2, 0.02, (o.z0 + o.z1) / 2, 1.0]
    area = (o.s1 - o.s0) * (o.z1 - o.z0)
    strength = area * daylight * through * 0.35
    half = (axes[:3, 0] * (o.s1 - o.s0) / 2, np.array([0.0, 0.0, (o.z1 - o.z0) / 2]))
    shining = 0.7 * glow * through * np.array([0.9, 0.97, 1.0])
    pane = Pane(tuple(centre[:3]), tuple(half[0]), tuple(half[1]), tuple(shining), through == 1.0)
    if strength <= 0:
        return [], pane
    colour = strength * np.array([1.0, rng.uniform(0.92, 1.0), rng.uniform(0.85, 1.1)])
    aim = axes[:3, 1] + [0, 0, -rng.uniform(0.1, 0.5)]
    aim /= np.linalg.norm(aim)
    return [Light(tuple(centre[:3]), tuple(colour), tuple(aim), 140.0)], pane


def _radiator(builder: MeshBuilder, o: Opening, axes: np.ndarray, rng: Rng) -> None:
    """Ribs under a window, on the wall."""
    paint = Paint(tuple(textures.hue(rng, 0.6, 0.97, 0.1)))
    low, high, rib = 0.08, o.z0 - rng.uniform(0.05, 0.15), rng.uniform(0.03, 0.08)
    depth = rng.uniform(0.05, RADIATOR_DEPTH - 0.02)
    builder.box(np.array([o.s0, 0.03, low]), np.array([o.s1, depth, high]), axes, paint)
    for s in np.arange(o.s0, o.s1 - rib, 2 * rib):
        front = np.array([s + rib, depth + 0.02, high + 0.01])
        builder.box(np.array([s, depth, low]), front, axes, paint)


def _posters(
    builder: MeshBuilder,
    finish: _Finish,
    room: Room,
    wall: int,
    openings: list[Opening],
    trim: Paint,
    rng: Rng,
    pictures: bool,
) -> None:
    """Pictures and notices on a wall, clear of its openings and of each other."""
    axes = room.frame(wall)
    taken = [(o.s0, o.s1) for o in openings]
    for _ in range(int(rng.choice([0, 0, 1, 1, 2, 3, 5]))):
        width = np.exp(rng.uniform(np.log(0.2), np.log(1.6)))
        aspect = rng.uniform(0.6, 1.9)
        height = width / aspect
        if width > room.length(wall) - 0.3 or height > 1.5:
            continue
        s = rng.uniform(0.1, room.length(wall) - width - 0.1)
        if any(s < b + 0.1 and s + width > a - 0.1 for a, b in taken):
            continue
        taken.append((s, s + width))
        z = float(np.clip(rng.normal(1.5, 0.2) - height / 2, 0.3, room.height - height - 0.1))
        if rng.random() < 0.15:  # a board, a switch box, a panel: nothing on it
            far = np.array([s + width, rng.uniform(0.01, 0.08), z + height])
            builder.box(
                np.array([s, 0, z]), far, axes, Paint(tuple(textures.hue(rng, 0.1, 0.98, 0.15)))
            )
            continue
        image = textures.picture(rng, aspect) if pictures and rng.random() < 0.75 else None
        if image is None:
            maker = textures.print_page if rng.random() < 0.5 else textures.wallpaper
            image = maker(rng)[0]
        border = rng.uniform(0.01, 0.06) if rng.random() < 0.7 else 0.0
        depth = rng.uniform(0.01, 0.03)
        if border:
            low = np.array([s - border, 0, z - border])
            high = np.array([s + width + border, depth - 0.002, z + height + border])
            builder.box(low, high, axes, trim)
        corners = _quad(axes, s, s + width, z, z + height, depth)
        builder.picture(corners, finish.paint((image, 1.0)))


def _beams(builder: MeshBuilder, room: Room, paint: Paint, rng: Rng) -> None:
    """Beams under the ceiling, along the first wall's direction."""
    axes = room.frame(0)
    local = (room.corners - axes[:2, 3]) @ axes[:2, :2]
    low, high = local.min(axis=0), local.max(axis=0)
    if room.walls != 4:
        return
    depth = rng.uniform(0.08, 0.25)
    for y in np.arange(low[1] + 0.6, high[1] - 0.3, rng.uniform(0.9, 1.8)):
        a = np.array([low[0] + 0.05, y, room.height - depth])
        b = np.array([high[0] - 0.05, y + rng.uniform(0.08, 0.2), room.height + 0.01])
        builder.box(a, b, axes, paint)
