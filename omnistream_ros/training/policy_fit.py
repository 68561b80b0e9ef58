# SPDX-License-Identifier: Apache-2.0
"""Behaviour cloning: a policy learns to say what the expert did next."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnistream_ros.simulation.environment import Axis
from omnistream_ros.training.optimise import follow, learning_rate_factor
from omnistream_ros.training.policy_data import Demonstrations
from omnistream_ros.training.policy_network import PolicyNetwork, PolicyShape, normed

_HELD_OUT = 10  # every n-th episode judges and does not train
_AVERAGE = 0.998


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """One training of a policy."""

    steps: int = 3000
    batch: int = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    position_noise: float = 0.02  # in deviations
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained network, and its error on episodes held out, in centimetres or by task."""

    network: PolicyNetwork
    error: dict[str, float]
    seconds: float


def fit(
    shown: Demonstrations,
    sentences: Sequence[Tensor],
    axes: Sequence[Axis],
    settings: FitSettings,
    report: Callable[[str], None] = print,
) -> Fitted:
    """Train a policy on demonstrations.

    Args:
        sentences: by task, embedded ways of asking for it (ways, 384); each sample takes any.
    """
    began = time.monotonic()
    torch.manual_seed(settings.seed)
    features = list(shown.features.values())
    sizes = tuple((int(f.shape[1]), int(f.shape[2]), int(f.shape[3])) for f in features)
    shape = PolicyShape(sizes, len(axes), shown.chunks.shape[1])
    network = PolicyNetwork(shape, [axis.unit == "m" for axis in axes])
    average = PolicyNetwork(shape, [axis.unit == "m" for axis in axes])
    # Half the memory, and twice as fast where the processor multiplies bfloat16.
    normal = [normed_in_parts(f) for f in features]
    usable = shown.counts[:, 0]
    training = torch.nonzero(usable & (shown.episodes % _HELD_OUT != 0))[:, 0]
    judging = torch.nonzero(usable & (shown.episodes % _HELD_OUT == 0))[:, 0]
    for each in (network, average):
        each.fit_ranges(shown.positions[training], shown.chunks[training], shown.counts[training])
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(
        network.parameters(),
        settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    recent = []
    for step in range(settings.steps):
        rng = np.random.default_rng((settings.seed, step))
        chosen = training[torch.from_numpy(rng.integers(len(training), size=settings.batch))]
        said = torch.stack(
            [sentences[t][rng.integers(len(sentences[t]))] for t in shown.tasks[chosen].tolist()]
        )
        positions = shown.positions[chosen]
        noise = torch.from_numpy(rng.normal(size=tuple(positions.shape)).astype(np.float32))
        seen = [tokens[chosen] for tokens in normal]
        felt = positions + settings.position_noise * network.position_deviation * noise
        steps = network.steps_of_normed(felt, said, *seen)
        wanted = shown.chunks[chosen] - network.relative * felt[:, None]
        wanted = (wanted - network.command_mean) / network.command_deviation
        loss = F.smooth_l1_loss(steps, wanted, reduction="none", beta=0.5).mean(-1)
        counts = shown.counts[chosen]
        loss = (loss * counts).sum() / counts.sum()
        for group in optimiser.param_groups:
            factor = learning_rate_factor(step, 100, step / settings.steps)
            group["lr"] = settings.learning_rate * factor
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        follow(average, network, step, _AVERAGE)
        recent = [*recent, loss.item()][-200:]
        if (step + 1) % 500 == 0 or step + 1 == settings.steps:
            report(f"step {step + 1}/{settings.steps}  loss {np.mean(recent):.4f}")
    error = held_out_error(average.eval(), shown, judging, sentences)
    report("held out: " + "  ".join(f"{k} {v:.2f} cm" for k, v in error.items()))
    return Fitted(average, error, time.monotonic() - began)


def normed_in_parts(features: Tensor) -> Tensor:
    """Tokens (N, P, C) bfloat16 of features (N, rows, columns, C), without a copy in float32."""
    return torch.cat([normed(part.float()).bfloat16() for part in features.split(512)])


@torch.no_grad()
def held_out_error(
    network: PolicyNetwork, shown: Demonstrations, frames: Tensor, sentences: Sequence[Tensor]
) -> dict[str, float]:
    """By task: mean distance in cm between commanded and shown places over a chunk, axes in metres
    only, with the first way of asking."""
    errors: dict[str, float] = {}
    metres = network.relative.bool()
    for number, name in enumerate(shown.names):
        mine = frames[shown.tasks[frames] == number]
        if len(mine) == 0:
            continue
        distances, counts = [], []
        for part in mine.split(512):
            said = sentences[number][:1].expand(len(part), -1)
            seen = [f[part].float() for f in shown.features.values()]
            commands = network(shown.positions[part], said, *seen)
            distances.append((commands - shown.chunks[part])[..., metres].norm(dim=-1))
            counts.append(shown.counts[part])
        distance, count = torch.cat(distances), torch.cat(counts)
        errors[name] = 100 * float((distance * count).sum() / count.sum())
    return errors
