# SPDX-License-Identifier: Apache-2.0
"""The attentive probe: one learned query looks at all tokens of a clip, a linear layer decides.

As V-JEPA probes video features (Bardes et al., arXiv:2404.08471), with a learned embedding of the
frame, since features that were made frame by frame do not say when they were seen.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentiveProbe(nn.Module):
    """Tokens (B, T, P, C) to scores of classes (B, K)."""

    def __init__(self, channels: int, frames: int, classes: int, width: int = 64, heads: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.when = nn.Parameter(torch.zeros(frames, 1, width))
        self.enter = nn.Linear(channels, width)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.decide = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = (self.enter(self.norm(tokens)) + self.when).flatten(1, 2)  # (B, T*P, width)
        seen, _ = self.attention(self.query.expand(len(x), -1, -1), x, x, need_weights=False)
        return self.decide(seen[:, 0] + self.mlp(seen[:, 0]))


def fit(
    tokens: Tensor, classes: Tensor, count: int, *, steps: int = 400, batch: int = 16, seed: int = 0
) -> AttentiveProbe:
    """Trains a probe on tokens (N, T, P, C) of any float type and classes (N,) int64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = AttentiveProbe(tokens.shape[3], tokens.shape[1], count)
    optimiser = torch.optim.AdamW(probe.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randint(len(tokens), (batch,), generator=generator)
        loss = F.cross_entropy(probe(tokens[chosen].float()), classes[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return probe.eval()


@torch.no_grad()
def classify(probe: AttentiveProbe, tokens: Tensor) -> Tensor:
    """Numbers of classes (N,) of tokens (N, T, P, C)."""
    return torch.cat([probe(part.float()).argmax(dim=1) for part in tokens.split(16)])
