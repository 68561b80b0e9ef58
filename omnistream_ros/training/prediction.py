# SPDX-License-Identifier: Apache-2.0
"""Predicting the tokens of teachers: the future and the withheld, and features of a frozen network.

Temporal: the student is not shown the last frames of a clip, nor blocks of others, and predicts the
momentum teacher's patch tokens there (as V-JEPA does, Bardes et al., arXiv:2404.08471; here
attention is causal, so a frame that is withheld can only be known from the past). Static: it also
predicts, everywhere, the features of a pretrained network that does not change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnistream_ros.model.trunk import PYRAMID_CHANNELS, EfficientNetLite0Trunk


def standardised(tokens: Tensor, given: Tensor | None = None) -> Tensor:
    """Each channel of tokens (..., D) with mean 0 and deviation 1 over all tokens `given`.

    A teacher that says the same everywhere gives no target that could be met: nothing is gained by
    collapsing.
    """
    flat = (tokens if given is None else given).flatten(0, -2)
    deviation = flat.std(dim=0, correction=0) + 1e-4
    return (tokens - flat.mean(dim=0)) / deviation


class TemporalPredictor(nn.Module):
    """From the student's tokens where it was shown nothing to the teacher's."""

    def __init__(self, width: int, hidden: int = 256) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def loss(self, student: Tensor, teacher: Tensor, withheld: Tensor) -> Tensor:
        """Smooth L1 over withheld patches; tokens (B, T, P, D), withheld (B, T, P) bool, one true.

        The teacher's tokens are standardised over the whole batch.
        """
        target = standardised(teacher.detach().float())[withheld]
        predicted = self.fc2(F.gelu(self.fc1(student[withheld].float())))
        return F.smooth_l1_loss(predicted, target)


class FeatureTeacher(nn.Module):
    """A frozen EfficientNet-lite0 trunk and the student's projection to its features."""

    def __init__(self, width: int, trunk: EfficientNetLite0Trunk) -> None:
        super().__init__()
        self.project = nn.Linear(width, PYRAMID_CHANNELS[16])
        # Not a submodule: it is known, and no part of what is trained or saved.
        self._trunk = [trunk.eval().requires_grad_(False)]

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """What the teacher makes of pixels (B, T, 3, H, W): (B, T, P, 112), standardised."""
        maps = self._trunk[0](pixels.flatten(0, 1))[16]  # (B*T, 112, h, w)
        tokens = maps.flatten(2).transpose(1, 2).unflatten(0, pixels.shape[:2])
        return standardised(tokens)

    def loss(self, student: Tensor, pixels: Tensor) -> Tensor:
        """1 - cosine between projected patch tokens (B, T, P, D) and the teacher's features."""
        target = self.features(pixels)
        return 1 - F.cosine_similarity(self.project(student.float()), target, dim=-1).mean()
