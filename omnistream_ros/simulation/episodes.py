# SPDX-License-Identifier: Apache-2.0
"""Episodes shown by the scripted expert, on disk: what was seen, measured and commanded, per frame.

The expert is led astray now and then and finds back, so that who imitates it has seen what to do
after a mistake (the idea of DART, Laskey et al., arXiv:1703.09327). Frames of the wrong way are
kept, because a stream has them in its past, and marked: nobody should imitate those.

One file per episode, `<folder>/<task>/<seed>.npz`, complete or absent; images as PNG.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from omnistream_ros.simulation.environment import STEPS_PER_FRAME, Environment, Task

_AFTER_SUCCESS = 5  # frames: what to do when it is done
_ASTRAY = 0.05  # chance per frame that a wrong way begins
_ASTRAY_AT_BEGIN = 0.5
_ASTRAY_FRAMES = (2, 7)
_ASTRAY_M = 0.08
_UNREADABLE = (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, cv2.error)


class EpisodeError(ValueError):
    """A file that is no episode; the message names it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
    """T frames of one attempt.

    Attributes:
        task, seed: what it was.
        images: (T, H, W, 3) uint8 RGB.
        positions: (T, axes) measured, float32.
        commands: (T, axes) what the robot was told for the time to the next frame, float32.
        led: (T,) bool, whether that was the expert's command; false on a wrong way.
        success: whether the task was done in the end.
    """

    task: str
    seed: int
    images: NDArray[np.uint8]
    positions: NDArray[np.float32]
    commands: NDArray[np.float32]
    led: NDArray[np.bool_]
    success: bool


def show(env: Environment, seed: int, *, astray: bool = True) -> Episode:
    """One episode of the expert.

    Args:
        astray: lead it onto wrong ways.
    """
    rng = np.random.default_rng((seed, zlib.crc32(env.task.name.encode())))
    env.reset(seed)
    images, positions, commands, led = [], [], [], []
    direction: np.ndarray = np.zeros(len(env.axes))
    wrong, left = 0, _AFTER_SUCCESS
    for frame in range(frames_of(env.task, env.step_s)):
        seen = env.observe()
        command = env.expert()
        chance = _ASTRAY_AT_BEGIN if frame == 0 else _ASTRAY
        if astray and wrong == 0 and rng.random() < chance:
            wrong = int(rng.integers(*_ASTRAY_FRAMES))
            direction = rng.normal(size=len(env.axes))
            direction *= _ASTRAY_M / np.linalg.norm(direction)
        led.append(wrong == 0)
        if wrong:
            wrong -= 1
            metres = np.array([axis.unit == "m" for axis in env.axes])
            command = np.where(metres, seen.positions + direction, command)
        images.append(seen.image)
        positions.append(seen.positions)
        commands.append(command)
        for _ in range(STEPS_PER_FRAME):
            env.advance(command)
        left -= env.success
        if left == 0:
            break
    return Episode(
        env.task.name,
        seed,
        np.stack(images),
        np.stack(positions).astype(np.float32),
        np.stack(commands).astype(np.float32),
        np.array(led),
        env.success,
    )


def frames_of(task: Task, step_s: float) -> int:
    """How many frames an attempt at a task may take."""
    return round(task.seconds / (step_s * STEPS_PER_FRAME))


def collect(
    folder: Path,
    tasks: Iterable[str],
    seeds: range,
    make: Callable[[str], Environment],
    report: Callable[[str], None] = print,
) -> None:
    """Write the episodes of these seeds that are not there yet."""
    for name in tasks:
        missing = [seed for seed in seeds if not episode_file(folder, name, seed).exists()]
        if not missing:
            continue
        env = make(name)
        done = 0
        try:
            for seed in missing:
                episode = show(env, seed)
                done += episode.success
                write_episode(folder, episode)
        finally:
            env.close()
        report(f"{name}: {len(missing)} episodes, the expert did {done}")


def episode_file(folder: Path, task: str, seed: int) -> Path:
    """Where an episode belongs."""
    return folder / task / f"{seed:06d}.npz"


def write_episode(folder: Path, episode: Episode) -> Path:
    """Write one episode; its file appears when it is complete."""
    path = episode_file(folder, episode.task, episode.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [_png(image) for image in episode.images]
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(
            file,
            png=np.concatenate(pictures),
            ends=np.cumsum([len(picture) for picture in pictures]),
            positions=episode.positions,
            commands=episode.commands,
            led=episode.led,
            success=np.array(episode.success),
        )
    part.replace(path)
    return path


def read_episode(path: Path) -> Episode:
    """An episode from its file.

    Raises:
        EpisodeError: it is not one.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pictures = np.split(arrays["png"], arrays["ends"][:-1])
            images = [_pixels(picture) for picture in pictures]
            return Episode(
                path.parent.name,
                int(path.stem),
                np.stack(images),
                arrays["positions"],
                arrays["commands"],
                arrays["led"],
                bool(arrays["success"]),
            )
    except _UNREADABLE as error:
        raise EpisodeError(f"{path}: no episode ({error}); delete it and collect again") from error


def _png(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    _, picture = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return picture


def _pixels(png: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = cv2.imdecode(png, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("an image cannot be read")
    return image[..., ::-1].astype(np.uint8)
