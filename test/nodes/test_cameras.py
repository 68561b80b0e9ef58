# SPDX-License-Identifier: Apache-2.0
"""Several cameras on one model: topics, frames, parameters; and what one does to the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from omnistream_ros.msg import FeatureTensor, StreamStatus
from rcl_interfaces.srv import GetParameters
from ros_processes import NODE, NodeProcess, NodeStarter, User
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

BOTH = '["front", "left"]'


class Cameras:
    """The cameras of an active node as a user sees them."""

    def __init__(self, user: User, node: NodeProcess, names: tuple[str, ...]) -> None:
        self.user = user
        self.status = {n: user.collect(StreamStatus, f"{NODE}/{n}/status") for n in names}
        for name in names:
            node.wait_for(f"waiting for images on '/{name}/image'")
        self.send = {name: user.camera(f"/{name}/image") for name in names}
        user.wait_until(lambda: all(self.status.values()), "a status of each camera")

    def process(self, name: str, **changes: object) -> StreamStatus:
        changes = {"frame_id": name, **changes}
        return self.user.process(self.send[name], self.status[name], **changes)


@pytest.mark.parametrize("batching", ["always", "never"])
def test_each_camera_has_its_own_stream(user: User, start_node: NodeStarter, batching: str) -> None:
    node = start_node(
        "-p",
        "left.resolution:=source",
        cameras=BOTH,
        batching=batching,
        autostart=True,
        engine="eager",
    )
    cameras = Cameras(user, node, ("front", "left"))
    assert node.count("2 cameras at once") == (batching == "always")
    depth = {n: user.collect(Image, f"{NODE}/{n}/depth/image") for n in cameras.send}
    features = user.collect(FeatureTensor, f"{NODE}/left/features")
    odometry = {n: user.collect(Odometry, f"{NODE}/{n}/odometry") for n in cameras.send}
    transforms = user.collect(TFMessage, "/tf")
    # Long enough for /tf_static to be settled; every image goes to one camera only.
    while not (transforms and features and all(depth.values()) and all(odometry.values())):
        cameras.process("front", width=128, height=96)
        cameras.process("left", width=128, height=96)
    front = cameras.process("front", width=128, height=96)
    left = cameras.process("left", width=128, height=96)
    assert front.frames_processed == left.frames_processed == front.frame_index + 1
    assert (front.stream_id, left.stream_id) == (f"{NODE}/front", f"{NODE}/left")
    assert {d.header.frame_id for d in depth["left"]} == {"left"}
    assert (depth["front"][-1].width, depth["left"][-1].width) == (64, 128)
    assert features[-1].stream_id == left.stream_id
    assert {m.header.frame_id for m in odometry["front"]} == {"odom"}
    assert {m.header.frame_id for m in odometry["left"]} == {"odom_left"}
    pairs = {(t.header.frame_id, t.child_frame_id) for m in transforms for t in m.transforms}
    assert pairs == {("odom", "front")}

    # A new epoch of one is none of the other.
    assert user.call(Trigger, f"{NODE}/left/reset", Trigger.Request()).success
    assert cameras.process("left", width=128, height=96).epoch == 1
    assert cameras.process("front", width=128, height=96).epoch == 0
    assert user.call(Trigger, f"{NODE}/reset", Trigger.Request()).success
    assert cameras.process("left", width=128, height=96).epoch == 2
    assert cameras.process("front", width=128, height=96).epoch == 1


def test_a_silent_camera_keeps_nobody_waiting_and_may_come_back(
    user: User, start_node: NodeStarter
) -> None:
    node = start_node(
        cameras='["front", "left", "rear"]', autostart=True, stall_timeout=0.3, max_gap=0.5
    )
    cameras = Cameras(user, node, ("front", "left", "rear"))
    cameras.process("front")
    cameras.process("left")
    for _ in range(8):
        cameras.process("front")
    assert cameras.status["rear"][-1].state == StreamStatus.WAITING
    # Silent for eight stamps of 0.1 s: one epoch more, and none for the other.
    assert cameras.process("left").epoch_reason == "gap"
    assert cameras.process("front").epoch == 0
    assert cameras.process("rear").frames_processed == 1
    user.wait_until(lambda: cameras.status["left"][-1].state == StreamStatus.STALLED)
    arrays = user.collect(DiagnosticArray, "/diagnostics")
    user.wait_until(lambda: arrays)
    assert [s.name for s in arrays[-1].status] == [
        f"{NODE}: {n}" for n in (*cameras.send, "machine")
    ]


def test_cameras_of_different_shape(user: User, start_node: NodeStarter) -> None:
    node = start_node(cameras=BOTH, autostart=True, batching="always", engine="eager")
    cameras = Cameras(user, node, ("front", "left"))
    for expected in range(3):
        front = cameras.process("front")
        left = cameras.process("left", width=96, height=48)
        assert (front.frame_index, left.frame_index) == (expected, expected)
    assert left.cache_bytes != front.cache_bytes


def test_a_fault_of_one_camera_is_counted_there(user: User, start_node: NodeStarter) -> None:
    node = start_node(cameras=BOTH, autostart=True)
    cameras = Cameras(user, node, ("front", "left"))
    cameras.process("left")
    broken = user.picture()
    broken.encoding = "jpeg2000"
    cameras.send["front"](broken)
    good = cameras.process("front")
    assert dict(zip(good.drop_reasons, good.drop_counts, strict=True)) == {
        "unsupported_encoding": 1
    }
    assert not cameras.process("left").drop_reasons


def test_parameters_of_one_camera_and_of_all(user: User, start_node: NodeStarter) -> None:
    node = start_node(
        *("-p", "left.points_stride:=4", "-p", "left.points_strid:=2"),
        *("-p", "rear.resolution:=source", "-p", "left.window:=4"),
        cameras=BOTH,
        points_stride=2,
    )
    assert "there is no 'rear', but front, left" in node.wait_for("'rear.resolution' is not known")
    assert "there is only one 'window' for all" in node.wait_for("'left.window' is not known")
    assert "did you mean 'left.points_stride'" in node.wait_for("'left.points_strid' is not known")

    def strides() -> list[int]:
        names = ["points_stride", "front.points_stride", "left.points_stride"]
        request = GetParameters.Request(names=names)
        values = user.call(GetParameters, f"{NODE}/get_parameters", request).values
        return [value.integer_value for value in values]

    assert strides() == [2, 2, 4]
    assert user.set_parameter("front.points_stride", 8).successful
    assert strides() == [2, 8, 4]
    assert user.set_parameter("points_stride", 3).successful
    assert strides() == [3, 3, 3]
    refused = user.set_parameter("left.points_stride", 65)
    assert not refused.successful
    assert "Max: 64" in refused.reason
    # Other cameras, other parameters.
    assert user.set_parameter("cameras", ["left", "rear"]).successful
    assert user.set_parameter("rear.points_stride", 5).successful
    assert not user.set_parameter("front.points_stride", 5).successful
    assert user.set_parameter("points_stride", 7).successful
    assert user.set_parameter("left.points_stride", 1).successful
    assert user.set_parameter("pose_camera", "front").successful
    assert not user.change("configure")
    assert "pose_camera 'front' is none of the cameras (left, rear)" in node.wait_for("pose_camera")


def test_names_that_cannot_be_topics_are_refused(start_node: NodeStarter) -> None:
    node = start_node(cameras='["1st", "left"]')
    assert node.wait() == 2
    assert "becomes part of topics" in node.wait_for("^error: ")


def test_engines_made_for_one_stream_refuse_to_share_a_step(
    user: User, start_node: NodeStarter
) -> None:
    node = start_node.fork(
        single_stream_main, start_node.arguments(cameras=BOTH, batching="always")
    )
    assert not user.change("configure")
    assert "set 'batching' to never" in node.wait_for("cannot configure")
    assert user.set_parameter("batching", "auto").successful
    assert user.change("configure", "activate")
    cameras = Cameras(user, node, ("front", "left"))
    assert cameras.process("front").frame_index == cameras.process("left").frame_index == 0


def single_stream_main(arguments: list[str]) -> int:
    """The node with an engine that can only step one stream, as exported ones."""
    from omnistream_ros.nodes import model_setup, perception

    load: Callable = model_setup.load_engine

    class Single:
        def __init__(self, engine: object) -> None:
            self._engine = engine

        def __getattr__(self, name: str) -> object:
            return getattr(self._engine, name)

    def load_single(*args, **kwargs):
        engine, facts = load(*args, **kwargs)
        return Single(engine), facts

    perception.load_engine = load_single
    return perception.main(arguments)
