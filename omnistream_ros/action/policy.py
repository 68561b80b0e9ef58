# SPDX-License-Identifier: Apache-2.0
"""What every policy is to the rest of the package: needs, an observation in, actions out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from omnistream_ros.action.policy_facts import FeatureInput
from omnistream_ros.action.spaces import ActionSpec


class PolicyError(RuntimeError):
    """The policy gave no actions this time; the text says why. The next call may succeed."""


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a policy reads.

    Attributes:
        features: tensors by stream and key; an empty shape takes any.
        model_sha256: weights that they must come from; empty: any.
        images: names of the camera images that it reads.
        joints: names in the order of `Observation.joints`.
        instruction: it reads the instruction, as text or embedded.
        embedding: it reads the instruction's embedding.
    """

    features: tuple[FeatureInput, ...] = ()
    model_sha256: str = ""
    images: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()
    instruction: bool = False
    embedding: bool = False

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams, each once, then of the images."""
        return (*dict.fromkeys(feature.stream for feature in self.features), *self.images)


@dataclasses.dataclass(frozen=True, eq=False)
class Observation:
    """What the robot knows at one moment; only what the policy needs is filled in.

    Attributes:
        features: by (stream, key), float32 of the shape in `Needs.features`; valid during the call.
        images: (H, W, 3) uint8 RGB by name.
        joints: (len(needs.joints),) float64 positions.
        instruction: text.
        embedding: (384,) float32 of the text.
        consumed: actions that were carried out until then; it stands still while the robot holds.
    """

    features: Mapping[tuple[str, str], np.ndarray] = dataclasses.field(default_factory=dict)
    images: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    joints: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    instruction: str = ""
    embedding: np.ndarray | None = None
    consumed: float = 0.0


class Policy(Protocol):
    """Something that acts.

    Attributes:
        name: for people.
        sha256: of whatever defines it, 64 hexadecimal digits; empty if nothing here does.
        spec: the form of its actions.
        needs: what an observation must hold.
    """

    name: str
    sha256: str
    spec: ActionSpec
    needs: Needs

    def act(self, observation: Observation) -> np.ndarray:
        """Actions (horizon, len(spec.names)) from this observation on.

        Called from one thread. What it returns is not trusted: shape and numbers are checked.

        Raises:
            PolicyError: not this time.
        """
        ...

    def reset(self) -> None:
        """The world has begun anew: a new epoch, another instruction. Forget the past.

        After a pause or an emergency stop the world is the same, and this is not called.
        """
        ...

    def cancel(self) -> None:
        """End a call of :meth:`act` that runs in another thread, as soon as may be."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...
