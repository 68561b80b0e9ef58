# SPDX-License-Identifier: Apache-2.0
"""Processes that train one model together, as torchrun starts them.

Each draws its own share of a step's clips, gradients are averaged, and every process takes the same
step: weights stay equal to the last bit. The first process alone writes the run folder. The clips
and the run folder must lie where all processes see them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET = 8 << 20  # numbers to a message: large enough to be fast, small enough to be copied

_PARTING = timedelta(seconds=20)  # how long the others are waited for at the end

T = TypeVar("T")


class TeamError(RuntimeError):
    """Processes that do not belong together; says what differs."""


class Team:
    """This process among those that train together; one alone needs no communication."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    def from_environment(cls) -> Team:
        """The team of torchrun (RANK, WORLD_SIZE, MASTER_ADDR, ...), or one process alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by the mean over the team; the same ones must be there in all."""
        self.average_tensors([p.grad for p in parameters if p.grad is not None])

    def average_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over the team."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            bucket.append(tensor)
            if sum(g.numel() for g in bucket) >= _BUCKET:
                self._average(bucket)
                bucket = []
        if bucket:
            self._average(bucket)

    def _average(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over the team."""
        if self.size == 1 or not values:
            return values
        # Not every process has every term: one may have drawn no clip that language is known of.
        names = sorted({name for found in self.gather(list(values)) for name in found})
        there = [name in values for name in names]
        sums = torch.tensor([*(values.get(name, 0.0) for name in names), *there]).double()
        dist.all_reduce(sums)
        totals, counts = sums.chunk(2)
        return dict(zip(names, (totals / counts).tolist(), strict=True))

    def largest(self, *values: float) -> list[float]:
        """Each value's maximum over the team; so a wish of one is known to all."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return list(found.tolist())

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_leader(self, value: T) -> T:
        """The leader's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def check_equal(self, **values: object) -> None:
        """TeamError unless all processes have the same values."""
        for name, mine in values.items():
            found = self.gather(mine)
            if any(other != found[0] for other in found):
                raise TeamError(
                    f"processes of one training differ in {name}: {found}; clips and run folder "
                    "must be on a disk that all of them see"
                )

    def close(self) -> None:
        """Leaves the team, together with the others where they are still there.

        The first process holds what the others connect through: if it left first, one that is still
        leaving would be aborted.
        """
        if self.size > 1 and dist.is_initialized():
            with contextlib.suppress(RuntimeError):  # somebody has died, which others report
                dist.monitored_barrier(timeout=_PARTING)
            dist.destroy_process_group()
