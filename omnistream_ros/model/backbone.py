# SPDX-License-Identifier: Apache-2.0
"""The OmniStream backbone (arXiv:2603.12265): a ViT over frames, causal in time.

One set of blocks, two ways to run it. They differ only in what the attention may look at:

- `forward_clip`: T frames at once; a token sees its own frame and the earlier ones. For training
  and for checks.
- `step`: one frame; it sees what the KV-cache has kept. For robots.

Tokens of a frame, in order: CLS, CAMERA (if on), 4 REGISTER, then h*w patches row by row.
B batch, T frames, N tokens of a frame, P = h*w patches, D width, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnistream_ros.model.cache_policy import Policy
from omnistream_ros.model.cache_storage import TensorStorage
from omnistream_ros.model.config import REGISTER_TOKENS, ModelConfig
from omnistream_ros.model.kv_cache import KVCache, StorageFactory
from omnistream_ros.model.layers import Block, LayerNorm, Memory
from omnistream_ros.model.patch_embed import make_patch_embed
from omnistream_ros.model.rope import Rotation, frame_rotation
from omnistream_ros.model.streamed_clip import StreamedClip


@dataclass
class BackboneOutput:
    """What the backbone knows about frames; `...` is (B, T) for a clip and (B,) for a step.

    Attributes:
        hidden: raw output of every block, (..., N, D) each; references, not copies.
        patches: (..., P, D), cls: (..., D), registers: (..., 4, D), camera: (..., D) or None, all
            after the final LayerNorm.
        grid: patches as (rows, columns).
        pyramid: features of the convolutional trunk by stride, (..., C, H/s, W/s); may be empty.
    """

    hidden: list[Tensor]
    patches: Tensor
    cls: Tensor
    camera: Tensor | None
    registers: Tensor
    grid: tuple[int, int]
    pyramid: dict[int, Tensor]

    @classmethod
    def of(
        cls,
        hidden: list[Tensor],
        normed: Tensor,
        grid: tuple[int, int],
        pyramid: dict[int, Tensor],
        camera_token: bool = True,
    ) -> BackboneOutput:
        """From the raw output of every block and `normed` (..., N, D), the last one's norm."""
        n = normed.shape[-2] - grid[0] * grid[1]  # tokens before the patches
        return cls(
            hidden=hidden,
            patches=normed[..., n:, :],
            cls=normed[..., 0, :],
            camera=normed[..., 1, :] if camera_token else None,
            registers=normed[..., n - REGISTER_TOKENS : n, :],
            grid=grid,
            pyramid=pyramid,
        )


class CausalClip:
    """The memory of `forward_clip`: queries of frame t see the keys of frames 0 .. t.

    One attention without a mask per frame over the prefix of the clip: half the products of a dense
    masked one, and no mask of (T*N) x (T*N) anywhere.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v and the result: (B, heads, T*N, d)."""
        N = q.shape[2] // self.frames
        outputs = [
            F.scaled_dot_product_attention(query, k[:, :, : (t + 1) * N], v[:, :, : (t + 1) * N])
            for t, query in enumerate(q.split(N, dim=2))
        ]
        return torch.cat(outputs, dim=2)


class Backbone(nn.Module):
    """Parameter names are those of the released checkpoint without its `patch_embed.` prefix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.storage: StorageFactory = TensorStorage  # of the caches for this backbone
        D = config.width
        self.patch_embed = make_patch_embed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        # Two versions: index 0 for the first frame of a stream, 1 for every later frame.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, D))
        self.register_token = nn.Parameter(torch.zeros(1, 2, REGISTER_TOKENS, D))
        self.mask_token = nn.Parameter(
            torch.zeros(1, D)
        )  # stands in for hidden patches in training
        self.ar_embedder = nn.Linear(1, D)
        self.blocks = nn.ModuleList(
            Block(D, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.post_layernorm = LayerNorm(D)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.camera_token, self.register_token, self.mask_token):
            nn.init.trunc_normal_(token, std=0.02)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the convolutions, and so of the pixels that come in."""
        return self.patch_embed.proj.weight.dtype

    @property
    def cache_dtype(self) -> torch.dtype:
        """The type of the blocks' matrix products, and so of a cache's keys and values."""
        block = self.blocks[0]
        assert isinstance(block.dtype, torch.dtype)
        return block.dtype

    @property
    def residual_dtype(self) -> torch.dtype:
        """The type of the residual stream, the norms and the rotary angles: float32 at least."""
        return torch.promote_types(self.compute_dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.cls_token.device

    def allocate_cache(
        self,
        height: int,
        width: int,
        *,
        sink: int = 1,
        window: int = 16,
        policy: Policy | None = None,
        batch: int = 1,
        camera_token: bool = True,
    ) -> KVCache:
        """An empty cache for images of height x width on this model's device, in its type.

        Arguments and errors as of `KVCache.allocate`.
        """
        return KVCache.allocate(
            self.config,
            self.config.grid(height, width),
            sink=sink,
            window=window,
            policy=policy,
            batch=batch,
            camera_token=camera_token,
            device=self.device,
            dtype=self.cache_dtype,
            storage=self.storage,
        )

    def forward_clip(
        self,
        pixels: Tensor,
        aspect_ratio: Tensor | float | None = None,
        *,
        camera_token: bool = True,
        context: tuple[int, int] | None = None,
        hidden_patches: Tensor | None = None,
    ) -> BackboneOutput:
        """Run T frames of a stream from its start.

        Args:
            pixels: (B, T, 3, H, W), normalised by PIXEL_MEAN and PIXEL_STD.
            aspect_ratio: H/W of the camera, (B,) or one number, above 0; None: not told.
            camera_token: put the CAMERA token into the sequence.
            context: sink and window of a stream's cache, beyond which frames are forgotten; None:
                every frame sees all before it.
            hidden_patches: (B, T, P) bool, patches whose content is withheld (training).

        Raises:
            ValueError: pixels of another shape, or sides that are no multiples of the patch size.
        """
        if pixels.ndim != 5 or pixels.shape[1] < 1 or pixels.shape[2] != 3:
            raise ValueError(f"pixels must be (B, T, 3, H, W), got {tuple(pixels.shape)}")
        B, T = pixels.shape[:2]
        grid = self.config.grid(*pixels.shape[-2:])
        patches, pyramid = self.patch_embed(pixels.flatten(0, 1))  # (B*T, P, D)
        if hidden_patches is not None:
            hide = hidden_patches.flatten(0, 1)[..., None]
            patches = torch.where(hide, self.mask_token.to(patches.dtype), patches)
        versions = [min(t, 1) for t in range(T)] * B
        prefix = self._prefix(versions, B, aspect_ratio, camera_token)  # (B*T, n, D)
        x = torch.cat((prefix, patches.to(self.residual_dtype)), dim=1)  # (B*T, N, D)
        x = x.unflatten(0, (B, T)).flatten(1, 2)  # (B, T*N, D)
        rotation = self._rotation(grid, prefix.shape[1], 0, T)
        memory: Memory = CausalClip(T)
        if context is not None:
            memory = StreamedClip(T, *context, prefix.shape[1])
        hidden = self._run_blocks(x, memory, rotation)
        hidden = [h.unflatten(1, (T, -1)) for h in hidden]  # (B, T, N, D)
        pyramid = {stride: f.unflatten(0, (B, T)) for stride, f in pyramid.items()}
        return self._output(hidden, grid, pyramid, camera_token)

    @torch.no_grad()  # a graph through the cache would grow with the stream
    def step(
        self,
        pixels: Tensor,
        cache: KVCache,
        aspect_ratio: Tensor | float | None = None,
        *,
        rows: Sequence[int] | None = None,
    ) -> BackboneOutput:
        """Advance streams by one frame each; the cache decides for which it is the first.

        Args:
            pixels: (B, 3, H, W), normalised by PIXEL_MEAN and PIXEL_STD.
            cache: the streams' memory; written in place.
            aspect_ratio: H/W of the camera, (B,) or one number; None: not told.
            rows: the streams of the cache that the B images belong to, each at most once; the
                others are left as they are. None: all of them, in order.

        Raises:
            ValueError: pixels of another shape than the cache was allocated for.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must be (B, 3, H, W), got {tuple(pixels.shape)}")
        grid = self.config.grid(*pixels.shape[-2:])
        rows = range(cache.batch) if rows is None else rows
        if grid != cache.grid or pixels.shape[0] != len(rows):
            raise ValueError(
                f"the cache was allocated for {len(rows)} image(s) of {cache.grid} patches, got "
                f"{pixels.shape[0]} of {grid}; allocate a new cache and begin a new epoch"
            )
        B = pixels.shape[0]
        patches, pyramid = self.patch_embed(pixels)  # (B, P, D)
        frames = [cache.streams[row].frames_seen for row in rows]
        versions = [min(frame, 1) for frame in frames]
        prefix = self._prefix(versions, B, aspect_ratio, cache.camera_token)  # (B, n, D)
        x = torch.cat((prefix, patches.to(self.residual_dtype)), dim=1)  # (B, N, D)
        rotation = self._rotations(grid, prefix.shape[1], frames)
        cache.begin_frame(rows)
        hidden = self._run_blocks(x, cache, rotation)
        output = self._output(hidden, grid, pyramid, cache.camera_token)
        cache.end_frame(output.patches)
        return output

    @torch.no_grad()
    def prefix_versions(self) -> Tensor:
        """The tokens before the patches of a first and of a later frame, (2, n, D)."""
        return self._prefix([0, 1], 2, None, camera_token=True)

    def _prefix(
        self,
        versions: list[int],
        batch: int,
        aspect_ratio: Tensor | float | None,
        camera_token: bool,
    ) -> Tensor:
        """The tokens before the patches, (B*T, n, D); `versions` is 0 for a first frame, else 1."""
        dtype = self.residual_dtype
        count = len(versions)
        tokens = [self.cls_token.expand(count, -1, -1)]
        if camera_token:
            camera = _choose(self.camera_token, versions)  # (B*T, 1, D)
            if aspect_ratio is not None:
                # Of a tensor on a device this would have to be waited for.
                if isinstance(aspect_ratio, float) and not 0 < aspect_ratio < math.inf:
                    raise ValueError(f"aspect_ratio is H/W, above 0, got {aspect_ratio}")
                ratio = torch.as_tensor(aspect_ratio, device=self.device, dtype=dtype)
                log_ratio = ratio.log().expand(batch)[:, None]  # (B, 1)
                told = F.linear(
                    log_ratio, self.ar_embedder.weight.to(dtype), self.ar_embedder.bias.to(dtype)
                )
                camera = camera + told.repeat_interleave(count // batch, dim=0)[:, None]
            tokens.append(camera)
        tokens.append(_choose(self.register_token, versions))  # (B*T, 4, D)
        return torch.cat(tokens, dim=1).to(dtype)

    def _rotation(self, grid: tuple[int, int], prefix: int, first: int, frames: int) -> Rotation:
        """The turn of consecutive frames, (frames*N, d)."""
        return frame_rotation(
            grid, prefix, first, frames, self.config.head_dim, self.device, self.residual_dtype
        )

    def _rotations(self, grid: tuple[int, int], prefix: int, frames: list[int]) -> Rotation:
        """The turn of one frame per stream: (N, d) if all are at the same, else (B, 1, N, d)."""
        if len(set(frames)) == 1:
            return self._rotation(grid, prefix, frames[0], 1)
        each = [self._rotation(grid, prefix, frame, 1) for frame in frames]
        cos, sin = (torch.stack(tables)[:, None] for tables in zip(*each, strict=True))
        return Rotation(cos, sin)

    def _run_blocks(self, x: Tensor, memory: Memory, rotation: Rotation) -> list[Tensor]:
        """x (B, frames*N, D) through all blocks; their outputs."""
        hidden = []
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, memory, layer)
            hidden.append(x)
        return hidden

    def _output(
        self,
        hidden: list[Tensor],
        grid: tuple[int, int],
        pyramid: dict[int, Tensor],
        camera_token: bool,
    ) -> BackboneOutput:
        normed = self.post_layernorm(hidden[-1])  # (..., N, D)
        return BackboneOutput.of(hidden, normed, grid, pyramid, camera_token)


def _choose(token: Tensor, versions: list[int]) -> Tensor:
    """token (1, 2, n, D) in the versions wanted, (len(versions), n, D).

    Python numbers choose, so no index travels to the device.
    """
    runs = [(version, len(list(run))) for version, run in groupby(versions)]
    return torch.cat([token[0, version].expand(count, -1, -1) for version, count in runs])
