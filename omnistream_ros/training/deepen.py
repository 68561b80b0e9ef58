# SPDX-License-Identifier: Apache-2.0
"""More blocks for weights that are there: a deeper network that begins as the same function.

After each block stand copies of it whose branches are multiplied by nothing (layer scale 0), so
that the deeper network gives what the shallower one gave, to the bit, until training opens them
(Chen et al., Net2Net, 2016; Bachlechner et al., ReZero, 2021).
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from omnistream_ros.model import OmniStream, build_model
from omnistream_ros.model.layers import Block


def deepened(model: OmniStream, blocks: int) -> OmniStream:
    """A model of so many blocks that computes what `model` does; its heads read the last copies.

    Raises:
        ValueError: not a multiple of the blocks that are there.
    """
    there = model.config.depth
    if blocks < there or blocks % there:
        raise ValueError(
            f"{blocks} blocks from weights with {there}: each is followed by as many copies as the "
            f"others, so give a multiple of {there}"
        )
    times = blocks // there
    taps = tuple(times * tap + times - 1 for tap in model.config.taps)
    config = replace(model.config, depth=blocks, taps=taps)
    deeper = build_model(config)
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.blocks.")}
    deeper.load_state_dict(weights, strict=False)
    deeper.backbone.blocks = nn.ModuleList(
        _silent(block) if number else copy.deepcopy(block)
        for block in model.backbone.blocks
        for number in range(times)
    )
    return deeper


def _silent(block: nn.Module) -> nn.Module:
    """A copy that adds nothing to what comes in, but can learn to."""
    twin = copy.deepcopy(block)
    assert isinstance(twin, Block)
    with torch.no_grad():
        twin.ls1.gamma.zero_()
        twin.ls2.gamma.zero_()
    return twin
