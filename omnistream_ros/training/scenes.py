# SPDX-License-Identifier: Apache-2.0
"""Furnished rooms at true scale, the same for the same seed.

A scene is a description (room, objects with names, lights) and the room's own mesh.
World: z up, floor at 0, metres. Equal seeds give equal scenes as long as the same furniture and
pictures are installed; with `pictures=False` only the furniture matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnistream_ros.training import textures
from omnistream_ros.training.assets import LEVELS, Asset, FurnitureLibrary
from omnistream_ros.training.fitted import fit
from omnistream_ros.training.furnish import COVERINGS, Furnisher, Item
from omnistream_ros.training.mesh import Mesh, MeshBuilder, Paint, cylinder, unit_box
from omnistream_ros.training.roles import assets_by_role
from omnistream_ros.training.room import SIZES, Room, make_room
from omnistream_ros.training.shell import build_shell
from omnistream_ros.training.stage import Instance, Light, Pane, Stage, Sun
from omnistream_ros.training.textures import Rng

_KIND_WEIGHTS = {
    "living room": 3.0,
    "bedroom": 2.5,
    "kitchen": 4.0,
    "office": 4.0,
    "bathroom": 1.0,
    "dining room": 1.5,
    "corridor": 1.2,
    "storage room": 1.3,
    "classroom": 1.2,
}


@dataclass(frozen=True)
class Scene:
    """A furnished room: what stands where, and what lights it."""

    seed: int
    room: Room
    items: tuple[Item, ...]
    fitted: dict[str, Mesh]  # of items that are built in, by their keys, where they stand
    lights: tuple[Light, ...]
    ambient_up: tuple[float, float, float]
    ambient_down: tuple[float, float, float]
    panes: tuple[Pane, ...]
    sun: Sun | None
    shell: Mesh  # walls, ceiling, doors, windows
    floor: Mesh
    polish: float  # of the floor
    fixtures: Mesh  # the bodies of lamps
    coverings: tuple[np.ndarray, ...]  # textures of boxes and cylinders
    grain: np.ndarray

    def obstacles(self) -> np.ndarray:
        """Boxes the camera keeps clear of, (N, 7): centre x, y, z, half sizes x, y, z, yaw."""
        rows = [
            (
                i.position[0],
                i.position[1],
                i.position[2] + i.size[2] / 2,
                *(s / 2 for s in i.size),
                i.yaw,
            )
            for i in self.items
        ]
        return np.array(rows, np.float64).reshape(-1, 7)


class SceneMaker:
    """Makes scenes by seed from one furniture library."""

    def __init__(self, library: FurnitureLibrary, pictures: bool = True) -> None:
        self.library, self.pictures = library, pictures
        self._by_role = assets_by_role(library)

    def make(self, seed: int, kind: str | None = None) -> Scene:
        """The scene of a seed; `kind` overrides the room's kind (one of room.SIZES).

        Raises ValueError for a kind that does not exist.
        """
        # One generator per subject: a change to one part leaves the others as they were.
        plan, furniture, finish, lamps, joinery = (
            np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)
        )
        kinds = list(_KIND_WEIGHTS)
        weights = np.array(list(_KIND_WEIGHTS.values()))
        chosen = str(plan.choice(kinds, p=weights / weights.sum()))
        if kind is not None:
            if kind not in SIZES:
                raise ValueError(f"no room kind {kind!r}: use one of {', '.join(SIZES)}")
            chosen = kind
        room = make_room(chosen, plan)
        fitted = fit(room, joinery)
        items = Furnisher(room, self.library, self._by_role, furniture, fitted).furnish()
        bright = [0.0, lamps.uniform(0.5, 2.0), lamps.uniform(2.0, 6.0)]
        daylight = float(lamps.choice(bright, p=[0.2, 0.4, 0.4]))
        shell = build_shell(room, finish, self.pictures, daylight)
        fixtures, own, panels = _lamps(room, lamps, dim=daylight > 2 and lamps.random() < 0.5)
        sun = _sun(room, shell.windows, daylight, lamps)
        lights = sorted([*own, *shell.lights], key=lambda light: -sum(light.colour))
        area = max(float(np.ptp(room.corners[:, 0]) * np.ptp(room.corners[:, 1])), 4.0)
        # Light that has bounced: what all lamps give, spread over the room.
        bounced = np.sum([light.colour for light in lights], axis=0) / area
        bounced = bounced * lamps.uniform(0.6, 1.8) + 0.02
        coverings = [textures.screen(finish)[0]]
        while len(coverings) < COVERINGS:
            coverings.append(
                textures.COVERINGS[finish.integers(len(textures.COVERINGS))](finish)[0]
            )
        grain = textures.grain if finish.random() < 0.5 else textures.concrete
        return Scene(
            seed,
            room,
            tuple(items),
            fitted.meshes,
            tuple(lights),
            tuple(bounced * 0.9),
            tuple(bounced * (0.8, 0.74, 0.68)),
            (*shell.windows, *panels),
            sun,
            shell.mesh,
            shell.floor,
            shell.polish,
            fixtures,
            tuple(coverings),
            grain(finish)[0],
        )

    def stage(self, scene: Scene, views: np.ndarray | None = None, focal: float = 0.0) -> Stage:
        """What the renderer draws of a scene.

        With the camera positions `views` (T, 3) and the focal length in pixels, objects that
        appear small get coarser meshes; the choice is one for all frames.
        """
        shapes: dict[str, Mesh] = {}
        for name, mesh in (("box", unit_box()), ("cylinder", cylinder())):
            for number, image in enumerate(scene.coverings):
                shapes[f"{name}:{number}"] = Mesh(mesh.vertices, mesh.indices, image[None])
        instances = []
        for item in scene.items:
            if item.key in scene.fitted:
                built = Instance(scene.fitted[item.key], np.eye(4), gloss=item.gloss)
                instances.append(built)
                continue
            if item.key in shapes:
                mesh, whole = shapes[item.key], np.ones(3)
            else:
                mesh = self.library.mesh(item.key, _triangles(item, views, focal))
                whole = np.array(self.library.assets[item.key].size)
            place = transform(item, whole)
            instances.append(Instance(mesh, place, item.tint, item.grain, item.gloss))
        still = np.eye(4)
        instances += [
            Instance(scene.shell, still, shades_sun=False),
            Instance(scene.floor, still, gloss=scene.polish, shades_sun=False),
            Instance(scene.fixtures, still),
        ]
        ambient = scene.ambient_up, scene.ambient_down
        return Stage(instances, scene.lights, *ambient, scene.grain, scene.panes, scene.sun)

    def used(self, scene: Scene) -> list[Asset]:
        """The catalogue entries a scene shows."""
        return [self.library.assets[i.key] for i in scene.items if i.key in self.library.assets]


def _triangles(item: Item, views: np.ndarray | None, focal: float) -> float:
    """How many triangles an object deserves: one for every 16 pixels it covers at its nearest."""
    if views is None:
        return np.inf
    half = np.array(item.size) / 2
    centre = np.array(item.position) + np.array([0.0, 0.0, half[2]])
    radius = float(np.linalg.norm(half))
    nearest = float(np.linalg.norm(views - centre, axis=1).min())
    return min((2 * radius * focal / max(nearest - radius, 0.25)) ** 2 / 16, LEVELS[1])


def transform(item: Item, whole: np.ndarray) -> np.ndarray:
    """Mesh of catalogue size `whole` (3,) to the world, (4, 4)."""
    matrix = np.eye(4)
    c, s = np.cos(item.yaw), np.sin(item.yaw)
    scale = np.array(item.size) / whole
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * scale
    matrix[:3, 3] = item.position
    return matrix


def _sun(room: Room, windows: tuple[Pane, ...], daylight: float, rng: Rng) -> Sun | None:
    """On bright days, in the half of rooms, the sun stands before one of the clear windows."""
    clear = [pane for pane in windows if pane.clear]
    # Walls shade no sun, so that it comes in; in a room with a notch it would come through them.
    convex = all(room.outer(wall) for wall in range(room.walls))
    height, aside = rng.uniform(0.15, 1.1), rng.uniform(-0.9, 0.9)
    if rng.random() < 0.5 or not clear or daylight < 1.0 or not convex:
        return None
    pane = clear[rng.integers(len(clear))]
    across = np.array(pane.across) / np.linalg.norm(pane.across)
    # Along a wall comes x, into the room y: outward is -y.
    outward = np.array([across[1], -across[0], 0.0])
    turned = np.cos(aside) * outward + np.sin(aside) * across
    towards = np.cos(height) * turned + np.sin(height) * np.array([0.0, 0.0, 1.0])
    colour = daylight * rng.uniform(0.6, 2.0) * np.array([1.0, 0.95, rng.uniform(0.75, 0.95)])
    return Sun(tuple(towards), tuple(colour))


def _lamps(room: Room, rng: Rng, dim: bool) -> tuple[Mesh, list[Light], list[Pane]]:
    """Lamps under the ceiling, and some lower: bodies, light, and the panels to be mirrored."""
    builder = MeshBuilder()
    lights: list[Light] = []
    panels: list[Pane] = []
    area = float(np.ptp(room.corners[:, 0]) * np.ptp(room.corners[:, 1]))
    count = int(np.clip(round(area / rng.uniform(8, 20)), 1, 5))
    low, high = room.corners.min(axis=0), room.corners.max(axis=0)
    warmth = rng.uniform(0.0, 1.0)
    colour = np.array([1.0, 1.0 - 0.15 * warmth, 1.0 - 0.42 * warmth])
    total = rng.uniform(0.5, 1.2) * area * (0.1 if dim else 1.0)
    for number in range(count + int(rng.integers(0, 3))):
        ceiling = number < count
        for _ in range(20):
            at = rng.uniform(low + 0.3, high - 0.3)
            if room.wall_distance(at[None])[0] > 0.3:
                break
        if room.wall_distance(at[None])[0] <= 0.3:
            continue
        z = room.height - 0.1 if ceiling else rng.uniform(1.0, 1.9)
        share = total / count if ceiling else total * rng.uniform(0.05, 0.3)
        tone = colour * (1.0 if rng.random() < 0.8 else rng.uniform(0.7, 1.0, 3))
        aim = (0.0, 0.0, -1.0) if ceiling and rng.random() < 0.4 else None
        light = Light((*at, z), tuple(tone * share * 0.5), aim, 150.0 if ceiling else None)
        lights.append(light)
        if ceiling:
            w, d = rng.uniform(0.08, 0.3, 2)
            if room.kind in ("office", "classroom", "corridor"):  # long tubes or panels
                w *= rng.uniform(1.0, 2.2)
            axes = room.frame(0).copy()
            axes[:2, 3] = at
            shining = 0.3 if dim else rng.uniform(2, 6)
            glow = Paint(tuple(np.clip(tone, 0, 1)), -1, 1.0, shining)
            half = (tuple(axes[:3, 0] * w), tuple(axes[:3, 1] * d))
            panels.append(Pane((*at, z + 0.06), *half, tuple(shining * tone), False))
            builder.box(np.array([-w, -d, z + 0.06]), np.array([w, d, z + 0.1]), axes, glow)
    if not lights:
        builder.box(np.zeros(3), np.full(3, 1e-3), np.eye(4), Paint())
    return builder.mesh(np.zeros((0, 256, 256, 4), np.uint8)), lights, panels
