# SPDX-License-Identifier: Apache-2.0
"""The language head: tokens of the backbone as vectors of sentences."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from omnistream_ros.model.config import ModelConfig


class LanguageHead(nn.Module):
    """An MLP from tokens to the space of a sentence encoder; patches and whole frames share it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.width)
        self.fc2 = nn.Linear(config.width, config.language_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (..., D), after the final norm -> unit vectors (..., language_width) float32."""
        x = F.gelu(self.fc1(tokens.to(self.fc1.weight.dtype)))
        return F.normalize(self.fc2(x).float(), dim=-1)

    def pooled(self, patches: Tensor) -> Tensor:
        """What a frame is about: patches (..., P, D) -> (..., language_width)."""
        return self(patches.mean(dim=-2))
