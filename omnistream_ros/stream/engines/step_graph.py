# SPDX-License-Identifier: Apache-2.0
"""A step as one graph of fixed shapes: what torch compiles and what goes into an ONNX file.

`Backbone.step` decides with Python numbers where a frame is written and what it sees. A graph that
is to serve every frame cannot: here these decisions are small tensors, computed by `StepInputs`
from the policy's plan, and the graph contains arithmetic only.

    versions  (1,) int64     0 for the first frame of an epoch, then 1: which prefix tokens
    cos, sin  (N, d)         the turn of this frame's queries and keys (3D-RoPE)
    rows      (heads*N,)     rows of a layer's flat cache that this frame is written to
    bias      (S,)           what the storage adds to scores; -inf where nothing is written yet

What the policy moves in time or condenses, it moves and condenses before the graph runs; that is
the cache's own business (`KVCache.begin_frame`).

N tokens of a frame, S tokens of the cache, d channels of a head, D width, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnistream_ros.model import BackboneOutput, KVCache, OmniStream
from omnistream_ros.model.cache_storage import TensorStorage
from omnistream_ros.model.rope import TIME_CHANNELS, Rotation, frame_rotation
from omnistream_ros.stream.engines.engine import StepShape


class GraphInputs(NamedTuple):
    """The small tensors of one frame, see the module."""

    versions: Tensor
    cos: Tensor
    sin: Tensor
    rows: Tensor
    bias: Tensor


class StepInputs:
    """Makes `GraphInputs` on the model's device; nothing is copied from the host."""

    def __init__(self, model: OmniStream, shape: StepShape) -> None:
        backbone, config = model.backbone, model.config
        self._backbone = backbone
        self._shape = shape
        self._grid = config.grid(shape.height, shape.width)
        self._prefix = config.prefix_tokens()
        self._tokens = self._prefix + self._grid[0] * self._grid[1]  # N
        device = backbone.device
        self._versions = torch.arange(2, device=device).split(1)
        self._frame_rows = torch.arange(self._tokens, device=device)
        self._head = torch.arange(config.heads, device=device)[:, None]
        self._visible = (-1, -1)  # tokens seen, tokens there are
        self._bias = torch.empty(0)

    def fits(self, cache: KVCache) -> bool:
        """Whether the graph can run on this cache."""
        return (
            cache.batch == 1
            and cache.grid == self._grid
            and cache.policy == self._shape.policy
            and cache.camera_token
            and type(cache.storage) is TensorStorage
        )

    def begin(self, cache: KVCache) -> GraphInputs:
        """Plan the next frame."""
        cache.begin_frame()
        state = cache.streams[0]
        plan = cache.policy.plan(state)
        rotation = frame_rotation(
            self._grid,
            self._prefix,
            state.frames_seen,
            1,
            cache.head_dim,
            self._backbone.device,
            self._backbone.residual_dtype,
        )
        tokens = tensors_of(cache).keys.shape[3]  # S
        visible = plan.visible * self._tokens
        visible += len(plan.keyframe_shifts) * cache.tokens_per_keyframe
        if self._visible != (visible, tokens):
            self._visible = (visible, tokens)
            empty = torch.arange(tokens, device=self._backbone.device) >= visible
            bias = tensors_of(cache).bias
            if bias is None:
                bias = torch.zeros_like(empty, dtype=cache.dtype)
            self._bias = bias.masked_fill(empty, -torch.inf)
        return GraphInputs(
            versions=self._versions[min(state.frames_seen, 1)],
            cos=rotation.cos,
            sin=rotation.sin,
            rows=(self._head * tokens + plan.slot * self._tokens + self._frame_rows).flatten(),
            bias=self._bias,
        )

    def end(self, cache: KVCache, output: BackboneOutput) -> None:
        """The graph has run: the frame is part of the past."""
        plan = cache.policy.plan(cache.streams[0])
        if plan.slot < cache.policy.sink:
            first = plan.slot * self._tokens
            tokens = slice(first, first + self._tokens)
            keys = tensors_of(cache).keys[:, :, :, tokens, TIME_CHANNELS]
            cache.sink_time[:, :, :, tokens] = keys
        cache.end_frame(output.patches)


def tensors_of(cache: KVCache) -> TensorStorage:
    """The storage of a cache that `StepInputs.fits`."""
    assert isinstance(cache.storage, TensorStorage)
    return cache.storage


def flat(stored: Tensor) -> list[Tensor]:
    """Keys or values (L, 1, heads, S, d) as L views of (heads*S, d)."""
    return [layer.view(-1, layer.shape[-1]) for layer in stored]


class FlatMemory:
    """What the blocks attend to inside of a graph: flat caches, all tokens, a bias.

    Attributes:
        keys, values: L tensors (heads*S, d); replaced by the written ones as layers are run,
            which are the same memory if `in_place`.
    """

    def __init__(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        rows: Tensor,
        bias: Tensor,
        *,
        in_place: bool,
    ) -> None:
        self.keys, self.values = list(keys), list(values)
        self._rows = rows
        self._bias = bias
        self._in_place = in_place

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v and the result: (1, heads, N, d)."""
        _, heads, _, d = q.shape
        for stored, new in ((self.keys, k), (self.values, v)):
            tokens = new.reshape(-1, d)  # (heads*N, d)
            if self._in_place:
                stored[layer].index_copy_(0, self._rows, tokens)
            else:
                stored[layer] = stored[layer].index_put((self._rows,), tokens)
        seen_k, seen_v = (x[layer].view(1, heads, -1, d) for x in (self.keys, self.values))
        if self._in_place:
            bias = self._bias.expand(q.shape[2], -1)
            return F.scaled_dot_product_attention(q, seen_k, seen_v, attn_mask=bias)
        # In the operations of ONNX, so that each runtime finds the pattern that it knows.
        scores = (q * d**-0.5) @ seen_k.transpose(-1, -2) + self._bias  # (1, heads, N, S)
        return scores.softmax(dim=-1) @ seen_v


class StepGraph(nn.Module):
    """The backbone's step on `GraphInputs` and flat caches."""

    prefixes: Tensor  # (2, n, D): the tokens before the patches of a first and of a later frame

    def __init__(self, model: OmniStream, shape: StepShape) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.grid = model.config.grid(shape.height, shape.width)
        self.register_buffer("prefixes", model.backbone.prefix_versions(), persistent=False)

    def forward(
        self, pixels: Tensor, inputs: GraphInputs, memory: FlatMemory
    ) -> tuple[list[Tensor], Tensor, dict[int, Tensor]]:
        """pixels (1, 3, H, W) to the raw output of every block and the last one's norm, (1, N, D)
        each, and the trunk's features by stride."""
        backbone = self.backbone
        patches, pyramid = backbone.patch_embed(pixels)  # (1, P, D)
        prefix = self.prefixes.index_select(0, inputs.versions)  # (1, n, D)
        x = torch.cat((prefix, patches.to(backbone.residual_dtype)), dim=1)  # (1, N, D)
        rotation = Rotation(inputs.cos, inputs.sin)
        hidden = []
        for layer, block in enumerate(backbone.blocks):
            x = block(x, rotation, memory, layer)
            hidden.append(x)
        return hidden, backbone.post_layernorm(x), pyramid

    def output(
        self, hidden: list[Tensor], normed: Tensor, pyramid: dict[int, Tensor]
    ) -> BackboneOutput:
        """The three as the output of a step."""
        return BackboneOutput.of(hidden, normed, self.grid, pyramid)
