# SPDX-License-Identifier: Apache-2.0
"""Models small enough to test with, whose every weight has something to say."""

from __future__ import annotations

import torch

from omnistream_ros.model import ModelConfig, OmniStream, build_model

TINY = ModelConfig(
    name="tiny", width=32, depth=3, heads=2, taps=(0, 1, 1, 2), model_pixels=32 * 48, head_width=8
)
TINY_TRUNK = ModelConfig(
    name="tiny-trunk",
    width=32,
    depth=2,
    heads=2,
    taps=(0, 0, 1, 1),
    model_pixels=32 * 48,
    patch_embed="efficientnet_lite0",
    head_width=8,
)


def lively(config: ModelConfig, seed: int = 0) -> OmniStream:
    """A model with weights far from their quiet initial values, the same for the same seed."""
    torch.manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or "token" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn_like(parameter) * (1.5 / fan_in) ** 0.5)
    return model.eval()
