# SPDX-License-Identifier: Apache-2.0
"""The memory of streams: one policy says what is kept, one storage holds it; allocated once.

Here the two meet. A step of one frame is begin_frame, `attend` once per layer, end_frame: the
policy plans for each stream of the batch, the storage is written and read accordingly, and what
the policy places elsewhere in time is turned (see `rope`: only t channels change).

A turn starts from an untouched copy of those channels each time, so a stream may run for a week and
the sink's keys carry one rounding, not a million.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnistream_ros.model.cache_policy import Kept, Plan, Policy, StreamState, Window
from omnistream_ros.model.cache_storage import Storage, TensorStorage
from omnistream_ros.model.config import ModelConfig
from omnistream_ros.model.rope import TIME_CHANNELS, rotate, time_rotation

# (layers, streams, heads, tokens, head_dim, *, device, dtype) -> an empty storage
StorageFactory = Callable[..., Storage]


@dataclass(frozen=True)
class _Group:
    """Neighbouring streams that do the same in this step, so that they do it in one call."""

    batch: slice  # of the step's inputs
    rows: slice  # of the storage
    plan: Plan


class KVCache:
    """Keys and values of all layers for B streams over one set of weights.

    The streams of a cache are independent: each has its own frame count, and a step may advance
    some of them and leave the others as they are.

    Attributes:
        policy: what is kept.
        storage: keys and values; token slot * N is the first of a slot, N = `tokens_per_frame`.
        streams: the state of each stream.
    """

    def __init__(
        self,
        config: ModelConfig,
        grid: tuple[int, int],
        policy: Policy,
        *,
        batch: int,
        camera_token: bool,
        device: torch.device,
        dtype: torch.dtype,
        storage: StorageFactory = TensorStorage,
    ) -> None:
        if batch < 1:
            raise ValueError(f"a cache for {batch} streams: batch must be at least 1")
        self.policy = policy
        self.grid = grid
        self.batch = batch
        self.camera_token = camera_token
        self.head_dim = config.head_dim
        self.dtype = dtype
        self.prefix = config.prefix_tokens(camera_token)
        self.tokens_per_frame = self.prefix + grid[0] * grid[1]  # N
        self.streams = [StreamState() for _ in range(batch)]
        tokens = policy.slots * self.tokens_per_frame
        self.storage = storage(
            config.depth, batch, config.heads, tokens, self.head_dim, device=device, dtype=dtype
        )
        # The t channels of the sink's keys as they were first written.
        sink = policy.sink * self.tokens_per_frame
        self.sink_time = torch.zeros(
            config.depth, batch, config.heads, sink, self.head_dim // 4, device=device, dtype=dtype
        )
        self._groups: list[_Group] = []

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        grid: tuple[int, int],
        *,
        sink: int = 1,
        window: int = 16,
        policy: Policy | None = None,
        batch: int = 1,
        camera_token: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        storage: StorageFactory = TensorStorage,
    ) -> KVCache:
        """An empty cache.

        Args:
            grid: patches (rows, columns) of the images that will come.
            sink, window: short for `policy=Window(sink, window)`.
            policy: what is kept.
            batch: number of streams.
            dtype: that of the model's matrix products (`Backbone.compute_dtype`).
            storage: how it is kept.

        Raises:
            ValueError: impossible sizes.
        """
        return cls(
            config,
            grid,
            policy or Window(sink, window),
            batch=batch,
            camera_token=camera_token,
            device=torch.device(device),
            dtype=dtype,
            storage=storage,
        )

    @staticmethod
    def window_within(
        megabytes: float,
        config: ModelConfig,
        grid: tuple[int, int],
        *,
        sink: int = 1,
        batch: int = 1,
        camera_token: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> int:
        """The longest window whose cache fits into a budget of 10^6 bytes times `megabytes`.

        Raises:
            ValueError: not even a window of one frame fits; says how much it would take.
        """

        def size(window: int) -> int:
            return KVCache.allocate(
                config,
                grid,
                sink=sink,
                window=window,
                batch=batch,
                camera_token=camera_token,
                device="meta",  # where tensors have a size and no memory
                dtype=dtype,
            ).nbytes

        per_frame = size(2) - size(1)
        window = 1 + int(megabytes * 1e6 - size(1)) // per_frame
        if window < 1:
            raise ValueError(
                f"a cache of {megabytes} MB cannot hold a sink of {sink} and one frame of "
                f"{grid[0]}x{grid[1]} patches: that takes {size(1) / 1e6:.1f} MB"
            )
        return window

    @property
    def nbytes(self) -> int:
        """Bytes of device memory; the same from the first frame to the last."""
        return self.storage.nbytes + self.sink_time.nbytes

    @property
    def frames_seen(self) -> int:
        """Frames since the start of the epoch, of streams that advance together.

        Raises:
            ValueError: the streams differ; ask `streams`.
        """
        seen = {stream.frames_seen for stream in self.streams}
        if len(seen) > 1:
            raise ValueError(
                f"streams of this cache have seen {sorted(seen)} frames; ask `streams`"
            )
        return seen.pop()

    @frames_seen.setter
    def frames_seen(self, frames: int) -> None:
        for stream in self.streams:
            stream.frames_seen = frames

    def kept_frames(self, stream: int = 0) -> list[Kept]:
        """(frame index, index in time) of what the last step attended to, itself included."""
        return self.policy.kept(self.streams[stream])

    def context_frames(self, stream: int = 0) -> int:
        """Frames kept now."""
        return len(self.kept_frames(stream))

    @property
    def _layout(self) -> dict[str, Any]:
        """All that must agree before a state means the same to another cache."""
        return {
            "policy": str(self.policy),
            "storage": type(self.storage).__name__,
            "time": tuple(self.sink_time.shape),
            "dtype": str(self.dtype),
            "grid": self.grid,
            "camera_token": self.camera_token,
        }

    def reset(self, stream: int | None = None) -> None:
        """Forget everything, of one stream or of all: its next frame is the first of its epoch."""
        for state in self.streams if stream is None else [self.streams[stream]]:
            state.reset()

    # A step that fails half-way changes nothing that the next one would read, so the same frame can
    # simply be tried again.

    def begin_frame(self, rows: Sequence[int] | None = None) -> None:
        """Plan the next frame of the streams `rows` (all by default), in the order of the batch."""
        rows = range(self.batch) if rows is None else rows
        self._groups = []
        for i, row in enumerate(rows):
            plan = self.policy.plan(self.streams[row])
            last = self._groups[-1] if self._groups else None
            if last and last.rows.stop == row and last.plan == plan:
                batch, stored = slice(last.batch.start, i + 1), slice(last.rows.start, row + 1)
                self._groups[-1] = _Group(batch, stored, plan)
            else:
                self._groups.append(_Group(slice(i, i + 1), slice(row, row + 1), plan))
        for group in self._groups:
            if group.plan.sink_shift:
                self._move_sink(group.rows, group.plan.sink_shift)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the frame's k and v of one layer, then attend to all that is kept: no mask.

        q, k, v and the result: (b, heads, N, d), b the streams of `begin_frame`.
        """
        N = self.tokens_per_frame
        outputs = []
        for group in self._groups:
            batch, rows, plan = group.batch, group.rows, group.plan
            first = plan.slot * N
            self.storage.write(layer, rows, first, k[batch], v[batch])
            if plan.slot < self.policy.sink:
                channels = k[batch, ..., TIME_CHANNELS]
                self.sink_time[layer, rows, :, first : first + N] = channels
            outputs.append(self.storage.attend(layer, rows, q[batch], plan.visible * N))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def end_frame(self) -> None:
        """All layers are written: the frame is part of the past."""
        for group in self._groups:
            for stream in self.streams[group.rows]:
                stream.frames_seen += 1

    def _move_sink(self, rows: slice, frames: int) -> None:
        """Place the sink `frames` later than it was seen: a turn of the t channels, all layers."""
        sink_time = self.sink_time[:, rows]  # (L, b, heads, sink * N, d/4)
        angles = torch.promote_types(self.dtype, torch.float32)
        turn = time_rotation(frames, 1, self.head_dim, sink_time.device, angles)
        turned = rotate(sink_time, turn).unflatten(3, (self.policy.sink, self.tokens_per_frame))
        # The tokens before the patches have no position.
        untouched = sink_time.unflatten(3, (self.policy.sink, self.tokens_per_frame))
        turned[..., : self.prefix, :] = untouched[..., : self.prefix, :]
        self.storage.set_time_channels(rows, 0, turned.flatten(3, 4))

    def state_dict(self) -> dict[str, Any]:
        """A copy of the streams' state; streams continued from it are the same to the last bit."""
        return {
            "layout": self._layout,
            "streams": [stream.state_dict() for stream in self.streams],
            "storage": self.storage.state_dict(),
            "sink_time": self.sink_time.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue streams saved from a cache of the same layout; ValueError if it is not."""
        if state.get("layout") != self._layout:
            raise ValueError(
                f"the state of a cache of {state.get('layout')} does not fit one of {self._layout}"
            )
        self.storage.load_state_dict(state["storage"])
        self.sink_time.copy_(state["sink_time"])
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(saved)
