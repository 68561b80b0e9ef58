# SPDX-License-Identifier: Apache-2.0
"""A small policy on frozen features: attention pooling over patches, then the next actions at once.

What the robot knows of itself and what it was told become a handful of queries; each looks at all
patch tokens and takes away a weighted mean. A perceptron turns what they found into a chunk of
commands (action chunking as in ACT, Zhao et al., arXiv:2304.13705), told as differences from where
the robot is, so that a command that comes late still is a place to go to.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnistream_ros.model.sentence_encoder import WIDTH as SENTENCE

_TOKEN_DROPOUT = 0.1
_NEVER = -1e4  # a match that softmax makes nothing of


@dataclasses.dataclass(frozen=True)
class PolicyShape:
    """Sizes of a policy.

    Attributes:
        features: (rows, columns, channels) of each feature tensor it reads; none: it sees nothing.
        axes: positions that it reads and commands.
        horizon: actions in a chunk.
        width, queries, hidden: of its own.
    """

    features: tuple[tuple[int, int, int], ...]
    axes: int
    horizon: int
    width: int = 64
    queries: int = 8
    hidden: int = 256


class PolicyNetwork(nn.Module):
    """Features, positions and a sentence to a chunk of commanded positions.

    Args:
        shape: sizes.
        relative: (axes,) bool, which axes are commanded relative to where they are.
    """

    position_mean: Tensor
    position_deviation: Tensor
    command_mean: Tensor
    command_deviation: Tensor
    relative: Tensor
    coordinates: Tensor
    waves: Tensor

    def __init__(self, shape: PolicyShape, relative: Sequence[bool]) -> None:
        super().__init__()
        self.shape = shape
        w, n = shape.width, shape.axes
        self.register_buffer("relative", torch.tensor(relative, dtype=torch.float32))
        self.register_buffer("position_mean", torch.zeros(n))
        self.register_buffer("position_deviation", torch.ones(n))
        self.register_buffer("command_mean", torch.zeros(n))
        self.register_buffer("command_deviation", torch.ones(n))
        self.listen = nn.Linear(SENTENCE, w)
        self.think = nn.Sequential(nn.Linear(w + n, 2 * w), nn.GELU(), nn.Linear(2 * w, w))
        self.enter = nn.ModuleList(nn.Linear(size[2], w) for size in shape.features)
        seen = shape.queries * (w + 2) if shape.features else 0
        if shape.features:
            places = _places(*shape.features[0][:2])
            self.register_buffer("coordinates", places[:, :2], persistent=False)
            self.register_buffer("waves", places, persistent=False)
            self.place = nn.Linear(places.shape[1], w)
            self.ask = nn.Linear(w, shape.queries * w)
        self.decide = nn.Sequential(
            nn.Linear(seen + w, shape.hidden),
            nn.GELU(),
            nn.Linear(shape.hidden, shape.hidden),
            nn.GELU(),
            nn.Linear(shape.hidden, shape.horizon * n),
        )

    @torch.no_grad()
    def fit_ranges(self, positions: Tensor, chunks: Tensor, counts: Tensor) -> None:
        """Take means and deviations from what there is: (N, axes), (N, horizon, axes) and which
        count (N, horizon)."""
        self.position_mean.copy_(positions.mean(0))
        self.position_deviation.copy_(positions.std(0).clamp_min(1e-3))
        steps = (chunks - self.relative * positions[:, None])[counts]
        self.command_mean.copy_(steps.mean(0))
        self.command_deviation.copy_(steps.std(0).clamp_min(1e-3))

    def forward(self, positions: Tensor, sentence: Tensor, *features: Tensor) -> Tensor:
        """Commands (B, horizon, axes) for positions (B, axes), an embedded instruction (B, 384) and
        features (B, rows, columns, channels) in the order of the shape."""
        steps = self.steps(positions, sentence, *features)
        steps = steps * self.command_deviation + self.command_mean
        return steps + (self.relative * positions).unsqueeze(1)

    def steps(self, positions: Tensor, sentence: Tensor, *features: Tensor) -> Tensor:
        """What the network itself says: commands in deviations from their mean."""
        return self.steps_of_normed(positions, sentence, *map(normed, features))

    def steps_of_normed(self, positions: Tensor, sentence: Tensor, *tokens: Tensor) -> Tensor:
        """The same for features that went through `normed`, in any precision."""
        batch = positions.shape[0]
        known = (positions - self.position_mean) / self.position_deviation
        thought = self.think(torch.cat((self.listen(sentence), known), dim=-1))  # (B, W)
        parts = [thought]
        if self.shape.features:
            x = self.place(self.waves)  # (P, W)
            for enter, values in zip(self.enter, tokens, strict=True):
                weight, bias = enter.weight.to(values.dtype), enter.bias.to(values.dtype)
                x = x + F.linear(values, weight, bias).float()  # (B, P, W)
            x = F.gelu(x)
            queries = self.ask(thought).view(batch, self.shape.queries, -1)  # (B, Q, W)
            match = queries @ x.transpose(1, 2) / math.sqrt(self.shape.width)
            if self.training:  # so that no single token is relied on
                blind = torch.rand(batch, 1, match.shape[2]) < _TOKEN_DROPOUT
                match = match.masked_fill(blind, _NEVER)
            attention = match.softmax(dim=-1)  # (B, Q, P)
            found = attention @ x  # (B, Q, W)
            where = attention @ self.coordinates  # (B, Q, 2)
            parts += [found.flatten(1), where.flatten(1)]
        steps: Tensor = self.decide(torch.cat(parts, dim=-1))
        return steps.view(batch, self.shape.horizon, self.shape.axes)


def normed(features: Tensor) -> Tensor:
    """Features (B, rows, columns, C) as tokens (B, P, C), each of mean 0 and deviation 1. Without
    weights, so that it can be done once, before training."""
    tokens = features.flatten(1, 2)
    return F.layer_norm(tokens, tokens.shape[-1:])


def _places(rows: int, columns: int) -> Tensor:
    """Where each patch is, (rows * columns, 10): x and y in -1 to 1, then waves of them, so that
    near patches are told alike."""
    y, x = torch.meshgrid(
        (2 * torch.arange(rows) + 1) / rows - 1, (2 * torch.arange(columns) + 1) / columns - 1,
        indexing="ij",
    )  # fmt: skip
    at = torch.stack((x, y), dim=-1).flatten(0, 1)  # (P, 2)
    waves = [f(math.pi * k * at) for k in (0.5, 1.0) for f in (torch.sin, torch.cos)]
    return torch.cat((at, *waves), dim=-1)
