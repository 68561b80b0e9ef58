# SPDX-License-Identifier: Apache-2.0
"""Everything that is published about the frames of one camera, and only what is wanted.

Publishers are reliable (REP-2003: publishers offer the most, subscribers ask for what they need):
best-effort and reliable subscribers both match. Each can be overridden by the standard parameters
``qos_overrides.<topic>.publisher.{reliability,history,depth}``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from visualization_msgs.msg import Marker

from omnistream_ros.msg import FeatureTensor, StreamStatus
from omnistream_ros.nodes import handover
from omnistream_ros.nodes.depth_pictures import colour_depth
from omnistream_ros.nodes.frames import OdometryFrame
from omnistream_ros.nodes.lifecycle import ManagedNode
from omnistream_ros.nodes.output_messages import (
    ModelFacts,
    SourceFacts,
    compressed_depth_image,
    depth_camera_info,
    depth_image,
    feature_facts,
    feature_message,
    image_message,
)
from omnistream_ros.nodes.output_topic import OutputTopic
from omnistream_ros.nodes.point_clouds import CloudSettings, cloud_message
from omnistream_ros.nodes.pose_outputs import PoseOutputs
from omnistream_ros.nodes.status_marker import status_marker
from omnistream_ros.stream.result import FeatureKey, Outputs, StreamResult

# The parameters `output_...` and the topics that follow them; status is there always.
OUTPUTS: dict[str, tuple[tuple[str, type], ...]] = {
    "depth": (
        ("depth/image", Image),
        ("depth/image/compressedDepth", CompressedImage),
        ("depth/camera_info", CameraInfo),
    ),
    "confidence": (("depth/confidence", Image),),
    "image_color": (("depth/image_color", Image),),
    "points": (("depth/points", PointCloud2),),
    "odometry": (("odometry", Odometry),),
    "path": (("path", Path),),
    "features": (("features", FeatureTensor),),
}


@dataclasses.dataclass(frozen=True)
class OutputSettings:
    """The parameters that outputs depend on, as they are for one frame."""

    depth_encoding: str
    cloud: CloudSettings
    publish_tf: bool
    path_length: int
    features: tuple[FeatureKey, ...]
    feature_dtype: str


class OutputPublishers:
    """The publishers of one camera of a configured node.

    Args:
        prefix: of the topics: `~/`, or of one camera of several `~/NAME/`.
        modes: of `OutputTopic`, by key of `OUTPUTS`.
        on_tf: whether this camera may place frames on /tf.
    """

    def __init__(
        self,
        node: ManagedNode,
        model: ModelFacts,
        prefix: str,
        modes: Mapping[str, str],
        *,
        on_tf: bool,
    ) -> None:
        self._model = model
        self._features_name = node.resolve_topic_name(f"{prefix}features")
        self._topics: dict[str, OutputTopic] = {}
        self._pose: PoseOutputs | None = None
        try:
            for output, topics in OUTPUTS.items():
                for topic, kind in topics:
                    self._topics[topic] = OutputTopic(node, kind, prefix + topic, modes[output])
            self._topics["status"] = OutputTopic(node, StreamStatus, prefix + "status")
            self._topics["status/marker"] = OutputTopic(node, Marker, prefix + "status/marker")
            self._pose = PoseOutputs(
                node, self._topics["odometry"], self._topics["path"], on_tf=on_tf
            )
        except Exception:
            self.destroy()
            raise
        self.depth, self.camera_info = (
            self._topics["depth/image"],
            self._topics["depth/camera_info"],
        )
        self.confidence, self.points = (
            self._topics["depth/confidence"],
            self._topics["depth/points"],
        )
        self.picture = self._topics["depth/image_color"]
        self.compressed = self._topics["depth/image/compressedDepth"]
        self.features, self.status = self._topics["features"], self._topics["status"]
        self.marker = self._topics["status/marker"]

    def destroy(self) -> None:
        """Take all publishers off the node."""
        for topic in self._topics.values():
            topic.destroy()
        if self._pose is not None:
            self._pose.destroy()
            self._pose = None

    def restart(self) -> None:
        """A new stream begins."""
        assert self._pose is not None
        self._pose.restart()

    def wanted(self, settings: OutputSettings) -> Outputs:
        """What is to be computed for the next frame."""
        assert self._pose is not None
        return Outputs(
            depth=self._model.has_depth
            and any(
                t.wanted
                for t in (self.depth, self.compressed, self.confidence, self.picture, self.points)
            ),
            pose=self._model.has_pose and self._pose.wanted(settings.publish_tf),
            features=settings.features if self._features_wanted else (),
        )

    def publish_status(self, status: StreamStatus) -> None:
        """Publish the state of the stream, for programs and for people."""
        self.status.publish(status)
        if self.marker.wanted and status.header.frame_id:
            self.marker.publish(status_marker(status))

    def publish(
        self,
        result: StreamResult,
        source: SourceFacts,
        settings: OutputSettings,
        frame: OdometryFrame,
    ) -> None:
        """Publish everything that ``result`` holds, depth first: it is what robots wait for."""
        dtype = getattr(torch, settings.feature_dtype)
        features = {key: tensor.to(dtype) for key, tensor in result.features.items()}
        result = dataclasses.replace(result, features=features).to_host(
            confidence=self.confidence.wanted or self.points.wanted
        )
        if result.depth is not None:
            self._publish_depth(result, source, settings)
        if self._model.has_depth and self.camera_info.wanted:
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
        self._publish_features(result, source)

    @property
    def _features_wanted(self) -> bool:
        return self.features.wanted or bool(handover.listeners(self._features_name))

    def _publish_features(self, result: StreamResult, source: SourceFacts) -> None:
        """First by reference to who is in this process, then as bytes to everybody else."""
        given = handover.listeners(self._features_name)
        for key, tensor in result.features.items():
            for listener in given:
                listener(feature_facts(key, result, source, self._model), tensor)
            if self.features.wanted:
                self.features.publish(feature_message(key, tensor, result, source, self._model))

    def _publish_depth(
        self, result: StreamResult, source: SourceFacts, settings: OutputSettings
    ) -> None:
        assert result.depth is not None
        if self.depth.wanted:
            self.depth.publish(depth_image(result.depth, settings.depth_encoding, source.header))
        if self.compressed.wanted:
            self.compressed.publish(compressed_depth_image(result.depth, source.header))
        if self.points.wanted:
            self.points.publish(
                cloud_message(source.header, result, source.pixels, settings.cloud, source.lens)
            )
        if self.confidence.wanted:
            assert result.confidence is not None
            self.confidence.publish(
                image_message(result.confidence.cpu().numpy(), "32FC1", source.header)
            )
        if self.picture.wanted:
            picture = colour_depth(result.depth.cpu().numpy())
            self.picture.publish(image_message(picture, "bgr8", source.header))
