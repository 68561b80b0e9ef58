# SPDX-License-Identifier: Apache-2.0
"""How long the stages of a step take, without making the step wait for the answer."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Laps by stage. On CUDA they are events in the stream of work, read when somebody asks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stages: list[str] = []
        self._marks: list[torch.cuda.Event | float] = [self._mark()]

    def lap(self, stage: str) -> None:
        """The work of a stage has been done, or given to the device."""
        self._stages.append(stage)
        self._marks.append(self._mark())

    def seconds(self) -> dict[str, float]:
        """Seconds by stage so far; on CUDA, waits for the last lap to be over."""
        last = self._marks[-1]
        if isinstance(last, torch.cuda.Event):
            last.synchronize()
        spans = zip(self._marks, self._marks[1:], strict=False)
        return {
            stage: _between(begin, end)
            for stage, (begin, end) in zip(self._stages, spans, strict=True)
        }

    def copy(self) -> Stopwatch:
        """A watch that has seen the same laps, and goes on by itself."""
        other = Stopwatch.__new__(Stopwatch)
        other._device = self._device
        other._stages, other._marks = list(self._stages), list(self._marks)
        return other

    def _mark(self) -> torch.cuda.Event | float:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))  # which need not be the first GPU's
        return event


def _between(begin: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(begin, float) or isinstance(end, float):
        return float(end) - float(begin)  # type: ignore[arg-type]
    return begin.elapsed_time(end) / 1e3
