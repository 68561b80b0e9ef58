# SPDX-License-Identifier: Apache-2.0
"""`omnistream view`: the outputs of a perception node in a browser, for machines without rviz.

The node subscribes while a browser has the page open and at no other time, so a viewer that nobody
looks at costs the robot nothing. Callbacks keep the newest message of each topic; a timer draws.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import Transform
from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from omnistream_ros.msg import StreamStatus
from omnistream_ros.nodes.distribution import message_to_rgb8, motion_from_transform
from omnistream_ros.nodes.frames import StaticTree
from omnistream_ros.nodes.image_checks import BadImageError, check_image
from omnistream_ros.nodes.process import RefusedToStartError, run
from omnistream_ros.nodes.status_marker import STATE_WORDS

_DRAW_S = 0.1
_PATH_POINTS = 5000
_PATH_STEP = 0.02  # metres


class Viewer(Node):
    """Subscribes to one perception node and feeds the page.

    Raises:
        RefusedToStartError: viser is not installed.
    """

    def __init__(self, perception: str, image_topic: str, port: int) -> None:
        try:
            from omnistream_ros.nodes.view_page import ViewPage
        except ImportError as error:
            raise RefusedToStartError(
                f"{error}; the page needs viser: pip install viser"
            ) from error
        super().__init__("omnistream_viewer")
        self._perception = perception.rstrip("/")
        self._topics: dict[str, tuple[type, Any]] = {
            image_topic: (Image, qos_profile_sensor_data),
            f"{self._perception}/depth/image_color": (Image, qos_profile_sensor_data),
            f"{self._perception}/depth/points": (PointCloud2, qos_profile_sensor_data),
            f"{self._perception}/depth/camera_info": (CameraInfo, qos_profile_sensor_data),
            f"{self._perception}/odometry": (Odometry, qos_profile_sensor_data),
        }
        self._image, self._depth, self._cloud, self._camera, self._odometry = self._topics
        self._newest: dict[str, Any] = {}
        self._clouds: collections.deque[PointCloud2] = collections.deque(maxlen=4)
        self._live: list[Any] = []
        self._tree = StaticTree()
        self._path: list[np.ndarray] = []
        self._status: StreamStatus | None = None
        self._rgb: np.ndarray | None = None
        self._fov = np.radians(45.0)
        self._page = ViewPage(port, self._perception)
        latched = QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(TFMessage, "/tf_static", self._on_tf_static, latched)
        self.create_subscription(
            StreamStatus, f"{self._perception}/status", self._on_status, QoSProfile(depth=50)
        )
        self.create_timer(_DRAW_S, self._draw, clock=Clock(clock_type=ClockType.STEADY_TIME))
        print(f"{self._perception} at {self._page.address} (Ctrl-C ends)", flush=True)

    def destroy_node(self) -> None:
        """Stop serving, then destroy the node."""
        self._page.close()
        super().destroy_node()

    def _on_tf_static(self, message: TFMessage) -> None:
        for fault in self._tree.add(message):
            self.get_logger().warning(fault)

    def _on_status(self, message: StreamStatus) -> None:
        if message.state == StreamStatus.STREAMING:
            stages = dict(zip(message.stage_names, message.stage_ms, strict=True))
            around = ("wait", "convert", "preprocess", "publish")
            model = sum(ms for stage, ms in stages.items() if stage not in around)
            self._page.add_latency(message.latency_ms, model)
        self._status = message

    def _watch(self, watched: bool) -> None:
        """Subscribe when the first browser comes, unsubscribe when the last one has gone."""
        if watched and not self._live:
            for topic, (kind, qos) in self._topics.items():
                callback = self._keep(topic)
                self._live.append(self.create_subscription(kind, topic, callback, qos))
        while self._live and not watched:
            self.destroy_subscription(self._live.pop())

    def _keep(self, topic: str) -> Any:
        def keep(message: Any) -> None:
            self._newest[topic] = message
            if topic == self._cloud:
                self._clouds.append(message)

        return keep

    def _draw(self) -> None:
        self._watch(self._page.watched)
        if not self._live:
            return
        newest, self._newest = self._newest, {}
        if self._status is not None:
            self._page.show_state(_describe(self._status))
            self._page.draw_latency()
        if (message := newest.get(self._image)) is not None:
            rgb = self._pixels(message)
            if rgb is not None:
                self._rgb = rgb
                self._page.show_image(rgb)
        if (message := newest.get(self._depth)) is not None:
            rgb = self._pixels(message)
            if rgb is not None:
                self._page.show_depth(rgb)
        if (message := newest.get(self._camera)) is not None and message.k[4] > 0:
            self._fov = 2 * np.arctan(message.height / 2 / message.k[4])
        if (message := newest.get(self._odometry)) is not None:
            self._draw_scene(message)

    def _draw_scene(self, odometry: Odometry) -> None:
        """Camera, path, and the points of the same image."""
        pose = self._camera_pose(odometry)
        if pose is None:
            return
        self._page.show_camera(pose, float(self._fov), self._rgb)
        here = pose[:3, 3]
        if not self._path or np.linalg.norm(here - self._path[-1]) > _PATH_STEP:
            self._path.append(here)
            del self._path[:-_PATH_POINTS]
            self._page.show_path(np.array(self._path))
        # The node publishes points first: those of this pose have come, and perhaps the next ones.
        cloud = next((c for c in self._clouds if c.header.stamp == odometry.header.stamp), None)
        if cloud is not None:
            points, colours = _read_cloud(cloud)
            self._page.show_points(points @ pose[:3, :3].T + pose[:3, 3], colours)

    def _camera_pose(self, odometry: Odometry) -> np.ndarray | None:
        """odom_from_optical (4, 4), or None while the mount of the camera is not known."""
        if self._status is None:
            return None
        try:
            odom_from_child = motion_from_transform(_as_transform(odometry))
        except ValueError as error:
            self.get_logger().warning(f"{self._odometry}: {error}", throttle_duration_sec=5.0)
            return None
        optical = self._status.header.frame_id.lstrip("/")
        child_from_optical = self._tree.lookup(odometry.child_frame_id, optical)
        return None if child_from_optical is None else odom_from_child @ child_from_optical

    def _pixels(self, message: Image) -> np.ndarray | None:
        try:
            check_image(message)
        except BadImageError as fault:
            self.get_logger().warning(f"image not shown: {fault}", throttle_duration_sec=5.0)
            return None
        return message_to_rgb8(message)


def _as_transform(odometry: Odometry) -> Transform:
    """The pose of an odometry message with the field names of a Transform."""
    transform = Transform(rotation=odometry.pose.pose.orientation)
    place = odometry.pose.pose.position
    transform.translation.x, transform.translation.y = place.x, place.y
    transform.translation.z = place.z
    return transform


def _read_cloud(message: PointCloud2) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) and colours (N, 3) uint8 of a cloud as `point_clouds` makes it."""
    values = np.frombuffer(message.data, np.float32).reshape(-1, message.point_step // 4)
    values = values[np.isfinite(values[:, 2])]
    packed = np.ascontiguousarray(values[:, 3]).view(np.uint32)
    colours = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1)
    return values[:, :3], colours.astype(np.uint8)


def _describe(status: StreamStatus) -> str:
    drops = sum(status.drop_counts)
    scale = "metric" if status.metric else "up to one scale"
    return (
        f"**{STATE_WORDS.get(status.state, 'unknown')}** · {status.model_name} · {scale}\n\n"
        f"epoch {status.epoch}, frame {status.frame_index}, context {status.context_frames} of "
        f"{status.context_capacity} frames, {status.latency_ms:.0f} ms\n\n"
        f"{status.frames_processed} of {status.frames_received} images used, {drops} dropped"
    )


def view(
    perception: str, image_topic: str, port: int, ros_args: Sequence[str] | None = None
) -> int:
    """Serve the page until SIGINT or SIGTERM. Returns the exit status."""
    return run(lambda: Viewer(perception, image_topic, port), ros_args)
