# SPDX-License-Identifier: Apache-2.0
"""Which streams heads are trained and judged on, and their features, computed where missing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from omnistream_ros.evaluation.recordings import open_recording
from omnistream_ros.model import OmniStream
from omnistream_ros.stream.preprocess import model_size
from omnistream_ros.training.augment import AugmentSettings, augment, zoom
from omnistream_ros.training.clip_files import Clip, find_clips, read_clip
from omnistream_ros.training.depth_scale import DepthScaleCheck
from omnistream_ros.training.frozen_features import (
    FeatureStore,
    StoredClip,
    bytes_per_frame,
    check_space,
)
from omnistream_ros.training.head_settings import HeadSettings, HeadTrainingError
from omnistream_ros.training.recorded_streams import Cut, RecordedStream, recorded_streams


class HeadFeatures:
    """The features of one training of heads, in `run/features`."""

    def __init__(
        self,
        model: OmniStream,
        sha256: str,
        settings: HeadSettings,
        report: Callable[[str], None],
    ) -> None:
        self.model = model
        self.settings = settings
        self.report = report
        self.store = FeatureStore(settings.run / "features", self._spec(sha256))

    def _spec(self, sha256: str) -> dict[str, Any]:
        s, config = self.settings, self.model.config
        named = {
            name: getattr(s, name)
            for name in (
                *("bfloat16", "held_out_share", "clip_frames", "stride"),
                *("copies", "sink", "window", "seed"),
            )
        }
        return {
            "backbone": sha256,
            "taps": list(config.taps),
            "pixels": config.model_pixels,
            "recordings": [str(p) for p in s.recordings],
            "clips": str(s.clips) if s.clips else None,
            "held out": [str(p) for p in s.held_out],
            **named,
        }

    def compute(self, stopped: Callable[[], bool]) -> list[StoredClip]:
        """All streams with features, computing those that are missing; nothing when stopped.

        Raises:
            HeadTrainingError: nothing to train on, or nothing held out.
            RecordingError: a recording that cannot be read, or with depth of a wrong scale.
        """
        complete = self.store.folder / "complete"
        if not complete.exists():
            self._check_space()
            began, frames, number = time.monotonic(), 0, 0
            for stream, held_out in self._streams():
                for copy in range(1 if held_out else self.settings.copies):
                    if stopped():
                        return []
                    if not self.store.has(number):
                        self._compute(number, stream, held_out, copy)
                        frames += len(stream.clip)
                        rate = frames / (time.monotonic() - began)
                        self.report(f"features of {stream.name}: {rate:.1f} frames/s")
                    number += 1
            complete.touch()
            self.report(f"features of {number} streams are in {self.store.folder}")
        stored = self.store.clips()
        for kind, words in ((False, "to train on"), (True, "held out")):
            if not any(clip.held_out == kind for clip in stored):
                raise HeadTrainingError(
                    f"{self.store.folder}: nothing {words}: give longer or more recordings, or "
                    "smaller --clip-frames; then remove this folder"
                )
        return stored

    def _compute(self, number: int, stream: RecordedStream, held_out: bool, copy: int) -> None:
        s, clip = self.settings, stream.clip
        if copy:
            rng = np.random.default_rng((s.seed, number))
            fx, fy = clip.intrinsics[:2]
            square = abs(fx / fy - 1) < 1e-3  # only then can it be rolled
            changes = AugmentSettings() if square else AugmentSettings(roll_probability=0)
            clip = augment(clip, rng, changes)
        self.store.compute(
            number,
            self.model,
            clip,
            sink=s.sink,
            window=s.window,
            posed=stream.posed,
            held_out=held_out,
            source=stream.name,
        )

    def _streams(self) -> Iterator[tuple[RecordedStream, bool]]:
        """Every stream, and whether it is held out: the last ones of a source, or `held_out`."""
        s, config = self.settings, self.model.config
        cut = Cut(config.model_pixels, config.patch_size, s.clip_frames, s.stride)
        # Twice through every recording, first to count and to check: so one stream is in memory,
        # and a recording is refused before hours go into the others.
        paths = (*s.recordings, *s.held_out)
        if paths:
            self.report("recordings are read once before, to check their depth")
        counts = [_checked(path, cut) for path in paths]
        for path, count in zip(s.recordings, counts, strict=False):
            last = math.ceil(s.held_out_share * count) if count > 1 and not s.held_out else 0
            for number, stream in enumerate(recorded_streams(open_recording(path), cut)):
                yield stream, number >= count - last
        if s.clips is not None:
            names = find_clips(s.clips)
            last = 0 if s.held_out else math.ceil(s.held_out_share * len(names))
            for number, name in enumerate(names):
                for take in read_takes(s.clips / name):
                    stream = RecordedStream(name, self._fitted(take), posed=True)
                    yield stream, number >= len(names) - last
        for path in s.held_out:
            for stream in recorded_streams(open_recording(path), cut):
                yield stream, True

    def _fitted(self, clip: Clip) -> Clip:
        """A rendered clip at the size at which the model sees it."""
        height, width = clip.rgb.shape[1:3]
        config = self.model.config
        rows, columns = model_size(height, width, config.model_pixels, config.patch_size)
        if (rows, columns) == (height, width):
            return clip
        return zoom(clip, (0, 0, width, height), (columns, rows))

    def _check_space(self) -> None:
        """As far as recordings tell beforehand how long they are."""
        s, config, total = self.settings, self.model.config, 0
        for path in (*s.recordings, *s.held_out):
            info = open_recording(path).info()
            if info.frames and info.height and info.width:
                size = model_size(info.height, info.width, config.model_pixels, config.patch_size)
                copies = s.copies if path in s.recordings else 1
                frames = copies * math.ceil(info.frames / s.stride)
                total += frames * bytes_per_frame(self.model, *size)
        if total:
            self.report(f"features take up to {total / 1e9:.2f} GB in {self.store.folder}")
            there = self.store.folder.glob("clip_*.safetensors")  # of an interrupted run
            check_space(self.store.folder, total - sum(file.stat().st_size for file in there))


def _checked(path: Path, cut: Cut) -> int:
    """How many streams a recording has whose depth goes with its poses.

    Raises:
        RecordingError: it does not.
    """
    scale, count = DepthScaleCheck(), 0
    for stream in recorded_streams(open_recording(path), cut):
        if cut.stride == 1:
            scale.add(stream.clip, stream.posed)
        count += 1
    if cut.stride > 1:  # neighbours must see the same, so all frames are looked at
        for stream in recorded_streams(open_recording(path), replace(cut, stride=1)):
            scale.add(stream.clip, stream.posed)
    scale.judge(path)
    return count


def read_takes(path: Path) -> Iterator[Clip]:
    """Every take of a clip file that has at least two frames, one after the other."""
    bounds = np.zeros(1, np.int64)
    take = 0

    def choose(found: np.ndarray) -> np.ndarray:
        nonlocal bounds
        bounds = found
        return np.arange(found[take], found[take + 1])

    while take == 0 or take < len(bounds) - 1:
        clip = read_clip(path, choose)
        take += 1
        if len(clip) > 1:
            yield clip
