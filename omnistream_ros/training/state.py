# SPDX-License-Identifier: Apache-2.0
"""The resumable state of a training run: one safetensors file, replaced atomically.

It holds all that the next step depends on: weights, their moving average where there is one, both
moments and the step count of AdamW for every parameter, and a JSON record with the step, the time
spent, the list of clips in use and the best result so far. Random draws need none: they follow from
seed and step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class StateError(ValueError):
    """A training state that cannot be read, written, or does not fit; names the file."""


@dataclass
class Progress:
    """Where a run stands. `seconds` is time spent training, over all its pieces."""

    seed: int
    step: int = 0
    frames: int = 0
    seconds: float = 0.0
    clips: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)  # its scores, step, and what judged it
    there: dict[str, Any] = field(default_factory=dict)  # those of the output file before the run
    recorded: list[str] = field(default_factory=list)  # clips cut from recordings, in use
    before: dict[str, Any] = field(default_factory=dict)  # what its first weights had behind them
    network: str = ""  # hash of the frozen network that a head is trained for


def write_atomically(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file so that a reader, or a kill, never meets half of one.

    Raises StateError, leaving what was there before, when it cannot be written.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, temporary, metadata)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StateError(f"cannot write {path} ({error}); the one before it is intact") from error


def _named(model: nn.Module, prefix: str) -> Iterable[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield f"{prefix}/{name}", parameter
    if prefix == "objectives":  # running means; models have no such thing
        for name, buffer in model.named_buffers():
            yield f"{prefix}/{name}", buffer


def save_state(
    path: Path,
    progress: Progress,
    model: nn.Module,
    average: nn.Module | None,
    optimiser: torch.optim.Optimizer,
    objectives: nn.Module | None = None,
) -> None:
    """Writes everything that the next step depends on."""
    tensors: dict[str, Tensor] = {}
    for prefix, module in _modules(model, average, objectives):
        tensors |= dict(_named(module, prefix))
    for name, parameter in _trained(model, objectives):
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{key}/{name}"] = value
    write_atomically(path, tensors, {"progress": json.dumps(asdict(progress))})


def _modules(
    model: nn.Module, average: nn.Module | None, objectives: nn.Module | None
) -> Iterable[tuple[str, nn.Module]]:
    named = (("weights", model), ("average", average), ("objectives", objectives))
    return [(prefix, module) for prefix, module in named if module is not None]


def _trained(model: nn.Module, objectives: nn.Module | None) -> Iterable[tuple[str, nn.Parameter]]:
    yield from model.named_parameters()
    if objectives is not None:
        for name, parameter in objectives.named_parameters():
            yield f"objectives.{name}", parameter


def load_state(
    path: Path,
    model: nn.Module,
    average: nn.Module | None,
    optimiser: torch.optim.Optimizer,
    objectives: nn.Module | None = None,
) -> Progress:
    """Restores models and optimiser bit for bit; raises StateError when the file does not fit."""
    try:
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads((file.metadata() or {})["progress"]))
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StateError(
            f"{path}: not a training state ({error}); delete it to start anew"
        ) from error
    # Heads come and go with the objectives of a run; blocks do not.
    own = {f"weights/{name}" for name, _ in model.named_parameters()}
    if surplus := [k for k in stored if k.startswith("weights/backbone.") and k not in own]:
        raise StateError(
            f"{path}: {min(surplus)} is in the state and not in this model: the run was begun with "
            "more blocks; give the same --blocks, or another --run folder"
        )
    for prefix, module in _modules(model, average, objectives):
        for key, parameter in _named(module, prefix):
            value = stored.get(key)
            if value is None or value.shape != parameter.shape:
                raise StateError(
                    f"{path}: {key} is missing or of another shape: the state belongs to another "
                    "model; start in another --run folder"
                )
            parameter.data.copy_(value)
    for name, parameter in _trained(model, objectives):
        entries = {
            key.removeprefix("optimiser.").removesuffix(f"/{name}"): value
            for key, value in stored.items()
            if key.startswith("optimiser.") and key.endswith(f"/{name}")
        }
        if entries:  # moments in the memory order of their parameter, as the optimiser makes them
            optimiser.state[parameter] = {
                key: torch.empty_like(parameter).copy_(value) if value.ndim else value
                for key, value in entries.items()
            }
    return progress


def require_seed(path: Path, progress: Progress, seed: int) -> None:
    """StateError when a run was started with another seed: its draws would be of two runs."""
    if progress.seed != seed:
        raise StateError(
            f"{path} was started with seed {progress.seed}, not {seed}: give the same seed or "
            "another --run folder"
        )
