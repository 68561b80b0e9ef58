# SPDX-License-Identifier: Apache-2.0
"""How the released implementation advances a stream, re-created on our weights for comparison.

What it does that costs: the cache of each layer grows by concatenation, which allocates and copies
all of it every frame; a dense mask over everything visible is made for every frame, although a
one-frame step may see all of it; the rotary tables are computed anew in every layer; all in
float32. What it computes is the same as `Backbone.step`, and `check` says by how much it differs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from omnistream_ros.model import OmniStream, Prediction
from omnistream_ros.model.backbone import BackboneOutput


class ReleasedStream:
    """One stream through a float32 model on the CPU, as the released code does it.

    Attributes:
        past: for each layer the keys and values so far, (1, heads, frames * N, d), or None.
        frames_seen: frames since the start.
    """

    def __init__(self, model: OmniStream) -> None:
        self.model = model
        self.past: list[tuple[Tensor, Tensor] | None] = [None] * model.config.depth
        self.frames_seen = 0

    @torch.no_grad()
    def step(self, pixels: Tensor, *, keep: bool = True, **heads: bool) -> Prediction:
        """Advance by one frame, pixels (1, 3, H, W); with keep=False the stream stays as it was.

        heads: what `OmniStream.predict` shall compute.
        """
        backbone = self.model.backbone
        grid = self.model.config.grid(*pixels.shape[-2:])
        patches, pyramid = backbone.patch_embed(pixels)
        prefix = backbone._prefix([min(self.frames_seen, 1)], 1, None, True)
        x = torch.cat((prefix, patches), dim=1)  # (1, N, D)
        N, n = x.shape[1], prefix.shape[1]
        mask = self._mask(N)
        hidden, kept = [], []
        for block, past in zip(backbone.blocks, self.past, strict=True):
            heads_count = block.attn.heads
            qkv = block.attn.qkv(block.norm1(x)).view(1, N, 3, heads_count, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            tables = rotation_tables(grid, n, self.frames_seen, q.shape[-1])
            q, k = _rotated(q, tables), _rotated(k, tables)
            if past is not None:
                k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
            kept.append((k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + block.ls1(block.attn.proj(out.transpose(1, 2).reshape(1, N, -1)))
            x = x + block.ls2(block.mlp(block.norm2(x)))
            hidden.append(x)
        if keep:
            self.past = list(kept)
            self.frames_seen += 1
        features = BackboneOutput.of(hidden, backbone.post_layernorm(x), grid, pyramid)
        return self.model.predict(features, **(heads or {"rays": False}))

    def _mask(self, tokens: int) -> Tensor:
        """Dense, (N, (frames + 1) * N): which frame may see which, as 0 and -inf."""
        frame = torch.arange((self.frames_seen + 1) * tokens) // tokens
        allowed = frame[-tokens:, None] >= frame[None, :]
        return torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)


def rotation_tables(
    grid: tuple[int, int], prefix: int, frame: int, d: int
) -> tuple[Tensor, Tensor]:
    """cos and sin (N, d) from nothing, by the formulas of the paper; the prefix is not turned."""
    h, w = grid
    periods = 100.0 ** (2 * torch.arange(d // 4) / (d / 2))
    y = (2 * (torch.arange(h) + 0.5) / h - 1)[:, None, None] / periods
    x = (2 * (torch.arange(w) + 0.5) / w - 1)[None, :, None] / periods
    y, x = y.expand(h, w, -1), x.expand(h, w, -1)
    turns = torch.cat((y, y, x, x), dim=-1).flatten(0, 1)  # (h * w, d)
    t = (frame / 16) / periods[: d // 8]
    turns[:, 3::4] = torch.cat((t, t))
    angles = torch.cat((torch.zeros(prefix, d), 2 * math.pi * turns))
    return angles.cos(), angles.sin()


def _rotated(v: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = tables
    half = v.shape[-1] // 2
    return v * cos + torch.cat((-v[..., half:], v[..., :half]), dim=-1) * sin


def check(model: OmniStream, height: int, width: int, frames: int = 4) -> float:
    """Largest difference of patch features from `Backbone.step`, relative to their size."""
    generator = torch.Generator().manual_seed(5)
    released = ReleasedStream(model)
    cache = model.backbone.allocate_cache(height, width, sink=0, window=frames)
    worst = 0.0
    for _ in range(frames):
        pixels = torch.randn(1, 3, height, width, generator=generator)
        theirs = released.step(pixels).features.patches
        ours = model.backbone.step(pixels, cache).patches
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    return worst
