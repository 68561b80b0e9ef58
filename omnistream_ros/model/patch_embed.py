# SPDX-License-Identifier: Apache-2.0
"""From pixels to patch tokens: one strided convolution, or a convolutional trunk."""

from __future__ import annotations

from torch import Tensor, nn

from omnistream_ros.model.config import ModelConfig
from omnistream_ros.model.trunk import PYRAMID_CHANNELS, EfficientNetLite0Trunk


class ConvPatchEmbed(nn.Module):
    """A convolution of patch size and stride: the embedding of the released checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(3, config.width, kernel_size=size, stride=size)

    def forward(self, pixels: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """pixels (B, 3, H, W) -> tokens (B, P, D) in row-major order, and no pyramid."""
        tokens = self.proj(pixels.to(self.proj.weight.dtype))  # (B, D, h, w)
        return tokens.flatten(2).transpose(1, 2), {}


class TrunkPatchEmbed(nn.Module):
    """EfficientNet-lite0 to stride 16 and a linear layer to the token width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.trunk = EfficientNetLite0Trunk()
        self.proj = nn.Linear(PYRAMID_CHANNELS[16], config.width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """pixels (B, 3, H, W) -> tokens (B, P, D) in row-major order, and features by stride."""
        pyramid = self.trunk(pixels.to(self.proj.weight.dtype))
        tokens = pyramid[16].flatten(2).transpose(1, 2)  # (B, P, 112)
        return self.proj(tokens), pyramid


def make_patch_embed(config: ModelConfig) -> ConvPatchEmbed | TrunkPatchEmbed:
    """The embedding that `config.patch_embed` names."""
    if config.patch_embed == "conv16":
        return ConvPatchEmbed(config)
    return TrunkPatchEmbed(config)
