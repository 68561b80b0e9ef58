# SPDX-License-Identifier: Apache-2.0
"""Bad input on real topics: one clear message, counted, and the next good frame goes through."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omnistream_ros.msg import StreamStatus
from ros_processes import NODE, NodeProcess, NodeStarter, User, camera_info
from sensor_msgs.msg import CameraInfo, Image


class Bench:
    """One running node that has to survive everything in this file, one after the other."""

    def __init__(self, user: User, node: NodeProcess) -> None:
        self.user, self.node = user, node
        self.status: list[StreamStatus] = user.collect(StreamStatus, f"{NODE}/status")
        node.wait_for("waiting for images")
        self.send = user.camera()
        self.infos = user.node.create_publisher(CameraInfo, "/camera_info", 10)
        user.wait_until(lambda: self.status and self.infos.get_subscription_count() > 0)
        self.good()

    def good(self, **changes: object) -> StreamStatus:
        """A good image goes through."""
        return self.user.process(self.send, self.status, **changes)

    def drops(self) -> dict[str, int]:
        """Counts by reason as of the newest status."""
        last = self.status[-1]
        return dict(zip(last.drop_reasons, last.drop_counts, strict=True))


@pytest.fixture(scope="module")
def bench(module_domain: int, weights: Path) -> Iterator[Bench]:
    with User(module_domain) as user, NodeStarter(module_domain, weights) as start:
        # Nothing may take the topic over by silence, however slow the machine.
        yield Bench(user, start(autostart=True, source_timeout=60.0, max_gap=1000.0))


def _encoding(image: Image) -> None:
    image.encoding = "jpeg2000"


def _depth_encoding(image: Image) -> None:
    image.encoding = "16UC1"


def _no_width(image: Image) -> None:
    image.width = 0


def _no_height(image: Image) -> None:
    image.height = 0


def _short_step(image: Image) -> None:
    image.step -= 1


def _zero_step(image: Image) -> None:
    image.step = 0


def _short_data(image: Image) -> None:
    image.data = image.data[:-1]


def _no_data(image: Image) -> None:
    image.data = []


def _absurd_size(image: Image) -> None:
    image.height = image.width = image.step = 2**32 - 1


def _elongated(image: Image) -> None:
    image.height, image.width, image.step = 1, 64 * 48, 64 * 48 * 3


def _odd_yuv(image: Image) -> None:
    image.encoding, image.width, image.step = "yuv422", 63, 126


BAD_IMAGES = [
    (_encoding, "unsupported_encoding", "cannot be read: use one of"),
    (_depth_encoding, "unsupported_encoding", "depth image; remap `image`"),
    (_no_width, "empty_image", "image of 0x48 pixels: check the camera driver"),
    (_no_height, "empty_image", "image of 64x0 pixels: check the camera driver"),
    (_short_step, "wrong_step", "step is 191 bytes but a row of 64 pixels 'rgb8' takes 192"),
    (_zero_step, "wrong_step", "step is 0 bytes"),
    (_short_data, "short_data", "9215 bytes but 48 rows with step 192 take 9216"),
    (_no_data, "short_data", "image data has 0 bytes"),
    (_absurd_size, "wrong_step", "the publisher must set step"),
    (_elongated, "unsupported_size", "too elongated"),
    (_odd_yuv, "unsupported_size", "shares colour between pairs"),
]


@pytest.mark.parametrize(
    ("spoil", "reason", "words"), BAD_IMAGES, ids=[f.__name__[1:] for f, *_ in BAD_IMAGES]
)
def test_bad_image_is_counted_explained_and_survived(
    bench: Bench, spoil: Callable[[Image], None], reason: str, words: str
) -> None:
    before = bench.drops().get(reason, 0)
    seen_before = bench.node.count(words)
    received = bench.good().frames_received
    for _ in range(3):
        image = bench.user.picture()
        spoil(image)
        bench.send(image)
    last = bench.good()
    assert bench.drops()[reason] == before + 3
    assert last.frames_received == received + 4
    assert last.epoch == 0
    # One message for the three; none if the same kind was explained moments ago.
    assert bench.node.count(words) <= seen_before + 1
    if before == 0:
        bench.node.wait_for(words)
    assert bench.node.alive


def test_two_publishers_of_different_size(bench: Bench) -> None:
    before = bench.drops().get("other_source", 0)
    for _ in range(5):
        bench.send(width=80, height=48)
        last = bench.good()
    assert last.epoch == 0  # the stream of the first camera went on undisturbed
    assert bench.drops()["other_source"] == before + 5
    assert bench.node.count("two publishers share the topic; remap one of them") == 1


def test_two_publishers_of_different_frame(bench: Bench) -> None:
    before = bench.drops().get("other_source", 0)
    bench.send(frame_id="left")
    assert bench.good().epoch == 0
    assert bench.drops()["other_source"] == before + 1


def test_single_late_image_is_dropped(bench: Bench) -> None:
    before = bench.drops().get("stamp_backwards", 0)
    now = bench.good().header.stamp
    bench.send(stamp_ns=now.sec * 10**9 + now.nanosec - 50_000_000)
    assert bench.good().epoch == 0
    assert bench.drops()["stamp_backwards"] == before + 1
    bench.node.wait_for("stamp went back by 0.050 s")


def test_repeated_stamp_is_dropped(bench: Bench) -> None:
    before = bench.drops().get("stamp_repeated", 0)
    now = bench.good().header.stamp
    bench.send(stamp_ns=now.sec * 10**9 + now.nanosec)
    bench.good()
    assert bench.drops()["stamp_repeated"] == before + 1


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_camera_info_that_is_not_finite_is_ignored(bench: Bench, number: float) -> None:
    """The last good one stays in force: no new epoch, depth stays metric."""
    good = camera_info()
    while not bench.good().metric:
        bench.infos.publish(good)
    epoch = bench.good().epoch
    bad = camera_info()
    bad.k[0] = number
    bench.infos.publish(bad)
    bench.node.wait_for("camera_info holds a number that is not finite")
    last = bench.good()
    assert (last.metric, last.epoch) == (True, epoch)


def test_time_that_jumps_back_begins_an_epoch(bench: Bench) -> None:
    """A bag that starts again costs one image."""
    epoch = bench.good().epoch
    bench.send(stamp_ns=500_000_000)
    first = bench.good(stamp_ns=600_000_000)
    assert (first.epoch, first.frame_index) == (epoch + 1, 0)
    assert first.epoch_reason == "time_jump_back"
    bench.user.restart_clock(700_000_000)
    assert bench.good().epoch == epoch + 1


def test_nothing_was_lost_without_a_reason(bench: Bench) -> None:
    last = bench.good()
    assert last.frames_processed + sum(last.drop_counts) == last.frames_received
    assert bench.node.count("Traceback|Error:") == 0


def test_camera_that_changes_is_accepted_after_silence(user: User, start_node: NodeStarter) -> None:
    node = start_node(autostart=True, source_timeout=0.0)
    bench = Bench(user, node)
    changed = bench.good(width=96, height=64)
    assert (changed.epoch, changed.epoch_reason) == (1, "image_size")
