# SPDX-License-Identifier: Apache-2.0
"""One way to run a model on a stream: what all engines have in common, and the plainest of them.

A session owns a cache and hands it to the engine with each frame. What an engine may choose is how
the numbers are computed, never what is kept: slots, time and epochs are those of `model/kv_cache`
whichever engine runs, so a stream can change engines between two frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from omnistream_ros.model import KVCache, OmniStream, Prediction
from omnistream_ros.model.cache_policy import Policy


class EngineError(Exception):
    """An engine that cannot be used here; the message says why and what to do."""


def one_line(error: BaseException) -> str:
    """Kind and first line of an exception; what compilers and exporters raise is pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


@dataclass(frozen=True)
class StepShape:
    """What a graph is made for: one image size and one policy of the cache.

    Attributes:
        height, width: of the model's input (`preprocess.model_size`).
        policy: what the cache keeps.
    """

    height: int
    width: int
    policy: Policy

    def __str__(self) -> str:
        return f"{self.width}x{self.height} and {self.policy}"


class Engine(Protocol):
    """Runs steps; several sessions may share it, one frame at a time."""

    @property
    def model(self) -> OmniStream:
        """The model that runs, on its device and in its precision."""
        ...

    @property
    def name(self) -> str:
        """What runs, in a few words for people and for /diagnostics."""
        ...

    @property
    def remark(self) -> str:
        """What the user should know: why it is not as it was asked for. Usually empty."""
        ...

    def allocate_cache(self, height: int, width: int, policy: Policy) -> KVCache:
        """An empty cache for images of model size height x width."""
        ...

    def step(
        self,
        pixels: Tensor,
        cache: KVCache,
        *,
        depth: bool,
        camera: bool,
        lap: Callable[[str], None] = lambda stage: None,
    ) -> Prediction:
        """Advance a stream by one frame.

        Args:
            pixels: (1, 3, H, W), normalised, on the model's device.
            cache: of `allocate_cache`; written in place.
            depth, camera: the heads to run, where the model has them.
            lap: called with a stage's name when its work has been given to the device.

        The tensors of the result belong to the caller: no later step changes them.
        """
        ...


class TorchEngine:
    """The model as it stands, operation by operation; works everywhere and for every cache."""

    def __init__(self, model: OmniStream, *, name: str = "eager", remark: str = "") -> None:
        self.model = model
        self.name = name
        self.remark = remark

    def allocate_cache(self, height: int, width: int, policy: Policy) -> KVCache:
        return self.model.backbone.allocate_cache(height, width, policy=policy)

    @torch.no_grad()
    def step(
        self,
        pixels: Tensor,
        cache: KVCache,
        *,
        depth: bool,
        camera: bool,
        lap: Callable[[str], None] = lambda stage: None,
    ) -> Prediction:
        features = self.model.backbone.step(pixels, cache)
        lap("backbone")
        prediction = self.model.predict(features, depth=depth, rays=False, camera=camera)
        lap("heads")
        return prediction
