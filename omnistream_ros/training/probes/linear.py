# SPDX-License-Identifier: Apache-2.0
"""Linear probes: one matrix on standardised features, fitted to the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LinearProbe:
    """Classes of features (N, C): weight (C + 1, K) on what `mean` and `deviation` standardise."""

    mean: Tensor
    deviation: Tensor
    weight: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Numbers of classes (N,)."""
        return self._scores(features).argmax(dim=1)

    def _scores(self, features: Tensor) -> Tensor:
        x = (features - self.mean) / self.deviation
        return x @ self.weight[:-1] + self.weight[-1]


def fit(features: Tensor, classes: Tensor, count: int, decay: float = 1e-2) -> LinearProbe:
    """Softmax regression with L2 decay by L-BFGS: convex, so nothing depends on a seed.

    features (N, C) float32, classes (N,) int64 below `count`.
    """
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0) + 1e-4
    x = (features - mean) / deviation
    weight = torch.zeros(x.shape[1] + 1, count, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=80, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weight[:-1] + weight[-1], classes)
        value = value + decay * weight[:-1].square().sum() / 2
        value.backward()
        return value

    optimiser.step(loss)  # type: ignore[arg-type]
    return LinearProbe(mean, deviation, weight.detach())


def accuracy(found: Tensor, true: Tensor) -> float:
    """Share of right answers."""
    return float((found == true).float().mean())


def mean_iou(found: Tensor, true: Tensor, count: int) -> float:
    """Intersection over union, the mean over the classes that occur in the truth."""
    values = []
    for number in range(count):
        one, other = found == number, true == number
        if other.any():
            values.append(float((one & other).sum()) / float((one | other).sum()))
    return sum(values) / len(values)
