# SPDX-License-Identifier: Apache-2.0
"""A clip seen as a stream sees it: sink and window instead of the whole past, with gradients.

Training on clips that are longer than the window teaches what a robot meets after the first
seconds: frames that are forgotten, and a sink that is moved in time (`KVCache`). Each frame attends
to what a cache of `Window(sink, window)` would have kept, so the result equals stepping through it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from omnistream_ros.model.rope import TIME_CHANNELS, rotate, time_rotation


class StreamedClip:
    """The memory of T frames that run through a cache of sink + window frames.

    Args:
        frames: T.
        sink, window: as of the cache; the window counts the current frame.
        prefix: tokens of a frame that have no position.
    """

    def __init__(self, frames: int, sink: int, window: int, prefix: int) -> None:
        if sink < 0 or window < 1:
            raise ValueError(
                f"a window of at least 1 and a sink of at least 0, got {window}, {sink}"
            )
        self.frames = frames
        self.sink = sink
        self.window = window
        self.prefix = prefix

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v and the result: (B, heads, T*N, d)."""
        N = q.shape[2] // self.frames
        first = self.sink * N
        outputs = []
        for t, query in enumerate(q.split(N, dim=2)):
            end = (t + 1) * N
            forgotten = t + 1 - self.sink - self.window
            if forgotten <= 0:
                keys, values = k[:, :, :end], v[:, :, :end]
            else:
                begin = end - self.window * N
                sink = self._moved(k[:, :, :first], forgotten)
                keys = torch.cat((sink, k[:, :, begin:end]), dim=2)
                values = torch.cat((v[:, :, :first], v[:, :, begin:end]), dim=2)
            outputs.append(F.scaled_dot_product_attention(query, keys, values))
        return torch.cat(outputs, dim=2)

    def _moved(self, keys: Tensor, frames: int) -> Tensor:
        """Keys of the sink (B, heads, sink*N, d), `frames` later: a turn of their t channels."""
        if self.sink == 0:
            return keys
        dtype = torch.promote_types(keys.dtype, torch.float32)
        turn = time_rotation(frames, 1, keys.shape[-1], keys.device, dtype)
        moved = keys.unflatten(2, (self.sink, -1)).clone()  # (B, heads, sink, N, d)
        patches = moved[..., self.prefix :, TIME_CHANNELS]
        moved[..., self.prefix :, TIME_CHANNELS] = rotate(patches, turn)
        return moved.flatten(2, 3)
