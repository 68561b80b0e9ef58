# SPDX-License-Identifier: Apache-2.0
"""The player and the recorder as processes: what goes in comes out, also when they are stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omnistream_ros.msg import StreamStatus
from ros_processes import NODE, NodeStarter, User
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from omnistream_ros import cli
from omnistream_ros.nodes.player import play
from omnistream_ros.nodes.recorder import record
from omnistream_ros.nodes.transports import COMPRESSED
from omnistream_ros.stream.frame import Frame, Intrinsics

MESSAGES = Path(__file__).resolve().parents[2] / "msg"
CAMERA = Intrinsics(60.0, 60.0, 31.5, 23.5, 64, 48)
START_NS = 1_700_000_000_000_000_000


def clip(count: int, period_ns: int = 50_000_000) -> Iterator[Frame]:
    for index in range(count):
        tiles = np.random.default_rng(index).integers(0, 256, (3, 4, 3), np.uint8)
        pixels = tiles.repeat(16, axis=0).repeat(16, axis=1)
        yield Frame(pixels, START_NS + index * period_ns, CAMERA)


def play_main(arguments: list[str]) -> int:
    count, broken, *transport = arguments

    def frames() -> Iterator[Frame]:
        yield from clip(int(count))
        if broken == "broken":
            raise ValueError("picture 12 is cut in half")

    report = play(frames(), frame_id="camera", transport=(transport or ["raw"])[0], ros_args=[])
    return 0 if report.complete else 1


def record_main(arguments: list[str]) -> int:
    path, *topics = arguments
    return record(Path(path), topics, [])


def test_player_publishes_every_frame_in_real_time(user: User, start_node: NodeStarter) -> None:
    images = user.collect(Image, "/image")
    infos = user.collect(CameraInfo, "/camera_info")
    player = start_node.fork(play_main, ["12", "whole"])
    user.wait_until(lambda: len(images) == 12 and len(infos) == 12)
    assert player.wait() == 0, player.log
    report = json.loads(player.lines[-1])
    assert (report["frames"], report["with_camera_info"], report["complete"]) == (12, 12, True)
    assert report["first_stamp_ns"] == START_NS
    assert report["last_stamp_ns"] == START_NS + 11 * 50_000_000
    assert report["duration_s"] >= 0.55 - 1e-6
    for frame, image, info in zip(clip(12), images, infos, strict=True):
        stamp = image.header.stamp
        assert stamp.sec * 10**9 + stamp.nanosec == frame.stamp_ns
        assert (image.encoding, image.header.frame_id) == ("rgb8", "camera")
        np.testing.assert_array_equal(np.frombuffer(image.data, np.uint8), frame.image.reshape(-1))
        assert info.header == image.header
        np.testing.assert_array_equal(info.k.reshape(3, 3), CAMERA.matrix())


def test_player_can_send_what_a_node_with_compressed_input_reads(
    user: User, start_node: NodeStarter
) -> None:
    images = user.collect(CompressedImage, "/image/compressed")
    infos = user.collect(CameraInfo, "/camera_info")
    player = start_node.fork(play_main, ["3", "whole", "compressed"])
    user.wait_until(lambda: len(images) == 3 and len(infos) == 3)
    assert player.wait() == 0, player.log
    for frame, image, info in zip(clip(3), images, infos, strict=True):
        assert info.header == image.header
        assert COMPRESSED.check(image) == (64, 48)
        pixels = COMPRESSED.pixels(image)
        # Off the edges, where colours run over, all is as it was.
        assert np.median(np.abs(pixels.astype(int) - frame.image)) <= 1


def test_recording_that_breaks_off_is_played_up_to_there(
    user: User, start_node: NodeStarter
) -> None:
    images = user.collect(Image, "/image")
    player = start_node.fork(play_main, ["5", "broken"])
    user.wait_until(lambda: not player.alive)
    assert player.wait() == 1
    # The process ends with an error: its last image may not have left it by then.
    user.wait_until(lambda: len(images) >= 4)
    player.wait_for("ValueError: picture 12 is cut in half")


def test_player_that_is_stopped_says_how_far_it_came(user: User, start_node: NodeStarter) -> None:
    images = user.collect(Image, "/image")
    player = start_node.fork(play_main, ["100000", "whole"])
    user.wait_until(lambda: len(images) >= 2)
    assert player.end(signal.SIGTERM) == 1
    report = json.loads(player.lines[-1])
    assert 2 <= report["frames"] < 100000
    assert not report["complete"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_recorder_leaves_a_complete_bag(
    user: User, start_node: NodeStarter, tmp_path: Path, number: signal.Signals
) -> None:
    """Everything that the node published for some frames, in a bag that explains itself."""
    node = start_node(autostart=True)
    status = user.collect(StreamStatus, f"{NODE}/status")
    topics = [f"{NODE}/status", f"{NODE}/depth/image", f"{NODE}/odometry", "/image"]
    node.wait_for("waiting for images")
    send = user.camera()
    bag = tmp_path / "bag"
    recorder = start_node.fork(record_main, [str(bag), *topics])
    recorder.wait_for('"recording"')
    user.wait_until(lambda: status)
    stamps = [user.process(send, status).header.stamp for _ in range(5)]
    sent = [(s.sec, s.nanosec) for s in stamps]
    assert recorder.end(number) == 0, recorder.log
    counts = json.loads(recorder.lines[-1])["recorded"]

    types = get_typestore(Stores.LATEST)
    for path in MESSAGES.glob("*.msg"):
        types.register(get_types_from_msg(path.read_text(), f"omnistream_ros/msg/{path.stem}"))
    seen: dict[str, list] = {topic: [] for topic in topics}
    with AnyReader([bag], default_typestore=types) as reader:
        for connection, _, data in reader.messages():
            seen[connection.topic].append(reader.deserialize(data, connection.msgtype))
    assert {topic: len(messages) for topic, messages in seen.items()} == counts
    for topic in topics:
        recorded = [(m.header.stamp.sec, m.header.stamp.nanosec) for m in seen[topic]]
        # States without a frame have no stamp, or that of the last frame.
        frames = [s for s in dict.fromkeys(recorded) if s in sent]
        assert len(frames) >= 2, topic
        begin = sent.index(frames[0])  # the recorder may be connected after the first
        assert frames == sent[begin : begin + len(frames)], topic


def test_recorder_does_not_overwrite(start_node: NodeStarter, tmp_path: Path) -> None:
    recorder = start_node.fork(record_main, [str(tmp_path), "/image"])
    assert recorder.wait() == 2
    assert "exists already" in recorder.wait_for("^error: cannot record into")


def test_recorder_of_a_silent_topic_ends_in_order(start_node: NodeStarter, tmp_path: Path) -> None:
    recorder = start_node.fork(record_main, [str(tmp_path / "bag"), "/nobody"])
    while not (tmp_path / "bag").exists():
        os.sched_yield()
    assert recorder.end() == 0, recorder.log
    assert json.loads(recorder.lines[-1]) == {"recorded": {"/nobody": 0}}


def record_command(arguments: list[str]) -> int:
    return cli.main(["record", *arguments])


def test_recorder_does_not_wait_for_ever_where_it_is_told(
    user: User, start_node: NodeStarter, tmp_path: Path
) -> None:
    user.node.create_publisher(Image, "/somebody", 1)
    topics = ["/somebody", "/nobody"]
    recorder = start_node.fork(record_command, ["--wait", "3", str(tmp_path / "bag"), *topics])
    assert recorder.wait() == 2, recorder.log
    assert recorder.count("omnistream record: nobody published /nobody within 3 s") == 1
    assert recorder.count("Traceback") == 0
