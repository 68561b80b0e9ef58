# SPDX-License-Identifier: Apache-2.0
"""Which frames of which sequences the published tables measure (MonST3R, CUT3R, StreamVGGT)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class FrameRange:
    """Frames ``start``, ``start + step`` ... before ``stop``, as in a Python slice."""

    start: int = 0
    stop: int | None = None
    step: int = 1

    def __post_init__(self) -> None:
        if self.start < 0 or self.step < 1 or (self.stop is not None and self.stop <= self.start):
            raise ValueError(f"frames must be START:STOP:STEP with START < STOP, got {self}")

    def of(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items of this range; what comes after it is not read."""
        return itertools.islice(items, self.start, self.stop, self.step)

    def count(self, frames: int) -> int:
        """How many of so many frames are in it."""
        return len(range(frames)[self.start : self.stop : self.step])

    @classmethod
    def parse(cls, text: str) -> FrameRange:
        """From ``START:STOP:STEP``, where every part may be left out.

        Raises:
            ValueError: not such a text.
        """
        parts = text.split(":")
        try:
            if not 1 <= len(parts) <= 3:
                raise ValueError(text)
            numbers = [int(part) if part else None for part in [*parts, "", ""][:3]]
        except ValueError:
            raise ValueError(f"expected START:STOP:STEP, got {text!r}") from None
        if len(parts) == 1:  # a single number means: so many
            numbers = [None, numbers[0], None]
        return cls(numbers[0] or 0, numbers[1], 1 if numbers[2] is None else numbers[2])

    def __str__(self) -> str:
        stop = "" if self.stop is None else self.stop
        return f"{self.start}:{stop}:{self.step}"


ALL_FRAMES = FrameRange()


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One table of the literature.

    Attributes:
        frames: which frames of a sequence.
        depth_limits: true depth that counts, metres, exclusive.
        depth_clip: aligned predictions are cut to this, metres.
        sequences: parts of the names of the standard sequences; empty where all are meant.
    """

    frames: FrameRange = ALL_FRAMES
    depth_limits: tuple[float, float] | None = None
    depth_clip: float | None = None
    sequences: tuple[str, ...] = ()

    def missing(self, names: Iterable[str]) -> list[str]:
        """Standard sequences that are not among the names."""
        given = list(names)
        return [wanted for wanted in self.sequences if not any(wanted in name for name in given)]


PROTOCOLS = {
    "sintel": Protocol(
        depth_limits=(0.0, 70.0),
        depth_clip=70.0,
        sequences=(
            "alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2",
            "market_5", "market_6", "shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3",
        ),
    ),
    "bonn": Protocol(
        frames=FrameRange(30, 140),
        depth_limits=(0.0, 70.0),
        sequences=("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous"),
    ),
    "kitti": Protocol(frames=FrameRange(0, 110)),
    "tum-dynamics": Protocol(frames=FrameRange(0, 270, 3)),
    "scannet": Protocol(frames=FrameRange(0, 270, 3)),
}  # fmt: skip
