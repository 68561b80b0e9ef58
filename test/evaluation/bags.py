# SPDX-License-Identifier: Apache-2.0
"""Bags for tests, written with the rosbags library: small, exact, and broken on demand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

TYPES = get_typestore(Stores.LATEST)
_STATUS = "omnistream_ros/msg/StreamStatus"
_MESSAGES = Path(__file__).parents[2] / "msg"
TYPES.register(get_types_from_msg((_MESSAGES / "StreamStatus.msg").read_text(), _STATUS))

Entry = tuple[str, int, Any]  # topic, receive time in ns, message


def message(kind: str, **fields: Any) -> Any:
    """A message of a type such as ``sensor_msgs/msg/Image``."""
    return TYPES.types[kind](**fields)


def header(stamp_ns: int, frame_id: str = "camera") -> Any:
    time = message("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return message("std_msgs/msg/Header", stamp=time, frame_id=frame_id)


def image(
    stamp_ns: int, pixels: np.ndarray, encoding: str, frame_id: str = "camera", pad: int = 0
) -> Any:
    """An Image; ``pad`` bytes are added to every row."""
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, pad)), constant_values=77)
    return message(
        "sensor_msgs/msg/Image",
        header=header(stamp_ns, frame_id),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def compressed(stamp_ns: int, rgb: np.ndarray, suffix: str = ".png") -> Any:
    good, data = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    assert good
    return message(
        "sensor_msgs/msg/CompressedImage",
        header=header(stamp_ns),
        format=f"rgb8; {suffix[1:]} compressed bgr8",
        data=data.reshape(-1),
    )


def camera_info(
    stamp_ns: int, width: int, height: int, focal: float = 100.0, frame_id: str = "camera"
) -> Any:
    k = np.array([focal, 0, (width - 1) / 2, 0, focal, (height - 1) / 2, 0, 0, 1.0])
    return message(
        "sensor_msgs/msg/CameraInfo",
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=k,
        r=np.eye(3).reshape(-1),
        p=np.insert(k.reshape(3, 3), 3, 0.0, axis=1).reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=message(
            "sensor_msgs/msg/RegionOfInterest",
            x_offset=0,
            y_offset=0,
            height=0,
            width=0,
            do_rectify=False,
        ),
    )


def transform(
    stamp_ns: int, parent: str, child: str, xyz: Iterable[float], xyzw: Iterable[float]
) -> Any:
    """One transform as the TFMessage that carries it."""
    x, y, z = xyz
    qx, qy, qz, qw = xyzw
    one = message(
        "geometry_msgs/msg/TransformStamped",
        header=header(stamp_ns, parent),
        child_frame_id=child,
        transform=message(
            "geometry_msgs/msg/Transform",
            translation=message("geometry_msgs/msg/Vector3", x=x, y=y, z=z),
            rotation=message("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
        ),
    )
    return message("tf2_msgs/msg/TFMessage", transforms=[one])


def pose(xyz: Iterable[float], xyzw: Iterable[float]) -> Any:
    x, y, z = xyz
    qx, qy, qz, qw = xyzw
    return message(
        "geometry_msgs/msg/Pose",
        position=message("geometry_msgs/msg/Point", x=x, y=y, z=z),
        orientation=message("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
    )


def pose_stamped(stamp_ns: int, frame: str, xyz: Iterable[float], xyzw: Iterable[float]) -> Any:
    return message(
        "geometry_msgs/msg/PoseStamped", header=header(stamp_ns, frame), pose=pose(xyz, xyzw)
    )


def odometry(
    stamp_ns: int, frame: str, child: str, xyz: Iterable[float], xyzw: Iterable[float]
) -> Any:
    zero = message("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
    return message(
        "nav_msgs/msg/Odometry",
        header=header(stamp_ns, frame),
        child_frame_id=child,
        pose=message(
            "geometry_msgs/msg/PoseWithCovariance", pose=pose(xyz, xyzw), covariance=np.zeros(36)
        ),
        twist=message(
            "geometry_msgs/msg/TwistWithCovariance",
            twist=message("geometry_msgs/msg/Twist", linear=zero, angular=zero),
            covariance=np.zeros(36),
        ),
    )


def status(
    stamp_ns: int, processed: int, received: int, drops: dict[str, int], **fields: Any
) -> Any:
    """A StreamStatus of a processed frame."""
    values = {
        "stream_id": "test",
        "state": 2,
        "epoch": 0,
        "frame_index": processed - 1,
        "epoch_reason": "start",
        "context_frames": min(processed, 17),
        "context_capacity": 17,
        "cache_bytes": 1 << 20,
        "frames_received": received,
        "frames_processed": processed,
        "drop_reasons": list(drops),
        "drop_counts": np.array(list(drops.values()), dtype=np.uint64),
        "stage_names": ["preprocess", "backbone", "heads", "publish"],
        "stage_ms": np.array([1.0, 20.0, 5.0, 2.0]) + 0.1 * (processed % 7),
        "latency_ms": 30.0 + processed % 5,
        "tracking": "good",
        "metric": True,
        "scale_source": "model",
        "scale_status": "known",
        "scale_factor": 1.0,
        "model_name": "omnistream-nano",
        "weights_sha256": "0123456789abcdef" * 4,
    }
    return message(_STATUS, header=header(stamp_ns), **{**values, **fields})


def write_bag(
    path: Path,
    entries: Iterable[Entry],
    *,
    storage: str = "mcap",
    compression: str | None = None,
) -> Path:
    """Write a rosbag2 folder; ``compression`` is None or a CompressionMode in small letters."""
    plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
    writer = Writer(path, version=9, storage_plugin=plugin)
    if compression is not None:
        mode = CompressionMode[compression.upper()]
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for topic, received, content in entries:
            kind = content.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=TYPES)
            writer.write(connections[topic], received, TYPES.serialize_cdr(content, kind))
    return path
