# SPDX-License-Identifier: Apache-2.0
"""From a feature tensor in the perception node to the policy that reads it: milliseconds.

Two ways, in turn: two processes with DDS in between, and one process that hands the tensor over by
reference (omnistream_container). The time begins when the tensor is there, before any message is
made of it, and ends when the policy's thread begins with it: what ActionChunk.age_ms says. The
policy itself takes no time. Sizes: the patch tokens of one frame of omnistream-l at 512x512 in
float16 (2 MiB), and of omnistream-nano.

    python benchmarks/action_latency.py [--frames 150] [--rate 10] [--rounds 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import rclpy
import torch
from omnistream_ros.msg import ActionChunk, FeatureTensor
from rclpy._rclpy_pybind11 import InvalidHandle
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from std_msgs.msg import Header

from omnistream_ros.nodes import handover
from omnistream_ros.nodes.action import ActionNode
from omnistream_ros.nodes.output_messages import feature_facts, feature_message
from omnistream_ros.nodes.process import run
from omnistream_ros.stream.result import FeatureKey, FeatureKind

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "omnistream-l 512x512 float16": ((32, 32, 1024), torch.float16),
    "omnistream-nano 192x144 float32": ((9, 12, 192), torch.float32),
}
SOURCE = "/source"  # the node that stands for perception
TOPIC = f"{SOURCE}/features"
KEY = FeatureKey(3, FeatureKind.PATCH, True)


class Source:
    """Makes a tensor at a rate and publishes it as the perception node does."""

    def __init__(self, node: Any, size: str, rate: float) -> None:
        self._node = node
        shape, dtype = SIZES[size]
        self._tensor = torch.rand(shape).to(dtype)
        self._publisher = node.create_publisher(FeatureTensor, TOPIC, QoSProfile(depth=5))
        self._name = node.resolve_topic_name(TOPIC)
        self._frame = 0
        self._period = 1.0 / rate
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(InvalidHandle):  # the node has ended
            while True:
                time.sleep(self._period)
                self._publish()

    def _publish(self) -> None:
        self._frame += 1
        tensor = self._tensor.clone()  # of this frame
        result, source, model = self._facts(self._node.get_clock().now().to_msg())
        for listener in handover.listeners(self._name):
            listener(feature_facts(KEY, result, source, model), tensor)
        if self._publisher.get_subscription_count():
            self._publisher.publish(feature_message(KEY, tensor, result, source, model))

    def _facts(self, stamp: Any) -> tuple[Any, Any, Any]:
        rows, columns = self._tensor.shape[:2]
        result = SimpleNamespace(
            epoch=0,
            frame_index=self._frame,
            context_frames=1,
            grid=(rows, columns),
            model_size=(16 * rows, 16 * columns),
            source_size=(16 * rows, 16 * columns),
            model_to_source=np.eye(2, 3),
        )
        source = SimpleNamespace(
            header=Header(stamp=stamp), stream_id="camera", dropped_since_last=0
        )
        model = SimpleNamespace(name="bench", sha256="", layers=4, patch_size=16)
        return result, source, model


def _source(size: str, rate: float) -> int:
    def make() -> Any:
        node = rclpy.create_node("source")
        node.source = Source(node, size, rate)
        return node

    return run(make, [])


def _together(size: str, rate: float, line: list[str]) -> int:
    def make() -> Any:
        handover.announce(SOURCE)
        node = ActionNode()
        node.source = Source(node, size, rate)
        return node

    return run(make, line)


def _line() -> list[str]:
    values = {
        "policy": "scripted",
        "autostart": "true",
        "action_space": "twist",
        "action_names": "[x]",
        "action_frame": "base_link",
        "features": '["camera: 7:patch:normed"]',
        "streams": f'["*: {TOPIC}"]',
        "features_timeout": "1.0",
        "watchdog_timeout": "2.0",
    }
    return ["--ros-args", *(w for n, v in values.items() for w in ("-p", f"{n}:={v}"))]


def measure(size: str, together: bool, frames: int, rate: float) -> list[float]:
    """Ages in milliseconds of `frames` observations, after ten to warm up."""
    me = [sys.executable, __file__, "--size", size, "--rate", str(rate), "--child"]
    children = [["together"]] if together else [["source"], ["action"]]
    started = [subprocess.Popen([*me, *child]) for child in children]
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("measure", context=context)
    chunks: list[ActionChunk] = []
    node.create_subscription(ActionChunk, "/omnistream_action/chunk", chunks.append, 50)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    deadline = time.monotonic() + 60.0 + frames / rate * 2
    try:
        while len(chunks) < frames + 10 and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.1)
    finally:
        for process in started:
            process.send_signal(signal.SIGINT)
        for process in started:
            process.wait(30.0)
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
    return [chunk.age_ms for chunk in chunks[10:]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--size", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=("source", "action", "together"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "source":
        return _source(options.size, options.rate)
    if options.child == "action":
        return run(ActionNode, _line())
    if options.child == "together":
        return _together(options.size, options.rate, _line())
    os.environ.setdefault("ROS_DOMAIN_ID", str(60 + os.getpid() % 40))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(ROOT / "config" / "fastdds.xml"))
    report = {}
    for size in SIZES:
        ages: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.rounds):
            for together in ages:
                ages[together] += measure(size, together, options.frames, options.rate)
        row = {}
        for together, values in ages.items():
            way = "one process" if together else "two processes"
            median, late = np.percentile(values, (50, 95))
            row[way] = {"frames": len(values), "median_ms": median, "p95_ms": late}
            print(f"{size}, {way}: median {median:.2f} ms, p95 {late:.2f} ms, {len(values)} frames")
        report[size] = row
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
