# SPDX-License-Identifier: Apache-2.0
"""A policy's answer: some actions ahead, and the observation that they were computed from."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where in which camera stream an observation stands.

    Attributes:
        stream_id: as the stream calls itself.
        epoch, frame_index: of the frame; see FeatureTensor.msg.
        stamp_ns: when its image was taken.
    """

    stream_id: str
    epoch: int
    frame_index: int
    stamp_ns: int


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """Actions from a policy.

    Attributes:
        chunk_id: counts from 1 over the life of a node.
        origins: the newest frame of every stream that the observation was made of.
        stamp_ns: when the oldest part of the observation was acquired.
        anchor: actions that had been consumed when the observation was made. Row i belongs to the
            moment when anchor + i have been consumed, however long the policy took.
        generation: state of the world that it was computed for; an emergency stop, another
            instruction or a new epoch begins another one.
        data: (horizon, actions).
        inference_s: how long the policy took.
        age_s: age of the observation when the policy began.
    """

    chunk_id: int
    origins: tuple[Origin, ...]
    stamp_ns: int
    anchor: float
    generation: int
    data: np.ndarray
    inference_s: float = 0.0
    age_s: float = 0.0

    @property
    def epochs(self) -> tuple[tuple[str, int], ...]:
        """Which part of which stream it continues; chunks that differ in it are never blended."""
        return tuple((origin.stream_id, origin.epoch) for origin in self.origins)
