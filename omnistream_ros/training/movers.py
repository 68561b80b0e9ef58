# SPDX-License-Identifier: Apache-2.0
"""Things that move through a room besides the camera: pushed along the floor, carried, or turned.

In some takes one or two things that the camera sees leave the place where they stand; all else is
as it is without them. A way that leads into a wall, another thing or the camera is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from omnistream_ros.training.annotations import Annotation, class_of, label
from omnistream_ros.training.camera_path import CameraPath, box_distances
from omnistream_ros.training.furnish import Item, overlap
from omnistream_ros.training.movement import Mover
from omnistream_ros.training.scenes import Scene
from omnistream_ros.training.textures import Rng

_SHARE = 0.45  # of the takes in which a way is sought; not all offer one
_SECOND = 0.5  # of these with a second mover
_TRIES = 12  # ways tried for one thing
_SEEN = 0.01  # share of a picture that a mover covers at least
_SPEEDS = (0.1, 0.8)  # m/s
_TURNS = (20.0, 90.0)  # degrees/s, on the spot
_FIXED = {"rug", "bed", "sofa", "bathroom fixture", "appliance", "cabinet", "table"}
# Metres.
_LARGEST = (0.9, 1.9)  # width or depth, height
_CARRIED = 0.5  # the largest side of what is carried
_GAP = 0.02  # to other things
_STEP = 0.02  # what is lower than this above a foot, a rug or a top, is moved over
_FROM_WALL = 0.15  # skirting and radiators are within; what stood nearer comes no nearer
_FROM_CEILING = 0.3  # lamps and beams
_FROM_CAMERA = 0.4
_FLOOR = 0.03  # feet below this stand on the floor
# Less is no motion: metres, degrees.
_LEAST = (0.06, 8.0)

#: What moves somewhere in a take of T seconds (T,): shifts (T, 3) from where it stood, turns (T,).
Way = Callable[[Rng, np.ndarray], tuple[np.ndarray, np.ndarray]]


def find_movers(
    scene: Scene,
    path: CameraPath,
    depths: Mapping[int, np.ndarray],
    intrinsics: Sequence[float],
    rng: Rng,
) -> tuple[Mover, ...]:
    """What moves in a take and where, its boxes (T, 7) by frame; in most takes nothing.

    `depths` (H, W) are those of some frames while all stands where the scene has it: what moves is
    seen in each of them.
    """
    if rng.random() > _SHARE:
        return ()
    wanted = 1 + int(rng.random() < _SECOND)
    seen = _seen(scene, path, depths, intrinsics)
    found: list[Mover] = []
    for index in rng.permutation([i for i in seen if _loose(scene, i)]).astype(int):
        mover = _free_way(scene, int(index), path, found, rng)
        if mover is not None:
            found.append(mover)
        if len(found) == wanted:
            break
    return tuple(found)


def moved(transform: np.ndarray, mover: Mover, frame: int) -> np.ndarray:
    """Where an instance is in a frame that stands by `transform` (4, 4) in the first."""
    turn = mover.boxes[frame, 3] - mover.boxes[0, 3]
    c, s = np.cos(turn), np.sin(turn)
    matrix = transform.copy()
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ transform[:3, :3]
    matrix[:3, 3] = mover.boxes[frame, :3]
    return matrix


def _seen(
    scene: Scene, path: CameraPath, depths: Mapping[int, np.ndarray], intrinsics: Sequence[float]
) -> list[int]:
    """The items that show in all of these frames, by their numbers."""
    names = tuple(item.name for item in scene.items)
    boxes = np.array([item.box for item in scene.items], np.float64).reshape(-1, 7)
    annotation = Annotation(scene.room, (path.motion,), names, boxes)
    fx, fy, cx, cy = intrinsics
    camera = np.array([fx, fy, cx - 2, cy - 2]) / 4  # every fourth pixel is enough
    shown = [
        label(annotation, depth[None, 2::4, 2::4], path.poses[[frame]], camera).visible(_SEEN)
        for frame, depth in depths.items()
    ]
    return [index for index in shown[0].tolist() if all(index in other for other in shown)]


def _loose(scene: Scene, index: int) -> bool:
    """Whether it can be moved: small enough, standing on something, with nothing standing on it."""
    item = scene.items[index]
    if item.key in scene.fitted or class_of(item.name) in _FIXED:
        return False
    if max(item.size[:2]) > _LARGEST[0] or item.size[2] > _LARGEST[1]:
        return False
    others = [other for i, other in enumerate(scene.items) if i != index]
    if any(_stands_on(other, item) for other in others):
        return False
    return item.position[2] < _FLOOR or any(_stands_on(item, other) for other in others)


def _stands_on(item: Item, carrier: Item) -> bool:
    top = carrier.position[2] + carrier.size[2]
    # Mostly a millimetre above; in a box that is larger than its seat or shelf, below its top.
    there = carrier.position[2] + 0.1 < item.position[2] < top + _STEP
    return there and overlap(item.corners(), carrier.corners())


def _free_way(
    scene: Scene, index: int, path: CameraPath, others: Sequence[Mover], rng: Rng
) -> Mover | None:
    item = scene.items[index]
    ways: list[Way] = []
    if item.position[2] < _FLOOR:
        ways += [_pushed, _pushed]  # the most common
    if max(item.size) < _CARRIED:
        ways.append(_carried)
    if not item.key.startswith("cylinder"):
        ways.append(_turned)
    for _ in range(_TRIES):
        shifts, turns = ways[rng.integers(len(ways))](rng, path.stamps)
        if np.linalg.norm(shifts[-1]) < _LEAST[0] and abs(turns[-1]) < np.radians(_LEAST[1]):
            continue
        states = [
            replace(
                item,
                position=tuple(float(v) for v in np.array(item.position) + shift),
                yaw=item.yaw + float(turn),
            )
            for shift, turn in zip(shifts, turns, strict=True)
        ]
        if _is_free(scene, index, states, path, others):
            return Mover(index, np.array([state.box for state in states]))
    return None


def _pushed(rng: Rng, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Along the floor, straight on or in a curve; it turns as it goes."""
    turns = t * np.radians(rng.choice([0.0, rng.normal(0, 30)]))
    course = rng.uniform(0, 2 * np.pi) + (turns[1:] + turns[:-1]) / 2
    steps = np.stack([np.cos(course), np.sin(course), 0 * course], 1)
    steps *= _speed(rng) * np.diff(t)[:, None]
    return np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)]), turns


def _carried(rng: Rng, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Off its place, upwards and aside."""
    course, rise = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(15, 85))
    way = [np.cos(rise) * np.cos(course), np.cos(rise) * np.sin(course), np.sin(rise)]
    return _speed(rng) * t[:, None] * way, t * np.radians(rng.normal(0, 15))


def _turned(rng: Rng, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """On the spot."""
    return np.zeros((len(t), 3)), t * np.radians(rng.uniform(*_TURNS)) * rng.choice([-1, 1])


def _speed(rng: Rng) -> float:
    return float(np.exp(rng.uniform(*np.log(_SPEEDS))))


def _is_free(
    scene: Scene, index: int, states: list[Item], path: CameraPath, others: Sequence[Mover]
) -> bool:
    """Whether an item that is so in each frame stays in the room and touches nothing."""
    points = np.stack([_outline(state) for state in states])
    from_wall = scene.room.wall_distance(points.reshape(-1, 2)).reshape(len(states), -1).min(axis=1)
    if (from_wall < min(from_wall[0], _FROM_WALL)).any():
        return False
    if states[-1].position[2] + states[-1].size[2] > scene.room.height - _FROM_CEILING:
        return False
    boxes = replace(scene, items=tuple(states)).obstacles()
    if np.diagonal(box_distances(path.poses[:, :3, 3], boxes)).min() < _FROM_CAMERA:
        return False
    return not any(
        _touch(states[frame], other)
        for frame in range(len(states) - 1, -1, -1)  # where it gets to is the likeliest to be taken
        for other in _standing(scene, index, others, frame)
    )


def _outline(item: Item) -> np.ndarray:
    """Points around a footprint, (8, 2)."""
    corners = item.corners()
    return np.concatenate([corners, (corners + np.roll(corners, 1, axis=0)) / 2])


def _standing(scene: Scene, index: int, movers: Sequence[Mover], frame: int) -> Iterator[Item]:
    """All items but one, where they are in a frame."""
    boxes = {mover.index: mover.boxes[frame] for mover in movers}
    for number, item in enumerate(scene.items):
        if number in boxes:
            x, y, z, yaw = (float(v) for v in boxes[number][:4])
            yield replace(item, position=(x, y, z), yaw=yaw)
        elif number != index:
            yield item


def _touch(item: Item, other: Item) -> bool:
    """Whether they are nearer to each other than the gap; what an item stands on does not count."""
    low, high = item.position[2] + _STEP, item.position[2] + item.size[2] + _GAP
    if other.position[2] > high or other.position[2] + other.size[2] < low:
        return False
    apart = np.hypot(other.position[0] - item.position[0], other.position[1] - item.position[1])
    if apart > (np.hypot(*item.size[:2]) + np.hypot(*other.size[:2])) / 2 + 2 * _GAP:
        return False
    return overlap(item.corners(_GAP), other.corners())
