# SPDX-License-Identifier: Apache-2.0
"""Publishes the frames of a recording as a camera would: in real time, with the recorded stamps."""

from __future__ import annotations

import array
import dataclasses
import json
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from omnistream_ros.nodes.distribution import byte_array
from omnistream_ros.nodes.process import RefusedToStartError, tune_allocator
from omnistream_ros.nodes.transports import TRANSPORTS
from omnistream_ros.stream.frame import Frame, Intrinsics

# The frame in work may be large; a reader that hangs is left behind.
_READER_PATIENCE_S = 5.0
_PREFETCH = 8  # frames decoded ahead, so that a slow picture does not delay its publication
_POLL_S = 0.02
# Best-effort subscribers acknowledge nothing; without this the last images can die with the writer.
_LINGER_S = 0.5
_LATE_S = 0.02
# As image_transport does unless told otherwise.
_JPEG_QUALITY = 95


@dataclasses.dataclass
class PlayReport:
    """What was sent.

    Attributes:
        frames: images published.
        with_camera_info: of these, how many had a camera_info.
        first_stamp_ns, last_stamp_ns: stamps of the first and the last image.
        duration_s: from the first to the last publication.
        late_frames: images published more than 20 ms after their time.
        worst_lateness_s: the largest such delay.
        complete: False when a signal ended it early.
    """

    frames: int = 0
    with_camera_info: int = 0
    first_stamp_ns: int = 0
    last_stamp_ns: int = 0
    duration_s: float = 0.0
    late_frames: int = 0
    worst_lateness_s: float = 0.0
    complete: bool = False


def play(
    frames: Iterable[Frame],
    *,
    image_topic: str = "image",
    camera_info_topic: str = "camera_info",
    frame_id: str = "camera_optical_frame",
    transport: str = "raw",
    speed: float = 1.0,
    wait_s: float = 60.0,
    ros_args: Sequence[str] | None = None,
) -> PlayReport:
    """Publish ``frames`` as images, each with a camera_info where the camera is known.

    Starts once somebody subscribes to the images; prints the report as one line of JSON at the end.
    A frame that comes too late from its reader is sent at once; none is left out. SIGINT and
    SIGTERM end it early, in order.

    Args:
        transport: raw (rgb8), or compressed (JPEG, on the topic with /compressed behind the name).
        speed: 2.0 plays twice as fast; the stamps stay as recorded.
        wait_s: give up when nobody subscribed after so long.

    Raises:
        RefusedToStartError: nobody subscribed, or ``speed`` is not positive.
        Exception: whatever reading the frames raised, after the ones before it were sent.
    """
    if not speed > 0.0:
        raise RefusedToStartError(f"speed must be positive, got {speed}")
    tune_allocator()
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    rclpy.init(
        args=None if ros_args is None else list(ros_args),
        signal_handler_options=SignalHandlerOptions.NO,
    )
    node = rclpy.create_node("omnistream_player")
    try:
        qos = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE)
        form = TRANSPORTS[transport]
        # A suffix belongs to what the name is remapped to, as in image_transport.
        topic = node.resolve_topic_name(image_topic) + form.suffix
        images = node.create_publisher(form.kind, topic, qos)
        infos = node.create_publisher(CameraInfo, camera_info_topic, qos)
        _wait_for_subscriber(images, stop, wait_s)
        messages = _messages(_prefetched(frames, stop), frame_id, _MAKERS[transport])
        report = _publish_all(messages, images, infos, speed, stop)
        images.wait_for_all_acked(Duration(seconds=2))
        stop.wait(_LINGER_S)
    finally:
        _shut_down(node)
        for number, handler in before.items():
            signal.signal(number, handler)
    print(json.dumps(dataclasses.asdict(report)), flush=True)
    return report


def _shut_down(node: Node) -> None:
    node.destroy_node()
    rclpy.try_shutdown()


def _wait_for_subscriber(images: Publisher, stop: threading.Event, wait_s: float) -> None:
    give_up = time.monotonic() + wait_s
    while images.get_subscription_count() == 0 and not stop.wait(_POLL_S):
        if time.monotonic() > give_up:
            raise RefusedToStartError(
                f"nobody subscribed to '{images.topic_name}' within {wait_s:.0f} s: activate the "
                "perception node and check its `image` remapping, its `input_transport` and "
                "ROS_DOMAIN_ID"
            )


def _messages(
    frames: Iterable[Frame], frame_id: str, make: Callable[[np.ndarray, Header], Any]
) -> Iterator[tuple[Frame, Any]]:
    """Each frame with the message of its image."""
    for frame in frames:
        header = Header(frame_id=frame_id)
        header.stamp.sec, header.stamp.nanosec = divmod(frame.stamp_ns, 1_000_000_000)
        yield frame, make(frame.image, header)


def _publish_all(
    messages: Iterable[tuple[Frame, Any]],
    images: Publisher,
    infos: Publisher,
    speed: float,
    stop: threading.Event,
) -> PlayReport:
    report = PlayReport()
    begin = now = time.monotonic()
    for frame, image in messages:
        if report.frames == 0:
            begin = time.monotonic()
            report.first_stamp_ns = frame.stamp_ns
        due = begin + (frame.stamp_ns - report.first_stamp_ns) * 1e-9 / speed
        if stop.wait(max(0.0, due - time.monotonic())):
            return report
        now = time.monotonic()
        if frame.intrinsics is not None:
            infos.publish(camera_info_message(frame.intrinsics, image.header))
            report.with_camera_info += 1
        images.publish(image)
        report.frames += 1
        report.last_stamp_ns = frame.stamp_ns
        report.duration_s = now - begin
        report.late_frames += now - due > _LATE_S
        report.worst_lateness_s = max(report.worst_lateness_s, now - due)
    report.complete = not stop.is_set()
    return report


def _prefetched(frames: Iterable[Frame], stop: threading.Event) -> Iterator[Frame]:
    """The same frames, read ahead by a thread of their own; its exception comes out at the end."""
    ahead: queue.Queue[Frame | BaseException | None] = queue.Queue(_PREFETCH)

    def put(item: Frame | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ahead.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for frame in frames:
                if not put(frame):
                    return
            put(None)
        except BaseException as error:
            put(error)

    reader = threading.Thread(target=read, name="reader", daemon=True)
    reader.start()
    try:
        while not stop.is_set():
            try:
                item = ahead.get(timeout=0.1)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item
    finally:
        # The libraries that read must not be at work while the process takes them down.
        reader.join(_READER_PATIENCE_S)


def image_message(pixels: np.ndarray, header: Header) -> Image:
    """An rgb8 message of (H, W, 3) uint8 pixels."""
    height, width = pixels.shape[:2]
    image = Image(header=header, height=height, width=width, encoding="rgb8", step=3 * width)
    image.data = byte_array(np.ascontiguousarray(pixels))
    return image


def compressed_message(pixels: np.ndarray, header: Header) -> CompressedImage:
    """(H, W, 3) uint8 RGB pixels as a JPEG, named as image_transport names it."""
    coded, data = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    )
    if not coded:
        raise ValueError(f"an image of {pixels.shape[1]}x{pixels.shape[0]} cannot be a JPEG")
    message = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
    message.data = array.array("B", data.tobytes())
    return message


_MAKERS = {"raw": image_message, "compressed": compressed_message}


def camera_info_message(camera: Intrinsics, header: Header) -> CameraInfo:
    """A camera_info of a pinhole camera without distortion."""
    info = CameraInfo(header=header, width=camera.width, height=camera.height)
    info.distortion_model, info.d = "plumb_bob", [0.0] * 5
    info.k = camera.matrix().reshape(-1)
    info.r = np.eye(3).reshape(-1)
    info.p = np.hstack([camera.matrix(), np.zeros((3, 1))]).reshape(-1)
    return info
