# SPDX-License-Identifier: Apache-2.0
"""A policy without learning: a motion written down, or to and fro, for tests and for trying out.

It reads whatever it is told to read, so that everything around a policy can be tried with it:
features stop, and it stops.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from omnistream_ros.action.policy import Needs, Observation
from omnistream_ros.action.spaces import ActionSpec, Space

_AMPLITUDE, _PERIOD_S = 0.5, 4.0
Script = Sequence[tuple[float, Sequence[float]]]


class ScriptedPolicy:
    """The motion begins when the stream does, and its time stands still while the robot holds.

    Without a script every number of an action is a sine, one period in 4 s, with half of the way
    to the nearer end of its range; in joint_position about where the first call found the joint.

    Args:
        script: moments (seconds, rising) and what an action is at each; between them straight
            lines, after the last its numbers.

    Raises:
        ValueError: the script does not fit the actions; says where.
    """

    def __init__(self, spec: ActionSpec, needs: Needs, script: Script = ()) -> None:
        self.name = "scripted"
        self.spec = spec
        self.needs = needs
        _check(script, spec)
        self._moments = np.array([moment for moment, _ in script])
        self._rows = np.array([row for _, row in script])  # (moments, n)
        text = f"{spec} {[(moment, *row) for moment, row in script]}"
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self._begin: float | None = None  # actions that were consumed when it began
        self._centre = np.zeros(0)

    def act(self, observation: Observation) -> np.ndarray:
        if self._begin is None:
            self._begin = observation.consumed
            self._centre = self._middle(observation)
        steps = observation.consumed - self._begin + np.arange(self.spec.horizon)  # (H,)
        seconds = steps * self.spec.dt
        if len(self._moments):
            columns = self._rows.T
            return np.stack([np.interp(seconds, self._moments, c) for c in columns], -1)  # (H, n)
        low, high = np.array(self.spec.low), np.array(self.spec.high)
        reach = np.minimum(high - self._centre, self._centre - low)
        wave = np.sin(2 * np.pi * seconds / _PERIOD_S)
        return self._centre + _AMPLITUDE * wave[:, None] * reach  # (H, n)

    def reset(self) -> None:
        self._begin = None

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _middle(self, observation: Observation) -> np.ndarray:
        """Of the motion to and fro."""
        low, high = np.array(self.spec.low), np.array(self.spec.high)
        middle = (low + high) / 2
        if self.spec.space is not Space.JOINT_POSITION:
            return middle
        known = dict(zip(self.needs.joints, observation.joints, strict=True))
        found = [known.get(name, m) for name, m in zip(self.spec.names, middle, strict=True)]
        return np.clip(found, low, high)


def _check(script: Script, spec: ActionSpec) -> None:
    before = -math.inf
    for moment, row in script:
        if not (math.isfinite(moment) and moment > before):
            raise ValueError(f"the moments of a script must rise, got {moment:g} after {before:g}")
        if len(row) != len(spec.names) or not all(map(math.isfinite, row)):
            raise ValueError(
                f"at {moment:g} s a script needs {len(spec.names)} numbers "
                f"({', '.join(spec.names)}), got {list(row)}"
            )
        before = moment
