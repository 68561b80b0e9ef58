# SPDX-License-Identifier: Apache-2.0
"""Keys and values as the attention kernel reads them; see native/generic.c for the layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from omnistream_ros.model import native
from omnistream_ros.model.rope import Rotation


class PackedStorage:
    """A `Storage` on the CPU, in float32 or bfloat16, for heads of 64 channels, where the kernel
    was built.

    Attributes:
        keys, values: (L, B, heads, capacity, 64) numbers in the kernel's order; capacity is
            `tokens` rounded up to whole blocks.

    Raises:
        ValueError: the kernel cannot do this; `can_hold` asks beforehand.
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
        if not can_hold(head_dim, device, dtype):
            raise ValueError(
                f"the attention kernel cannot hold {head_dim} channels in {dtype} on {device}"
            )
        blocks = -(-tokens // native.TOKEN_BLOCK)
        shape = (layers, streams, heads, blocks * native.TOKEN_BLOCK, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        # softmax(q k / sqrt(d) + log count), as a bias on q k
        self._bias = None if counts is None else (counts.log() * math.sqrt(head_dim)).float()
        self._plain = 0 if counts is None else int((counts == 1).long().cumprod(0).sum())

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def _kernel(self) -> native.Kernel:
        kernel = native.load()
        assert kernel is not None  # or there would be no storage
        return kernel

    def write(self, layer: int, rows: slice, first: int, k: Tensor, v: Tensor) -> None:
        keys, values = self.keys[layer, rows], self.values[layer, rows]
        for b in range(len(k)):
            self._kernel.write(keys[b], values[b], first, _by_token(k[b]), _by_token(v[b]))

    def attend(self, layer: int, rows: slice, q: Tensor, visible: int) -> Tensor:
        keys, values = self.keys[layer, rows], self.values[layer, rows]
        bias = self._bias if visible > self._plain else None
        outputs = [
            self._kernel.attend(_by_token(q[b]), keys[b], values[b], visible, bias, self._plain)
            for b in range(len(q))
        ]
        out = outputs[0][None] if len(outputs) == 1 else torch.stack(outputs)
        return out.transpose(1, 2)  # (b, heads, n, d)

    def read(self, layer: int, rows: slice, first: int, count: int) -> tuple[Tensor, Tensor]:
        size = native.TOKEN_BLOCK
        begin, end = first // size * size, -(-(first + count) // size) * size
        keys, values = (x[layer, rows, :, begin:end] for x in (self.keys, self.values))
        pair = 2 if keys.dtype == torch.bfloat16 else 1
        # [block][d / pair][16 tokens][pair] and [tokens / pair][d][pair]
        keys = keys.unflatten(2, (-1, 16)).flatten(3).unflatten(3, (-1, 16, pair))
        keys = keys.transpose(3, 4).flatten(4).flatten(2, 3)
        values = values.unflatten(2, (-1, pair)).flatten(3).unflatten(3, (-1, pair))
        values = values.transpose(3, 4).flatten(2, 3)
        wanted = slice(first - begin, first - begin + count)
        return keys[:, :, wanted], values[:, :, wanted]

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
        for keys, channels in zip(self.keys[layer, rows], written, strict=True):
            self._kernel.turn(keys, first, channels, n, turn, still)

    def state_dict(self) -> dict[str, Tensor]:
        return {"keys": self.keys.clone(), "values": self.values.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.keys.copy_(state["keys"])
        self.values.copy_(state["values"])


def can_hold(head_dim: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether keys and values of this kind can be packed here."""
    return (
        head_dim == native.HEAD_DIM
        and device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and native.load() is not None
    )


def rounding_pays(head_dim: int) -> bool:
    """Whether attention is faster here in bfloat16 than in float32, and not only smaller."""
    kernel = native.load()
    holds = can_hold(head_dim, torch.device("cpu"), torch.bfloat16)
    return holds and kernel is not None and kernel.multiplies_bfloat16


def _by_token(x: Tensor) -> Tensor:
    """(heads, n, d) as the kernel takes it, (n, heads, d); a copy only if it lies otherwise."""
    x = x.transpose(0, 1)
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
