# SPDX-License-Identifier: Apache-2.0
"""What goes wrong around a robot, with real nodes over real DDS; in the docs as a table."""

from __future__ import annotations

import math
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import (
    Point,
    Pose,
    PoseStamped,
    PoseWithCovariance,
    Quaternion,
    TransformStamped,
)
from nav_msgs.msg import Odometry
from omnistream_ros.msg import StreamStatus
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from ros_processes import NODE, NodeProcess, NodeStarter, User, camera_info
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, LaserScan
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from omnistream_ros.nodes.distribution import byte_array

LATCHED = QoSProfile(depth=10, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
HOUR_NS = 3600 * 10**9


class Bench:
    """A running node with a camera, used by all tests of this file one after the other."""

    def __init__(self, user: User, node: NodeProcess) -> None:
        self.user, self.node = user, node
        self.status: list[StreamStatus] = user.collect(StreamStatus, f"{NODE}/status")
        node.wait_for("waiting for images")
        self.send = user.camera()
        user.wait_until(lambda: self.status, "the state")
        self.good()

    def good(self, **changes: object) -> StreamStatus:
        """A good image goes through."""
        return self.user.process(self.send, self.status, **changes)

    def unplug(self) -> None:
        """The camera's publisher is gone."""
        self.user.unplug("/image")

    def plug(self) -> None:
        """It is there again, connected."""
        self.send = self.user.camera()


@pytest.fixture(scope="module")
def bench(module_domain: int, weights: Path) -> Iterator[Bench]:
    with User(module_domain) as user, NodeStarter(module_domain, weights) as start:
        node = start(autostart=True, stall_timeout=0.4, max_gap=2.0, source_timeout=0.0)
        yield Bench(user, node)
        assert node.alive
        assert node.count("Traceback") == 0, node.log


def test_publisher_that_starts_again(bench: Bench) -> None:
    """The driver was restarted between two images: the stream goes on."""
    before = bench.good()
    bench.unplug()
    bench.plug()
    after = bench.good()
    assert (after.epoch, after.frame_index) == (before.epoch, before.frame_index + 1)


def test_camera_unplugged_and_plugged_in_again(bench: Bench) -> None:
    odometry = bench.user.collect(Odometry, f"{NODE}/odometry")
    while not odometry:
        before = bench.good()
    bench.unplug()
    bench.user.wait_until(lambda: bench.status[-1].state == StreamStatus.STALLED)
    assert "driver running" in bench.node.wait_for("no usable image on '/image'.*nobody publishes")
    known = odometry[-1].pose.pose.position
    bench.plug()
    later = before.header.stamp.sec * 10**9 + before.header.stamp.nanosec + 30 * 10**9
    bench.user.restart_clock(later)
    after = bench.good()
    assert (after.epoch, after.epoch_reason) == (before.epoch + 1, "gap")
    # The pose goes on from where it was, not from the origin.
    bench.user.wait_until(lambda: odometry[-1].header.stamp == after.header.stamp)
    here = odometry[-1].pose.pose.position
    moved = np.array([here.x - known.x, here.y - known.y, here.z - known.z])
    assert np.linalg.norm(moved) < 0.5


def test_clock_that_jumps_back_an_hour(bench: Bench) -> None:
    """One image is lost; the next begins an epoch."""
    bench.user.restart_clock(5 * HOUR_NS)
    before = bench.good()
    bench.user.restart_clock(4 * HOUR_NS)
    bench.send()
    after = bench.good()
    assert (after.epoch, after.epoch_reason) == (before.epoch + 1, "time_jump_back")
    drops = dict(zip(after.drop_reasons, after.drop_counts, strict=True))
    assert drops["stamp_backwards"] == 1
    bench.node.wait_for("stamp went back by 3600.000 s|stamp went back by 3599.")


def test_two_hundred_publishers(bench: Bench) -> None:
    """They appear at once, half of them on the camera's topic, and send nothing."""
    before = bench.good()
    node = bench.user.node
    publishers = [
        node.create_publisher(Image, "/image" if i % 2 else f"/camera_{i}/image_raw", 1)
        for i in range(200)
    ]
    arrays = bench.user.collect(DiagnosticArray, "/diagnostics")

    def counted() -> bool:
        bench.good()
        values = {v.key: v.value for v in arrays[-1].status[0].values} if arrays else {}
        return values.get("image topic", "").endswith("(101 publishers)")

    bench.user.wait_until(counted)
    assert bench.good().epoch == before.epoch
    # And are silent, all of them: the explanation names a few.
    bench.user.wait_until(lambda: bench.status[-1].state == StreamStatus.STALLED)
    assert max(map(len, bench.node.lines)) < 2000
    for publisher in publishers:
        node.destroy_publisher(publisher)
    assert bench.good().frames_processed > before.frames_processed


def test_subscriber_that_never_reads(bench: Bench, module_domain: int) -> None:
    """A reliable subscriber that wants to lose nothing and takes nothing."""
    with User(module_domain) as lazy:
        everything = QoSProfile(
            history=QoSHistoryPolicy.KEEP_ALL, reliability=QoSReliabilityPolicy.RELIABLE
        )
        for topic, kind in (("depth/image", Image), ("odometry", Odometry)):
            lazy.node.create_subscription(kind, f"{NODE}/{topic}", lambda _: None, everything)
        bench.user.wait_until(lambda: bench.user.node.count_subscribers(f"{NODE}/depth/image") == 1)
        memory = bench.node.resident_mib()
        for _ in range(60):
            last = bench.good(width=320, height=240)
        assert last.context_frames > 1
        assert bench.node.resident_mib() - memory < 30.0


def test_storm_of_parameters(bench: Bench) -> None:
    """Right and wrong ones, as fast as they can be sent, while images come."""
    user = bench.user
    client = user.client(SetParameters, f"{NODE}/set_parameters")
    wishes = [("points_stride", 2), ("points_stride", 0), ("window", 4), ("stall_timeout", 0.4)]
    wishes += [("nonsense", 1), ("depth_encoding", "16UC1"), ("depth_encoding", 3)]
    before = bench.good()
    answers = []
    for name, value in wishes * 40:
        parameter = Parameter(name, value=value).to_parameter_msg()
        answers.append(client.call_async(SetParameters.Request(parameters=[parameter])))
        if len(answers) % 7 == 0:  # the middleware keeps ten requests, and no more
            bench.send()
            user.wait_until(lambda: all(a.done() for a in answers[-7:]), "all answers")
    refused = [not a.result().results[0].successful for a in answers]
    wrong = [name in ("window", "nonsense") or value in (0, 3) for name, value in wishes]
    assert refused == wrong * 40
    assert bench.good().epoch == before.epoch
    assert user.set_parameter("depth_encoding", "32FC1").successful


def test_disk_full_for_logs(bench: Bench) -> None:
    """No file may grow any more, as on a full disk: the node goes on, and still says things."""
    unlimited = resource.prlimit(bench.node.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(bench.node.pid, resource.RLIMIT_FSIZE, (1, unlimited[1]))
    try:
        before = bench.good()
        begun = bench.node.count("begins .request")
        for _ in range(20):
            assert bench.user.call(Trigger, f"{NODE}/reset", Trigger.Request()).success
            bench.good()
        assert bench.good().epoch == before.epoch + 20
        bench.user.wait_until(lambda: bench.node.count("begins .request") == begun + 20)
    finally:
        resource.prlimit(bench.node.pid, resource.RLIMIT_FSIZE, unlimited)


def test_tree_with_a_loop_or_a_missing_link(user: User, start_node: NodeStarter) -> None:
    node = start_node(base_frame="base")
    static = user.node.create_publisher(TFMessage, "/tf_static", LATCHED)
    assert user.change("configure", "activate")
    user.wait_until(lambda: static.get_subscription_count())

    def link(parent: str, child: str) -> TransformStamped:
        transform = TransformStamped(child_frame_id=child)
        transform.header.frame_id = parent
        transform.transform.rotation.w = 1.0
        return transform

    status = user.collect(StreamStatus, f"{NODE}/status")
    odometry = user.collect(Odometry, f"{NODE}/odometry")
    static.publish(TFMessage(transforms=[link("base", "mast"), link("a", "b"), link("b", "a")]))
    assert "positions in it mean nothing" in node.wait_for("static transforms go in a loop")
    send = user.camera()

    def told() -> int:
        user.process(send, status)
        return node.count("no static transform connects 'base' with 'camera'")

    user.wait_until(lambda: status)
    user.wait_until(told)
    assert odometry[-1].child_frame_id == "camera"
    static.publish(TFMessage(transforms=[link("mast", "camera")]))

    def mended() -> bool:
        user.process(send, status)
        return odometry[-1].child_frame_id == "base"

    user.wait_until(mended)
    assert node.count("Traceback") == 0


def malformed_frames() -> list[TransformStamped]:
    """No number, no rotation, no name, and a frame that is its own parent."""
    made = []
    for parent, child, x, w in (
        ("base_link", "front_optical", math.nan, 1.0),
        ("base_link", "left_optical", math.inf, 1.0),
        ("base_link", "front_optical", 0.0, 0.0),
        ("base_link", "left_optical", 0.0, math.nan),
        ("", "front_optical", 0.0, 1.0),
        ("base_link", "", 0.0, 1.0),
        ("left_optical", "left_optical", 0.0, 1.0),
    ):
        transform = TransformStamped(child_frame_id=child)
        transform.header.frame_id = parent
        transform.transform.translation.x, transform.transform.rotation.w = x, w
        made.append(transform)
    return made


def malformed_measurements(header: Header) -> dict[str, list]:
    """What no sensor should say to the scale, by topic."""
    poses, scans, depths, infos = [], [], [], []
    for x, w in ((math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, math.nan)):
        pose = Pose(position=Point(x=x), orientation=Quaternion(w=w))
        poses.append(PoseStamped(header=header, pose=pose))
    for changes in (
        {"angle_increment": math.nan},
        {"angle_min": math.inf},
        {"range_min": math.nan, "range_max": math.nan},
        {"range_min": 9.0, "range_max": 1.0},
        {"ranges": [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e38]},
        {"ranges": []},
        {"ranges": [1.0] * 100_001},
    ):
        common = {"range_min": 0.1, "range_max": 30.0, "ranges": [2.0] * 90}
        scans.append(LaserScan(header=header, **{**common, "angle_increment": 0.01, **changes}))
    for changes in (
        {"encoding": "magic"},
        {"step": 1},
        {"step": 2**31},
        {"height": 0},
        {"width": 2**16, "height": 2**16},
        {"data": byte_array(np.zeros(7, np.uint8))},
        {"data": byte_array(np.full(4 * 64 * 48, 255, np.uint8))},  # NaN everywhere
        {},
    ):
        common = {"width": 64, "height": 48, "step": 256, "encoding": "32FC1"}
        common["data"] = byte_array(np.full(64 * 48, 2.0, np.float32))
        depths.append(Image(header=header, **{**common, **changes}))
    for focal, width in ((math.nan, 64), (-1.0, 64), (1e-300, 64), (60.0, 0)):
        info = camera_info(focal=focal)
        info.header, info.width = header, width
        infos.append(info)
    odometry = [
        Odometry(header=header, child_frame_id=child, pose=PoseWithCovariance(pose=pose.pose))
        for pose, child in zip(poses, ("", "base_link", "nowhere", ""), strict=True)
    ]
    return {
        "/scale/pose": poses,
        "/scale/odometry": odometry,
        "/scale/scan": scans,
        "/scale/depth": depths,
        "/scale/depth/camera_info": infos,
    }


def test_malformed_frames_and_measurements(user: User, start_node: NodeStarter) -> None:
    """Whatever else a node hears beside images: it says so, and both streams go on."""
    node = start_node(
        *("-p", "front.scale:=odometry", "-p", "left.scale:=range"),
        cameras='["front", "left"]',
        autostart=True,
        stall_timeout=0.1,
    )
    names = ("front", "left")
    status = {name: user.collect(StreamStatus, f"{NODE}/{name}/status") for name in names}
    for name in names:
        node.wait_for(f"waiting for images on '/{name}/image'")
    send = {name: user.camera(f"/{name}/image") for name in names}
    user.wait_until(lambda: all(status.values()))
    publishers = {
        "/tf": user.node.create_publisher(TFMessage, "/tf", 50),
        "/tf_static": user.node.create_publisher(TFMessage, "/tf_static", LATCHED),
    }
    kinds = (PoseStamped, Odometry, LaserScan, Image, CameraInfo)
    for topic, kind in zip(malformed_measurements(Header()), kinds, strict=True):
        publishers[topic] = user.node.create_publisher(kind, topic, 50)
    user.wait_until(lambda: all(p.get_subscription_count() for p in publishers.values()))

    def good(name: str) -> StreamStatus:
        return user.process(send[name], status[name], frame_id=f"{name}_optical")

    before = {name: good(name) for name in names}
    for topic in ("/tf_static", "/tf"):
        publishers[topic].publish(TFMessage(transforms=malformed_frames()))
    sent = 0
    for topic, messages in malformed_measurements(Header(frame_id="left_optical")).items():
        for message in messages:
            moment = good("front").header.stamp
            moment_ns = moment.sec * 10**9 + moment.nanosec
            message.header.stamp = moment
            publishers[topic].publish(message)
            for later_ns in (0, 50_000_000):  # the image may overtake what was measured
                picture = user.picture(frame_id="left_optical", stamp_ns=moment_ns + later_ns)
                user.process(send["left"], status["left"], message=picture)
            sent += 1
    after = {name: good(name) for name in names}
    for name in names:
        assert after[name].epoch == before[name].epoch == 0
        assert after[name].frames_processed > before[name].frames_processed + sent
        assert math.isfinite(after[name].scale_factor)
    node.wait_for("static transform base_link -> front_optical cannot be used")
    node.wait_for("front: no scale from odometry: a pose for the scale cannot be used")
    assert node.count("Traceback") == 0, node.log


def test_simulated_clock_that_jumps_back(user: User, start_node: NodeStarter) -> None:
    """Timers of the node do not hang on /clock: a bag on pause or in a loop stops nothing."""
    clocks = user.node.create_publisher(Clock, "/clock", 1)
    node = start_node(autostart=True, use_sim_time=True)
    arrays = user.collect(DiagnosticArray, "/diagnostics")
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images")
    send = user.camera()

    def reads(second: int) -> bool:
        message = Clock()
        message.clock.sec = second
        clocks.publish(message)
        return bool(arrays) and arrays[-1].header.stamp.sec == second

    user.wait_until(lambda: reads(7200))
    user.process(send, status)
    user.wait_until(lambda: reads(3600))
    seen = len(arrays)
    user.wait_until(lambda: len(arrays) > seen + 3)  # the clock stands still
    assert user.process(send, status).epoch == 0


def test_killed_and_started_again_beside_its_own_shadow(
    user: User, start_node: NodeStarter
) -> None:
    """A second node of the same name while the first still counts as alive."""
    first = start_node(autostart=True)
    first.wait_for("waiting for images")
    os.kill(first.pid, signal.SIGKILL)
    second = start_node(autostart=True)
    second.wait_for("waiting for images")
    assert first.wait() == -signal.SIGKILL
    status = user.collect(StreamStatus, f"{NODE}/status")
    send = user.camera()

    def streaming() -> bool:
        send()
        return bool(status) and status[-1].state == StreamStatus.STREAMING

    user.wait_until(streaming)
