# SPDX-License-Identifier: Apache-2.0
"""Recordings made by ``ros2 bag record``: mcap or sqlite3, compressed or not, read without ROS.

The ``rosbags`` library reads the files; this module decides which topics are the camera, its depth
and its pose, and turns their messages into frames. Header stamps are used, never receive times.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from omnistream_ros.evaluation import ros_images
from omnistream_ros.evaluation.recordings import (
    DepthFrame,
    Recording,
    RecordingError,
    RecordingInfo,
    Selection,
)
from omnistream_ros.evaluation.trajectory import Trajectory, TrajectoryError
from omnistream_ros.evaluation.transforms import PoseSeries, TransformTree
from omnistream_ros.stream.frame import Frame, Intrinsics

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
TF = "tf2_msgs/msg/TFMessage"
ODOMETRY = "nav_msgs/msg/Odometry"
POSE = "geometry_msgs/msg/PoseStamped"
_POSES = (TF, ODOMETRY, POSE)
_STORAGE = (".mcap", ".db3")


class BagReader:
    """The files of one bag as one stream of messages, with every error of theirs made readable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._types = get_typestore(Stores.LATEST)
        self._files = self._find_files(path)
        #: topic -> (type, message count)
        self.topics: dict[str, tuple[str, int]] = {}
        self.duration_ns = 0
        suffixes = {file.suffix for file in ([path] if path.is_file() else path.iterdir())}
        self.storage = "mcap" if ".mcap" in suffixes else "sqlite3"
        starts, ends = [], []
        with self._open() as readers:
            for reader in readers:
                for connection in reader.connections:
                    _, count = self.topics.get(connection.topic, ("", 0))
                    self.topics[connection.topic] = (
                        connection.msgtype,
                        count + connection.msgcount,
                    )
                if reader.message_count:
                    starts.append(reader.start_time)
                    ends.append(reader.end_time)
        if starts:
            self.duration_ns = max(ends) - min(starts)

    @staticmethod
    def _find_files(path: Path) -> list[Path]:
        if path.is_file() or (path / "metadata.yaml").exists():
            return [path]
        # A bag whose recorder was killed has no metadata.yaml; its finished files can still be
        # read.
        files = sorted(file for file in path.iterdir() if file.suffix in _STORAGE)
        if not files:
            raise RecordingError(f"{path} holds no metadata.yaml, .mcap or .db3 file: not a bag")
        return files

    @contextlib.contextmanager
    def _open(self) -> Iterator[list[Reader]]:
        with contextlib.ExitStack() as stack:
            readers = []
            for file in self._files:
                # Each storage library has its own errors, some of them plain struct or index
                # errors.
                try:
                    readers.append(stack.enter_context(Reader(file)))
                except Exception as error:
                    raise RecordingError(
                        f"{file} cannot be opened as a bag: {error}. A bag that was not closed or "
                        "was cut short can often be repaired: `ros2 bag reindex`, `mcap recover`"
                    ) from error
            yield readers

    def messages(self, topics: Sequence[str]) -> Iterator[tuple[str, int, Any]]:
        """(topic, receive time in ns, message) of some topics, in the order of reception.

        Raises:
            RecordingError: the bag is damaged at this point.
        """
        with self._open() as readers:
            for reader in readers:
                wanted = [c for c in reader.connections if c.topic in topics]
                if wanted:
                    yield from self._read(reader, wanted)

    def _read(self, reader: Reader, wanted: list[Connection]) -> Iterator[tuple[str, int, Any]]:
        source = reader.messages(connections=wanted)
        count = 0
        while True:
            try:
                connection, received, raw = next(source)
                message = self._types.deserialize_cdr(raw, connection.msgtype)
            except StopIteration:
                return
            except Exception as error:  # as in _open
                raise RecordingError(
                    f"{self.path} is damaged after {count} messages of "
                    f"{', '.join(sorted({c.topic for c in wanted}))}: {error}"
                ) from error
            count += 1
            yield connection.topic, received, message

    def first(self, topic: str) -> Any | None:
        """The first message of a topic, or None."""
        return next((message for _, _, message in self.messages([topic])), None)


@dataclasses.dataclass(frozen=True)
class Topics:
    """The topics that an evaluation reads; None where there is none."""

    image: str
    info: str | None
    depth: str | None
    depth_info: str | None
    pose: str | None
    notes: tuple[str, ...] = ()


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
        elif np.any(camera.d) and not _is_rectified(self.topics.image):
            notes.append(f"images are distorted ({camera.distortion_model}); taken for a pinhole's")
        return RecordingInfo(
            layout=f"rosbag2 ({self._bag.storage})",
            images=self.topics.image,
            depth=self.topics.depth,
            poses=self.topics.pose,
            frames=self._bag.topics[self.topics.image][1],
            depths=self._bag.topics[self.topics.depth][1] if self.topics.depth else None,
            duration_s=self._bag.duration_ns / 1e9,
            width=first.width if first else None,
            height=first.height if first else None,
            intrinsics=first.intrinsics if first else None,
            notes=tuple(notes),
            contents=tuple(
                f"{topic}  {kind}  {count}"
                for topic, (kind, count) in sorted(self._bag.topics.items())
            ),
        )

    def frames(self) -> Iterator[Frame]:
        compressed = self._bag.topics[self.topics.image][0] == COMPRESSED
        decode = ros_images.compressed_rgb if compressed else ros_images.rgb_image
        for stamp, image, camera in self._images(self.topics.image, self.topics.info, decode):
            yield Frame(image, stamp, camera)

    def depths(self) -> Iterator[DepthFrame]:
        if self.topics.depth is None:
            return
        self._check_same_camera()
        compressed = self._bag.topics[self.topics.depth][0] == COMPRESSED
        decode = ros_images.compressed_depth if compressed else ros_images.depth_image
        for stamp, depth, camera in self._images(self.topics.depth, self.topics.depth_info, decode):
            yield DepthFrame(stamp, depth, camera)

    def _images(
        self, topic: str, info_topic: str | None, decode: Any
    ) -> Iterator[tuple[int, np.ndarray, Intrinsics | None]]:
        """Stamp, pixels and camera of every message of an image topic."""
        info = self._bag.first(info_topic) if info_topic else None
        topics = [topic, info_topic] if info_topic else [topic]
        number = 0
        for name, _, message in self._bag.messages(topics):
            if name == info_topic:
                info = message
                continue
            try:
                pixels = decode(message)
                camera = intrinsics_of(
                    info, pixels.shape[1], pixels.shape[0], rectified=_is_rectified(topic)
                )
            except ValueError as error:
                raise RecordingError(f"{self.path}: {topic}, message {number}: {error}") from error
            yield stamp_of(message.header), pixels, camera
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
            trajectory, self.pose_notes = self._read_poses(topic)
        except TrajectoryError as error:
            raise RecordingError(f"{self.path}: {topic}: {error}") from error
        return trajectory

    def _read_poses(self, topic: str) -> tuple[Trajectory | None, list[str]]:
        kind = self._bag.topics[topic][0]
        tree = self._transform_tree()
        camera = self._camera_frame
        if kind == TF:
            if camera not in tree:
                return None, [f"TF has no frame {camera!r}: no ground-truth pose"]
            return tree.path_of(camera)
        series, child = PoseSeries(), camera
        for _, _, message in self._bag.messages([topic]):
            pose = message.pose.pose if kind == ODOMETRY else message.pose
            if kind == ODOMETRY:
                child = message.child_frame_id
            series.append(stamp_of(message.header), xyz(pose.position), xyzw(pose.orientation))
        trajectory, notes = series.trajectory()
        if kind == POSE:
            notes.append(f"{topic} names no child frame: taken for the pose of {camera!r}")
        mount = np.eye(4) if child == camera else tree.fixed_transform(child, camera)
        if mount is None:
            raise TrajectoryError(
                f"poses are of frame {child!r} and no fixed transform leads from there to the "
                f"camera {camera!r}; record /tf_static or name the frame with --camera-frame"
            )
        return Trajectory.from_matrices(trajectory.stamps_ns, trajectory.matrices() @ mount), notes

    def _transform_tree(self) -> TransformTree:
        """All transforms of the bag."""
        tree = TransformTree()
        topics = [name for name, (kind, _) in self._bag.topics.items() if kind == TF]
        if self.topics.pose in topics:
            fixed = {name for name in topics if name.endswith("tf_static")}
            topics = [self.topics.pose, *sorted(fixed - {self.topics.pose})]
        for name, _, message in self._bag.messages(topics) if topics else ():
            for one in message.transforms:
                tree.add(
                    one.header.frame_id,
                    one.child_frame_id,
                    stamp_of(one.header),
                    xyz(one.transform.translation),
                    xyzw(one.transform.rotation),
                    fixed=name.endswith("tf_static"),
                )
        return tree


# -- messages -------------------------------------------------------------------------------------


def stamp_of(header: Any) -> int:
    """Header stamp in nanoseconds."""
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)


def xyz(vector: Any) -> tuple[float, float, float]:
    """A Vector3 or Point."""
    return (vector.x, vector.y, vector.z)


def xyzw(quaternion: Any) -> tuple[float, float, float, float]:
    """A Quaternion."""
    return (quaternion.x, quaternion.y, quaternion.z, quaternion.w)


def intrinsics_of(
    info: Any | None, width: int, height: int, *, rectified: bool
) -> Intrinsics | None:
    """The pinhole of a ``CameraInfo`` for an image of this size; None when unknown or uncalibrated.

    Rectified images have the camera matrix inside P, others K.

    Raises:
        ValueError: a number is not finite, or the calibration is for an image of another shape.
    """
    if info is None:
        return None
    matrix = np.asarray(info.p if rectified and info.p[0] else info.k, dtype=np.float64)
    matrix = matrix.reshape(3, -1)
    fx, fy, cx, cy = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    if fx == 0.0:
        return None
    calibrated = Intrinsics(fx, fy, cx, cy, info.width or width, info.height or height)
    if (calibrated.width, calibrated.height) == (width, height):
        return calibrated
    if abs(calibrated.width * height - calibrated.height * width) > max(width, height):
        raise ValueError(
            f"camera_info is for {calibrated.width}x{calibrated.height}, but the image is "
            f"{width}x{height}: not the same camera"
        )
    return calibrated.resized(width, height)


# -- which topic is what --------------------------------------------------------------------------


def find_topics(bag: BagReader, selection: Selection) -> Topics:
    """Decide what each topic is, by type, name and first message.

    Raises:
        RecordingError: a named topic is absent or of the wrong type; no image topic; several fit.
    """
    notes: list[str] = []
    images = [n for n, (kind, _) in bag.topics.items() if kind in (IMAGE, COMPRESSED)]
    depths = [name for name in images if _is_depth(bag, name)]
    colours = [n for n in images if n not in depths and not n.endswith("/theora")]
    image = _choose(bag, "image", selection.image_topic, _prefer_raw(colours), (IMAGE, COMPRESSED))
    if image is None:
        listing = ", ".join(f"{n} ({kind})" for n, (kind, _) in sorted(bag.topics.items()))
        raise RecordingError(f"{bag.path} has no image topic; it has: {listing or 'nothing'}")
    depth = _choose(bag, "depth", selection.depth_topic, _prefer_raw(depths), (IMAGE, COMPRESSED))
    infos = [n for n, (kind, _) in bag.topics.items() if kind == CAMERA_INFO]
    info = selection.info_topic
    if info is not None:
        _choose(bag, "info", info, [], (CAMERA_INFO,))
    else:
        info = _sibling_info(image, infos)
        if info is None and len(infos) == 1:
            info = infos[0]
        if info is None and infos:
            notes.append(f"no camera_info beside {image}; ignored: {', '.join(sorted(infos))}")
    poses = [n for n, (kind, _) in bag.topics.items() if kind in _POSES]
    if any(bag.topics[n][0] == TF for n in poses):
        # TF names its frames, which makes it the safest; other sources are there for the asking.
        others = [n for n in poses if bag.topics[n][0] != TF]
        poses = [
            n for n in poses if bag.topics[n][0] == TF and not n.endswith("tf_static")
        ] or others
        notes += [
            f"pose from TF; {n} is there too (--pose-topic)" for n in others if n not in poses
        ]
    pose = _choose(bag, "pose", selection.pose_topic, poses, _POSES)
    depth_info = _sibling_info(depth, infos) if depth else None
    return Topics(image, info, depth, depth_info, pose, tuple(notes))


def _choose(
    bag: BagReader, role: str, named: str | None, found: list[str], kinds: tuple[str, ...]
) -> str | None:
    """The named topic after checking it, else the only one found."""
    option = f"--{role}-topic"
    if named is not None:
        if named not in bag.topics:
            raise RecordingError(
                f"{bag.path} has no topic {named}; it has {', '.join(sorted(bag.topics))}"
            )
        if bag.topics[named][0] not in kinds:
            raise RecordingError(
                f"{named} is a {bag.topics[named][0]}; {option} needs {' or '.join(kinds)}"
            )
        return named
    if len(found) > 1:
        raise RecordingError(
            f"{bag.path} has several {role} topics: {', '.join(sorted(found))}; "
            f"name one with {option}"
        )
    return found[0] if found else None


def _is_depth(bag: BagReader, topic: str) -> bool:
    """Whether an image topic is depth: by the encoding of its first message, else by its name."""
    if bag.topics[topic][1] == 0:
        return "depth" in topic
    message: Any = bag.first(topic)
    if bag.topics[topic][0] == COMPRESSED:
        return "compressedDepth" in message.format or message.format.startswith(("16UC1", "32FC1"))
    if message.encoding == "mono16":
        return "depth" in topic
    return message.encoding in ("16UC1", "32FC1", "64FC1")


def _prefer_raw(topics: list[str]) -> list[str]:
    """Without the compressed twins of topics that are there uncompressed."""
    return [t for t in topics if _base(t) == t or _base(t) not in topics]


def _base(topic: str) -> str:
    for suffix in ("/compressed", "/compressedDepth", "/zstd"):
        topic = topic.removesuffix(suffix)
    return topic


def _sibling_info(topic: str, infos: list[str]) -> str | None:
    """The camera_info that image_transport would pair with an image topic."""
    sibling = _base(topic).rpartition("/")[0] + "/camera_info"
    return sibling if sibling in infos else None


def _is_rectified(topic: str) -> bool:
    return "rect" in _base(topic).rpartition("/")[2]
