# SPDX-License-Identifier: Apache-2.0
"""Recordings made by ``ros2 bag record``: mcap or sqlite3, compressed or not, read without ROS.

The ``rosbags`` library reads the files; this module decides which topics are the camera, its depth
and its pose, and turns their messages into frames. Header stamps are used, never receive times.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from omnistream_ros.evaluation import ros_images
from omnistream_ros.evaluation.bag_camera import BagCamera
from omnistream_ros.evaluation.bag_messages import COMPRESSED, stamp_of
from omnistream_ros.evaluation.bag_poses import read_poses
from omnistream_ros.evaluation.bag_reader import BagReader
from omnistream_ros.evaluation.bag_topics import find_topics, is_rectified
from omnistream_ros.evaluation.recordings import (
    DepthFrame,
    Recording,
    RecordingError,
    RecordingInfo,
    Selection,
)
from omnistream_ros.evaluation.trajectory import Trajectory, TrajectoryError
from omnistream_ros.stream.frame import Frame, Intrinsics


class Rosbag2Recording(Recording):
    """A rosbag2 folder, or one .mcap or .db3 file of it.

    Raises:
        RecordingError: not a bag, no image topic, or several that fit.
    """

    def __init__(self, path: Path, selection: Selection) -> None:
        super().__init__(path)
        self.pose_notes: list[str] = []
        self._selection = selection
        self._bag = BagReader(path)
        self.topics = find_topics(self._bag, selection)

    @functools.cached_property
    def _camera_frame(self) -> str:
        """TF frame of the camera."""
        if self._selection.camera_frame:
            return self._selection.camera_frame
        first = self._bag.first(self.topics.image)
        return first.header.frame_id if first is not None else ""

    def info(self) -> RecordingInfo:
        first = next(self.frames(), None)
        notes = list(self.topics.notes)
        if first is None:
            notes.append(f"{self.topics.image} holds no message")
        camera = self._bag.first(self.topics.info) if self.topics.info else None
        if camera is None:
            notes.append("no camera_info: the focal length is unknown, so depth cannot be metric")
        elif np.any(camera.d) and not is_rectified(self.topics.image):
            notes.append(
                f"images are distorted ({camera.distortion_model}): undistorted here, K kept"
            )
        duration_s = self._stamped_s()
        received_s = self._bag.duration_ns / 1e9
        if duration_s is not None and abs(duration_s - received_s) > 1.0 + 0.1 * received_s:
            notes.append(
                f"stamps span {duration_s:.1f} s but reception {received_s:.1f} s; stamps are used"
            )
        return RecordingInfo(
            layout=f"rosbag2 ({self._bag.storage})",
            images=self.topics.image,
            depth=self.topics.depth,
            poses=self.topics.pose,
            frames=self._bag.topics[self.topics.image][1],
            depths=self._bag.topics[self.topics.depth][1] if self.topics.depth else None,
            duration_s=duration_s,
            width=first.width if first else None,
            height=first.height if first else None,
            intrinsics=first.intrinsics if first else None,
            notes=tuple(notes),
            contents=tuple(
                f"{topic}  {kind}  {count}"
                for topic, (kind, count) in sorted(self._bag.topics.items())
            ),
        )

    def _stamped_s(self) -> float | None:
        """Seconds from the stamp of the first image to that of the last."""
        first, last = self._bag.first(self.topics.image), self._bag.last(self.topics.image)
        if first is None or last is None:
            return None
        return (stamp_of(last.header) - stamp_of(first.header)) / 1e9

    def frames(self) -> Iterator[Frame]:
        compressed = self._bag.topics[self.topics.image][0] == COMPRESSED
        decode = ros_images.compressed_rgb if compressed else ros_images.rgb_image
        for stamp, image, camera in self._images(
            self.topics.image, self.topics.info, decode, "image"
        ):
            yield Frame(image, stamp, camera)

    def depths(self) -> Iterator[DepthFrame]:
        if self.topics.depth is None:
            return
        self._check_same_camera()
        compressed = self._bag.topics[self.topics.depth][0] == COMPRESSED
        decode = ros_images.compressed_depth if compressed else ros_images.depth_image
        # Depth without a calibration of its own is registered to the image: same camera, same lens.
        info = self.topics.depth_info or self.topics.info
        for stamp, depth, camera in self._images(self.topics.depth, info, decode, "depth"):
            yield DepthFrame(stamp, depth, camera)

    def _images(
        self, topic: str, info_topic: str | None, decode: Any, kind: Literal["image", "depth"]
    ) -> Iterator[tuple[int, np.ndarray, Intrinsics | None]]:
        """Stamp, pixels without distortion and pinhole of every message of an image topic."""
        own = info_topic != self.topics.info or topic == self.topics.image
        camera = BagCamera(rectified=is_rectified(topic if own else self.topics.image))
        camera.learn(self._bag.first(info_topic) if info_topic else None)
        topics = [topic, info_topic] if info_topic else [topic]
        number = 0
        for name, _, message in self._bag.messages(topics):
            if name == info_topic:
                camera.learn(message)
                continue
            try:
                pixels, intrinsics = camera.pinhole(decode(message), kind)
            except ValueError as error:
                raise RecordingError(f"{self.path}: {topic}, message {number}: {error}") from error
            yield stamp_of(message.header), pixels, intrinsics
            number += 1

    def _check_same_camera(self) -> None:
        """Depth seen by another camera must not be compared pixel by pixel."""
        assert self.topics.depth is not None
        colour, depth = self._bag.first(self.topics.image), self._bag.first(self.topics.depth)
        if colour is None or depth is None:
            return
        if colour.header.frame_id != depth.header.frame_id:
            raise RecordingError(
                f"{self.topics.depth} is in frame {depth.header.frame_id!r}, "
                f"but {self.topics.image} in {colour.header.frame_id!r}: another camera. "
                "Record depth registered to colour (such as aligned_depth_to_color) "
                "or name it with --depth-topic"
            )

    def trajectory(self) -> Trajectory | None:
        topic = self.topics.pose
        if topic is None:
            return None
        try:
            trajectory, self.pose_notes = read_poses(self._bag, topic, self._camera_frame)
        except TrajectoryError as error:
            raise RecordingError(f"{self.path}: {topic}: {error}") from error
        return trajectory
