# SPDX-License-Identifier: Apache-2.0
"""What a model needs to be trained under autocast to bfloat16 on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from omnistream_ros.model import OmniStream
from omnistream_ros.model.trunk import SameConv


class _Float32Conv(SameConv):
    """A depthwise convolution of the trunk that stays in float32 where products run in bfloat16.

    Its backward pass on CPUs has no bfloat16 kernel: 5x5 ones took a quarter of a training step.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def keep_depthwise_in_float32(model: OmniStream) -> None:
    """Changes all depthwise convolutions of the trunk; their weights stay where they are."""
    for module in model.modules():
        if isinstance(module, SameConv) and module.groups > 1:
            # Another class, not a wrapped `forward`: a deep copy of that, such as the moving
            # average, would compute with the weights of the original.
            module.__class__ = _Float32Conv
