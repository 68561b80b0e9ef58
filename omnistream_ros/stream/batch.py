# SPDX-License-Identifier: Apache-2.0
"""Many cameras, one model: streams that advance together in one batched step.

Each camera keeps what is its own - cache content, epoch, frame count, lens, pose - and the weights
are read once for all of them. Cameras join and leave, miss frames and begin epochs on their own;
nothing is allocated for it, because the cache has a row for each from the start.

A batched step equals the steps of single sessions to rounding. It pays where reading the weights
is what takes the time; see docs/memory_policies.md for what it brings where.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from omnistream_ros.model import KVCache, OmniStream
from omnistream_ros.model.cache_policy import Policy, Window
from omnistream_ros.stream.camera_stream import CameraStream
from omnistream_ros.stream.device_memory import StreamMemoryError, is_out_of_memory
from omnistream_ros.stream.epochs import EpochReason
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.result import Outputs, StreamResult
from omnistream_ros.stream.stopwatch import Stopwatch

_EVERYTHING = Outputs()
_T = TypeVar("_T")


class StreamBatch:
    """Up to `capacity` cameras by name; not thread-safe: one step at a time.

    All cameras must have about the same shape of image, so that the model sees them at one size.

    Args:
        model: the network, on its device and in its dtype.
        capacity: cameras that fit.
        policy: what each stream remembers, see `model/cache_policy`; by default `Window()`.
        max_gap_s, resolution, pose: as of `StreamSession`, for every camera.

    Raises:
        ValueError: an argument that makes no sense, or that this model cannot do.
    """

    def __init__(
        self,
        model: OmniStream,
        capacity: int,
        *,
        policy: Policy | None = None,
        max_gap_s: float = 2.0,
        resolution: str = "model",
        pose: str | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 camera, got {capacity}")
        self._model = model
        self._policy = policy or Window()
        self._idle = [
            CameraStream(model, max_gap_s=max_gap_s, resolution=resolution, pose=pose)
            for _ in range(capacity)
        ]
        self._capacity = capacity
        self._streams: dict[str, CameraStream] = {}
        self._rows: dict[str, int] = {}
        self._cache: KVCache | None = None  # made for the first image

    @property
    def cameras(self) -> tuple[str, ...]:
        """The names of the cameras that have joined."""
        return tuple(self._rows)

    @property
    def cache_bytes(self) -> int:
        """Device memory of the cache of all cameras; 0 before the first frame."""
        return 0 if self._cache is None else self._cache.nbytes

    def join(self, camera: str) -> None:
        """Add a camera; its first frame begins its epoch 0.

        Raises:
            ValueError: it is in already, or there is no room.
        """
        if camera in self._rows:
            raise ValueError(f"camera {camera!r} has joined already")
        if not self._idle:
            raise ValueError(
                f"no room for camera {camera!r}: the batch was made for {self._capacity} "
                f"({', '.join(self._rows)}); let one leave, or make a larger batch"
            )
        taken = set(self._rows.values())
        self._rows[camera] = next(r for r in range(self._capacity) if r not in taken)
        self._streams[camera] = self._idle.pop()
        self._streams[camera].forget()

    def leave(self, camera: str) -> None:
        """Remove a camera and forget its stream; KeyError for an unknown one."""
        stream = self._streams.pop(camera)
        del self._rows[camera]
        stream.release()
        self._idle.append(stream)

    def reset(self, camera: str) -> None:
        """Begin a new epoch with the next frame of one camera; its pose stays continuous."""
        self._streams[camera].request_epoch()

    def step(
        self, frames: Mapping[str, Frame], outputs: Outputs = _EVERYTHING
    ) -> dict[str, StreamResult]:
        """Process the next frames of some cameras, at most one of each; the others wait.

        Args:
            frames: by camera.
            outputs: what to compute beyond advancing the streams.

        Raises:
            KeyError: a camera that has not joined.
            ValueError: an output that this model does not have, or an image that does not go with
                the others; no stream has then moved.
            StreamMemoryError: the device has not enough memory. All memory is given back, all
                epochs are over, and the next frames begin others.
        """
        if not frames:
            return {}
        try:
            return self._step(frames, outputs)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        # Outside of the handler: the exception held every tensor of the step.
        self._cache = None
        for stream in self._streams.values():
            stream.release()
            stream.request_epoch(EpochReason.OUT_OF_MEMORY)
        raise StreamMemoryError(
            f"out of memory on {self._model.backbone.device} with {len(frames)} cameras: {reason}. "
            "The memory of all streams was given back; take a shorter window or fewer cameras"
        )

    @torch.no_grad()
    def _step(self, frames: Mapping[str, Frame], outputs: Outputs) -> dict[str, StreamResult]:
        # Neighbours in the cache that are at the same place are served by one call.
        cameras = sorted(frames, key=self._rows.__getitem__)
        rows = [self._rows[camera] for camera in cameras]
        streams = [self._streams[camera] for camera in cameras]
        batch = [frames[camera] for camera in cameras]
        for stream in streams:
            stream.check(outputs)
        cache = self._cache_for(cameras, batch)

        watch = Stopwatch(self._model.backbone.device)
        reasons = []
        for stream, row, frame in zip(streams, rows, batch, strict=True):
            reason = stream.begins(frame)
            if reason is None and cache.streams[row].frames_seen >= cache.policy.limit:
                reason = EpochReason.CONTEXT_FULL
            if reason is not None:
                cache.reset(row)
                stream.begin_epoch()
            reasons.append(reason)
        pixels = [stream.pixels(frame) for stream, frame in zip(streams, batch, strict=True)]
        watch.lap("preprocess")

        features = self._model.backbone.step(torch.cat(pixels), cache, rows=rows)
        watch.lap("backbone")
        wants_camera = any(
            stream.wants_camera(frame, outputs)
            for stream, frame in zip(streams, batch, strict=True)
        )
        prediction = self._model.predict(
            features, depth=outputs.depth, rays=False, camera=wants_camera
        )
        watch.lap("heads")

        for stream, frame, reason in zip(streams, batch, reasons, strict=True):
            stream.accept(frame, reason)
        results = {}
        for i, camera in enumerate(cameras):
            own = watch.copy()
            own.lap("others")  # while the other cameras' results were made
            results[camera] = streams[i].result(
                batch[i],
                reasons[i],
                outputs,
                _of_stream(prediction, i),
                frame_index=cache.streams[rows[i]].frames_seen - 1,
                context_frames=cache.context_frames(rows[i]),
                watch=own,
            )
        return results

    def _cache_for(self, cameras: list[str], frames: list[Frame]) -> KVCache:
        """The cache, allocated for the first image that comes."""
        backbone = self._model.backbone
        for camera, frame in zip(cameras, frames, strict=True):
            size = self._streams[camera].model_size(frame)
            grid = self._model.config.grid(*size)
            if self._cache is None:
                self._cache = backbone.allocate_cache(
                    *size, policy=self._policy, batch=self._capacity
                )
            if grid != self._cache.grid:
                raise ValueError(
                    f"camera {camera!r}: an image of {frame.width}x{frame.height} has {grid} "
                    f"patches, the batch {self._cache.grid}; put cameras of another shape into a "
                    "batch of their own"
                )
        assert self._cache is not None
        return self._cache


def _of_stream(value: _T, i: int) -> _T:
    """What belongs to stream i of a batched prediction, as if it had run alone."""
    parts: Any = value
    if isinstance(parts, Tensor):
        parts = parts[i : i + 1]
    elif isinstance(parts, list):
        parts = [_of_stream(item, i) for item in parts]
    elif isinstance(parts, dict):
        parts = {key: _of_stream(item, i) for key, item in parts.items()}
    elif dataclasses.is_dataclass(parts):
        names = [field.name for field in dataclasses.fields(parts)]
        parts = dataclasses.replace(
            parts,  # type: ignore[type-var]
            **{name: _of_stream(getattr(parts, name), i) for name in names},
        )
    return parts
