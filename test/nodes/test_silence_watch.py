# SPDX-License-Identifier: Apache-2.0
"""When a word about missing images, or about another fault that may mend itself, is due."""

from __future__ import annotations

import types

import pytest
from omnistream_ros.msg import StreamStatus

from omnistream_ros.nodes import lasting, silence_watch, statistics
from omnistream_ros.nodes.lasting import LastingFault
from omnistream_ros.nodes.silence_watch import SilenceWatch
from omnistream_ros.nodes.statistics import StreamStatistics

STALL_S = 3.0


class Clock:
    """The monotonic clock of the modules under test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        stub = types.SimpleNamespace(monotonic=lambda: self.now)
        for module in (lasting, silence_watch, statistics):
            monkeypatch.setattr(module, "time", stub)


class Images:
    """An input as the graph shows it."""

    topic = "/image"

    def __init__(self) -> None:
        self.count = 0

    def publishers(self) -> int:
        return self.count

    def explain_silence(self) -> str:
        return "but nothing arrives" if self.count else "nobody publishes"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_publisher_that_has_just_come_is_given_the_time_to_send(clock: Clock) -> None:
    said: list[str] = []
    images, counts = Images(), StreamStatistics()
    watch = SilenceWatch(images, counts, said.append)  # type: ignore[arg-type]

    def after(seconds: float) -> int | None:
        clock.now += seconds
        return watch.look(STALL_S, busy=False)

    assert after(2.0) == StreamStatus.WAITING
    assert said == []
    after(2.0)
    assert said == ["no usable image on '/image' for 4.0 s: nobody publishes"]
    images.count = 1
    after(1.0)
    assert watch.reason == ""  # what was said does not hold any more
    after(1.5)
    assert len(said) == 1
    after(1.0)
    assert said[1:] == ["no usable image on '/image' for 7.5 s: but nothing arrives"]
    counts.image_received()
    counts.image_processed({})
    assert after(1.0) is None
    assert watch.reason == ""
    # One that was there all the time and stops is told of at once.
    assert after(2.5) == StreamStatus.STALLED
    assert said[2:] == ["no usable image on '/image' for 3.5 s: but nothing arrives"]


def test_a_fault_that_mends_itself_is_not_told(clock: Clock) -> None:
    said: list[str] = []
    fault = LastingFault(said.append)
    for text, seconds in (("a", 2.0), ("", 9.0), ("a", 2.0), ("b", 2.0), ("b", 2.0), ("b", 9.0)):
        fault.look(text, STALL_S)
        clock.now += seconds
        fault.look(text, STALL_S)
    assert said == ["b"]
