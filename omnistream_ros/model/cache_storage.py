# SPDX-License-Identifier: Apache-2.0
"""How keys and values lie in memory, and how attention reads them.

A storage knows tokens by number, 0 .. tokens - 1 in every stream of every layer. It does not know
frames, time or why something is kept: `kv_cache` writes where the policy says and asks for the
first `visible` tokens. Another layout is another class with these methods, made by the same call.

A token may stand for several that were pooled into it. Its share in the softmax is then theirs:
log(count) is added to what a query says to its key.

L layers, B streams, b of them at hand, heads, n tokens, d channels of a head.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from omnistream_ros.model.rope import TIME_CHANNELS, Rotation


class Storage(Protocol):
    """Memory that is allocated once and written in place; `rows` names the streams at hand."""

    @property
    def nbytes(self) -> int:
        """Bytes of device memory; the same from the first frame to the last."""
        ...

    def write(self, layer: int, rows: slice, first: int, k: Tensor, v: Tensor) -> None:
        """k, v (b, heads, n, d) become tokens first .. first + n - 1 of one layer."""
        ...

    def read(self, layer: int, rows: slice, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values (b, heads, count, d) of tokens first .. first + count - 1."""
        ...

    def attend(self, layer: int, rows: slice, q: Tensor, visible: int) -> Tensor:
        """q (b, heads, n, d) to tokens 0 .. visible - 1: softmax(q k / sqrt(d) + log count) v."""
        ...

    def turn(
        self,
        layer: int,
        rows: slice,
        first: int,
        written: Tensor,
        n: int,
        turn: Rotation,
        still: int,
    ) -> None:
        """Overwrite the t channels (`rope.TIME_CHANNELS`) of keys of one layer by turned ones.

        Args:
            first: the first token.
            written: (b, heads, pieces * n, d/4), what to turn.
            turn: of each piece, or of all: cos and sin (pieces or 1, d/4).
            still: the first tokens of each piece are not turned.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything, from which the same attention follows to the last bit."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the content of a storage of the same shape and type."""
        ...


def turned(written: Tensor, n: int, turn: Rotation, still: int) -> Tensor:
    """What `Storage.turn` writes, in the shape and type of `written`."""
    cos, sin = (table[:, None] for table in turn)  # (pieces or 1, 1, d/4)
    half = cos.shape[-1] // 2
    v = written.unflatten(2, (-1, n)).to(cos.dtype)  # (b, heads, pieces, n, d/4)
    out = v * cos
    out[..., :half].addcmul_(v[..., half:], sin[..., :half])
    out[..., half:].addcmul_(v[..., :half], sin[..., half:])
    out[..., :still, :] = v[..., :still, :]
    return out.to(written.dtype).flatten(2, 3)


class TensorStorage:
    """Plain tensors, read by torch's own attention: works on every device and in every type.

    Args:
        counts: how many tokens each stands for, (tokens,), at least 1; None: all for themselves.

    Attributes:
        keys, values: (L, B, heads, tokens, d).
    """

    def __init__(
        self,
        layers: int,
        streams: int,
        heads: int,
        tokens: int,
        head_dim: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        counts: Tensor | None = None,
    ) -> None:
        # Zeros, not empty: pages are touched now, so a robot runs out of memory here or never.
        self.keys = torch.zeros(
            layers, streams, heads, tokens, head_dim, device=device, dtype=dtype
        )
        self.values = torch.zeros_like(self.keys)
        self._bias: Tensor | None = None
        self._plain = tokens  # this many from the first stand for themselves
        if counts is not None:
            self._bias = counts.double().log().to(device, dtype)
            self._plain = int((counts == 1).long().cumprod(0).sum())

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def bias(self) -> Tensor | None:
        """What attention adds to the scores of each token, (tokens,); None: nothing."""
        return self._bias

    def write(self, layer: int, rows: slice, first: int, k: Tensor, v: Tensor) -> None:
        tokens = slice(first, first + k.shape[2])
        self.keys[layer, rows, :, tokens] = k
        self.values[layer, rows, :, tokens] = v

    def attend(self, layer: int, rows: slice, q: Tensor, visible: int) -> Tensor:
        keys, values = self.read(layer, rows, 0, visible)
        bias = None
        if self._bias is not None and visible > self._plain:
            bias = self._bias[:visible].expand(1, 1, q.shape[2], -1)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)

    def read(self, layer: int, rows: slice, first: int, count: int) -> tuple[Tensor, Tensor]:
        tokens = slice(first, first + count)
        return self.keys[layer, rows, :, tokens], self.values[layer, rows, :, tokens]

    def turn(
        self,
        layer: int,
        rows: slice,
        first: int,
        written: Tensor,
        n: int,
        turn: Rotation,
        still: int,
    ) -> None:
        tokens = slice(first, first + written.shape[2])
        self.keys[layer, rows, :, tokens, TIME_CHANNELS] = turned(written, n, turn, still)

    def state_dict(self) -> dict[str, Tensor]:
        return {"keys": self.keys.clone(), "values": self.values.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.keys.copy_(state["keys"])
        self.values.copy_(state["values"])
