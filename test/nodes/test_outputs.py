# SPDX-License-Identifier: Apache-2.0
"""Single messages: depth in both encodings, its camera_info, and the statistics of a stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ros_processes import camera_info
from std_msgs.msg import Header

from omnistream_ros.nodes.output_messages import (
    SourceFacts,
    compressed_depth_image,
    depth_camera_info,
    depth_image,
)
from omnistream_ros.nodes.statistics import StreamStatistics
from omnistream_ros.stream.compressed_images import decode_depth
from omnistream_ros.stream.frame import Intrinsics

INF, NAN = float("inf"), float("nan")
DEPTH = torch.tensor([[0.0004, 0.0006, 1.2345, 65.535], [65.536, 0.0, NAN, INF]])


def test_depth_in_metres_marks_the_unknown_with_nan() -> None:
    image = depth_image(DEPTH, "32FC1", Header(frame_id="camera"))
    assert (image.height, image.width, image.step, image.encoding) == (2, 4, 16, "32FC1")
    values = np.frombuffer(image.data, "<f4").reshape(2, 4)
    expected = np.array([[0.0004, 0.0006, 1.2345, 65.535], [65.536, NAN, NAN, NAN]], np.float32)
    np.testing.assert_array_equal(values, expected)


def test_depth_in_millimetres_marks_the_unknown_with_zero() -> None:
    image = depth_image(DEPTH, "16UC1", Header())
    assert (image.step, image.encoding, image.is_bigendian) == (8, "16UC1", 0)
    values = np.frombuffer(image.data, "<u2").reshape(2, 4)
    np.testing.assert_array_equal(values, [[0, 1, 1234, 65535], [0, 0, 0, 0]])


def test_compressed_depth_is_what_image_transport_reads() -> None:
    message = compressed_depth_image(DEPTH, Header(frame_id="camera"))
    assert message.format == "16UC1; compressedDepth png"
    assert message.header.frame_id == "camera"
    read = decode_depth(bytes(message.data), message.format)
    expected = np.array([[NAN, 0.001, 1.234, 65.535], [NAN, NAN, NAN, NAN]], np.float32)
    np.testing.assert_array_equal(read, expected)
    assert bytes(message.data)[12:16] == b"\x89PNG"


def test_depth_of_a_rectified_image_has_no_distortion() -> None:
    given = camera_info()
    given.distortion_model, given.d = "equidistant", [0.1, 0.2, 0.3, 0.4]
    camera = Intrinsics(30.0, 31.0, 15.5, 11.5, 32, 24)

    def info_of(rectified: bool, known: bool = True):
        source = SourceFacts(
            header=Header(),
            pixels=np.zeros((48, 64, 3), np.uint8),
            camera_info=given if known else None,
            rectified=rectified,
            lens=None,
            stream_id="s",
            dropped_since_last=0,
        )
        return depth_camera_info(camera, source)

    info = info_of(rectified=False)
    assert (info.distortion_model, list(info.d)) == ("equidistant", [0.1, 0.2, 0.3, 0.4])
    for plain in (info_of(rectified=True), info_of(rectified=False, known=False)):
        assert (plain.distortion_model, list(plain.d)) == ("plumb_bob", [0.0] * 5)
    assert (info.width, info.height) == (32, 24)
    np.testing.assert_array_equal(info.k.reshape(3, 3), camera.matrix())
    np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], camera.matrix())


def test_statistics_account_for_every_image() -> None:
    statistics = StreamStatistics()
    for _ in range(10):
        statistics.image_received()
    for count in (1, 2, 3):
        assert statistics.image_dropped("superseded") == count
    statistics.image_dropped("wrong_step")
    assert statistics.dropped_since_last() == 4
    assert statistics.dropped_since_last() == 0
    for milliseconds in (10.0, 20.0, 30.0):
        statistics.image_processed({"backbone": milliseconds, "latency": 2 * milliseconds})
    now = statistics.snapshot()
    assert (now.received, now.processed) == (10, 3)
    assert now.drops == {"superseded": 3, "wrong_step": 1}
    assert list(now.latency_ms) == ["backbone", "latency"]
    assert now.latency_ms["backbone"] == pytest.approx((20.0, 29.0))
    assert now.input_hz > now.output_hz > 0.0
