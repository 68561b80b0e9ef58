# SPDX-License-Identifier: Apache-2.0
"""A policy without learning: a smooth motion to and fro, for tests and for trying out a robot.

It reads whatever it is told to read, so that everything around a policy can be tried with it:
features stop, and it stops.
"""

from __future__ import annotations

import hashlib

import numpy as np

from omnistream_ros.action.policy import Needs, Observation
from omnistream_ros.action.spaces import ActionSpec, Space


class ScriptedPolicy:
    """Every number of an action is a sine within its range, one period in `period_s`.

    In joint_position the sine is about the position at which the first call found the joint, with
    the amplitude `amplitude` times the way to the nearer end of its range.
    """

    def __init__(
        self, spec: ActionSpec, needs: Needs, *, amplitude: float = 0.5, period_s: float = 4.0
    ) -> None:
        self.name = "scripted"
        self.spec = spec
        self.needs = needs
        self._amplitude = amplitude
        self._period_s = period_s
        text = f"{spec} {amplitude} {period_s}"
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self._calls = 0
        self._centre: np.ndarray | None = None

    def act(self, observation: Observation) -> np.ndarray:
        spec = self.spec
        low, high = np.array(spec.low), np.array(spec.high)
        centre = (low + high) / 2
        if spec.space is Space.JOINT_POSITION:
            if self._centre is None:
                self._centre = np.clip(self._found(observation, centre), low, high)
            centre = self._centre
        reach = np.minimum(high - centre, centre - low)
        steps = self._calls + np.arange(spec.horizon)  # (H,)
        self._calls += 1
        wave = np.sin(2 * np.pi * steps * spec.dt / self._period_s)
        return centre + self._amplitude * wave[:, None] * reach  # (H, n)

    def reset(self) -> None:
        self._calls = 0
        self._centre = None

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _found(self, observation: Observation, default: np.ndarray) -> np.ndarray:
        """Where the joints are, for those that can be read."""
        known = dict(zip(self.needs.joints, observation.joints, strict=True))
        return np.array(
            [known.get(name, value) for name, value in zip(self.spec.names, default, strict=True)]
        )
