# SPDX-License-Identifier: Apache-2.0
"""How often attempts succeed, and how sure that is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

_SURE = 1.959964  # deviations of a normal distribution that hold 95 % of it


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One try at a task: which, by what seed, how it ended and after how long."""

    task: str
    seed: int
    success: bool
    seconds: float


@dataclasses.dataclass(frozen=True)
class Rate:
    """Share of attempts that succeeded, with its 95 % confidence interval."""

    attempts: int
    successes: int

    @property
    def share(self) -> float:
        return self.successes / self.attempts if self.attempts else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (1927): good for few attempts and shares near 0 or 1, too."""
        n, p, z = self.attempts, self.share, _SURE
        if n == 0:
            return 0.0, 1.0
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:3.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def rates(attempts: Iterable[Attempt]) -> dict[str, Rate]:
    """Success by task, in the order of the attempts."""
    found: dict[str, Rate] = {}
    for attempt in attempts:
        old = found.get(attempt.task, Rate(0, 0))
        found[attempt.task] = Rate(old.attempts + 1, old.successes + attempt.success)
    return found


def table(found: Mapping[str, Mapping[str, Rate]]) -> str:
    """Rates as Markdown: a row per task, a column per policy; the last row is all attempts."""
    names = list(found)
    tasks = list(next(iter(found.values())))
    lines = ["| task | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for task in tasks:
        lines.append(f"| {task} | " + " | ".join(str(found[name][task]) for name in names) + " |")
    every = [together(found[name].values()) for name in names]
    return "\n".join([*lines, "| all | " + " | ".join(map(str, every)) + " |"])


def together(some: Iterable[Rate]) -> Rate:
    """The rate of all attempts."""
    each = list(some)
    return Rate(sum(rate.attempts for rate in each), sum(rate.successes for rate in each))
