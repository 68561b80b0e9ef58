# SPDX-License-Identifier: Apache-2.0
"""What an active action node listens to: features, images, joint states, the instruction.

Everything is judged on arrival, in the executor's thread; what cannot be used is counted by reason
and the controller tells it while nothing better comes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from rclpy.qos import QoSProfile, QoSReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from omnistream_ros.action.chunk import Origin
from omnistream_ros.action.controller import Controller
from omnistream_ros.action.policy import Needs
from omnistream_ros.action.policy_facts import FeatureInput
from omnistream_ros.action.safety import Drop
from omnistream_ros.msg import FeatureTensor
from omnistream_ros.nodes import handover
from omnistream_ros.nodes.distribution import message_to_rgb8
from omnistream_ros.nodes.feature_messages import KINDS, BadTensorError, to_numpy, to_torch
from omnistream_ros.nodes.image_checks import BadImageError, check_image
from omnistream_ros.nodes.lifecycle import ManagedNode

_FLOAT16_MAGNITUDE, _FLOAT16_INFINITY = np.uint16(0x7FFF), 0x7C00
_KIND_NAMES = {number: kind.value for kind, number in KINDS.items()}


class FeatureStream:
    """The feature tensors of one camera stream, put together frame by frame."""

    def __init__(
        self, stream: str, wanted: Sequence[FeatureInput], sha256: str, controller: Controller
    ) -> None:
        self._stream = stream
        self._wanted = tuple(wanted)
        self._sha256 = sha256
        self._controller = controller
        self._origin: Origin | None = None  # of the frame that is being put together
        self._tensors: dict[tuple[str, str], np.ndarray] = {}

    def hear(self, message: FeatureTensor, now_ns: int, tensor: Any = None) -> bool:
        """Take one tensor; returns whether a frame that can be used is complete with it.

        Args:
            tensor: the tensor itself, where it is handed over by reference and the message's own
                is empty.
        """
        kind = _KIND_NAMES.get(message.kind, f"kind {message.kind}")
        key = f"{message.layer}:{kind}{':normed' if message.normed else ''}"
        if self._sha256 and message.weights_sha256 != self._sha256:
            return self._refuse(
                Drop.OTHER_MODEL,
                f"features come from {message.model_name!r} with weights "
                f"{message.weights_sha256[:12]}, the policy was trained on {self._sha256[:12]}",
            )
        asked = (f for f in self._wanted if f.is_in(message.layer, kind, bool(message.normed)))
        feature = next(asked, None)
        if feature is None:  # somebody else's
            if self._origin is None:
                wanted = ", ".join(f.key for f in self._wanted)
                self._refuse(Drop.OTHER_FEATURE, f"{key} came, the policy reads {wanted}")
            return False
        try:
            values = _values(message) if tensor is None else _host(tensor)
        except BadTensorError as error:
            return self._refuse(Drop.BAD_TENSOR, f"{key}: {error}")
        if feature.shape and values.shape != feature.shape:
            return self._refuse(
                Drop.OTHER_SHAPE,
                f"{key} has shape {list(values.shape)}, the policy reads {list(feature.shape)}",
            )
        if not all_finite(values):
            return self._refuse(Drop.FEATURES_NOT_FINITE, f"{key} has numbers that are not finite")
        return self._put_together(feature, _origin(message), values, now_ns)

    def _put_together(
        self, feature: FeatureInput, origin: Origin, values: np.ndarray, now_ns: int
    ) -> bool:
        if origin != self._origin:
            if self._tensors:
                missing = [f.key for f in self._wanted if (f.stream, f.key) not in self._tensors]
                self._refuse(Drop.FRAME_INCOMPLETE, f"a frame came without {', '.join(missing)}")
            self._origin, self._tensors = origin, {}
        self._tensors[feature.stream, feature.key] = values
        if len(self._tensors) < len(self._wanted):
            return False
        tensors, self._tensors = self._tensors, {}
        return self._controller.frame_arrived(self._stream, origin, tensors, now_ns) is None

    def _refuse(self, drop: Drop, words: str) -> bool:
        self._controller.refuse(self._stream, drop, words)
        return False


class ActionInputs:
    """The subscriptions of an active node; features of a node in this process come by reference.

    Args:
        streams: topic of features by stream.
        images: topic of images by the policy's name; `image_size` as the parameter.
        robot_names: the robot's name of each joint by the policy's.
        news: called after whatever a policy might answer to.
    """

    def __init__(
        self,
        node: ManagedNode,
        controller: Controller,
        needs: Needs,
        *,
        streams: Mapping[str, str],
        images: Mapping[str, str],
        image_size: int,
        robot_names: Mapping[str, str],
        on_instruction: Callable[[str], None],
        news: Callable[[], None],
    ) -> None:
        self._node = node
        self._controller = controller
        self._image_size = image_size
        self._policy_names = {robot: policy for policy, robot in robot_names.items()}
        self._news = news
        self._image_counts = dict.fromkeys(images, 0)
        self._subscriptions: list[Any] = []
        self._ends: list[Callable[[], None]] = []
        try:
            for stream, topic in streams.items():
                wanted = [feature for feature in needs.features if feature.stream == stream]
                self._listen(
                    topic,
                    FeatureStream(stream, wanted, needs.model_sha256, controller),
                    len(wanted),
                )
            for name, topic in images.items():
                self._subscribe(Image, topic, functools.partial(self._on_image, name), 1)
            if robot_names:
                self._subscribe(JointState, "joint_states", self._on_joints, 10)
            reliable = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE)
            self._subscriptions.append(
                node.create_subscription(
                    String, "instruction", lambda message: on_instruction(message.data), reliable
                )
            )
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Hear nothing any more."""
        while self._ends:
            self._ends.pop()()
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def _listen(self, topic: str, stream: FeatureStream, tensors: int) -> None:
        """To features; by reference where they come from this process."""
        name = self._node.resolve_topic_name(topic)
        if handover.is_local(name):
            self._ends.append(handover.listen(name, functools.partial(self._on_given, stream)))
            return
        # Several tensors a frame: more than the newest message has to wait.
        self._subscribe(
            FeatureTensor, topic, functools.partial(self._on_features, stream), tensors + 4
        )

    def _subscribe(self, kind: type, topic: str, callback: Callable, depth: int) -> None:
        self._subscriptions.append(
            self._node.create_subscription(
                kind,
                topic,
                callback,
                QoSProfile(depth=depth, reliability=qos_profile_sensor_data.reliability),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
        )

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds

    def _on_features(self, stream: FeatureStream, message: FeatureTensor) -> None:
        if stream.hear(message, self._now_ns()):
            self._news()

    def _on_given(self, stream: FeatureStream, message: FeatureTensor, tensor: Any) -> None:
        """Called in the thread of the node that computed the tensor."""
        try:
            if stream.hear(message, self._now_ns(), tensor):
                self._news()
        except Exception as error:  # ours, in somebody else's thread
            self._node.report_fault(error)

    def _on_image(self, name: str, message: Image) -> None:
        try:
            check_image(message)
        except BadImageError as error:
            self._controller.refuse(name, Drop.BAD_IMAGE, str(error))
            return
        pixels = message_to_rgb8(message)  # (H, W, 3) uint8
        if self._image_size:
            pixels = fit_in_square(pixels, self._image_size)
        self._image_counts[name] += 1
        origin = Origin(name, 0, self._image_counts[name], _nanoseconds(message))
        if self._controller.frame_arrived(name, origin, pixels, self._now_ns()) is None:
            self._news()

    def _on_joints(self, message: JointState) -> None:
        names = [self._policy_names.get(name, f"{name} (unused)") for name in message.name]
        stamp_ns = _nanoseconds(message)
        drop = self._controller.joints_arrived(names, message.position, stamp_ns, self._now_ns())
        if drop is None:
            self._news()


def all_finite(values: np.ndarray) -> bool:
    """Whether no number is NaN or infinite.

    Of float16 the exponent's bits are looked at, which is seven times as fast as numpy's isfinite:
    0.3 ms instead of 2.2 for the patches of a ViT-L frame.
    """
    if values.dtype == np.float16 and values.size and values.flags.c_contiguous:
        return int((values.view(np.uint16) & _FLOAT16_MAGNITUDE).max()) < _FLOAT16_INFINITY
    return bool(np.isfinite(values).all())


def fit_in_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """An image (H, W, 3) scaled into a square (size, size, 3), black above and below or beside."""
    height, width = pixels.shape[:2]
    scale = size / max(height, width)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    shrinks = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
    scaled = cv2.resize(pixels, inner, interpolation=shrinks)
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - inner[1]) // 2, (size - inner[0]) // 2
    square[top : top + inner[1], left : left + inner[0]] = scaled
    return square


def _values(message: FeatureTensor) -> np.ndarray:
    """The tensor of a message, float32 or narrower."""
    if message.dtype_code == FeatureTensor.DTYPE_BFLOAT:
        return _host(to_torch(message))
    values = to_numpy(message)
    if not np.issubdtype(values.dtype, np.floating):
        raise BadTensorError(f"features must be floating point, got {values.dtype}")
    return values


def _host(tensor: Any) -> np.ndarray:
    """A torch tensor from wherever it is; numpy has no bfloat16."""
    tensor = tensor.detach().cpu()
    return tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()


def _origin(message: FeatureTensor) -> Origin:
    return Origin(
        message.stream_id, int(message.epoch), int(message.frame_index), _nanoseconds(message)
    )


def _nanoseconds(message: Any) -> int:
    stamp = message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec
