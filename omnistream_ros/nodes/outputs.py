# SPDX-License-Identifier: Apache-2.0
"""Everything the perception node publishes about a frame, and only what somebody listens to.

Publishers are reliable (REP-2003: publishers offer the most, subscribers ask for what they need):
best-effort and reliable subscribers both match. Each can be overridden by the standard parameters
``qos_overrides.<topic>.publisher.{reliability,history,depth}``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from geometry_msgs.msg import PoseStamped, TransformStamped
from nav_msgs.msg import Odometry, Path
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from omnistream_ros.msg import FeatureTensor, StreamStatus
from omnistream_ros.nodes.depth_pictures import colour_depth
from omnistream_ros.nodes.distribution import (
    Broadcaster,
    byte_array,
    destroy_broadcaster,
    fill_transform,
    transform_broadcaster,
)
from omnistream_ros.nodes.feature_messages import KINDS, set_tensor
from omnistream_ros.nodes.frames import OdometryFrame
from omnistream_ros.nodes.lifecycle import ManagedNode
from omnistream_ros.nodes.point_clouds import CloudSettings, cloud_message
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.result import FeatureKey, Outputs, StreamResult

_QOS_DEPTH = 5
DEPTH_ENCODINGS = ("32FC1", "16UC1")
_PATH_STEP = 0.02  # metres between the poses of ~/path
# Twist is not estimated: a variance so large that nothing fuses the zeros.
_UNKNOWN_VARIANCE = 1e6


@dataclasses.dataclass(frozen=True)
class OutputSettings:
    """The parameters that outputs depend on, as they are for one frame."""

    depth_encoding: str
    cloud: CloudSettings
    publish_tf: bool
    odom_frame: str
    path_length: int
    features: tuple[FeatureKey, ...]


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What every consumer must know about the model; constant while the node is configured."""

    name: str
    sha256: str
    patch_size: int
    layers: int
    has_depth: bool
    has_pose: bool


@dataclasses.dataclass(frozen=True)
class SourceFacts:
    """What a result does not carry of the image it came from."""

    header: Header
    pixels: np.ndarray  # (H, W, 3) uint8
    camera_info: CameraInfo | None
    rectified: bool
    stream_id: str
    dropped_since_last: int


class OutputPublishers:
    """The publishers of one configured node."""

    def __init__(self, node: ManagedNode, model: ModelFacts) -> None:
        self._node = node
        self._model = model
        self._made: list[Any] = []
        self._tf: Broadcaster | None = None
        try:
            self._create_all()
        except Exception:
            self.destroy()
            raise
        self._path: list[PoseStamped] = []
        self._path_end = np.zeros(3)
        self._refused = ""  # last reason not to publish on /tf, told once

    def _create_all(self) -> None:
        self.depth = self._create(Image, "~/depth/image")
        self.camera_info = self._create(CameraInfo, "~/depth/camera_info")
        self.confidence = self._create(Image, "~/depth/confidence")
        self.picture = self._create(Image, "~/depth/image_color")
        self.points = self._create(PointCloud2, "~/depth/points")
        self.odometry = self._create(Odometry, "~/odometry")
        self.path = self._create(Path, "~/path")
        self.features = self._create(FeatureTensor, "~/features")
        self.status = self._create(StreamStatus, "~/status")
        self._tf = transform_broadcaster(self._node)

    def _create(self, kind: type, topic: str) -> Any:
        publisher: Any = self._node.create_lifecycle_publisher(
            kind,
            topic,
            QoSProfile(depth=_QOS_DEPTH, reliability=QoSReliabilityPolicy.RELIABLE),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._made.append(publisher)
        return publisher

    def destroy(self) -> None:
        """Take all publishers off the node."""
        while self._made:
            self._node.destroy_lifecycle_publisher(self._made.pop())
        if self._tf is not None:
            destroy_broadcaster(self._node, self._tf)
            self._tf = None

    def wanted(self, settings: OutputSettings) -> Outputs:
        """What has a subscriber now."""
        tf_heard = settings.publish_tf and self._tf_subscribers() > 0
        return Outputs(
            depth=self._model.has_depth
            and any(map(_heard, (self.depth, self.confidence, self.picture, self.points))),
            pose=self._model.has_pose and (_heard(self.odometry) or _heard(self.path) or tf_heard),
            features=settings.features if _heard(self.features) else (),
        )

    def publish(
        self,
        result: StreamResult,
        source: SourceFacts,
        settings: OutputSettings,
        frame: OdometryFrame,
    ) -> None:
        """Publish everything that ``result`` holds, depth first: it is what robots wait for."""
        result = result.to_host(confidence=_heard(self.confidence) or _heard(self.points))
        if result.depth is not None:
            self._publish_depth(result, source, settings)
        if self._model.has_depth and _heard(self.camera_info):
            self.camera_info.publish(depth_camera_info(result.intrinsics, source))
        if result.pose is not None:
            self._publish_pose(result, source, settings, frame)
        for key, tensor in result.features.items():
            self.features.publish(feature_message(key, tensor, result, source, self._model))

    def _publish_depth(
        self, result: StreamResult, source: SourceFacts, settings: OutputSettings
    ) -> None:
        assert result.depth is not None
        if _heard(self.depth):
            self.depth.publish(depth_image(result.depth, settings.depth_encoding, source.header))
        if _heard(self.points):
            self.points.publish(cloud_message(source.header, result, source.pixels, settings.cloud))
        if _heard(self.confidence):
            assert result.confidence is not None
            self.confidence.publish(
                image_message(result.confidence.cpu().numpy(), "32FC1", source.header)
            )
        if _heard(self.picture):
            picture = colour_depth(result.depth.cpu().numpy())
            self.picture.publish(image_message(picture, "bgr8", source.header))

    def _publish_pose(
        self,
        result: StreamResult,
        source: SourceFacts,
        settings: OutputSettings,
        frame: OdometryFrame,
    ) -> None:
        assert result.pose is not None
        placement = frame.place(result.pose, source.header.frame_id.lstrip("/"))
        header = Header(stamp=source.header.stamp, frame_id=settings.odom_frame)
        if _heard(self.odometry):
            odometry = Odometry(header=header, child_frame_id=placement.child)
            pose = odometry.pose.pose
            fill_transform(placement.motion, pose.position, pose.orientation)
            if placement.covariance is not None:
                odometry.pose.covariance = placement.covariance.reshape(-1)
            odometry.twist.covariance = _UNKNOWN_VARIANCE * np.eye(6).reshape(-1)
            self.odometry.publish(odometry)
        if placement.settled:
            self._publish_path(header, placement.motion, settings.path_length)
        if not settings.publish_tf or not placement.settled:
            return
        if placement.tf_refused:
            if placement.tf_refused != self._refused:
                self._node.get_logger().warning(placement.tf_refused)
            self._refused = placement.tf_refused
            return
        self._refused = ""
        message = TransformStamped(header=header, child_frame_id=placement.child)
        fill_transform(placement.motion, message.transform.translation, message.transform.rotation)
        assert self._tf is not None
        self._tf.sendTransform(message)

    def _publish_path(self, header: Header, motion: np.ndarray, length: int) -> None:
        """Add the pose where it has moved on, forget the oldest beyond ``length``, publish."""
        here = motion[:3, 3]
        if self._path and np.linalg.norm(here - self._path_end) < _PATH_STEP:
            return
        self._path_end = here
        pose = PoseStamped(header=header)
        fill_transform(motion, pose.pose.position, pose.pose.orientation)
        self._path.append(pose)
        del self._path[:-length]
        if _heard(self.path):
            self.path.publish(Path(header=header, poses=self._path))

    def _tf_subscribers(self) -> int:
        """Subscribers of /tf other than this node, which listens for second parents."""
        assert self._tf is not None
        return self._tf.pub_tf.get_subscription_count() - 1


def _heard(publisher: Any) -> bool:
    return publisher.get_subscription_count() > 0


def depth_image(depth: torch.Tensor, encoding: str, header: Header) -> Image:
    """Depth (H, W) in metres as an image message (REP-118).

    ``32FC1``: metres, NaN where unknown. ``16UC1``: millimetres, 0 where unknown or beyond the
    65.535 m that the format holds.
    """
    known = torch.isfinite(depth) & (depth > 0.0)
    if encoding == "32FC1":
        values = depth.float().masked_fill(~known, float("nan")).cpu().numpy()
    else:
        millimetres = (depth * 1000.0).round()
        known &= millimetres <= 65535.0
        # torch's uint16 has few operations; the bits of int32 below 65536 are the same.
        values = millimetres.masked_fill(~known, 0.0).int().cpu().numpy().astype(np.uint16)
    return image_message(values, encoding, header)


def image_message(values: np.ndarray, encoding: str, header: Header) -> Image:
    """Pixels (H, W) or (H, W, C), contiguous, as a message of the encoding that fits them."""
    height, width = values.shape[:2]
    image = Image(header=header, height=height, width=width, encoding=encoding)
    image.is_bigendian = 0
    image.step = values.nbytes // height
    image.data = byte_array(values)
    return image


def depth_camera_info(camera: Intrinsics, source: SourceFacts) -> CameraInfo:
    """The camera_info of the depth image: its own size, the lens of the source image.

    Depth lies in the pixels of the source image, so its distortion (which is in normalised
    coordinates and knows no resolution) is kept, unless the source is rectified.
    """
    info = CameraInfo(header=source.header, width=camera.width, height=camera.height)
    given = source.camera_info
    info.distortion_model, info.d = "plumb_bob", [0.0] * 5
    if given is not None and not source.rectified and given.distortion_model:
        info.distortion_model, info.d = given.distortion_model, given.d
    k = [camera.fx, 0.0, camera.cx, 0.0, camera.fy, camera.cy, 0.0, 0.0, 1.0]
    info.k = k
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0]
    return info


def feature_message(
    key: FeatureKey,
    tensor: torch.Tensor,
    result: StreamResult,
    source: SourceFacts,
    model: ModelFacts,
) -> FeatureTensor:
    """One feature tensor with all that is needed to use it elsewhere."""
    message = FeatureTensor(
        header=source.header,
        stream_id=source.stream_id,
        epoch=result.epoch,
        frame_index=result.frame_index,
        context_frames=result.context_frames,
        dropped_since_last=source.dropped_since_last,
        model_name=model.name,
        weights_sha256=model.sha256,
        layer=key.layer % model.layers,
        kind=KINDS[key.kind],
        normed=key.normed,
        patch_size=model.patch_size,
    )
    message.grid_height, message.grid_width = result.grid
    message.model_height, message.model_width = result.model_size
    message.source_height, message.source_width = result.source_size
    message.model_to_source = np.asarray(result.model_to_source, np.float64).reshape(6)
    set_tensor(message, tensor)
    return message
