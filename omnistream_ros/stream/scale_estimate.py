# SPDX-License-Identifier: Apache-2.0
"""One number from many doubtful ones: the factor from the model's unit to metres, online.

Every observation is a ratio: metres by other means over the same length as the model says it. The
estimate is the median of the last ones, on a log scale because a ratio and its inverse are equally
wrong. Less than half of them may be nonsense without any harm, what changes slowly is followed, and
nothing grows. Without observations nothing changes.
"""

from __future__ import annotations

import collections
import enum
import math
from typing import Any

import numpy as np

# Observations that the median is taken of, and how many there must be to speak of an estimate.
WINDOW = 64
ENOUGH = 5
# A model that is wrong by more than this is not wrong in scale.
LARGEST_RATIO = 50.0
# Observations that differ from each other by more than this (one sigma) do not say one thing.
LARGEST_SPREAD = 0.35
# Without an observation for this long the estimate counts as frozen.
FROZEN_AFTER_S = 5.0
# From a median absolute deviation to the standard deviation of a normal distribution.
_SIGMA_OF_MAD = 1.4826


class ScaleStatus(str, enum.Enum):
    """How an estimate stands; the values are stable names for messages and logs."""

    NONE = "none"  # nothing observed yet
    SETTLING = "settling"  # observed, too little to be used
    KNOWN = "known"
    DISAGREEING = "disagreeing"  # the observations contradict each other: nothing is learnt
    FROZEN = "frozen"  # known, and no observation for some time


class ScaleEstimate:
    """A robust running estimate of a positive factor."""

    def __init__(self) -> None:
        self._logs: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self._log_scale: float | None = None  # as last agreed upon
        self._last_ns: int | None = None
        self.observations = 0
        self.refused = 0

    @property
    def scale(self) -> float | None:
        """The factor, or None as long as it is not known."""
        return None if self._log_scale is None else math.exp(self._log_scale)

    @property
    def spread(self) -> float | None:
        """By which share single observations differ (one sigma, robust); None before the first."""
        if not self._logs:
            return None
        logs = np.array(self._logs)
        return float(_SIGMA_OF_MAD * np.median(np.abs(logs - np.median(logs))))

    def observe(self, ratio: float, stamp_ns: int) -> bool:
        """Take in metres over model units.

        Args:
            ratio: any number; what cannot be a scale is counted in `refused`, not used.
            stamp_ns: time of the observation, for `status` only.

        Returns:
            whether the observation was used.
        """
        # Written so that NaN, which no comparison finds, is refused as well.
        if not 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO:
            self.refused += 1
            return False
        self._logs.append(math.log(ratio))
        self._last_ns = stamp_ns
        self.observations += 1
        if len(self._logs) >= ENOUGH and self._agreed():
            self._log_scale = float(np.median(self._logs))
        return True

    def status(self, now_ns: int) -> ScaleStatus:
        """How the estimate stands at a time of the same clock as the observations."""
        if self._last_ns is None:
            return ScaleStatus.NONE
        if len(self._logs) >= ENOUGH and not self._agreed():
            return ScaleStatus.DISAGREEING
        if self._log_scale is None:
            return ScaleStatus.SETTLING
        idle_s = (now_ns - self._last_ns) * 1e-9
        return ScaleStatus.FROZEN if idle_s > FROZEN_AFTER_S else ScaleStatus.KNOWN

    def state_dict(self) -> dict[str, Any]:
        """The state as plain numbers."""
        return {
            "logs": list(self._logs),
            "log_scale": self._log_scale,
            "last_ns": self._last_ns,
            "observations": self.observations,
            "refused": self.refused,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        self._logs = collections.deque(map(float, state["logs"]), maxlen=WINDOW)
        known, last = state["log_scale"], state["last_ns"]
        self._log_scale = None if known is None else float(known)
        self._last_ns = None if last is None else int(last)
        self.observations = int(state["observations"])
        self.refused = int(state["refused"])

    def _agreed(self) -> bool:
        spread = self.spread
        return spread is not None and spread <= LARGEST_SPREAD
