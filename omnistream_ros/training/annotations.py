# SPDX-License-Identifier: Apache-2.0
"""What a rendered clip shows, in words and per pixel: objects by class, where they stand, motion.

The generator knows where everything stands. Clips keep that as boxes in their `info`, and labels
follow from depth and pose: a pixel belongs to the smallest box that holds its point, else to the
floor, the ceiling, a wall or what lies beyond. Nothing has to be rendered twice.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnistream_ros.training.captions import sentence
from omnistream_ros.training.movement import Mover
from omnistream_ros.training.relations import places
from omnistream_ros.training.room import Room

# Objects by their names in the furniture catalogue; the first pattern that fits decides.
_PATTERNS = {
    "rug": r"\brug|carpet|tatami|bathmat|doormat",
    "lamp": r"lamp|light|lantern|fluorescent|candle",
    "person or animal": r"male|boy|girl|mannequin|dog\b|cat\b|rabbit|horse\b|chicken$|deer|snowman",
    "bed": r"\bbed$|crib|futon$",
    "sofa": r"sofa|couch|day bed",
    "chair": r"chair|stool|seat|puff|bench|ottoman",
    "bathroom fixture": r"\bbath|basin|bidet|toilet|urinal|vanity|shower|lavatory|bathtub|sink",
    "screen": r"tv 16|flat tv|imac|ibook|laptop|screen|tablet$|phone",
    "appliance": r"fridge|refrigerator|freezer|oven|stove|cooker|cooktop|washing|dishwasher|dryer|"
    r"microwave|heater|hood|boiler|furnace|radiator|fireplace",
    "plant": r"plant|ficus|yucca|bonsai|bamboo|orchid|flower|tulip|lily|cactus|spathiphyllum|"
    r"christmas tree|bush|hedge",
    "cabinet": r"cabinet|wardrobe|bookcase|shel[fv]|cupboard|dresser|chest|drawers|tv stand|safe|"
    r"piano|bedside|locker|island|vertical|worktop",
    "table": r"table|desk\b",
    "box": r"^box$|^cylinder$|crate|suitcase|briefcase|barrel|basket|trunck",
}
STRUCTURE = ("wall", "floor", "ceiling", "outside")
OTHER = "other thing"
#: Classes of labels, in the order of their numbers.
CLASSES = (OTHER, *STRUCTURE, *_PATTERNS)
#: Number of a pixel whose depth is unknown.
UNKNOWN = 255

_NOTHING: Mapping[int, str] = {}

_FLOOR = 0.03  # metres; what is lower belongs to the floor, but for rugs
_SLACK = 0.02  # metres around a box; depth in clips is float16


def class_of(name: str) -> str:
    """The class of an object by its name."""
    lower = name.lower()
    return next((c for c, pattern in _PATTERNS.items() if re.search(pattern, lower)), OTHER)


@dataclass(frozen=True)
class Annotation:
    """What the generator knew of a clip.

    boxes (N, 7) float64: the middle of the foot x, y, z in the room, yaw about z in radians, width,
    depth and height in metres; `names` (N,) as in the catalogue; `motions`: how the camera moves
    in each take; `moving`: what moves besides in each, which `boxes` have where it begins.
    """

    room: Room
    motions: tuple[str, ...]
    names: tuple[str, ...]
    boxes: NDArray[np.float64]
    moving: tuple[tuple[Mover, ...], ...] = ()

    @classmethod
    def of_info(cls, info: dict[str, Any]) -> Annotation | None:
        """From the `info` of a clip; None where it was rendered before boxes were kept."""
        if "boxes" not in info:
            return None
        corners = np.array(info["corners"], np.float64)
        room = Room(info["room"], corners, float(info["height"]), ())
        boxes = np.array(info["boxes"], np.float64).reshape(-1, 7)
        moving = tuple(
            tuple(Mover(int(m["object"]), np.array(m["boxes"], np.float64)) for m in movers)
            for movers in info.get("moving", ())
        )
        return cls(room, tuple(info["motion"].split(", ")), tuple(info["objects"]), boxes, moving)

    def mirrored(self) -> Annotation:
        """The room in a mirror: x changes its sign, as `augment.mirror` does to poses."""
        corners = self.room.corners[::-1] * [-1.0, 1.0]
        boxes = self.boxes.copy()
        boxes[:, [0, 3]] *= -1
        room = Room(self.room.kind, corners, self.room.height, ())
        moving = tuple(tuple(m.mirrored() for m in movers) for movers in self.moving)
        return Annotation(room, self.motions, self.names, boxes, moving)

    def movers(self, take: int) -> tuple[Mover, ...]:
        """What moves in a take; nothing in clips of a time when nothing did."""
        return self.moving[take] if take < len(self.moving) else ()

    def boxes_in(self, take: int, frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """The boxes (T, N, 7) in T frames of a take, counted from its first."""
        boxes = np.repeat(self.boxes[None], len(frames), axis=0)
        for mover in self.movers(take):
            boxes[:, mover.index] = mover.boxes[frames]
        return boxes

    def objects_at(
        self, points: NDArray[np.float64], boxes: NDArray[np.float64] | None = None
    ) -> NDArray[np.int64]:
        """For points (P, 3) of the room the smallest box that holds each; -1 for none.

        `boxes` (N, 7) are those of a frame in which something has moved.
        """
        boxes = self.boxes if boxes is None else boxes
        found = np.full(len(points), -1)
        # Larger boxes first: smaller ones, which stand on or in them, overwrite.
        for index in np.argsort(-boxes[:, 4:].prod(axis=1)):
            z, height = boxes[index, [2, 6]]
            # The floor under a table is floor.
            foot = -_SLACK if z > _FLOOR or height < 2 * _FLOOR else _FLOOR - z
            found[inside(points, boxes[index], _SLACK, foot)] = index
        return found

    def classes_of(
        self, points: NDArray[np.float64], objects: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Class numbers of points (N, 3), given the object that holds each (`objects_at`)."""
        from_wall = self.room.wall_distance(points[:, :2])
        classes = np.zeros(len(points), np.uint8)
        classes[from_wall < 0.06] = CLASSES.index("wall")
        classes[points[:, 2] > self.room.height - _FLOOR] = CLASSES.index("ceiling")
        classes[points[:, 2] < _FLOOR] = CLASSES.index("floor")
        classes[from_wall < -0.2] = CLASSES.index("outside")
        numbers = np.array([CLASSES.index(class_of(name)) for name in self.names] or [0], np.uint8)
        return np.where(objects >= 0, numbers[objects], classes)

    def caption(
        self,
        visible: NDArray[np.int64],
        motion: str | None = None,
        boxes: NDArray[np.float64] | None = None,
        moving: Mapping[int, str] = _NOTHING,
    ) -> str:
        """A sentence about what is seen and where it stands: `visible` are indices of objects, most
        prominent first.

        With the `motion` of a take it tells that as well, without one it is about a picture. What
        is `moving`, by index, is told as that and not as standing anywhere; `boxes` (N, 7) are
        those of the first frame.
        """
        boxes = self.boxes if boxes is None else boxes
        still = [index for index in visible if index not in moving]
        names = [self.names[index].lower() for index in still]
        stand = places(boxes[still], [class_of(name) for name in names], self.room)
        moves = [(_told(self.names[i]), moving[i]) for i in visible if i in moving]
        return sentence(self.room.kind, [_told(name) for name in names], stand, motion, moves)


def _told(name: str) -> str:
    """The name of an object in captions."""
    return {"cylinder": "can"}.get(name.lower(), name.lower())


def inside(
    points: NDArray[np.float64], box: NDArray[np.float64], slack: float, foot: float
) -> NDArray[np.bool_]:
    """Which points (P, 3) a box (7,) holds that is larger by `slack` at its sides and its top and
    begins `foot` above its own; (P,)."""
    x, y, z, yaw, *size = box
    to = points - (x, y, z)
    c, s = np.cos(yaw), np.sin(yaw)
    held = (to[:, 2] > foot) & (to[:, 2] < size[2] + slack)
    held &= np.abs(c * to[:, 0] + s * to[:, 1]) < size[0] / 2 + slack
    held &= np.abs(c * to[:, 1] - s * to[:, 0]) < size[1] / 2 + slack
    return np.asarray(held)


def middle_pixels(length: int, patch: int) -> NDArray[np.int64]:
    """The two middle rows (or columns) of every patch along a side of the image."""
    first = np.arange(0, length, patch) + patch // 2 - 1
    return np.stack([first, first + 1], axis=1).ravel()


def back_project(
    depth: NDArray[np.float32],
    pose: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Points (n, 3) in the world of the pixels at rows x columns, with depth (rows, columns)."""
    fx, fy, cx, cy = intrinsics
    v, u = np.meshgrid(rows, columns, indexing="ij")
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(depth.shape)], -1)
    return (rays * depth[..., None]).reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3]


@dataclass(frozen=True)
class Labels:
    """Labels of the frames of a clip: classes (T, H, W) uint8 numbers of CLASSES or UNKNOWN,
    objects (T, H, W) int16 index of the object or -1."""

    classes: NDArray[np.uint8]
    objects: NDArray[np.int16]

    def visible(self, share: float = 0.004) -> NDArray[np.int64]:
        """Objects that cover at least this share of all pixels, the largest first."""
        seen = self.objects[self.objects >= 0]
        indices, counts = np.unique(seen, return_counts=True)
        indices, counts = (x[counts >= share * self.objects.size] for x in (indices, counts))
        return np.asarray(indices[np.argsort(-counts)], np.int64)


def label(
    annotation: Annotation,
    depth: NDArray[np.float32],
    poses: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    patch: int | None = None,
    boxes: NDArray[np.float64] | None = None,
) -> Labels:
    """Labels of frames: depth (T, H, W) metres, poses (T, 4, 4) camera-to-room, fx fy cx cy.

    In takes in which something moves, `boxes` (T, N, 7) say where all is (`boxes_in`). With `patch`
    only of the middle four pixels of each patch, (T, 2H/patch, 2W/patch): a sixty-fourth of the
    work.
    """
    rows, columns = np.arange(depth.shape[1]), np.arange(depth.shape[2])
    if patch is not None:
        rows, columns = middle_pixels(depth.shape[1], patch), middle_pixels(depth.shape[2], patch)
        depth = depth[:, rows][:, :, columns]
    classes = np.full(depth.shape, UNKNOWN, np.uint8)
    objects = np.full(depth.shape, -1, np.int16)
    for t, (plane, pose) in enumerate(zip(depth, poses, strict=True)):
        known = np.isfinite(plane)
        points = back_project(plane, pose, intrinsics, rows, columns)[known.ravel()]
        held = annotation.objects_at(points, None if boxes is None else boxes[t])
        objects[t][known] = held
        classes[t][known] = annotation.classes_of(points, held)
    return Labels(classes, objects)


def read_annotation(path: Path) -> Annotation | None:
    """The annotation in a clip file, or None where it has none (another source, an old clip)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            info = json.loads(bytes(arrays["info"]))
        return Annotation.of_info(info)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
