# SPDX-License-Identifier: Apache-2.0
"""The progress bar of an evaluation: what is in work, how fast, how much longer."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omnistream_ros.evaluation.evaluate import Options
from omnistream_ros.evaluation.recordings import FAULTS, open_recording


def lengths(paths: Sequence[Path], options: Options) -> list[int | None]:
    """How many frames of each recording will be evaluated, None where that is not known yet."""
    frames = options.scoring().frames
    found: list[int | None] = []
    for path in paths:
        try:
            count = open_recording(path, options.selection).info().frames
        except FAULTS:  # it will be reported when its turn comes
            count = 0
        found.append(None if count is None else frames.count(count))
    return found


class ProgressBar:
    """One line on the terminal; nothing where standard error is none.

    Args:
        totals: frames of every recording, None where unknown.
    """

    def __init__(self, totals: Sequence[int | None]) -> None:
        self._all = None if None in totals else sum(total or 0 for total in totals)
        self._recordings = len(totals)
        self._begin = time.monotonic()
        self._done: dict[str, int] = {}
        self._shown = 0.0

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Show that ``done`` frames of a recording are through."""
        self._done[name] = done
        now = time.monotonic()
        if now - self._shown < 0.2 or not sys.stderr.isatty():
            return
        self._shown = now
        sys.stderr.write(f"\r\x1b[K{self.text(name, total, now - self._begin)}")
        sys.stderr.flush()

    def text(self, name: str, total: int | None, elapsed_s: float) -> str:
        """The line after so many seconds."""
        frames = sum(self._done.values())
        rate = frames / max(elapsed_s, 1e-9)
        place = f"[{len(self._done)}/{self._recordings}] " if self._recordings > 1 else ""
        text = f"{place}{name}: {self._done[name]}" + (f" of {total}" if total else "")
        text += f"  {rate:.1f} frames/s"
        if self._all is not None and rate > 0:
            text += f"  {_duration(max(self._all - frames, 0) / rate)} left"
        return text

    def close(self) -> None:
        """Clear the line."""
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
