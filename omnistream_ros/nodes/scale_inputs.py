# SPDX-License-Identifier: Apache-2.0
"""What other sensors say about lengths, as evidence for the scale of the streams.

Subscribes to what the sources of scale in use need, keeps the last few messages, and turns them
into the terms of one camera when a frame asks. One object serves all cameras of a node.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from geometry_msgs.msg import PoseStamped, Transform
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, LaserScan
from std_msgs.msg import Header

from omnistream_ros.nodes.distribution import motion_from_transform
from omnistream_ros.nodes.frames import StaticTree
from omnistream_ros.nodes.image_checks import MOST_PIXELS
from omnistream_ros.stream.depth_encodings import depth_to_metres
from omnistream_ros.stream.image_encodings import ImageError
from omnistream_ros.stream.metric_scale import NO_EVIDENCE, Evidence

_ODOMETRY, _POSE = "scale/odometry", "scale/pose"
_SCAN, _DEPTH, _DEPTH_CAMERA = "scale/scan", "scale/depth", "scale/depth/camera_info"
_HEIGHT = "camera_height"  # a parameter, no topic
# What the sources of scale look at.
_TOPICS = {"odometry": (_ODOMETRY, _POSE), "range": (_SCAN, _DEPTH), "height": (_HEIGHT,)}
# A measurement further in time from the image than this shows another moment.
_SAME_MOMENT_S = 0.1
_POSES, _SCANS, _DEPTHS = 512, 16, 4
# More than any scanner sends in one message.
_MAX_RANGES = 100_000
# Of a depth image, pixels in each direction that are looked at.
_DEPTH_GRID = 64
# A base frame that the camera is not above is not on the ground.
_LOWEST_CAMERA_M = 0.05
# Of a camera whose mount is not known, in optical axes.
_UP_IF_LEVEL = np.array([0.0, -1.0, 0.0])


class _Pose(NamedTuple):
    topic: str
    stamp_ns: int
    child: str  # "": the base, or the camera where no base is known
    fixed_from_child: np.ndarray


class ScaleInputs:
    """Subscriptions of a node for the scale of its streams, relative to the node's namespace.

    Args:
        tree: where the sensors sit on the robot.
        sources: the values of the parameter `scale` in use.
    """

    def __init__(
        self, node: Node, tree: StaticTree, base_frame: str, sources: Collection[str]
    ) -> None:
        self._node = node
        self._tree = tree
        self._base_frame = base_frame
        self._lock = threading.Lock()
        self._poses: collections.deque[_Pose] = collections.deque(maxlen=_POSES)
        self._poses_heard = 0
        self._poses_used: dict[str, int] = {}  # by camera frame
        self._scans: collections.deque[LaserScan] = collections.deque(maxlen=_SCANS)
        self._depths: collections.deque[Image] = collections.deque(maxlen=_DEPTHS)
        self._depth_camera: CameraInfo | None = None
        # Why the newest of what was heard on a topic cannot be used for a camera, in words, by the
        # camera's frame ("": for any) and the topic.
        self._faults: dict[tuple[str, str], str] = {}
        self._subscriptions: dict[str, list[Any]] = {}  # by source
        if "odometry" in sources:
            self._subscribe("odometry", Odometry, _ODOMETRY, self._on_odometry)
            self._subscribe("odometry", PoseStamped, _POSE, self._on_pose)
        if "range" in sources:
            self._subscribe("range", LaserScan, _SCAN, self._on_scan)
            self._subscribe("range", Image, _DEPTH, self._on_depth)
            self._subscribe("range", CameraInfo, _DEPTH_CAMERA, self._on_depth_camera)

    def trouble(self, source: str, camera_frame: str) -> str:
        """Why a stream whose scale comes from this source has none from it, in words. Any thread.

        Empty while nothing stands in the way; what was observed is not looked at here.
        """
        if source not in ("height", *self._subscriptions):
            return ""
        with self._lock:
            faults = [
                fault
                for (camera, topic), fault in self._faults.items()
                if camera in ("", camera_frame) and topic in _TOPICS[source]
            ]
        heard = {"odometry": self._poses, "range": self._scans or self._depths}.get(source, True)
        if heard or faults:
            return "; ".join(faults)
        # What measures comes first, what belongs to it behind.
        topics = [f"'{subscription.topic_name}'" for subscription in self._subscriptions[source]]
        return f"nothing heard on {topics[0]} or {topics[1]}"

    def close(self) -> None:
        """Stop receiving."""
        while self._subscriptions:
            for subscription in self._subscriptions.popitem()[1]:
                self._node.destroy_subscription(subscription)

    def evidence(
        self, source: str, camera_frame: str, stamp_ns: int, camera_height: float
    ) -> Evidence:
        """What is known at a frame. The thread that runs the model.

        Args:
            camera_frame: frame id of the image.
            camera_height: metres above the ground; 0: that above `base_frame`.
        """
        with self._lock:
            if source == "odometry":
                return self._way(camera_frame)
            if source == "range":
                return self._ranges(camera_frame, stamp_ns)
            if source == "height":
                return self._ground(camera_frame, camera_height)
        return NO_EVIDENCE

    # --- from what was heard to the terms of one camera; under the lock ---

    def _judge(self, camera_frame: str, topic: str, fault: str) -> None:
        """Remember what is wrong with the newest on a topic; "" when nothing is any more."""
        if fault:
            self._faults[camera_frame, topic] = fault
        else:
            self._faults.pop((camera_frame, topic), None)

    def _way(self, camera_frame: str) -> Evidence:
        used = self._poses_used.get(camera_frame, 0)
        fresh = min(self._poses_heard - used, len(self._poses))
        self._poses_used[camera_frame] = self._poses_heard
        positions = []
        for pose in list(self._poses)[len(self._poses) - fresh :]:
            child = pose.child or self._base_frame
            child_from_camera = self._tree.lookup(child, camera_frame)
            if child_from_camera is None and not pose.child:
                child_from_camera = np.eye(4)  # no base is known: a pose is one of the camera
            if child_from_camera is None:
                self._judge(camera_frame, pose.topic, _unconnected(camera_frame, child))
                continue
            self._judge(camera_frame, pose.topic, "")
            place = (pose.fixed_from_child @ child_from_camera)[:3, 3]
            positions.append((pose.stamp_ns, place))
        return Evidence(positions=tuple(positions))

    def _ranges(self, camera_frame: str, stamp_ns: int) -> Evidence:
        parts = []
        for topic, kept, points_of in (
            (_SCAN, self._scans, _scan_points),
            (_DEPTH, self._depths, self._depth_points),
        ):
            message = _nearest(kept, stamp_ns)
            if message is None:
                continue
            frame = message.header.frame_id.lstrip("/")
            motion = self._tree.lookup(camera_frame, frame)
            if motion is None:
                self._judge(camera_frame, topic, _unconnected(frame, camera_frame))
                continue
            points, fault = np.zeros((0, 3)), ""
            try:
                points = points_of(message)  # type: ignore[operator]
            except ValueError as error:
                fault = str(error)
            self._judge(camera_frame, topic, fault)
            parts.append(points @ motion[:3, :3].T + motion[:3, 3])
        return Evidence(points=np.concatenate(parts)) if parts else NO_EVIDENCE

    def _ground(self, camera_frame: str, camera_height: float) -> Evidence:
        base_from_camera = self._tree.lookup(self._base_frame, camera_frame)
        up = _UP_IF_LEVEL if base_from_camera is None else base_from_camera[2, :3]
        if camera_height <= 0.0:
            above = 0.0 if base_from_camera is None else float(base_from_camera[2, 3])
            if above < _LOWEST_CAMERA_M:
                self._judge(
                    camera_frame,
                    _HEIGHT,
                    f"camera_height is 0 and /tf_static does not say that the camera is above "
                    f"'{self._base_frame}': set camera_height, or base_frame to one on the ground",
                )
                return NO_EVIDENCE
            camera_height = above
        self._judge(camera_frame, _HEIGHT, "")
        return Evidence(up=up, height=camera_height)

    def _depth_points(self, message: Image) -> np.ndarray:
        """(N, 3) points of some pixels of a depth image, in its own frame; ValueError if none."""
        info = self._depth_camera
        if info is None or not info.k[0] > 0 or not info.k[4] > 0 or not info.width:
            raise ValueError("no usable camera_info on scale/depth/camera_info")
        try:
            depth = depth_to_metres(
                np.frombuffer(message.data, np.uint8),
                message.encoding,
                message.height,
                message.width,
                message.step,
                bool(message.is_bigendian),
            )
        except ImageError as error:
            raise ValueError(f"scale/depth cannot be read: {error}") from error
        stride = max(1, max(depth.shape) // _DEPTH_GRID)
        z = depth[::stride, ::stride]
        rows, columns = np.mgrid[0 : depth.shape[0] : stride, 0 : depth.shape[1] : stride]
        per_info = message.width / info.width  # the image may be a reduced one
        x = ((columns + 0.5) / per_info - 0.5 - info.k[2]) / info.k[0] * z
        y = ((rows + 0.5) / per_info - 0.5 - info.k[5]) / info.k[4] * z
        return np.stack([x, y, z], -1).reshape(-1, 3)

    # --- callbacks ---

    def _subscribe(self, source: str, kind: type, topic: str, callback: Any) -> None:
        made = self._node.create_subscription(kind, topic, callback, qos_profile_sensor_data)
        self._subscriptions.setdefault(source, []).append(made)

    def _on_odometry(self, message: Odometry) -> None:
        child = message.child_frame_id.lstrip("/")
        self._keep_pose(message.header, _ODOMETRY, child, message.pose.pose)

    def _on_pose(self, message: PoseStamped) -> None:
        self._keep_pose(message.header, _POSE, "", message.pose)

    def _keep_pose(self, header: Header, topic: str, child: str, pose: Any) -> None:
        transform = Transform(rotation=pose.orientation)
        place = transform.translation
        place.x, place.y, place.z = pose.position.x, pose.position.y, pose.position.z
        try:
            motion = motion_from_transform(transform)
        except ValueError as error:
            with self._lock:
                self._judge("", topic, f"a pose for the scale cannot be used: {error}")
            return
        with self._lock:
            self._judge("", topic, "")
            self._poses.append(_Pose(topic, _stamp_ns(header), child, motion))
            self._poses_heard += 1

    def _on_scan(self, message: LaserScan) -> None:
        count, fault = len(message.ranges), ""
        if count > _MAX_RANGES:
            fault = f"a scan of {count} ranges is not used"
        with self._lock:
            self._judge("", _SCAN, fault)
            if not fault:
                self._scans.append(message)

    def _on_depth(self, message: Image) -> None:
        width, height, fault = message.width, message.height, ""
        if width * height > MOST_PIXELS:
            fault = f"a depth image of {width}x{height} pixels is not used"
        with self._lock:
            self._judge("", _DEPTH, fault)
            if not fault:
                self._depths.append(message)

    def _on_depth_camera(self, message: CameraInfo) -> None:
        with self._lock:
            self._depth_camera = message


def _unconnected(source: str, target: str) -> str:
    return f"/tf_static does not connect '{source}' with '{target}'"


def _scan_points(message: LaserScan) -> np.ndarray:
    """(N, 3) points of a scan in its own frame; what is out of its range is left out."""
    ranges = np.asarray(message.ranges, np.float64)
    angles = message.angle_min + message.angle_increment * np.arange(ranges.size)
    good = np.isfinite(ranges) & (ranges >= message.range_min) & (ranges <= message.range_max)
    ranges, angles = ranges[good], angles[good]
    flat = np.zeros_like(ranges)
    return np.stack([ranges * np.cos(angles), ranges * np.sin(angles), flat], -1)


def _nearest(messages: Collection[Any], stamp_ns: int) -> Any:
    """The message of the same moment as an image, or None."""
    best = min(messages, key=lambda m: abs(_stamp_ns(m.header) - stamp_ns), default=None)
    if best is None or abs(_stamp_ns(best.header) - stamp_ns) > _SAME_MOMENT_S * 1e9:
        return None
    return best


def _stamp_ns(header: Header) -> int:
    return int(header.stamp.sec * 1_000_000_000 + header.stamp.nanosec)
