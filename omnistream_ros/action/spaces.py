# SPDX-License-Identifier: Apache-2.0
"""What the numbers of an action mean: space, names, units, frame, times and ranges.

Four spaces, one row of numbers per action:

joint_position      where each joint shall be at that time
joint_delta         how far each joint shall move during one ``dt``
end_effector_delta  how far the end effector shall move during one ``dt``: x, y, z metres and a
                    rotation vector rx, ry, rz radians, all along the axes of ``frame``
twist               velocity along and about the axes of ``frame``: x, y, z m/s and rx, ry, rz rad/s

In the last two spaces any other name is a joint beside the motion, such as a gripper; its numbers
are positions.
"""

from __future__ import annotations

import dataclasses
import enum
import math

CARTESIAN = ("x", "y", "z", "rx", "ry", "rz")
ROTATION = CARTESIAN[3:]
_MAX_ACTIONS = 256
_MAX_HORIZON = 10_000


class Space(str, enum.Enum):
    """What a row of an action chunk is."""

    JOINT_POSITION = "joint_position"
    JOINT_DELTA = "joint_delta"
    END_EFFECTOR_DELTA = "end_effector_delta"
    TWIST = "twist"

    @property
    def cartesian(self) -> bool:
        """Whether names x ... rz are motion along axes, rather than joints."""
        return self in (Space.END_EFFECTOR_DELTA, Space.TWIST)


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """The form of every chunk of one policy; constant while the policy lives.

    Attributes:
        space: see the module.
        names: one per number of an action, in order.
        units: one per name: m, rad, m/s, rad/s or 1 (no unit).
        frame: tf frame along whose axes Cartesian numbers are given; empty for joints.
        horizon: actions in a chunk.
        dt: seconds from one action to the next.
        low, high: range of each number; what lies outside is clamped, and counted.

    Raises:
        ValueError: every fault, each in one sentence.
    """

    space: Space
    names: tuple[str, ...]
    units: tuple[str, ...]
    frame: str
    horizon: int
    dt: float
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        faults = [*self._form_faults(), *self._unit_faults(), *self._range_faults()]
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def joints(self) -> tuple[int, ...]:
        """Columns that belong to joints."""
        return tuple(i for i in range(len(self.names)) if i not in self.motion)

    @property
    def motion(self) -> tuple[int, ...]:
        """Columns that are motion along or about axes."""
        if not self.space.cartesian:
            return ()
        return tuple(i for i, name in enumerate(self.names) if name in CARTESIAN)

    def column(self, name: str) -> int | None:
        """Index of a name; None if this policy has no such number."""
        return self.names.index(name) if name in self.names else None

    def _form_faults(self) -> list[str]:
        faults = []
        count = len(self.names)
        if not 1 <= count <= _MAX_ACTIONS:
            faults.append(f"names: 1 to {_MAX_ACTIONS} are needed, got {count}")
        if len(set(self.names)) < count or not all(self.names):
            faults.append(f"names must be different and not empty, got {list(self.names)}")
        for name, values in (("units", self.units), ("low", self.low), ("high", self.high)):
            if len(values) != count:
                faults.append(f"{name}: {len(values)} for {count} names")
        if not 1 <= self.horizon <= _MAX_HORIZON:
            faults.append(f"horizon must lie between 1 and {_MAX_HORIZON}, got {self.horizon}")
        if not (math.isfinite(self.dt) and self.dt > 0.0):
            faults.append(f"dt must be a positive number of seconds, got {self.dt}")
        if self.space.cartesian:
            if not self.motion:
                faults.append(f"space {self.space.value} needs one of the names {CARTESIAN}")
            if not self.frame:
                faults.append(f"space {self.space.value} needs the frame of its axes")
        elif self.frame:
            faults.append(f"space {self.space.value} has no frame, got {self.frame!r}")
        return faults

    def _unit_faults(self) -> list[str]:
        faults = []
        for name, unit in zip(self.names, self.units, strict=False):
            allowed: tuple[str, ...] = ("m", "rad", "1")
            if self.space.cartesian and name in CARTESIAN:
                base = "rad" if name in ROTATION else "m"
                allowed = (base,) if self.space is Space.END_EFFECTOR_DELTA else (f"{base}/s",)
            if unit not in allowed:
                faults.append(f"unit of {name!r} must be {' or '.join(allowed)}, got {unit!r}")
        return faults

    def _range_faults(self) -> list[str]:
        return [
            f"range of {name!r} must be two finite numbers, low < high, got {low} to {high}"
            for name, low, high in zip(self.names, self.low, self.high, strict=False)
            if not (math.isfinite(low) and math.isfinite(high) and low < high)
        ]
