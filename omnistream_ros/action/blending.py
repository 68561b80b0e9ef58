# SPDX-License-Identifier: Apache-2.0
"""Which action is due: chunks on the clock of consumed actions, blended where they overlap.

The clock counts actions that were really carried out: it stands still while the robot holds. A
chunk is anchored where the clock stood when its observation was made, so whatever was consumed
while the policy computed is skipped, and nothing else; no delay has to be estimated.

latest    the newest chunk alone
linear    the newest takes over from the mixture before it within `blend_actions` actions
ensemble  all chunks that cover the moment, weighted exp(-m i), i = 0 for the oldest: temporal
          ensembling of ACT (Zhao et al. 2023, arXiv:2304.13705)
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from omnistream_ros.action import rotations
from omnistream_ros.action.chunk import Chunk
from omnistream_ros.action.spaces import ROTATION, ActionSpec, Space

BLENDINGS = ("latest", "linear", "ensemble")
# A policy that answers at every action keeps at most `horizon` chunks alive; this bounds the rest.
_MAX_CHUNKS = 64


@dataclasses.dataclass(frozen=True)
class Blending:
    """How overlapping chunks are joined.

    Attributes:
        mode: one of BLENDINGS.
        blend_actions: length of the take-over of `linear`.
        ensemble_m: m of `ensemble`; ACT has 0.01. Larger trusts the oldest more.
    """

    mode: str = "latest"
    blend_actions: float = 4.0
    ensemble_m: float = 0.01


@dataclasses.dataclass(frozen=True)
class _Planned:
    chunk: Chunk
    since: float  # the clock when it was accepted
    rows: np.ndarray  # (horizon, actions) float64


class Plan:
    """The chunks that are being carried out."""

    def __init__(
        self, spec: ActionSpec, blending: Blending, endless: np.ndarray | None = None
    ) -> None:
        """`endless`: (n,) bool, joints that turn without end and take the shorter way round."""
        self._spec = spec
        self._blending = blending
        self._planned: list[_Planned] = []  # oldest first
        columns = [spec.column(name) for name in ROTATION]
        # Rotation vectors are blended on the sphere; an angular velocity is an ordinary vector.
        turns = spec.space is Space.END_EFFECTOR_DELTA and any(c is not None for c in columns)
        self._rotation = columns if turns else None
        steps = spec.space is Space.JOINT_DELTA
        # Numbers that hold for a whole dt and add up, against positions that are passed through.
        self._rates = np.array(
            [steps or column in spec.motion for column in range(len(spec.names))], bool
        )
        none = np.zeros(len(spec.names), bool)
        self._endless = none if endless is None else endless & ~self._rates

    @property
    def newest(self) -> Chunk | None:
        """The chunk that was added last and is not used up."""
        return self._planned[-1].chunk if self._planned else None

    def add(self, chunk: Chunk, clock: float) -> None:
        """Take a chunk from now on. One of other epochs drives out all others."""
        if self._planned and self._planned[-1].chunk.epochs != chunk.epochs:
            self.clear()
        rows = np.array(chunk.data, np.float64)
        rows[:, self._endless] = np.unwrap(rows[:, self._endless], axis=0)
        self._planned.append(_Planned(chunk, clock, rows))
        if self._blending.mode == "latest":
            del self._planned[:-1]
        del self._planned[:-_MAX_CHUNKS]

    def clear(self) -> None:
        """Forget all chunks."""
        self._planned.clear()

    def left(self, clock: float) -> float:
        """Actions of the newest chunk that are still to come."""
        if not self._planned:
            return 0.0
        last = self._planned[-1]
        return max(0.0, last.chunk.anchor + len(last.rows) - clock)

    def due(self, clock: float, actions: float) -> np.ndarray | None:
        """The action (n,) for the next `actions` actions (a tick, usually less than one).

        Positions are interpolated between rows at the beginning of the tick; steps and speeds are
        averaged over it, so that the sum over ticks is the sum of the rows. None: used up.
        """
        self._prune(clock)
        covering = [p for p in self._planned if self._covers(p, clock)]
        if not covering:
            return None
        values = [self._value(p, clock, actions) for p in covering]
        if self._blending.mode == "ensemble":
            weights = np.exp(-self._blending.ensemble_m * np.arange(len(values)))
            return self._mean(np.array(values), weights)
        value = values[0]
        for planned, newer in zip(covering[1:], values[1:], strict=True):
            share = min(1.0, (clock - planned.since + actions) / self._blending.blend_actions)
            value = self._mean(np.array([value, newer]), np.array([1.0 - share, share]))
        return value

    def _covers(self, planned: _Planned, clock: float) -> bool:
        return planned.chunk.anchor <= clock < planned.chunk.anchor + len(planned.rows)

    def _prune(self, clock: float) -> None:
        """Drop what has been used up, and what a newer chunk has wholly taken over from."""
        self._planned = [p for p in self._planned if self._covers(p, clock)]
        if self._blending.mode == "linear":
            done = [
                i
                for i, p in enumerate(self._planned)
                if clock - p.since >= self._blending.blend_actions
            ]
            del self._planned[: done[-1] if done else 0]

    def _value(self, planned: _Planned, clock: float, actions: float) -> np.ndarray:
        rows = planned.rows
        begin = clock - planned.chunk.anchor
        row = math.floor(begin)
        ahead = rows[min(row + 1, len(rows) - 1)]
        position = rows[row] + (begin - row) * (ahead - rows[row])
        return np.where(self._rates, _average(rows, begin, actions), position)

    def _mean(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted mean of actions (N, n)."""
        values = np.where(self._endless, rotations.near(values, values[-1]), values)
        mean = weights @ values / weights.sum()
        if self._rotation is not None:
            vectors = np.stack(
                [np.zeros(len(values)) if c is None else values[:, c] for c in self._rotation], -1
            )
            turned = rotations.to_vector(rotations.mean(rotations.to_quaternion(vectors), weights))
            for axis, column in enumerate(self._rotation):
                if column is not None:
                    mean[column] = turned[axis]
        return mean


def _average(rows: np.ndarray, begin: float, length: float) -> np.ndarray:
    """Mean of rows, each of which holds for 1, over [begin, begin + length]; the last holds on."""
    end = begin + length
    edges = [begin, *range(math.floor(begin) + 1, math.ceil(end)), end]
    total = np.zeros(rows.shape[1])
    for left, right in itertools.pairwise(edges):
        total += (right - left) * rows[min(math.floor(left), len(rows) - 1)]
    return total / length if length > 0.0 else rows[math.floor(begin)]
