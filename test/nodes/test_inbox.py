# SPDX-License-Identifier: Apache-2.0
"""The slots between receiving and inference: newest image, fair turns, nobody waits for ever."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import Image

from omnistream_ros.nodes.inbox import Inbox, PendingImage


def image(number: int) -> PendingImage:
    return PendingImage(Image(), 64, 48, number, 0.0)


def at_once(camera: str, pending: PendingImage) -> float:
    return 0.0


def test_the_newest_image_wins_and_the_replaced_one_is_told() -> None:
    inbox = Inbox(["a"])
    assert not inbox.put("a", image(1))
    assert inbox.put("a", image(2))
    assert inbox.take(1, at_once) == {"a": image(2)}
    assert not inbox.put("a", image(3))
    assert inbox.empty("a")
    assert not inbox.empty("a")


def test_a_fast_camera_does_not_starve_the_others() -> None:
    inbox = Inbox(["fast", "slow", "third"])
    inbox.put("slow", image(0))
    inbox.put("third", image(0))
    served = []
    for number in range(6):
        inbox.put("fast", image(number))
        served += list(inbox.take(1, at_once) or {})
        inbox.put(served[-1], image(number))
    assert served == ["fast", "slow", "third"] * 2


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 4)), min_size=1, max_size=40),
)
def test_whoever_waits_is_served_before_anybody_twice(steps: list[tuple[str, int]]) -> None:
    inbox, waiting = Inbox("abcd"), dict[str, int]()  # how often others were served meanwhile
    for camera, count in steps:
        inbox.put(camera, image(0))
        waiting.setdefault(camera, 0)
        taken = inbox.take(count, at_once)
        assert taken is not None
        assert len(taken) == min(count, len(waiting))
        for served in taken:
            del waiting[served]
        waiting = {other: n + 1 for other, n in waiting.items()}
        assert all(n < 4 for n in waiting.values())


def test_one_that_waits_for_its_lens_holds_nobody_up() -> None:
    inbox = Inbox(["patient", "ready"])
    inbox.put("patient", image(1))
    inbox.put("ready", image(2))
    patience = {"patient": 60.0, "ready": 0.0}
    assert inbox.take(2, lambda camera, _: patience[camera]) == {"ready": image(2)}
    patience["patient"] = 0.0  # its camera_info came
    assert inbox.take(2, lambda camera, _: patience[camera]) == {"patient": image(1)}


def test_close_releases_whoever_waits() -> None:
    inbox, ends = Inbox(["a"]), []
    thread = threading.Thread(target=lambda: ends.append(inbox.take(1, at_once)))
    thread.start()
    inbox.close()
    thread.join(30)
    assert ends == [None]
    assert inbox.take(1, at_once) is None
