# SPDX-License-Identifier: Apache-2.0
"""Messages of other sensors become evidence in the terms of one camera."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, TransformStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, Image, LaserScan
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from omnistream_ros.nodes.distribution import byte_array, fill_transform
from omnistream_ros.nodes.frames import StaticTree
from omnistream_ros.nodes.scale_inputs import ScaleInputs
from omnistream_ros.stream.geometry import FLU_FROM_OPTICAL, rigid

SECOND = 10**9
# The camera looks ahead, half a metre above the base and 0.2 m in front; a scanner at 0.1 m.
MOUNTS = {
    "camera": rigid(FLU_FROM_OPTICAL, np.array([0.2, 0.0, 0.5])),
    "laser": rigid(np.eye(3), np.array([0.0, 0.0, 0.1])),
}


class Subscription(NamedTuple):
    """What is asked of one."""

    topic_name: str


class Ears:
    """What a node needs to be for subscriptions."""

    def __init__(self) -> None:
        self.heard: dict[str, Any] = {}

    def create_subscription(
        self, kind: type, topic: str, callback: Any, qos: object
    ) -> Subscription:
        self.heard[topic] = callback
        return Subscription(f"/{topic}")

    def destroy_subscription(self, subscription: Subscription) -> None:
        del self.heard[subscription.topic_name[1:]]


def header(stamp_ns: int, frame_id: str) -> Header:
    made = Header(frame_id=frame_id)
    made.stamp.sec, made.stamp.nanosec = divmod(stamp_ns, SECOND)
    return made


def inputs(*sources: str, mounts: dict[str, np.ndarray] = MOUNTS) -> tuple[ScaleInputs, Ears]:
    tree = StaticTree()
    for child, motion in mounts.items():
        transform = TransformStamped(header=Header(frame_id="base_link"), child_frame_id=child)
        fill_transform(motion, transform.transform.translation, transform.transform.rotation)
        assert tree.add(TFMessage(transforms=[transform])) == []
    ears = Ears()
    return ScaleInputs(ears, tree, "base_link", sources), ears  # type: ignore[arg-type]


def odometry(stamp_ns: int, x: float, yaw: float = 0.0, child: str = "base_link") -> Odometry:
    message = Odometry(header=header(stamp_ns, "wheel_odom"), child_frame_id=child)
    message.pose.pose.position.x = x
    message.pose.pose.orientation.z = math.sin(yaw / 2)
    message.pose.pose.orientation.w = math.cos(yaw / 2)
    return message


def test_only_what_is_needed_is_subscribed() -> None:
    assert set(inputs("model", "fixed", "height")[1].heard) == set()
    assert set(inputs("odometry")[1].heard) == {"scale/odometry", "scale/pose"}
    both, ears = inputs("odometry", "range")
    assert len(ears.heard) == 5
    both.close()
    assert ears.heard == {}


def test_odometry_of_the_base_gives_the_place_of_the_camera() -> None:
    scale, ears = inputs("odometry")
    ears.heard["scale/odometry"](odometry(1, 3.0))
    ears.heard["scale/odometry"](odometry(2, 3.0, yaw=math.pi / 2))
    (first, a), (second, b) = scale.evidence("odometry", "camera", 0, 0.0).positions
    assert (first, second) == (1, 2)
    np.testing.assert_allclose(a, [3.2, 0.0, 0.5], atol=1e-9)
    np.testing.assert_allclose(b, [3.0, 0.2, 0.5], atol=1e-9)  # the lever of the mount
    assert scale.evidence("odometry", "camera", 0, 0.0).positions == ()
    ears.heard["scale/odometry"](odometry(3, 4.0))
    assert len(scale.evidence("odometry", "camera", 0, 0.0).positions) == 1


def test_what_stands_in_the_way_of_a_scale_is_said_to_those_that_have_it() -> None:
    scale, ears = inputs("odometry", "range", mounts={})
    nothing = "nothing heard on '/scale/odometry' or '/scale/pose'"
    assert scale.trouble("odometry", "camera") == nothing
    nothing = "nothing heard on '/scale/scan' or '/scale/depth'"
    assert scale.trouble("range", "camera") == nothing
    assert scale.trouble("height", "camera") == ""
    ears.heard["scale/odometry"](odometry(1, 3.0, child="base_link"))
    assert scale.trouble("odometry", "camera") == ""
    scale.evidence("height", "camera", 0, 0.0)
    assert "set camera_height" in scale.trouble("height", "camera")
    assert scale.trouble("height", "left") == ""
    for source in ("odometry", "model", "fixed"):
        assert scale.trouble(source, "camera") == ""


def test_what_is_over_is_said_no_more() -> None:
    scale, ears = inputs("odometry", "range", mounts={**MOUNTS, "left": MOUNTS["camera"]})
    heard = ears.heard
    zero = odometry(1, 0.0)
    zero.pose.pose.orientation.w = 0.0
    heard["scale/odometry"](zero)
    for camera in ("camera", "left"):
        assert "a pose for the scale cannot be used" in scale.trouble("odometry", camera)
    heard["scale/odometry"](odometry(2, 0.0))
    assert scale.trouble("odometry", "left") == ""
    # Depth that comes before its camera_info, seen by two cameras.
    heard["scale/depth"](depth_image("32FC1", np.ones((48, 64), np.float32)))
    for camera in ("camera", "left"):
        scale.evidence("range", camera, 0, 0.0)
        assert "camera_info" in scale.trouble("range", camera)
    info = CameraInfo(width=64, height=48)
    info.k = [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
    heard["scale/depth/camera_info"](info)
    scale.evidence("range", "camera", 0, 0.0)
    assert scale.trouble("range", "camera") == ""
    assert "camera_info" in scale.trouble("range", "left")  # not looked at since
    heard["scale/scan"](LaserScan(header=header(0, "laser"), ranges=[1.0] * 100_001))
    assert "100001" in scale.trouble("range", "camera")
    heard["scale/scan"](LaserScan(header=header(0, "laser"), ranges=[1.0]))
    assert scale.trouble("range", "camera") == ""


def test_every_camera_hears_all_of_it_and_nothing_grows() -> None:
    scale, ears = inputs("odometry", mounts={**MOUNTS, "left": MOUNTS["camera"]})
    for i in range(2000):
        ears.heard["scale/odometry"](odometry(i, float(i)))
    for camera in ("camera", "left"):
        positions = scale.evidence("odometry", camera, 0, 0.0).positions
        assert [stamp for stamp, _ in positions] == list(range(2000 - 512, 2000))


def test_what_cannot_be_placed_is_said() -> None:
    scale, ears = inputs("odometry")
    ears.heard["scale/odometry"](odometry(1, 0.0, child="other_robot"))
    assert scale.evidence("odometry", "camera", 0, 0.0).positions == ()
    assert "'other_robot'" in scale.trouble("odometry", "camera")
    ears.heard["scale/odometry"](odometry(2, 0.0))
    assert len(scale.evidence("odometry", "camera", 0, 0.0).positions) == 1
    assert scale.trouble("odometry", "camera") == ""
    broken = odometry(3, math.nan)
    ears.heard["scale/odometry"](broken)
    assert "finite" in scale.trouble("odometry", "camera")


@pytest.mark.parametrize("mounts", [MOUNTS, {}])
def test_a_pose_is_of_the_base_where_there_is_one(mounts: dict[str, np.ndarray]) -> None:
    scale, ears = inputs("odometry", mounts=mounts)
    message = PoseStamped(header=header(7, "map"))
    message.pose.orientation.w = 1.0
    ears.heard["scale/pose"](message)
    ((stamp, place),) = scale.evidence("odometry", "camera", 0, 0.0).positions
    assert stamp == 7
    np.testing.assert_allclose(place, [0.2, 0, 0.5] if mounts else [0, 0, 0], atol=1e-9)


def test_a_scan_of_the_same_moment_becomes_points() -> None:
    scale, ears = inputs("range")
    scan = LaserScan(
        header=header(5 * SECOND, "laser"),
        angle_min=-0.1,
        angle_increment=0.1,
        range_min=0.2,
        range_max=10.0,
        ranges=[2.0, 3.0, 2.0, 0.1, 11.0, math.inf, math.nan],
    )
    ears.heard["scale/scan"](scan)
    points = scale.evidence("range", "camera", 5 * SECOND + SECOND // 20, 0.0).points
    assert points is not None
    assert points.shape == (3, 3)
    np.testing.assert_allclose(points[1], [0.0, 0.4, 2.8], atol=1e-6)  # ahead and below
    assert scale.evidence("range", "camera", 6 * SECOND, 0.0).points is None
    assert scale.evidence("range", "elsewhere", 5 * SECOND, 0.0).points is None
    assert "'elsewhere'" in scale.trouble("range", "elsewhere")


def test_a_huge_scan_is_not_kept() -> None:
    scale, ears = inputs("range")
    ears.heard["scale/scan"](LaserScan(header=header(0, "laser"), ranges=[1.0] * 100_001))
    assert scale.evidence("range", "camera", 0, 0.0).points is None
    assert "100001" in scale.trouble("range", "camera")


def depth_image(encoding: str, values: np.ndarray, frame: str = "camera") -> Image:
    height, width = values.shape
    message = Image(header=header(0, frame), height=height, width=width, encoding=encoding)
    message.step = values.nbytes // height
    message.data = byte_array(np.ascontiguousarray(values))
    return message


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1"])
def test_a_depth_image_becomes_points(encoding: str) -> None:
    scale, ears = inputs("range")
    metres = np.full((48, 64), 2.0, np.float32)
    metres[0, 0] = np.nan
    values = metres if encoding == "32FC1" else np.nan_to_num(metres * 1000).astype(np.uint16)
    ears.heard["scale/depth"](depth_image(encoding, values))
    assert scale.evidence("range", "camera", 0, 0.0).points is not None
    assert "camera_info" in scale.trouble("range", "camera")
    # The camera_info of the full image; this one is reduced by two.
    info = CameraInfo(width=128, height=96)
    info.k = [100.0, 0.0, 63.5, 0.0, 100.0, 47.5, 0.0, 0.0, 1.0]
    ears.heard["scale/depth/camera_info"](info)
    points = scale.evidence("range", "camera", 0, 0.0).points
    assert points is not None
    assert np.isnan(points[0, 2])
    last = points[-1]
    np.testing.assert_allclose(last, [(126.5 - 63.5) / 50, (94.5 - 47.5) / 50, 2.0], atol=1e-6)


def test_a_depth_image_that_lies_about_its_size_is_said() -> None:
    scale, ears = inputs("range")
    info = CameraInfo(width=64, height=48)
    info.k = [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
    ears.heard["scale/depth/camera_info"](info)
    short = depth_image("32FC1", np.ones((48, 64), np.float32))
    short.height = 4800
    ears.heard["scale/depth"](short)
    points = scale.evidence("range", "camera", 0, 0.0).points
    assert points is not None
    assert len(points) == 0
    assert "cannot be read" in scale.trouble("range", "camera")


def test_a_huge_depth_image_is_not_kept() -> None:
    scale, ears = inputs("range")
    huge = depth_image("32FC1", np.ones((48, 64), np.float32))
    huge.height = huge.width = 20_000
    ears.heard["scale/depth"](huge)
    assert "20000x20000" in scale.trouble("range", "camera")
    assert scale.evidence("range", "camera", 0, 0.0).points is None


def test_the_ground_is_below_the_base() -> None:
    scale, _ = inputs("height")
    known = scale.evidence("height", "camera", 0, 0.0)
    assert known.height == pytest.approx(0.5)
    np.testing.assert_allclose(known.up, [0.0, -1.0, 0.0], atol=1e-9)
    assert scale.evidence("height", "camera", 0, 1.2).height == 1.2
    nowhere, _ = inputs("height", mounts={})
    assert nowhere.evidence("height", "camera", 0, 0.0).height is None
    assert "camera_height" in nowhere.trouble("height", "camera")
    assert nowhere.evidence("height", "camera", 0, 1.2).height == 1.2
    assert nowhere.trouble("height", "camera") == ""
