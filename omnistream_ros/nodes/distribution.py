# SPDX-License-Identifier: Apache-2.0
"""The packages that only a ROS distribution carries, or what stands in for them.

``cv_bridge``, ``tf2_ros`` and ``tf_transformations`` are used where they are installed and work;
where not, the few lines below do the same. Both give the same result, which
``test/nodes/test_distribution.py`` compares wherever it finds the real ones. Everything else in
this package asks here and does not know the difference.
"""

from __future__ import annotations

import array
from types import ModuleType
from typing import Protocol

import numpy as np
from geometry_msgs.msg import Transform, TransformStamped
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from omnistream_ros.stream.geometry import matrix_to_quaternion, quaternion_to_matrix, rigid
from omnistream_ros.stream.image_encodings import image_to_rgb8

# cv_bridge leaves padding and byte order of 16-bit images to the caller, and knows no nv12: it is
# asked only for what it converts completely.
_BRIDGED = frozenset(f"{name}8" for name in ("bgr", "rgba", "bgra", "mono")) | frozenset(
    f"bayer_{pattern}8" for pattern in ("rggb", "bggr", "gbrg", "grbg")
)


def _working_cv_bridge() -> ModuleType | None:
    """cv_bridge if it converts; one built for another numpy imports and then fails."""
    try:
        import cv_bridge

        probe = Image(height=2, width=2, encoding="bgr8", step=6, data=bytes(range(12)))
        converted = cv_bridge.CvBridge().imgmsg_to_cv2(probe, desired_encoding="rgb8")
    except Exception:  # whatever goes wrong inside a broken binary module, the stand-in works
        return None
    return cv_bridge if converted[0, 0].tolist() == [2, 1, 0] else None


def _installed(name: str) -> ModuleType | None:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_cv_bridge = _working_cv_bridge()
_tf2_ros = _installed("tf2_ros")
_tf_transformations = _installed("tf_transformations")


def in_use() -> dict[str, bool]:
    """Which of the distribution's packages are used in this process, for the diagnostics."""
    return {
        "cv_bridge": _cv_bridge is not None,
        "tf2_ros": _tf2_ros is not None,
        "tf_transformations": _tf_transformations is not None,
    }


def message_to_rgb8(message: Image) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of an image message that passed ``check_image``.

    ``rgb8`` gives a view of the message, everything else a new array.
    """
    if _cv_bridge is not None and message.encoding in _BRIDGED:
        return _cv_bridge.CvBridge().imgmsg_to_cv2(message, desired_encoding="rgb8")
    return image_to_rgb8(
        np.frombuffer(message.data, np.uint8),
        message.encoding,
        message.height,
        message.width,
        message.step,
        bool(message.is_bigendian),
    )


def byte_array(values: np.ndarray) -> array.array:
    """The bytes of a C-contiguous array in the one form that a ``uint8[]`` field takes quickly.

    Assigning bytes or an ndarray makes the generated setter look at every single element (50 ms for
    a VGA image); an ``array.array('B')`` is taken as it is.
    """
    data = array.array("B")
    data.frombytes(values.reshape(-1).view(np.uint8).data)
    return data


def motion_from_transform(transform: Transform) -> np.ndarray:
    """The rigid motion (4, 4) of a transform message.

    Raises:
        ValueError: the quaternion is zero, or a number is not finite.
    """
    t, q = transform.translation, transform.rotation
    quaternion, translation = np.array([q.x, q.y, q.z, q.w]), np.array([t.x, t.y, t.z])
    if not np.isfinite(translation).all():
        raise ValueError(f"translation must be finite, got {translation.tolist()}")
    rotation = quaternion_to_matrix(quaternion)  # refuses what is not a rotation
    if _tf_transformations is not None:
        rotation = _tf_transformations.quaternion_matrix(quaternion)[:3, :3]
    return rigid(rotation, translation)


def fill_transform(motion: np.ndarray, translation: object, rotation: object) -> None:
    """Write a rigid motion (4, 4) into the two parts of a Transform or Pose message."""
    translation.x, translation.y, translation.z = motion[:3, 3].tolist()  # type: ignore[attr-defined]
    if _tf_transformations is not None:
        quaternion = np.asarray(_tf_transformations.quaternion_from_matrix(motion))
        quaternion = -quaternion if quaternion[3] < 0.0 else quaternion
    else:
        quaternion = matrix_to_quaternion(motion[:3, :3])
    rotation.x, rotation.y, rotation.z, rotation.w = quaternion.tolist()  # type: ignore[attr-defined]


class Broadcaster(Protocol):
    """What tf2_ros.TransformBroadcaster and its stand-in have in common."""

    pub_tf: Publisher

    def sendTransform(self, transform: TransformStamped) -> None: ...  # noqa: N802


class _PlainBroadcaster:
    """tf2_ros.TransformBroadcaster: reliable, depth 100, topic /tf."""

    def __init__(self, node: Node) -> None:
        self.pub_tf = node.create_publisher(TFMessage, "/tf", QoSProfile(depth=100))

    def sendTransform(self, transform: TransformStamped) -> None:  # noqa: N802
        self.pub_tf.publish(TFMessage(transforms=[transform]))


def transform_broadcaster(node: Node) -> Broadcaster:
    """A publisher of transforms on /tf."""
    if _tf2_ros is not None:
        return _tf2_ros.TransformBroadcaster(node)
    return _PlainBroadcaster(node)


def destroy_broadcaster(node: Node, broadcaster: Broadcaster) -> None:
    """Take the broadcaster's publisher off the node again."""
    node.destroy_publisher(broadcaster.pub_tf)
