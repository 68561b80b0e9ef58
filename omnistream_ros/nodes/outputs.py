# SPDX-License-Identifier: Apache-2.0
"""Everything that is published about the frames of one camera, and only what somebody listens to.

Publishers are reliable (REP-2003: publishers offer the most, subscribers ask for what they need):
best-effort and reliable subscribers both match. Each can be overridden by the standard parameters
``qos_overrides.<topic>.publisher.{reliability,history,depth}``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from nav_msgs.msg import Odometry, Path
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from omnistream_ros.msg import FeatureTensor, StreamStatus
from omnistream_ros.nodes.depth_pictures import colour_depth
from omnistream_ros.nodes.frames import OdometryFrame
from omnistream_ros.nodes.lifecycle import ManagedNode
from omnistream_ros.nodes.output_messages import (
    ModelFacts,
    SourceFacts,
    depth_camera_info,
    depth_image,
    feature_message,
    image_message,
)
from omnistream_ros.nodes.point_clouds import CloudSettings, cloud_message
from omnistream_ros.nodes.pose_outputs import PoseOutputs, heard
from omnistream_ros.stream.result import FeatureKey, Outputs, StreamResult

_QOS_DEPTH = 5


@dataclasses.dataclass(frozen=True)
class OutputSettings:
    """The parameters that outputs depend on, as they are for one frame."""

    depth_encoding: str
    cloud: CloudSettings
    publish_tf: bool
    path_length: int
    features: tuple[FeatureKey, ...]


class OutputPublishers:
    """The publishers of one camera of a configured node.

    Args:
        prefix: of the topics: `~/`, or of one camera of several `~/NAME/`.
        on_tf: whether this camera may place frames on /tf.
    """

    def __init__(self, node: ManagedNode, model: ModelFacts, prefix: str, *, on_tf: bool) -> None:
        self._node = node
        self._model = model
        self._prefix = prefix
        self._made: list[Any] = []
        self._pose: PoseOutputs | None = None
        try:
            self._create_all(on_tf)
        except Exception:
            self.destroy()
            raise

    def _create_all(self, on_tf: bool) -> None:
        self.depth = self._create(Image, "depth/image")
        self.camera_info = self._create(CameraInfo, "depth/camera_info")
        self.confidence = self._create(Image, "depth/confidence")
        self.picture = self._create(Image, "depth/image_color")
        self.points = self._create(PointCloud2, "depth/points")
        odometry, path = self._create(Odometry, "odometry"), self._create(Path, "path")
        self._pose = PoseOutputs(self._node, odometry, path, on_tf=on_tf)
        self.features = self._create(FeatureTensor, "features")
        self.status = self._create(StreamStatus, "status")

    def _create(self, kind: type, topic: str) -> Any:
        publisher: Any = self._node.create_lifecycle_publisher(
            kind,
            self._prefix + topic,
            QoSProfile(depth=_QOS_DEPTH, reliability=QoSReliabilityPolicy.RELIABLE),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._made.append(publisher)
        return publisher

    def destroy(self) -> None:
        """Take all publishers off the node."""
        while self._made:
            self._node.destroy_lifecycle_publisher(self._made.pop())
        if self._pose is not None:
            self._pose.destroy()
            self._pose = None

    def restart(self) -> None:
        """A new stream begins."""
        assert self._pose is not None
        self._pose.restart()

    def wanted(self, settings: OutputSettings) -> Outputs:
        """What has a subscriber now."""
        assert self._pose is not None
        return Outputs(
            depth=self._model.has_depth
            and any(map(heard, (self.depth, self.confidence, self.picture, self.points))),
            pose=self._model.has_pose and self._pose.wanted(settings.publish_tf),
            features=settings.features if heard(self.features) else (),
        )

    def publish(
        self,
        result: StreamResult,
        source: SourceFacts,
        settings: OutputSettings,
        frame: OdometryFrame,
    ) -> None:
        """Publish everything that ``result`` holds, depth first: it is what robots wait for."""
        result = result.to_host(confidence=heard(self.confidence) or heard(self.points))
        if result.depth is not None:
            self._publish_depth(result, source, settings)
        if self._model.has_depth and heard(self.camera_info):
            self.camera_info.publish(depth_camera_info(result.intrinsics, source))
        if result.pose is not None:
            assert self._pose is not None
            self._pose.publish(
                result.pose,
                source.header,
                frame,
                publish_tf=settings.publish_tf,
                path_length=settings.path_length,
            )
        for key, tensor in result.features.items():
            self.features.publish(feature_message(key, tensor, result, source, self._model))

    def _publish_depth(
        self, result: StreamResult, source: SourceFacts, settings: OutputSettings
    ) -> None:
        assert result.depth is not None
        if heard(self.depth):
            self.depth.publish(depth_image(result.depth, settings.depth_encoding, source.header))
        if heard(self.points):
            self.points.publish(
                cloud_message(source.header, result, source.pixels, settings.cloud, source.lens)
            )
        if heard(self.confidence):
            assert result.confidence is not None
            self.confidence.publish(
                image_message(result.confidence.cpu().numpy(), "32FC1", source.header)
            )
        if heard(self.picture):
            picture = colour_depth(result.depth.cpu().numpy())
            self.picture.publish(image_message(picture, "bgr8", source.header))
