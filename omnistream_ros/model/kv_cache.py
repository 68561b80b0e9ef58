# SPDX-License-Identifier: Apache-2.0
"""The memory of a stream: keys and values of the first frames (sink) and the most recent (window).

Everything is allocated once. Each frame owns a slot of N tokens in one tensor of keys and one of
values; frame f is written in place into

    slot f                              while f < sink
    slot sink + (f - sink) % window     afterwards: a ring, the oldest frame is overwritten

Attention does not care in which order keys stand, so nothing is ever moved, and the current frame
counts as the last of the window: before it is written, the frame it replaces is gone.

Time. A frame of the window is rotated for its own frame index, once, when it is written. Once
frames between sink and window have been forgotten, the sink is moved in time to stand right before
the window, so no distance ever exceeds sink + window - 1 frames:

    time(f) = f + (frames forgotten so far)   for the sink
    time(f) = f                               for the window

Moving means turning the sink's t channels further (see `rope`; no other channel changes). It starts
from an untouched copy of those channels each time, so a stream may run for a week and the sink's
keys carry one rounding, not a million.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnistream_ros.model.config import ModelConfig
from omnistream_ros.model.rope import TIME_CHANNELS, rotate, time_rotation


class KVCache:
    """Keys and values of all layers for one stream, or for a batch of streams in step.

    Attributes:
        keys, values: (depth, B, heads, (sink + window) * N, d); slots are runs of N tokens.
        frames_seen: frames since the start of the epoch; a Python int, it cannot overflow.
    """

    def __init__(
        self,
        config: ModelConfig,
        grid: tuple[int, int],
        *,
        sink: int,
        window: int,
        batch: int,
        camera_token: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if sink < 0 or window < 1 or batch < 1:
            raise ValueError(
                f"cache of sink {sink}, window {window}, batch {batch}: the window counts the "
                "current frame, so window and batch must be at least 1 and sink at least 0"
            )
        self.grid = grid
        self.sink = sink
        self.window = window
        self.batch = batch
        self.camera_token = camera_token
        self.head_dim = config.head_dim
        self.prefix = config.prefix_tokens(camera_token)
        patches = grid[0] * grid[1]
        self.tokens_per_frame = self.prefix + patches

        shape = (config.depth, batch, config.heads, self.capacity * self.tokens_per_frame)
        # Zeros, not empty: pages are touched now, so a robot runs out of memory here or never.
        self.keys = torch.zeros(*shape, self.head_dim, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        # The t channels of the sink's patch keys as they were first written.
        self.sink_time = torch.zeros(
            *shape[:3], sink, patches, self.head_dim // 4, device=device, dtype=dtype
        )
        self.frames_seen = 0
        # Of the frame at hand: tokens it writes to, tokens it sees.
        self._slot = self._visible = slice(0, 0)

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        grid: tuple[int, int],
        *,
        sink: int = 1,
        window: int = 16,
        batch: int = 1,
        camera_token: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        """An empty cache.

        Args:
            grid: patches (rows, columns) of the images that will come.
            sink: first frames of the epoch that are never forgotten.
            window: recent frames that are kept, the current one included.
            batch: streams that advance together.
            dtype: that of the model's matrix products (`Backbone.compute_dtype`).

        Raises:
            ValueError: impossible sizes.
        """
        return cls(
            config,
            grid,
            sink=sink,
            window=window,
            batch=batch,
            camera_token=camera_token,
            device=torch.device(device),
            dtype=dtype,
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
    def capacity(self) -> int:
        """Frames that fit: sink + window."""
        return self.sink + self.window

    @property
    def context_frames(self) -> int:
        """Frames kept now."""
        return min(self.frames_seen, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory; the same from the first frame to the last."""
        return self.keys.nbytes + self.values.nbytes + self.sink_time.nbytes

    def kept_frames(self) -> list[tuple[int, int]]:
        """(frame index, index in time) of what the last step attended to, itself included."""
        forgotten = max(0, self.frames_seen - self.capacity)
        sink = min(self.sink, self.frames_seen)
        window = range(sink + forgotten, self.frames_seen)
        return [(f, f + forgotten) for f in range(sink)] + [(f, f) for f in window]

    @property
    def _layout(self) -> dict[str, Any]:
        """All that must agree before a state means the same to another cache."""
        return {
            "keys": tuple(self.keys.shape),
            "dtype": str(self.keys.dtype),
            "grid": self.grid,
            "sink": self.sink,
            "camera_token": self.camera_token,
        }

    def reset(self) -> None:
        """Forget everything: the next frame is the first of its epoch."""
        self.frames_seen = 0

    # One step: begin_frame, `attend` once per layer, end_frame. A step that fails half-way changes
    # nothing that the next one would read, so the same frame can simply be tried again.

    def begin_frame(self) -> None:
        """Choose the slot of frame `frames_seen` and move the sink in time if frames were lost."""
        frame = self.frames_seen
        slot = frame  # slots fill from the left, then the window goes round
        if frame >= self.capacity:
            slot = self.sink + (frame - self.sink) % self.window
        N = self.tokens_per_frame
        self._slot = slice(slot * N, (slot + 1) * N)
        self._visible = slice(0, min(frame + 1, self.capacity) * N)

        forgotten = frame + 1 - self.capacity
        if forgotten > 0 and self.sink > 0:
            self._move_sink(forgotten)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the frame's k and v of one layer, then attend to all that is kept: no mask.

        q, k, v and the result: (B, heads, N, d).
        """
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self._slot] = k
        values[:, :, self._slot] = v
        if self.frames_seen < self.sink:
            self.sink_time[layer, :, :, self.frames_seen] = k[:, :, self.prefix :, TIME_CHANNELS]
        return F.scaled_dot_product_attention(
            q, keys[:, :, self._visible], values[:, :, self._visible]
        )

    def end_frame(self) -> None:
        """All layers are written: the frame is part of the past."""
        self.frames_seen += 1

    def _move_sink(self, frames: int) -> None:
        """Place the sink `frames` later than it was seen: a turn of the t channels, all layers."""
        turn = time_rotation(frames, 1, self.head_dim, self.keys.device, _rotary_dtype(self.keys))
        slots = self.keys[:, :, :, : self.sink * self.tokens_per_frame]
        slots = slots.unflatten(3, (self.sink, self.tokens_per_frame))
        slots[..., self.prefix :, TIME_CHANNELS] = rotate(self.sink_time, turn)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the stream's state; a stream continued from it is the same to the last bit."""
        return {
            "layout": self._layout,
            "frames_seen": self.frames_seen,
            "keys": self.keys.clone(),
            "values": self.values.clone(),
            "sink_time": self.sink_time.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a stream saved from a cache of the same layout; ValueError if it is not."""
        if state.get("layout") != self._layout:
            raise ValueError(
                f"the state of a cache of {state.get('layout')} does not fit one of {self._layout}"
            )
        for name in ("keys", "values", "sink_time"):
            getattr(self, name).copy_(state[name])
        self.frames_seen = state["frames_seen"]


def _rotary_dtype(x: Tensor) -> torch.dtype:
    """Angles are applied in float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)
