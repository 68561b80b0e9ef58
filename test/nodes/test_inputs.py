# SPDX-License-Identifier: Apache-2.0
"""What may come in beside plain images: compressed ones, bent ones, some without a stamp, none."""

from __future__ import annotations

import array
import struct
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from omnistream_ros.msg import StreamStatus
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from ros_processes import NODE, NodeStarter, User, camera_info
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from omnistream_ros.nodes.feature_messages import FeatureTensor, to_numpy


def compress(message: Image, kind: str = "png") -> CompressedImage:
    pixels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
    data = cv2.imencode(f".{kind}", pixels[..., ::-1])[1].tobytes()
    name = "jpeg" if kind == "jpg" else kind
    compressed = CompressedImage(header=message.header, format=f"rgb8; {name} compressed bgr8")
    compressed.data = array.array("B", data)
    return compressed


def test_compressed_images_give_what_raw_ones_give(user: User, start_node: NodeStarter) -> None:
    node = start_node(
        "-p",
        "packed.input_transport:=compressed",
        cameras='["plain", "packed"]',
        autostart=True,
        batching="never",
        features='["-1:cls"]',
    )
    names = ("plain", "packed")
    features = {n: user.collect(FeatureTensor, f"{NODE}/{n}/features") for n in names}
    status = {n: user.collect(StreamStatus, f"{NODE}/{n}/status") for n in names}
    node.wait_for("waiting for images on '/packed/image/compressed'")
    plain = user.camera("/plain/image")
    packed = user.camera("/packed/image/compressed", CompressedImage)
    user.wait_until(lambda: all(status.values()))

    def equal_features() -> bool:
        image = user.picture()
        user.process(plain, status["plain"], message=image)
        user.process(packed, status["packed"], message=compress(image))
        return all(features.values()) and all(
            f[-1].header.stamp == image.header.stamp for f in features.values()
        )

    user.wait_until(equal_features)
    np.testing.assert_array_equal(*(to_numpy(f[-1]) for f in features.values()))
    # A JPEG is another picture, and an image all the same.
    image = user.picture()
    assert user.process(packed, status["packed"], message=compress(image, "jpg")).frame_index > 0


def _cut(message: CompressedImage) -> None:
    message.data = message.data[: len(message.data) // 2]


def _garbage(message: CompressedImage) -> None:
    message.data = array.array("B", b"GIF89a" + bytes(100))


def _inner_rubbish(message: CompressedImage) -> None:
    """A PNG with a sound head and nothing sensible behind it."""
    message.data = message.data[:33] + array.array("B", bytes(100))


def _bomb(message: CompressedImage) -> None:
    """A hundred bytes that want 10 GB."""
    message.data = message.data[:16] + array.array("B", struct.pack(">II", 60000, 60000) + bytes(9))


def _depth(message: CompressedImage) -> None:
    message.format = "16UC1; compressedDepth png"


def _empty(message: CompressedImage) -> None:
    message.data = array.array("B")


def test_broken_compressed_images_are_counted_and_survived(
    user: User, start_node: NodeStarter
) -> None:
    node = start_node(autostart=True, input_transport="compressed")
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images on '/image/compressed'")
    send = user.camera("/image/compressed", CompressedImage)
    user.wait_until(lambda: status)
    user.process(send, status, message=compress(user.picture()))
    faults: list[tuple[Callable[[CompressedImage], None], str, str, str]] = [
        (_inner_rubbish, "png", "broken_data", "cannot be decoded"),
        (_garbage, "png", "unsupported_encoding", "neither JPEG nor PNG"),
        (_bomb, "png", "unsupported_size", "claims 60000x60000 pixels"),
        (_depth, "png", "unsupported_encoding", ""),
        (_empty, "png", "broken_data", ""),
        (_cut, "jpg", "broken_data", ""),
    ]
    expected: dict[str, int] = {}
    for spoil, kind, reason, words in faults:
        message = compress(user.picture(), kind)
        spoil(message)
        send(message)
        if words:  # the first of its kind
            node.wait_for(words)
        expected[reason] = expected.get(reason, 0) + 1
        last = user.process(send, status, message=compress(user.picture()))
    assert dict(zip(last.drop_reasons, last.drop_counts, strict=True)) == expected
    assert last.epoch == 0
    assert node.count("Traceback") == 0


@pytest.mark.parametrize("rectify", [True, False])
def test_a_bent_image_is_rectified(user: User, start_node: NodeStarter, rectify: bool) -> None:
    node = start_node(
        autostart=True, rectify=rectify, resolution="source", camera_info_timeout=60.0
    )
    depth = user.collect(Image, f"{NODE}/depth/image")
    infos = user.collect(CameraInfo, f"{NODE}/depth/camera_info")
    points = user.collect(PointCloud2, f"{NODE}/depth/points")
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images")
    given = camera_info()
    given.d = [0.6, 0.0, 0.0, 0.0, 0.0]
    cameras = user.node.create_publisher(CameraInfo, "/camera_info", 10)
    send = user.camera()
    user.wait_until(lambda: status)
    while not (depth and infos and points):
        last = user.process(send, status, meanwhile=lambda: cameras.publish(given))
    assert last.metric
    assert last.epoch == 0
    np.testing.assert_allclose(infos[-1].k, given.k)
    metres = np.frombuffer(depth[-1].data, "<f4").reshape(48, 64)
    unknown = np.isnan(metres)
    if rectify:
        assert not any(infos[-1].d)
        assert unknown[0, 0]  # the lens did not see as far
        assert not unknown[8:40, 12:52].any()
        assert points[-1].width == np.count_nonzero(~unknown)
    else:
        assert list(infos[-1].d) == list(given.d)
        assert not unknown.any()


def test_a_lens_of_an_unknown_kind_is_told(user: User, start_node: NodeStarter) -> None:
    node = start_node(autostart=True)
    node.wait_for("waiting for images")
    given = camera_info()
    given.distortion_model, given.d = "thin_prism", [0.1] * 7
    cameras = user.node.create_publisher(CameraInfo, "/camera_info", 10)
    words = "the images are used as they are"

    def told() -> bool:
        cameras.publish(given)  # again: the two sides of a connection come up at different moments
        return node.count(words) > 0

    user.wait_until(told, words)
    line = node.wait_for(words)
    assert "'thin_prism' is not known" in line
    assert "image_proc" in line


def test_images_without_a_stamp(user: User, start_node: NodeStarter) -> None:
    node = start_node(autostart=True)
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images")
    send = user.camera()
    user.wait_until(lambda: status)
    stampless = user.picture()
    stampless.header.stamp.sec = stampless.header.stamp.nanosec = 0

    def refused() -> bool:  # again, for the node may hear of the publisher late
        send(stampless)
        return node.count("image without a stamp") > 0

    user.wait_until(refused)
    assert "set the parameter 'stamps' to receipt" in node.wait_for("image without a stamp")
    first = user.process(send, status)
    assert list(first.drop_reasons) == ["no_stamp"]
    assert first.drop_counts[0] > 0
    assert user.set_parameter("stamps", "receipt").successful

    def received() -> bool:
        send(stampless)
        return status[-1].frames_processed > 1 and status[-1].header.stamp.sec > 10**9

    user.wait_until(received)
    assert not user.set_parameter("stamps", "sometimes").successful


def test_silence_is_explained(user: User, start_node: NodeStarter) -> None:
    """Nobody there; images elsewhere; the other form; another type; another quality of service."""
    node = start_node(autostart=True, stall_timeout=0.2, image_qos="reliable")
    assert "no other images are published" in node.wait_for("nobody publishes on '/image'")

    def explained(words: str) -> str:
        line: list[str] = []

        def said() -> bool:
            line[:] = [text for text in node.lines if words in text]
            return bool(line)

        user.wait_until(said, words)
        return line[-1]

    other = user.node.create_publisher(Image, "/cam/image_raw", 1)
    assert "remap '/image' to one of them" in explained("images are published on '/cam/image_raw'")
    user.node.destroy_publisher(other)
    packed = user.node.create_publisher(CompressedImage, "/image/compressed", 1)
    assert "set 'input_transport' to compressed" in explained("it is there as '/image/compressed'")
    wrong = user.node.create_publisher(CameraInfo, "/image", 1)
    assert "(from /user)" in explained("'/image' carries sensor_msgs/msg/CameraInfo")
    user.node.destroy_publisher(wrong)
    user.node.destroy_publisher(packed)
    best_effort = user.node.create_publisher(Image, "/image", qos_profile_sensor_data)
    line = explained("/user publishes on '/image' with another quality of service")
    assert "set the parameter 'image_qos' to sensor_data" in line
    user.node.destroy_publisher(best_effort)
    user.node.create_publisher(Image, "/image", QoSProfile(depth=1))
    assert "does it send" in explained("/user publishes on '/image', but nothing arrives")
