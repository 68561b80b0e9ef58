# SPDX-License-Identifier: Apache-2.0
"""What an imitating policy learns from: features of shown episodes, and what the expert did next.

Features are computed once, by the frozen model, frame by frame through its cache from the beginning
of each episode, exactly as the perception node will do it; or, for comparison, from each image
alone. They lie beside the episodes' names in files of float16, one per episode and feature.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnistream_ros.evaluation.stream_features import StreamFeatures
from omnistream_ros.simulation.episodes import Episode, episode_file, read_episode


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """Which features of which model.

    Attributes:
        model: a model, as `load_model` takes it.
        keys: LAYER:KIND or LAYER:KIND:normed.
        cached: through the cache, or each image alone.
    """

    model: str
    keys: tuple[str, ...]
    cached: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Demonstrations:
    """N frames of E episodes; the frames of an episode are neighbours.

    Attributes:
        features: by key, (N, ...) float16.
        positions: (N, axes) float32, measured.
        chunks: (N, horizon, axes) float32, the expert's commands from each frame on.
        counts: (N, horizon) bool, where a chunk is the expert's and should be imitated.
        tasks: (N,) int64, index into `names`.
        episodes: (N,) int64, counted from 0.
        names: of the tasks.
        model_sha256: of the weights that the features come from; empty without features.
    """

    features: dict[str, Tensor]
    positions: Tensor
    chunks: Tensor
    counts: Tensor
    tasks: Tensor
    episodes: Tensor
    names: tuple[str, ...]
    model_sha256: str


def read_demonstrations(
    folder: Path,
    tasks: Sequence[str],
    seeds: range,
    horizon: int,
    source: FeatureSource | None,
    store: Path,
    field_of_view: tuple[float, float],
) -> Demonstrations:
    """Episodes in which the expert succeeded, with features.

    Args:
        folder: of `episodes.collect`.
        horizon: length of a chunk.
        source: None leaves the features out.
        store: where features are kept for the next time.

    Raises:
        ValueError: the expert succeeded in fewer than two episodes.
    """
    eyes: _Eyes | None = None
    positions, chunks, counts, numbers, episodes = [], [], [], [], []
    features: dict[str, list[NDArray[np.float16]]] = {}
    done = 0
    for number, task in enumerate(tasks):
        for seed in seeds:
            episode = read_episode(episode_file(folder, task, seed))
            if not episode.success:
                continue
            if source is not None:
                eyes = eyes or _Eyes(source, store, episode.images.shape[1:3], field_of_view)
                for key, values in eyes.of(episode).items():
                    features.setdefault(key, []).append(values)
            chunk, counted = chunks_of(episode, horizon)
            positions.append(episode.positions)
            chunks.append(chunk)
            counts.append(counted)
            numbers.append(np.full(len(chunk), number))
            episodes.append(np.full(len(chunk), done))
            done += 1
    if done < 2:  # every so many-th judges, the others are learned from
        raise ValueError(
            f"{folder}: {done} of {len(tasks) * len(seeds)} demonstrations reached their goal, and "
            "learning takes two at least: ask for more episodes"
        )
    return Demonstrations(
        {key: torch.from_numpy(np.concatenate(values)) for key, values in features.items()},
        *(torch.from_numpy(np.concatenate(x)) for x in (positions, chunks, counts)),
        *(torch.from_numpy(np.concatenate(x)) for x in (numbers, episodes)),
        tuple(tasks),
        eyes.sha256 if eyes else "",
    )


def chunks_of(episode: Episode, horizon: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The commands from each frame on (T, horizon, axes), and which of them count (T, horizon).

    A chunk counts up to where the robot was led astray or the episode ended; the last command
    stands where there is none.
    """
    frames = len(episode.commands)
    index = np.arange(frames)[:, None] + np.arange(horizon)  # (T, horizon)
    inside = index < frames
    index = np.minimum(index, frames - 1)
    led = episode.led[index] & inside
    return episode.commands[index], np.logical_and.accumulate(led, axis=1)


class _Eyes:
    """Features of episodes, computed where they are not stored yet."""

    def __init__(
        self,
        source: FeatureSource,
        store: Path,
        size: tuple[int, int],
        field_of_view: tuple[float, float],
    ) -> None:
        self._stream = StreamFeatures(
            source.model, source.keys, size, field_of_view, cached=source.cached
        )
        self.sha256 = self._stream.sha256
        self._keys = source.keys
        self._folder = store / f"{self.sha256[:16]}-{'stream' if source.cached else 'single'}"

    def of(self, episode: Episode) -> dict[str, NDArray[np.float16]]:
        """By key, (T, ...)."""
        files = {
            key: self._folder / key.replace(":", "-") / episode.task / f"{episode.seed:06d}.npy"
            for key in self._keys
        }
        if not all(file.exists() for file in files.values()):
            self._compute(episode, files)
        return {key: np.load(file) for key, file in files.items()}

    def _compute(self, episode: Episode, files: dict[str, Path]) -> None:
        self._stream.reset()
        seen = [self._stream.look(image, 0.1 * i) for i, image in enumerate(episode.images)]
        for key, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            with part.open("wb") as stream:
                np.save(stream, np.stack([features[key] for features in seen]).astype(np.float16))
            part.replace(file)
