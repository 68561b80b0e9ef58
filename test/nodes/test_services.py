# SPDX-License-Identifier: Apache-2.0
"""The services of a real node: info, scale, pause, and a stream that goes on after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nav_msgs.msg import Odometry
from omnistream_ros.msg import StreamStatus
from omnistream_ros.srv import GetInfo, SetScale, StreamState
from ros_processes import NODE, NodeStarter, User, camera_info
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import SetBool

from omnistream_ros.nodes.distribution import byte_array


class Streaming:
    """A user of a node that is active, who hears depth, odometry and status."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.status = user.collect(StreamStatus, f"{NODE}/status")
        self.depth = user.collect(Image, f"{NODE}/depth/image")
        self.odometry = user.collect(Odometry, f"{NODE}/odometry")
        self.send = user.camera()
        for topic in ("status", "depth/image", "odometry"):
            user.wait_until(
                lambda topic=topic: user.node.count_publishers(f"{NODE}/{topic}"), topic
            )

    def frame(self, **changes: Any) -> tuple[StreamStatus, np.ndarray, Odometry]:
        """One image through the node: what it says, depth and odometry."""
        status = self.user.process(self.send, self.status, **changes)
        stamp = status.header.stamp

        def of(messages: list) -> list:
            return [message for message in messages if message.header.stamp == stamp]

        self.user.wait_until(lambda: of(self.depth) and of(self.odometry), "depth and odometry")
        depth = np.frombuffer(of(self.depth)[-1].data, np.float32)
        return status, depth, of(self.odometry)[-1]

    def state_service(self, name: str, service: str) -> StreamState.Response:
        return self.user.call(StreamState, f"{NODE}/{service}", StreamState.Request(name=name))

    def set_scale(self, factor: float, camera: str = "") -> SetScale.Response:
        request = SetScale.Request(factor=factor, camera=camera)
        return self.user.call(SetScale, f"{NODE}/set_scale", request)


def test_a_node_says_what_it_is_in_every_state(start_node: NodeStarter, user: User) -> None:
    start_node()

    def info() -> GetInfo.Response:
        return user.call(GetInfo, f"{NODE}/get_info", GetInfo.Request())

    before = info()
    assert not before.success
    assert before.state == "unconfigured"
    assert "configure" in before.message
    assert user.change("configure")
    known = info()
    assert known.success
    assert (known.model_name, known.licence, known.metric) == ("tiny", "none", True)
    assert len(known.weights_sha256) == 64
    assert known.context_capacity == 17
    assert known.cache_bytes > 0
    for service, kind in (("save_state", StreamState), ("restore_state", StreamState)):
        answer = user.call(kind, f"{NODE}/{service}", kind.Request(name="a"))
        assert not answer.success
        assert "inactive" in answer.message
    assert not user.call(SetBool, f"{NODE}/pause", SetBool.Request(data=True)).success
    assert not user.call(SetScale, f"{NODE}/set_scale", SetScale.Request(factor=2.0)).success


def test_scale_is_one_for_depth_and_pose(start_node: NodeStarter, user: User) -> None:
    node = start_node(autostart=True)
    node.wait_for("waiting for images")
    stream = Streaming(user)
    first, depth, _ = stream.frame()
    assert (first.scale_source, first.scale_status) == ("model", "known")
    assert first.scale_factor == 1.0
    assert not first.metric  # no camera_info
    assert stream.set_scale(2.5).success
    node.wait_for(r"set_scale: one unit of the model is 2.5 m")
    picture = user.picture()
    second, _, _ = stream.frame(message=picture)
    assert (second.scale_source, second.scale_factor, second.metric) == ("fixed", 2.5, True)
    assert "camera" in stream.set_scale(2.0, camera="left").message
    for wrong in (-1.0, float("nan"), float("inf")):
        answer = stream.set_scale(wrong)
        assert not answer.success
        assert "must be 0.001 to 1000" in answer.message
    node.wait_for(r"\[WARN\].* set_scale: the factor must be")
    assert stream.set_scale(0.0).success
    third, _, _ = stream.frame()
    assert (third.scale_source, third.scale_factor, third.metric) == ("model", 1.0, False)
    assert np.isfinite(depth).any()


def test_paused_images_are_counted_and_not_used(start_node: NodeStarter, user: User) -> None:
    node = start_node(autostart=True, max_gap=1000.0)
    node.wait_for("waiting for images")
    stream = Streaming(user)
    stream.frame()
    assert user.call(SetBool, f"{NODE}/pause", SetBool.Request(data=True)).success
    node.wait_for("pause: paused: images are counted")
    for _ in range(3):
        stream.send()
    user.wait_until(
        lambda: (
            stream.status[-1].state == StreamStatus.PAUSED
            and stream.status[-1].frames_received == 4
        ),
        "the paused images",
    )
    assert stream.status[-1].frames_processed == 1
    assert user.call(SetBool, f"{NODE}/pause", SetBool.Request(data=False)).success
    after, _, _ = stream.frame()
    assert (after.frame_index, after.epoch) == (1, 0)
    assert dict(zip(after.drop_reasons, after.drop_counts, strict=True)) == {"paused": 3}


def test_a_stream_goes_on_in_another_process_to_the_last_bit(
    start_node: NodeStarter, user: User, tmp_path: Path
) -> None:
    pictures = [user.picture() for _ in range(6)]
    options = {"autostart": True, "state_directory": str(tmp_path / "states"), "scale": "fixed"}

    def run(node: Any, from_picture: int, stream: Streaming) -> list:
        node.wait_for("waiting for images")
        return [stream.frame(message=message) for message in pictures[from_picture:]]

    first = start_node(**options)
    first.wait_for("waiting for images")
    stream = Streaming(user)
    stream.set_scale(1.7)
    for message in pictures[:3]:
        stream.frame(message=message)
    saved = stream.state_service("kitchen", "save_state")
    assert saved.success, saved.message
    assert saved.path == str(tmp_path / "states" / "kitchen.safetensors")
    expected = run(first, 3, stream)
    assert first.end() == 0

    second = start_node(**options)
    second.wait_for("waiting for images")
    stream = Streaming(user)
    for wrong, why in (("../kitchen", "letters"), ("bedroom", "No such file")):
        refused = stream.state_service(wrong, "restore_state")
        assert not refused.success
        assert why in refused.message
    restored = stream.state_service("kitchen", "restore_state")
    assert restored.success, restored.message
    second.wait_for("restore_state: the next image goes on from there .*kitchen.safetensors")
    for (status, depth, odometry), (status2, depth2, odometry2) in zip(
        expected, run(second, 3, stream), strict=True
    ):
        assert (status.epoch, status.frame_index) == (status2.epoch, status2.frame_index)
        assert (status.epoch_reason, status2.epoch_reason) == ("start", "restore")
        assert status.scale_factor == status2.scale_factor == 1.7
        assert depth.tobytes() == depth2.tobytes()
        assert odometry.pose.pose == odometry2.pose.pose


def test_a_state_of_another_node_is_refused_and_nothing_changes(
    start_node: NodeStarter, user: User, tmp_path: Path
) -> None:
    options = {"autostart": True, "state_directory": str(tmp_path)}
    node = start_node(**options)
    node.wait_for("waiting for images")
    stream = Streaming(user)
    stream.frame()
    assert stream.state_service("a", "save_state").success
    assert node.end() == 0
    start_node(**options, window=3).wait_for("waiting for images")
    stream = Streaming(user)
    before, _, _ = stream.frame()
    refused = stream.state_service("a", "restore_state")
    assert not refused.success
    assert "does not fit" in refused.message
    after, _, _ = stream.frame()
    assert after.frame_index == before.frame_index + 1


def test_a_depth_sensor_makes_the_stream_metric(start_node: NodeStarter, user: User) -> None:
    """The room is 2 m away everywhere, says the sensor; no camera_info, so the model cannot."""
    start_node(autostart=True, scale="range").wait_for("waiting for images")
    sensor = user.node.create_publisher(Image, "/scale/depth", 10)
    sensor_info = user.node.create_publisher(CameraInfo, "/scale/depth/camera_info", 10)
    stream = Streaming(user)
    user.wait_until(
        lambda: sensor.get_subscription_count() and sensor_info.get_subscription_count(), "sensor"
    )
    info = camera_info()
    for _ in range(40):
        picture = user.picture()
        measured = Image(header=picture.header, height=48, width=64, encoding="32FC1", step=256)
        measured.data = byte_array(np.full((48, 64), 2.0, np.float32))
        info.header = picture.header
        sensor_info.publish(info)
        sensor.publish(measured)
        status, depth, _ = stream.frame(message=picture)
        if status.scale_status == "known":
            break
        # Depth is looked at twice a second of the images' own time.
        user.restart_clock(user._stamp_ns + 500_000_000)
        assert status.scale_factor == 1.0
    assert status.scale_status == "known"
    assert status.scale_source == "range"
    assert status.metric
    assert np.median(depth) == pytest.approx(2.0, rel=0.2)
