# SPDX-License-Identifier: Apache-2.0
"""The transformer block of OmniStream: pre-norm attention and MLP, each with a layer scale.

The residual stream and the norms stay in float32 whatever the weights are stored in: only the
matrix products run in the weights' own type (bfloat16 on machines that are fast in it).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnistream_ros.model.rope import Rotation, rotate

# Training starts here; the released weights bring their own values.
LAYER_SCALE_INIT = 0.1


class Memory(Protocol):
    """What a block attends to: the frames of one clip, or the cache of a stream."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (B, heads, M, d) of the tokens at hand -> attention output (B, heads, M, d)."""
        ...


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 at least, whatever its weights are stored in."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class LayerScale(nn.Module):
    """A learned factor per channel on the output of a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), LAYER_SCALE_INIT))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head attention with rotary positions on queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation, memory: Memory, layer: int) -> Tensor:
        B, M, D = x.shape
        qkv = self.qkv(x.to(self.qkv.weight.dtype))
        qkv = qkv.view(B, M, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[:2], rotation)  # both at once; each (B, heads, M, d)
        out = memory.attend(layer, q, k, qkv[2])
        return self.proj(out.transpose(1, 2).reshape(B, M, D))


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x.to(self.fc1.weight.dtype))))


class Block(nn.Module):
    """x += ls1 * attn(norm1(x)); x += ls2 * mlp(norm2(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.ls2 = LayerScale(width)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrix products, and so of keys and values."""
        return self.attn.qkv.weight.dtype

    def forward(self, x: Tensor, rotation: Rotation, memory: Memory, layer: int) -> Tensor:
        """x (B, M, D) float32; M tokens of one frame, or of all frames of a clip."""
        x = x + self.ls1(self.attn(self.norm1(x), rotation, memory, layer))
        return x + self.ls2(self.mlp(self.norm2(x)))
