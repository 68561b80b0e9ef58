# SPDX-License-Identifier: Apache-2.0
"""The model for fast inference on a CPU: the same network, other kernels.

`fast_model` makes a copy in which each block computes the same with

- matrix products whose weights oneDNN has packed once, with bias, GELU and layer scale inside;
- rotation and attention by our own kernel (native/) where it was built and can run, by
  torch where not;

and each convolution has its weight packed as well. Residual stream, norms and angles stay float32.
The copy is for inference alone: its blocks have no parameters to train, save or move.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnistream_ros.model import native
from omnistream_ros.model.layers import Block, Memory
from omnistream_ros.model.network import OmniStream, build_model
from omnistream_ros.model.packed_storage import PackedStorage, can_hold
from omnistream_ros.model.rope import Rotation, rotate
from omnistream_ros.model.trunk import InvertedBottleneck, SameConv

_onednn = torch.ops.mkldnn


class PackedLinear(nn.Module):
    """A linear layer with its weight in oneDNN's own order.

    Args:
        linear: whose weight and bias to take.
        dtype: of the product.
        scale: a factor for each output channel.
        gelu: apply the exact GELU to the output.
    """

    def __init__(
        self,
        linear: nn.Linear,
        dtype: torch.dtype,
        *,
        scale: Tensor | None = None,
        gelu: bool = False,
    ) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias.detach()
        if scale is not None:
            weight, bias = weight * scale.detach()[:, None], bias * scale.detach()
        # No parameter: an opaque tensor that nothing but its product understands.
        self._weight = _onednn._reorder_linear_weight(weight.to(dtype))
        self._bias = bias.to(dtype)
        self._dtype = dtype
        self._then = ("gelu", "none") if gelu else ("none", "")

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        function, variant = self._then
        return _onednn._linear_pointwise(
            x.to(self._dtype), self._weight, self._bias, function, [], variant
        )


class PackedConv(nn.Module):
    """A convolution with its weight in oneDNN's own order, which depends on the size of the input.

    Args:
        conv: whose weight, bias and geometry to take; the input must have the weight's type.
        relu6: clamp the output to [0, 6].
    """

    def __init__(self, conv: nn.Conv2d, *, relu6: bool = False) -> None:
        super().__init__()
        assert conv.bias is not None
        assert isinstance(conv.padding, tuple)
        self.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
        self.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
        self._geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        # What "SAME" padding adds where it is not the same on all sides.
        self._extra = conv.extra if isinstance(conv, SameConv) else (0, 0)
        self._then = ("hardtanh", [0.0, 6.0], "") if relu6 else ("none", [], "")
        self._packed: tuple[torch.Size | None, Tensor] = (None, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        if self._extra[1]:
            before, after = self._extra
            x = F.pad(x, (before, after, before, after))
        if x.shape != self._packed[0]:
            order = _onednn._reorder_convolution_weight(self.weight, *self._geometry, x.shape)
            self._packed = (x.shape, order)
        return _onednn._convolution_pointwise(
            x, self._packed[1], self.bias, *self._geometry, *self._then
        )


class FastBottleneck(nn.Module):
    """An `InvertedBottleneck` for inference."""

    def __init__(self, block: InvertedBottleneck) -> None:
        super().__init__()
        self.expand = (
            nn.Identity() if block.expand is None else PackedConv(block.expand, relu6=True)
        )
        self.depthwise = PackedConv(block.depthwise, relu6=True)
        self.project = PackedConv(block.project)
        self.residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return y.add_(x) if self.residual else y


class FastBlock(nn.Module):
    """A `Block` for inference."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = block.attn.heads
        self.dtype = dtype
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv = PackedLinear(block.attn.qkv, dtype)
        self.proj = PackedLinear(block.attn.proj, dtype, scale=block.ls1.gamma)
        self.fc1 = PackedLinear(block.mlp.fc1, dtype, gelu=True)
        self.fc2 = PackedLinear(block.mlp.fc2, dtype, scale=block.ls2.gamma)

    def forward(self, x: Tensor, rotation: Rotation, memory: Memory, layer: int) -> Tensor:
        """x (B, M, D) float32; M tokens of one frame, or of all frames of a clip."""
        B, M, D = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, M, 3, self.heads, D // self.heads)
        q, k, v = _rotated(qkv, rotation)
        out = memory.attend(layer, q, k, v)  # (B, heads, M, d)
        x = x + self.proj(out.transpose(1, 2).reshape(B, M, D))
        return x.add_(self.fc2(self.fc1(self.norm2(x))))


def _rotated(qkv: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """q, k turned and v, (B, heads, M, d) each; qkv (B, M, 3, heads, d) may be overwritten."""
    kernel = native.load()
    if kernel is None or not can_hold(qkv.shape[-1], qkv.device, qkv.dtype):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return rotate(q, rotation), rotate(k, rotation), v
    for b, one in enumerate(qkv):
        own = rotation if rotation.cos.ndim == 2 else Rotation(*(t[b, 0] for t in rotation))
        kernel.rotate_(one[:, 0], one[:, 1], own)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return q, k, v


def fast_model(
    model: OmniStream,
    dtype: torch.dtype = torch.bfloat16,
    *,
    convolutions: torch.dtype = torch.float32,
) -> OmniStream:
    """The same model for inference on the CPU; what it does not pack, it shares with `model`.

    Args:
        model: on the CPU, its weights in float32 (rounded once, when they are packed).
        dtype: of the blocks' matrix products and of the cache. float32 changes no result.
        convolutions: of the embedding, the trunk and the dense head. Rounding goes through these
            undamped: bfloat16 in them costs nano two percent of depth, in the blocks 0.02.

    Raises:
        ValueError: a model on another device, or one whose weights were rounded already; a PyTorch
            without oneDNN.
    """
    backbone = model.backbone
    if backbone.device.type != "cpu" or backbone.compute_dtype != torch.float32:
        raise ValueError(
            f"only a float32 model on the CPU can be packed, this one is {backbone.compute_dtype} "
            f"on {backbone.device}"
        )
    if not torch.backends.mkldnn.is_available():
        raise ValueError("this PyTorch was built without oneDNN, which packs the weights")
    fast = build_model(model.config, device="meta")
    fast.load_state_dict({k: v.detach() for k, v in model.state_dict().items()}, assign=True)
    with torch.no_grad():
        for layer, block in enumerate(fast.backbone.blocks):
            assert isinstance(block, Block)
            fast.backbone.blocks[layer] = FastBlock(block, dtype)
        fast.set_compute_dtype(convolutions)
        for module in fast.modules():
            _exchange_convolutions(module)
    if can_hold(model.config.head_dim, backbone.device, dtype):
        fast.backbone.storage = PackedStorage
    return fast.requires_grad_(False).eval()


def _exchange_convolutions(parent: nn.Module) -> None:
    for name, child in parent.named_children():
        if isinstance(child, InvertedBottleneck):
            setattr(parent, name, FastBottleneck(child))
        elif isinstance(child, nn.Conv2d):
            setattr(parent, name, PackedConv(child))
