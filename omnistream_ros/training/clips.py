# SPDX-License-Identifier: Apache-2.0
"""Rendered clips: one furnished room, one camera path, colour, depth and pose of every frame.

`fill` (`omnistream render --clips FIRST:LAST`) fills a folder with training clips, one file each,
named by seed; it can be stopped and started again at any time.
"""

from __future__ import annotations

import json
import os
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from omnistream_ros.evaluation.rotations import quaternions_of
from omnistream_ros.training.assets import FurnitureLibrary
from omnistream_ros.training.camera_path import CameraPath, PathError, make_path
from omnistream_ros.training.movement import Mover
from omnistream_ros.training.movers import find_movers, moved
from omnistream_ros.training.render import Renderer, View
from omnistream_ros.training.scenes import Scene, SceneMaker
from omnistream_ros.training.sensor import Sensor, expose
from omnistream_ros.training.textures import Rng

WIDTH, HEIGHT = 192, 144
_TRIES = 6  # paths tried in a scene before the seed is given up
_SHORT_TAKE = 4  # frames
_SHORT_TAKES = 6  # in one room


class SeedError(RuntimeError):
    """A seed gives no clip worth keeping; take another."""


@dataclass(frozen=True)
class RenderedClip:
    """What a clip holds: one moving camera, or several takes of it from all over the same room.

    rgb (T, H, W, 3) uint8 sRGB; depth (T, H, W) float32 z-depth in metres; poses (T, 4, 4)
    camera-to-world in optical axes, world = room with z up; intrinsics fx, fy, cx, cy in pixels;
    stamps (T,) seconds since the start of the take; cuts: the first frame of every take; motions:
    how the camera moves in each; moving: what else moves in each.
    """

    scene: Scene
    motions: tuple[str, ...]
    rgb: np.ndarray
    depth: np.ndarray
    poses: np.ndarray
    intrinsics: tuple[float, float, float, float]
    stamps: np.ndarray
    cuts: tuple[int, ...] = (0,)
    moving: tuple[tuple[Mover, ...], ...] = ()

    def info(self) -> dict[str, object]:
        """Seed, room, motion, rate and objects with their boxes: `annotations` reads it."""
        first = self.stamps[: self.cuts[1]] if len(self.cuts) > 1 else self.stamps
        rate = (len(first) - 1) / float(first[-1]) if len(first) > 1 else 0.0
        info: dict[str, object] = {
            "seed": self.scene.seed,
            "room": self.scene.room.kind,
            "motion": ", ".join(self.motions),
            "fps": round(rate, 3),
            "height": round(self.scene.room.height, 3),
            "corners": self.scene.room.corners.round(3).tolist(),
            "objects": [item.name for item in self.scene.items],
            "boxes": [[round(float(v), 3) for v in item.box] for item in self.scene.items],
        }
        if any(self.moving):
            info["moving"] = [
                [{"object": m.index, "boxes": m.boxes.round(3).tolist()} for m in movers]
                for movers in self.moving
            ]
        return info


def pinhole(width: int, height: int, fov: float) -> tuple[float, float, float, float]:
    """Intrinsics of a camera with square pixels and a horizontal field of view in degrees."""
    focal = width / 2 / np.tan(np.radians(fov) / 2)
    return float(focal), float(focal), (width - 1) / 2, (height - 1) / 2


def training_clip(seed: int, maker: SceneMaker, renderer: Renderer) -> RenderedClip:
    """The training clip of a seed: random room, paths, lens, frame rate, sensor and movers.

    One clip in four is a single take of 16 to 24 frames, which teaches the use of the past. The
    others are takes of four frames from places all over the room: neighbouring frames look alike,
    so for the same time of rendering they show several times as much.

    Raises SeedError when the seed gives nothing usable.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    scene = maker.make(seed)
    long = rng.random() < 0.25
    frames = int(rng.integers(16, 25)) if long else _SHORT_TAKE
    rate = float(np.exp(rng.uniform(np.log(5), np.log(30))))
    camera = pinhole(renderer.width, renderer.height, rng.uniform(45, 95))
    sensor = Sensor.random(rng)
    takes: list[_Take] = []
    for number in range(_TRIES if long else 2 * _SHORT_TAKES):
        # What moves has a generator of its own, and all else is as if nothing did.
        own = np.random.default_rng(np.random.SeedSequence([seed, 3, number]))
        take = _take(scene, maker, renderer, camera, sensor, frames, rate, rng, own)
        if take is not None:
            takes.append(take)
        if len(takes) == (1 if long else _SHORT_TAKES):
            break
    if not takes:
        raise SeedError(f"seed {seed}: no path with anything to see")
    return RenderedClip(
        scene,
        tuple(take.path.motion for take in takes),
        np.concatenate([take.rgb for take in takes]),
        np.concatenate([take.depth for take in takes]),
        np.concatenate([take.path.poses for take in takes]),
        camera,
        np.concatenate([take.path.stamps for take in takes]),
        tuple(range(0, frames * len(takes), frames)),
        tuple(take.movers for take in takes),
    )


@dataclass(frozen=True)
class _Take:
    path: CameraPath
    rgb: np.ndarray
    depth: np.ndarray
    movers: tuple[Mover, ...]


def _take(
    scene: Scene,
    maker: SceneMaker,
    renderer: Renderer,
    camera: tuple[float, float, float, float],
    sensor: Sensor,
    frames: int,
    rate: float,
    rng: Rng,
    own: Rng,
) -> _Take | None:
    """One run of the camera along a random path; None when there is nothing to see on it.

    `own` draws what moves besides the camera, `rng` all else.
    """
    try:
        path = make_path(scene, rng, frames, rate)
    except PathError as error:
        raise SeedError(str(error)) from error
    stage = maker.stage(scene, path.poses[:, :3, 3], camera[0])
    renderer.load(stage)
    views: list[View] = []
    # The ends and the middle first: most paths that are no good show it there.
    for index in (0, frames // 2, frames - 1):
        view = renderer.view(path.poses[index], camera)
        if not _worth_seeing(view):
            return None
        views.append(view)
    seen = dict(zip((0, frames // 2, frames - 1), views, strict=True))
    # Kept or not, a take is judged while all stands: so it is the same whatever moves in it.
    depths = {i: seen[i].depth for i in (0, frames // 2)}
    movers = find_movers(scene, path, depths, camera, own)
    if movers:
        seen = {0: views[0]}  # where all still stands in its place
    views = []
    for i, pose in enumerate(path.poses):
        if movers and i:
            # The items are the first instances of a stage, in their order.
            places = {m.index: moved(stage.instances[m.index].transform, m, i) for m in movers}
            renderer.move(places)
        views.append(seen.get(i) or renderer.view(pose, camera))
    rgb = expose(views, path.poses, camera, sensor, rng)
    return _Take(path, rgb, np.stack([view.depth for view in views]), movers)


def _worth_seeing(view: View) -> bool:
    """Not dark all over, not pressed against one thing, not a single blank surface."""
    grey = view.radiance.mean(axis=2)
    level = np.log(grey + 1e-3)
    return bool(
        np.median(grey) > 0.012
        and np.median(view.depth) > 0.45
        and np.percentile(view.depth, 5) > 0.15
        and level.std() > 0.18
    )


def write_training_clip(clip: RenderedClip, path: Path) -> None:
    """Write an uncompressed npz under a temporary name and rename it when complete.

    Keys: rgb, depth float16, poses (T, 7) float32 tx ty tz qx qy qz qw, intrinsics, stamps, cuts
    (first frame of every take), info.
    """
    poses = np.hstack([clip.poses[:, :3, 3], quaternions_of(clip.poses[:, :3, :3])])
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(
                file,
                rgb=clip.rgb,
                depth=clip.depth.astype(np.float16),
                poses=poses.astype(np.float32),
                intrinsics=np.array(clip.intrinsics, np.float32),
                stamps=clip.stamps,
                cuts=np.array(clip.cuts, np.int64),
                info=np.frombuffer(json.dumps(clip.info()).encode(), np.uint8),
            )
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def seeds(text: str) -> tuple[int, int]:
    """First and last (not included) seed of "FIRST:LAST". Raises ValueError."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ValueError(f"expected seeds as FIRST:LAST with FIRST below LAST, got {text!r}")
    return int(first), int(last)


def fill(folder: Path, first: int, last: int, pictures: bool = True) -> None:
    """Render clips first..last-1 into a folder, skipping those already there; prints the rate.

    Ends with a contact sheet, `contact_sheet.jpg`, of what the folder holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    maker = SceneMaker(FurnitureLibrary(), pictures)
    renderer = Renderer(WIDTH, HEIGHT)
    start, cpu, frames = time.monotonic(), time.process_time(), 0
    for seed in range(first, last):
        path = folder / f"clip_{seed:06d}.npz"
        if path.is_file() and zipfile.is_zipfile(path):
            continue
        try:
            clip = training_clip(seed, maker, renderer)
        except SeedError as error:
            print(f"clip {seed} left out: {error}", flush=True)
            continue
        write_training_clip(clip, path)
        frames += len(clip.rgb)
        if seed % 10 == 0:
            wall, used = time.monotonic() - start, time.process_time() - cpu
            print(
                f"clip {seed}: {frames} frames in {wall:.0f} s, {frames / wall:.1f} frames/s "
                f"({frames / used:.1f} per second of processor time)",
                flush=True,
            )
    renderer.close()
    contact_sheet(folder, folder / "contact_sheet.jpg")
    print(f"{folder}: {len(list(folder.glob('clip_*.npz')))} clips, contact_sheet.jpg shows some")


def contact_sheet(folder: Path, target: Path, count: int = 40, seed: int = 0) -> None:
    """A picture of random clips of a folder: the middle frame of each over its depth.

    Raises ValueError when there are none.
    """
    files = sorted(folder.glob("clip_*.npz"))
    if not files:
        raise ValueError(f"no clips in {folder}: render some first")
    chosen = np.random.default_rng(seed).permutation(len(files))[:count]
    cells = []
    for number in sorted(chosen):
        with np.load(files[number]) as clip:
            middle = len(clip["rgb"]) // 2
            colour = clip["rgb"][middle]
            nearness = 1 / clip["depth"][middle].astype(np.float32).clip(0.4, 12)
        shown = ((nearness - 1 / 12) / (1 / 0.4 - 1 / 12)) ** 0.7 * 255
        depth = cv2.applyColorMap(shown.astype(np.uint8), cv2.COLORMAP_INFERNO)
        cells.append(np.vstack([colour[..., ::-1], depth]))
    columns = 8
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    cv2.imwrite(str(target), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 85])
