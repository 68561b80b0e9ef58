# SPDX-License-Identifier: Apache-2.0
"""What every training here shares: learning rate, moving average, and the end of a run in NaN."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from omnistream_ros.training.state import write_atomically


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is NaN or infinite; step and batch were saved before stopping."""


def learning_rate_factor(step: int, warmup: int, fraction_done: float) -> float:
    """Linear warm-up times a half cosine from 1 to 1 % at the end of the run."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, fraction_done)))
    return min(1.0, (step + 1) / max(1, warmup)) * (0.01 + 0.99 * cosine)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Moves the average towards the weights; early on it follows closely."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def stop_at_non_finite(
    run: Path,
    state: Path,
    step: int,
    batch: dict[str, Tensor],
    loss: Tensor,
    norm: Tensor,
    rank: int | None = None,
) -> NoReturn:
    """Saves the batch that did it, of each process by its rank; raises NonFiniteLossError."""
    of = "" if rank is None else f"-process-{rank}"
    path = run / f"non-finite-step-{step:06d}{of}.safetensors"
    write_atomically(path, batch, {"step": str(step), "loss": str(loss.item())})
    raise NonFiniteLossError(
        f"loss {loss.item()}, gradient norm {norm.item()} at step {step}; the batch is in {path}. "
        f"{state} is of an earlier step and sound: start again to go on from there, with a lower "
        "learning rate if it happens again"
    )
