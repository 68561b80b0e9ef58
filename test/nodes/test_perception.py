# SPDX-License-Identifier: Apache-2.0
"""The perception node from outside: what a user's process sees of it."""

from __future__ import annotations

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from omnistream_ros.msg import FeatureTensor, StreamStatus
from ros_processes import NODE, NodeStarter, User, camera_info
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage


def test_full_path(user: User, start_node: NodeStarter) -> None:
    """Every output of one frame, its stamp and frame, and that they belong together."""
    node = start_node(autostart=True, resolution="source", camera_info_timeout=60.0, rectify=False)
    depth = user.collect(Image, f"{NODE}/depth/image")
    info = user.collect(CameraInfo, f"{NODE}/depth/camera_info")
    odometry = user.collect(Odometry, f"{NODE}/odometry")
    features = user.collect(FeatureTensor, f"{NODE}/features")
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images")
    cameras = user.node.create_publisher(CameraInfo, "/camera_info", 10)
    given = camera_info()
    given.distortion_model, given.d = "rational_polynomial", [0.1] * 8
    send = user.camera()
    user.wait_until(lambda: status, "the state")
    sent = 1
    # The first image waits for its camera_info.
    last = user.process(send, status, meanwhile=lambda: cameras.publish(given))
    assert last.metric
    while not (depth and info and odometry and features):
        last = user.process(send, status)
        sent += 1

    for messages in (depth, info, features):
        assert messages[-1].header == last.header
    assert odometry[-1].header.stamp == last.header.stamp
    image = depth[-1]
    assert (image.header.frame_id, image.encoding) == ("camera", "32FC1")
    assert (image.width, image.height, image.step) == (64, 48, 256)
    metres = np.frombuffer(image.data, "<f4").reshape(48, 64)
    assert np.isfinite(metres).all()
    assert (metres > 0).all()

    # Depth is in the pixels of the source, so it has the source's camera, distortion included.
    camera = info[-1]
    assert (camera.width, camera.height) == (64, 48)
    np.testing.assert_allclose(camera.k, given.k)
    assert camera.distortion_model == "rational_polynomial"
    np.testing.assert_allclose(camera.d, [0.1] * 8)

    assert (odometry[-1].header.frame_id, odometry[-1].child_frame_id) == ("odom", "camera")
    assert features[-1].model_name == "tiny"
    assert len(features[-1].weights_sha256) == 64
    assert last.metric
    assert last.tracking == "good"
    assert last.epoch == 0
    assert last.epoch_reason == "start"
    assert last.context_capacity == 17
    assert last.cache_bytes > 0
    assert set(last.stage_names) >= {"wait", "convert", "preprocess", "backbone", "publish"}
    assert 0.0 < sum(last.stage_ms) <= last.latency_ms * 1.001
    assert (last.frames_received, last.frames_processed, sum(last.drop_counts)) == (sent, sent, 0)
    assert last.frame_index == sent - 1
    assert last.context_frames == sent


def test_depth_at_model_resolution_has_a_camera_of_that_size(
    user: User, start_node: NodeStarter
) -> None:
    node = start_node(autostart=True, depth_encoding="16UC1", camera_info_timeout=60.0)
    depth = user.collect(Image, f"{NODE}/depth/image")
    info = user.collect(CameraInfo, f"{NODE}/depth/camera_info")
    node.wait_for("waiting for images")
    cameras = user.node.create_publisher(CameraInfo, "/camera_info", 10)
    status = user.collect(StreamStatus, f"{NODE}/status")
    send = user.camera()
    user.wait_until(lambda: status)

    def tell_camera() -> None:
        cameras.publish(camera_info(320, 240, focal=300.0))

    while not (depth and info):
        user.process(send, status, meanwhile=tell_camera, width=320, height=240)
    assert depth[-1].encoding == "16UC1"
    assert (depth[-1].width, depth[-1].height) == (64, 48)
    assert depth[-1].step == 128
    camera = info[-1]
    assert (camera.width, camera.height) == (64, 48)
    # 1/5 of the size; borders stay on borders
    expected = [60.0, 0, 31.5, 0, 60.0, 23.5, 0, 0, 1]
    np.testing.assert_allclose(camera.k, expected, atol=1e-9)


def test_nobody_listens_nothing_is_computed(user: User, start_node: NodeStarter) -> None:
    """Without a subscriber the heads do not run; with one they do, from the next image on."""
    node = start_node(autostart=True, publish_tf=False)
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images")
    send = user.camera()

    def heads_ms() -> float:
        frame = user.process(send, status)
        return dict(zip(frame.stage_names, frame.stage_ms, strict=True))["heads"]

    user.wait_until(lambda: status, "the first state")  # connected
    idle = np.median([heads_ms() for _ in range(5)])
    depth = user.collect(Image, f"{NODE}/depth/image")
    while not depth:
        heads_ms()
    busy = np.median([heads_ms() for _ in range(5)])
    assert idle < 0.2 < busy


def test_reset_begins_an_epoch(user: User, start_node: NodeStarter) -> None:
    node = start_node(autostart=True)
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images")
    send = user.camera()
    user.wait_until(lambda: status)
    user.process(send, status)
    answer = user.call(Trigger, f"{NODE}/reset", Trigger.Request())
    assert answer.success
    first = user.process(send, status)
    assert (first.epoch, first.frame_index, first.epoch_reason) == (1, 0, "request")
    assert user.change("deactivate")
    answer = user.call(Trigger, f"{NODE}/reset", Trigger.Request())
    assert not answer.success
    assert "inactive" in answer.message
    user.wait_until(lambda: status[-1].state == StreamStatus.INACTIVE)


def test_diagnostics_tell_what_is_missing(user: User, start_node: NodeStarter) -> None:
    node = start_node(autostart=True)
    arrays = user.collect(DiagnosticArray, "/diagnostics")
    node.wait_for("waiting for images")
    user.wait_until(lambda: arrays and "no publisher on '/image'" in arrays[-1].status[0].message)
    send = user.camera()

    def values() -> dict[str, str]:
        return {v.key: v.value for v in arrays[-1].status[0].values}

    def sent_and_counted() -> bool:
        send()
        return values().get("images processed", "0") not in ("0", "")

    user.wait_until(sent_and_counted)
    user.wait_until(lambda: "Hz" in arrays[-1].status[0].message)
    now = values()
    assert now["model"] == "tiny"
    assert now["scale"] == "up_to_scale"  # no camera_info came
    assert now["device"] == "cpu"
    assert "latency median / p95" in now
    assert user.set_parameter("stall_timeout", 0.2).successful
    user.wait_until(lambda: "no usable image for" in arrays[-1].status[0].message)
    node.wait_for("no usable image on '/image'")


def test_incompatible_qos_is_reported_in_words(user: User, start_node: NodeStarter) -> None:
    node = start_node("-p", "qos_overrides./image.subscription.reliability:=reliable")
    assert user.change("configure", "activate")
    from rclpy.qos import qos_profile_sensor_data

    publisher = user.node.create_publisher(Image, "/image", qos_profile_sensor_data)
    line = node.wait_for("offers another reliability")
    assert "qos_overrides./image.subscription.reliability" in line
    assert publisher.get_subscription_count() == 0


@pytest.mark.parametrize("known", [True, False], ids=["base known", "base unknown"])
def test_odometry_frame(user: User, start_node: NodeStarter, known: bool) -> None:
    """odom -> base at the origin when the robot is known, odom -> camera upright otherwise."""
    from geometry_msgs.msg import TransformStamped
    from rclpy.qos import QoSDurabilityPolicy, QoSProfile

    latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
    static = user.node.create_publisher(TFMessage, "/tf_static", latched)
    node = start_node(base_frame="base")
    assert user.change("configure")
    if known:
        mount = TransformStamped(child_frame_id="camera")
        mount.header.frame_id = "base"
        mount.transform.translation.x, mount.transform.translation.z = 0.2, 1.0
        rotation = mount.transform.rotation
        rotation.x, rotation.y, rotation.z, rotation.w = -0.5, 0.5, -0.5, 0.5
        static.publish(TFMessage(transforms=[mount]))
        user.wait_until(lambda: static.get_subscription_count() > 0)
    assert user.change("activate")
    odometry = user.collect(Odometry, f"{NODE}/odometry")
    transforms = user.collect(TFMessage, "/tf")
    user.wait_until(lambda: user.node.count_subscribers(f"{NODE}/odometry") == 1)
    send = user.camera()
    status = user.collect(StreamStatus, f"{NODE}/status")
    while not (transforms and odometry):
        user.process(send, status)
    child = "base" if known else "camera"
    assert {m.child_frame_id for m in odometry} == {child}
    pairs = {(t.header.frame_id, t.child_frame_id) for m in transforms for t in m.transforms}
    assert pairs == {("odom", child)}
    assert node.alive
    first = odometry[0].pose.pose
    position = np.array([first.position.x, first.position.y, first.position.z])
    np.testing.assert_allclose(position, 0.0, atol=1e-9)
    q = first.orientation
    upright = [0, 0, 0, 1] if known else [-0.5, 0.5, -0.5, 0.5]
    np.testing.assert_allclose([q.x, q.y, q.z, q.w], upright, atol=1e-9)
    if not known:
        return
    # What comes back from /tf is our own, also of the stream before; then wheel odometry begins.
    assert user.change("deactivate", "activate")
    user.wait_until(lambda: status[-1].state == StreamStatus.WAITING)
    before = len(transforms)
    while len(transforms) < before + 3:
        user.process(send, status)
    assert node.count("already has the parent|somebody else publishes") == 0
    wheels = user.node.create_publisher(TFMessage, "/tf", 10)
    user.wait_until(lambda: wheels.get_subscription_count() == 2)
    foreign = TransformStamped(child_frame_id="base")
    foreign.header.frame_id = "odom"
    told = "somebody else publishes 'odom' -> 'base'"
    while not node.count(told):  # over and over: a reader may be connected later than its writer
        wheels.publish(TFMessage(transforms=[foreign]))
        user.process(send, status)
