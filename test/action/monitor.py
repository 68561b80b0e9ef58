# SPDX-License-Identifier: Apache-2.0
"""Looks at nothing but commands and stamps, and says which of them no robot should have been given.

Written without the package's own code, so that both would have to be wrong in the same way.
"""

from __future__ import annotations

import dataclasses

_ROUNDING = 1e-6


@dataclasses.dataclass
class JointMonitor:
    """Positions of one set of joints over time.

    Attributes:
        low, high, velocity, acceleration: limits by joint.
        stops_at_once: standing still from one command to the next is right, whatever it costs.
        faults: what was wrong, in words; stays empty.
    """

    low: dict[str, float]
    high: dict[str, float]
    velocity: dict[str, float]
    acceleration: dict[str, float]
    stops_at_once: bool = True
    faults: list[str] = dataclasses.field(default_factory=list)
    commands: int = 0
    largest_speed: float = 0.0

    def __post_init__(self) -> None:
        self._last: dict[str, float] | None = None
        self._speed: dict[str, float] = {}

    def start(self, positions: dict[str, float] | None = None) -> None:
        """Where the robot stands, at rest, before the first command; None: the first one says."""
        self._last = None if positions is None else dict(positions)
        self._speed = {} if positions is None else dict.fromkeys(positions, 0.0)

    def command(self, stamp_s: float, seconds: float, positions: dict[str, float]) -> None:
        """A command given at a time, for so many seconds since the one before."""
        self.commands += 1
        for name, position in positions.items():
            if not (position == position and abs(position) < float("inf")):
                self._fault(stamp_s, name, f"is {position}")
                continue
            if self._last is None:
                continue
            before = self._last[name]
            outwards = position > max(self.high[name], before) + _ROUNDING
            if outwards or position < min(self.low[name], before) - _ROUNDING:
                self._fault(stamp_s, name, f"at {position:.6f}, out of range")
            speed = (position - before) / seconds
            self.largest_speed = max(self.largest_speed, abs(speed))
            if abs(speed) > self.velocity[name] * (1 + _ROUNDING) + _ROUNDING:
                self._fault(stamp_s, name, f"moves with {speed:.6f}")
            change = abs(speed - self._speed.get(name, speed)) / seconds
            stands = self.stops_at_once and abs(position - before) < _ROUNDING
            if change > self.acceleration[name] * (1 + 1e-4) + 1e-4 and not stands:
                self._fault(stamp_s, name, f"accelerates with {change:.6f}")
            self._speed[name] = speed
        self._last = dict(positions)

    def _fault(self, stamp_s: float, name: str, words: str) -> None:
        if len(self.faults) < 100:
            self.faults.append(f"{stamp_s:.3f} s: {name} {words}")
