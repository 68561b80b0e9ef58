# SPDX-License-Identifier: Apache-2.0
"""What each topic takes on the wire, on real images: the table of docs/several_machines.md.

    python benchmarks/bandwidth.py [RECORDING] [--rate HZ]

Every message is made as the node makes it and serialised as it would be sent; transports add a few
per cent. Images in are also compressed as image_transport's republishers do it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from nav_msgs.msg import Odometry
from omnistream_ros.msg import StreamStatus
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from omnistream_ros.evaluation.demo import BUNDLED
from omnistream_ros.evaluation.recordings import open_recording
from omnistream_ros.model import load_model
from omnistream_ros.nodes.output_messages import (
    ModelFacts,
    SourceFacts,
    compressed_depth_image,
    depth_image,
    feature_message,
)
from omnistream_ros.nodes.player import camera_info_message, image_message
from omnistream_ros.nodes.point_clouds import CloudSettings, cloud_message
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.result import FeatureKey, FeatureKind, Outputs, StreamResult
from omnistream_ros.stream.session import StreamSession

HEADER = Header(frame_id="camera_optical_frame")
PATCHES = FeatureKey(-1, FeatureKind.PATCH, normed=True)
FRAMES = 30


def _jpeg(pixels: np.ndarray, quality: int) -> CompressedImage:
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return CompressedImage(header=HEADER, format="rgb8; jpeg compressed bgr8", data=data.tobytes())


def _cloud(result: StreamResult, pixels: np.ndarray, stride: int) -> Any:
    settings = CloudSettings(stride=stride, max_range=100.0, min_confidence=1.0, organized=False)
    return cloud_message(HEADER, result, pixels, settings)


def _input(frame: Frame) -> Iterator[tuple[str, Any]]:
    size = f"{frame.width}x{frame.height}"
    yield f"in: image, rgb8 {size}", image_message(frame.image, HEADER)
    for quality in (95, 80):
        name = f"in: image/compressed, JPEG of quality {quality}, {size}"
        yield name, _jpeg(frame.image, quality)
    assert frame.intrinsics is not None
    yield "in: camera_info", camera_info_message(frame.intrinsics, HEADER)


def _output(result: StreamResult, frame: Frame, facts: ModelFacts) -> Iterator[tuple[str, Any]]:
    assert result.depth is not None
    height, width = result.depth.shape
    size = f"{width}x{height}"
    for encoding in ("32FC1", "16UC1"):
        yield f"out: depth/image {encoding}, {size}", depth_image(result.depth, encoding, HEADER)
    name = f"out: depth/image/compressedDepth (PNG), {size}"
    yield name, compressed_depth_image(result.depth, HEADER)
    for stride in (1, 2, 4):
        name = f"out: depth/points of {size}, points_stride {stride}"
        yield name, _cloud(result, frame.image, stride)
    if result.features:
        source = SourceFacts(HEADER, frame.image, None, True, None, "stream", 0)
        tensor = result.features[PATCHES]
        message = feature_message(PATCHES, tensor, result, source, facts)
        yield "out: features, patches float32", message
        yield (
            "out: features, patches float16",
            feature_message(PATCHES, tensor.half(), result, source, facts),
        )
    yield "out: odometry", Odometry(header=HEADER)
    names = ["wait", "convert", "preprocess", "backbone", "heads", "pose", "postprocess", "publish"]
    status = StreamStatus(header=HEADER, stream_id="/omnistream_perception", stage_names=names)
    status.stage_ms, status.weights_sha256 = [0.0] * len(names), facts.sha256
    yield "out: status", status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recording", nargs="?", type=Path, default=BUNDLED)
    parser.add_argument("--rate", type=float, default=15.0, help="images per second")
    options = parser.parse_args()
    network, card = load_model("omnistream-nano")
    facts = ModelFacts(card.name, card.sha256, 16, network.config.depth, True, True)
    sessions = {size: StreamSession(network, resolution=size) for size in ("model", "source")}
    sizes: dict[str, list[int]] = {}
    for i, frame in enumerate(open_recording(options.recording).frames()):
        if i == FRAMES:
            break
        messages = list(_input(frame))
        for size, session in sessions.items():
            wanted = Outputs(pose=False, features=(PATCHES,) if size == "model" else ())
            result = session.step(frame, wanted).to_host()
            messages += _output(result, frame, facts)
        for name, message in messages:
            sizes.setdefault(name, []).append(len(serialize_message(message)))
    print(f"| topic | bytes | Mbit/s at {options.rate:g} Hz |\n|---|---|---|")
    for name, lengths in sizes.items():
        size = statistics.mean(lengths)
        print(f"| {name} | {size:,.0f} | {8e-6 * size * options.rate:.2f} |")


if __name__ == "__main__":
    main()
