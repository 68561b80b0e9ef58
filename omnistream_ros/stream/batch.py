# SPDX-License-Identifier: Apache-2.0
"""Many cameras, one model: streams that advance together in one batched step.

Each camera keeps what is its own - cache content, epoch, frame count, lens, pose - and the weights
are read once for all of them. Cameras join and leave, miss frames and begin epochs on their own;
nothing is allocated for it, because the cache has a row for each from the start. A camera whose
images have another shape than those of the first one gets a cache of its own and is stepped alone.

A batched step equals the steps of single sessions to rounding. It pays where reading the weights
is what takes the time; see docs/memory_policies.md for what it brings where.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from omnistream_ros.model import KVCache, OmniStream
from omnistream_ros.model.cache_policy import Policy, Window
from omnistream_ros.stream.batch_state import put_stream, stream_of
from omnistream_ros.stream.camera_stream import CameraStream
from omnistream_ros.stream.device_memory import (
    StreamMemoryError,
    available_bytes,
    is_out_of_memory,
)
from omnistream_ros.stream.epochs import EpochReason
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.result import Outputs, StreamResult
from omnistream_ros.stream.stopwatch import Stopwatch

_EVERYTHING = Outputs()
_T = TypeVar("_T")


class _Place(NamedTuple):
    """Where the past of a camera is kept."""

    cache: KVCache
    row: int


class StreamBatch:
    """Up to `capacity` cameras by name; not thread-safe: one step at a time.

    Args:
        model: the network, on its device and in its dtype.
        capacity: cameras that fit.
        policy: what each stream remembers, see `model/cache_policy`; by default `Window()`.
        max_gap_s, pose, consistent_depth: as of `StreamSession`, for every camera.

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
        pose: str | None = None,
        consistent_depth: bool | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 camera, got {capacity}")
        self._model = model
        self._policy = policy or Window()
        self._max_gap_s = max_gap_s
        self._pose = pose
        self._consistent_depth = consistent_depth
        self._capacity = capacity
        self._streams: dict[str, CameraStream] = {}
        self._rows: dict[str, int] = {}
        self._cache: KVCache | None = None  # of all; made for the first image
        self._own: dict[str, KVCache] = {}  # of cameras of another shape

    @property
    def cameras(self) -> tuple[str, ...]:
        """The names of the cameras that have joined."""
        return tuple(self._rows)

    @property
    def at_once(self) -> int:
        """Cameras that it pays to hand to one step: all of them."""
        return self._capacity

    @property
    def context_capacity(self) -> int:
        """Frames of a camera that attention can see at most, keyframes included."""
        return self._policy.slots + self._policy.entries

    def cache_bytes(self, camera: str) -> int:
        """Device memory of a camera's cache, or of its place in that of all; 0 before the first
        frame."""
        if camera in self._own:
            return self._own[camera].nbytes
        return 0 if self._cache is None else self._cache.nbytes // self._capacity

    def join(self, camera: str, *, resolution: str = "model") -> None:
        """Add a camera; its first frame begins its epoch 0.

        Args:
            resolution: of its depth, as of `StreamSession`.

        Raises:
            ValueError: it is in already, or there is no room.
        """
        if camera in self._rows:
            raise ValueError(f"camera {camera!r} has joined already")
        if len(self._rows) == self._capacity:
            raise ValueError(
                f"no room for camera {camera!r}: the batch was made for {self._capacity} "
                f"({', '.join(self._rows)}); let one leave, or make a larger batch"
            )
        stream = CameraStream(
            self._model,
            max_gap_s=self._max_gap_s,
            resolution=resolution,
            pose=self._pose,
            consistent_depth=self._consistent_depth,
        )
        taken = set(self._rows.values())
        self._rows[camera] = next(r for r in range(self._capacity) if r not in taken)
        self._streams[camera] = stream

    def leave(self, camera: str) -> None:
        """Remove a camera and forget its stream; KeyError for an unknown one."""
        del self._streams[camera], self._rows[camera]
        self._own.pop(camera, None)

    def reset(self, camera: str) -> None:
        """Begin a new epoch with the next frame of one camera; its pose stays continuous."""
        self._streams[camera].request_epoch()

    def restart(self) -> None:
        """Be as new, in the memory that is allocated already: epochs 0, poses at the origin."""
        for stream in self._streams.values():
            stream.forget()

    def step(
        self, frames: Mapping[str, Frame], outputs: Outputs | Mapping[str, Outputs] = _EVERYTHING
    ) -> dict[str, StreamResult]:
        """Process the next frames of some cameras, at most one of each; the others wait.

        Args:
            frames: by camera.
            outputs: what to compute beyond advancing the streams, for all or by camera.

        Raises:
            KeyError: a camera that has not joined.
            ValueError: an output that this model does not have, or an image that is too elongated;
                no stream has then moved.
            StreamMemoryError: the device has not enough memory. All memory is given back, all
                epochs are over, and the next frames begin others.
        """
        if isinstance(outputs, Outputs):
            outputs = dict.fromkeys(frames, outputs)
        try:
            return self._step(frames, outputs)
        except StreamMemoryError as error:
            text = str(error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            text = (
                f"out of memory on {self._model.backbone.device} with {len(frames)} cameras: "
                f"{reason}. The memory of all streams was given back; take a shorter window or "
                "fewer cameras"
            )
        # Outside of the handler: the exception held every tensor of the step.
        self._cache = None
        self._own.clear()
        for stream in self._streams.values():
            stream.release()
            stream.request_epoch(EpochReason.OUT_OF_MEMORY)
        raise StreamMemoryError(text)

    @torch.no_grad()
    def _step(
        self, frames: Mapping[str, Frame], outputs: Mapping[str, Outputs]
    ) -> dict[str, StreamResult]:
        for camera, frame in frames.items():
            self._streams[camera].check(outputs[camera])
            self._streams[camera].model_size(frame)
        places = {camera: self._place(camera, frame) for camera, frame in frames.items()}
        # Neighbours in the cache that are at the same place are served by one call.
        ordered = sorted(frames, key=self._rows.__getitem__)
        together = [camera for camera in ordered if places[camera].cache is self._cache]
        alone = [camera for camera in ordered if places[camera].cache is not self._cache]
        results = self._advance(together, frames, outputs, places) if together else {}
        for camera in alone:
            results.update(self._advance([camera], frames, outputs, places))
        return results

    def _advance(
        self,
        cameras: list[str],
        frames: Mapping[str, Frame],
        outputs: Mapping[str, Outputs],
        places: Mapping[str, _Place],
    ) -> dict[str, StreamResult]:
        """One step of the network for cameras that share a cache."""
        cache = places[cameras[0]].cache
        rows = [places[camera].row for camera in cameras]
        streams = [self._streams[camera] for camera in cameras]
        batch = [frames[camera] for camera in cameras]
        wanted = [outputs[camera] for camera in cameras]

        watch = Stopwatch(self._model.backbone.device)
        reasons = []
        for stream, row, frame in zip(streams, rows, batch, strict=True):
            reason = stream.begins(frame)
            if reason is None and cache.streams[row].frames_seen >= cache.policy.limit:
                reason = EpochReason.CONTEXT_FULL
                stream.request_epoch(reason)  # or a step that fails would make it forgotten
            if reason is not None:
                cache.reset(row)
                stream.begin_epoch()
            reasons.append(reason)
        pixels = [stream.pixels(frame) for stream, frame in zip(streams, batch, strict=True)]
        watch.lap("preprocess")

        features = self._model.backbone.step(torch.cat(pixels), cache, rows=rows)
        watch.lap("backbone")
        prediction = self._model.predict(
            features,
            depth=any(want.depth for want in wanted),
            rays=False,
            camera=any(
                stream.wants_camera(frame, want)
                for stream, frame, want in zip(streams, batch, wanted, strict=True)
            ),
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
                wanted[i],
                _of_stream(prediction, i),
                frame_index=cache.streams[rows[i]].frames_seen - 1,
                context_frames=cache.context_frames(rows[i]),
                watch=own,
            )
            cache.streams[rows[i]].landmarks = streams[i].landmarks
        return results

    def state_dict(self, camera: str) -> dict[str, Any]:
        """A copy of everything that one stream remembers; a session of the same model and policy
        continues it as well."""
        stream = self._streams[camera].state_dict()
        own = self._own.get(camera)
        if own is not None:
            return {**stream, "grid": own.grid, "cache": own.state_dict()}
        if self._cache is None:
            return {**stream, "grid": None, "cache": None}
        state = stream_of(self._cache.state_dict(), self._rows[camera])
        return {**stream, "grid": self._cache.grid, "cache": state}

    def load_state_dict(self, camera: str, state: dict[str, Any]) -> None:
        """Continue a stream saved by ``state_dict`` here or by that of a session.

        Raises:
            ValueError: the state comes from another model or another kind of cache; the streams are
                then unchanged.
        """
        stream = self._streams[camera]
        stream.check_state(state)
        if state["cache"] is not None:
            patch = self._model.config.patch_size
            rows, columns = state["grid"]
            place = self._place_of_size(camera, (rows * patch, columns * patch))
            if place.cache is self._cache:
                whole = self._cache.state_dict()
                put_stream(whole, place.row, state["cache"])
                self._cache.load_state_dict(whole)
            else:
                place.cache.load_state_dict(state["cache"])
        stream.load_state_dict(state)

    def _place(self, camera: str, frame: Frame) -> _Place:
        return self._place_of_size(camera, self._streams[camera].model_size(frame))

    def _place_of_size(self, camera: str, size: tuple[int, int]) -> _Place:
        """Where a camera's past is kept when its images have this size for the model, (H, W)."""
        grid = self._model.config.grid(*size)
        if self._cache is None:
            self._cache = self._allocate(size, self._capacity)
        if self._cache.grid == grid:
            self._own.pop(camera, None)
            return _Place(self._cache, self._rows[camera])
        own = self._own.get(camera)
        if own is None or own.grid != grid:
            self._own.pop(camera, None)  # before the new one: there may not be room for both
            self._own[camera] = own = self._allocate(size, 1)
        return _Place(own, 0)

    def _allocate(self, size: tuple[int, int], streams: int) -> KVCache:
        """A cache for so many streams.

        Raises:
            StreamMemoryError: it will not fit into what is free.
        """
        backbone = self._model.backbone
        needed = KVCache.allocate(
            self._model.config,
            self._model.config.grid(*size),
            policy=self._policy,
            batch=streams,
            device="meta",
            dtype=backbone.cache_dtype,
        ).nbytes
        room = available_bytes(backbone.device)
        if needed > room:
            raise StreamMemoryError(
                f"a cache of {self._policy} for {streams} camera(s) takes {needed / 1e6:.0f} MB, "
                f"and {backbone.device} has {room / 1e6:.0f} MB left; take a shorter window, "
                "another precision or fewer cameras"
            )
        return backbone.allocate_cache(*size, policy=self._policy, batch=streams)


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
