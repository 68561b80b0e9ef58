#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the node costs around the model: a model that does nothing, real processes, real DDS.

    python benchmarks/node_overhead.py [--seconds 20] [--hz 60] [--rounds 3]

A camera process publishes 640x480 rgb8 images; the process under test answers each with a depth
image and a feature tensor; a listener process subscribes to both. Under test, in turn:

    receive    bare rclpy that receives the images and does nothing
    echo       bare rclpy that publishes messages of the same sizes, made beforehand, for each
    node       the perception node with an engine that returns stored tensors

so that `echo` is what rclpy and DDS take of whatever `node` takes. For each:

    latency    of the process itself, from the first line of its callback to the end of publication;
               where others share the cores, p10 is what it takes while they leave it alone
    way        from the camera's publish call to the listener's callback of the last message
    CPU        of the process under test, per image
    answered   depth images heard per image sent

Needs a sourced environment (`source scripts/env.sh`). Settings that a robot has too are used: the
Fast DDS profile of config/ and the allocator settings of the node.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 640, 480
FEATURES = (9, 12, 192)  # what omnistream-nano gives for such an image
DEPTH = {"model": (144, 192), "source": (HEIGHT, WIDTH)}
NODE = "/omnistream_perception"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--hz", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3, help="in turn; medians are shown")
    parser.add_argument("--what", nargs="+", default=list(_PROCESSES), choices=_PROCESSES)
    parser.add_argument("--executor", default="single", choices=_EXECUTORS)
    parser.add_argument("--resolution", default="model", choices=DEPTH)
    parser.add_argument("--switch-ms", type=float, help="of Python's threads in the node")
    parser.add_argument("--as", dest="role", choices=("camera", "listener", *_PROCESSES))
    options = parser.parse_args()
    if options.role:
        _ROLES[options.role](options)
        return
    runs: dict[str, list[dict[str, float]]] = {what: [] for what in options.what}
    for _ in range(options.rounds):
        for what in options.what:
            runs[what].append(_measure(what, options))
            print(f"{what:8} {json.dumps(runs[what][-1])}", file=sys.stderr, flush=True)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"{options.hz:g} Hz, executor {options.executor}, depth of {options.resolution} size")
    names = list(dict.fromkeys(name for results in runs.values() for r in results for name in r))
    print(f"{'':26}" + "".join(f"{what:>12}" for what in runs))
    for name in names:
        cells = [[r[name] for r in results if name in r] for results in runs.values()]
        values = (f"{statistics.median(c):12.2f}" if c else f"{'-':>12}" for c in cells)
        print(f"{name:26}" + "".join(values))


def _measure(what: str, options: argparse.Namespace) -> dict[str, float]:
    """One run of three processes; milliseconds and shares."""
    environment = {
        **os.environ,
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(60 + os.getpid() % 40),
        "FASTDDS_DEFAULT_PROFILES_FILE": str(ROOT / "config" / "fastdds.xml"),
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }

    def start(role: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--as", role]
        for name in ("seconds", "hz", "executor", "resolution"):
            command += [f"--{name}", str(getattr(options, name))]
        if options.switch_ms is not None:
            command += ["--switch-ms", str(options.switch_ms)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    tested = start(what)
    listener = start("listener") if what != "receive" else None
    if listener is not None:
        assert listener.stdout is not None
        listener.stdout.readline()  # "ready"
    camera = start("camera")  # waits until its images are subscribed to
    try:
        sent = json.loads(_last_line(camera))
        heard = {}
        if listener is not None:
            listener.send_signal(signal.SIGINT)
            heard = json.loads(_last_line(listener))
        tested.send_signal(signal.SIGINT)
        own = json.loads(_last_line(tested))
    finally:
        for process in (tested, listener, camera):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(20)
    result = {"CPU per image (ms)": 1e3 * own["cpu_s"] / sent["images"], **own["stages"]}
    if heard:
        ways = np.array(heard["ways_ms"] or [np.nan])
        result["way median (ms)"] = float(np.median(ways))
        result["way p95 (ms)"] = float(np.percentile(ways, 95))
        result["answered"] = heard["depths"] / sent["images"]
    return result


def _last_line(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=180)
    return [line for line in output.splitlines() if line.startswith("{")][-1]


# --- the processes ------------------------------------------------------------------------------


class _StoppedError(Exception):
    """SIGINT: print and end."""


def _on_stop(_number: int, _frame: object) -> None:
    raise _StoppedError


def _node(name: str) -> Any:
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from omnistream_ros.nodes.process import tune_allocator

    tune_allocator()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGINT, _on_stop)
    return rclpy.create_node(name)


def _spin(node: Any, executor: str) -> None:
    spinner = _EXECUTORS[executor]()
    spinner.add_node(node)
    node.create_timer(0.2, lambda: None)  # Python hears of a signal when it wakes up
    print("ready", flush=True)
    with contextlib.suppress(_StoppedError):
        while True:  # as the node does: `spin` of the events executor cannot be ended
            spinner.spin_once(timeout_sec=0.2)


def _single() -> Any:
    from rclpy.executors import SingleThreadedExecutor

    return SingleThreadedExecutor()


def _multi() -> Any:
    from rclpy.executors import MultiThreadedExecutor

    return MultiThreadedExecutor(2)


def _events() -> Any:
    from rclpy.experimental import EventsExecutor

    return EventsExecutor()


def _bytes(values: np.ndarray) -> array.array[int]:
    """What a uint8[] field takes as it is (`nodes/distribution`, without importing torch)."""
    data = array.array("B")
    data.frombytes(values.tobytes())
    return data


def _qos() -> Any:
    from rclpy.qos import QoSProfile, QoSReliabilityPolicy

    return QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE)


def _camera(options: argparse.Namespace) -> None:
    """Sends images with the moment of sending as their stamp, on the clock that all share."""
    from sensor_msgs.msg import CameraInfo, Image

    node = _node("camera")
    images = node.create_publisher(Image, "image", _qos())
    infos = node.create_publisher(CameraInfo, "camera_info", _qos())
    rng = np.random.default_rng(0)
    pictures = [_bytes(rng.integers(0, 256, 3 * WIDTH * HEIGHT, np.uint8)) for _ in range(4)]
    message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
    message.header.frame_id = "camera"
    info = CameraInfo(height=HEIGHT, width=WIDTH, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [500.0, 0.0, 319.5, 0.0, 500.0, 239.5, 0.0, 0.0, 1.0]
    info.header.frame_id = "camera"
    while images.get_subscription_count() == 0:
        time.sleep(0.05)
    time.sleep(3.0)  # discovery of the others
    count, begin = int(options.seconds * options.hz), time.monotonic()
    for i in range(count):
        wait = begin + i / options.hz - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        now = time.monotonic_ns()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(now, 10**9)
        message.data = pictures[i % len(pictures)]
        info.header.stamp = message.header.stamp
        if i % 10 == 0:
            infos.publish(info)
        images.publish(message)
    time.sleep(1.0)
    print(json.dumps({"images": count}), flush=True)


def _listener(options: argparse.Namespace) -> None:
    """Counts depth images, and times each feature tensor, the last message of a frame."""
    from omnistream_ros.msg import FeatureTensor
    from sensor_msgs.msg import Image

    node = _node("listener")
    ways: list[float] = []
    depths = 0

    def on_depth(_: Any) -> None:
        nonlocal depths
        depths += 1

    def on_features(message: Any) -> None:
        now, stamp = time.monotonic_ns(), message.header.stamp
        ways.append((now - stamp.sec * 10**9 - stamp.nanosec) / 1e6)

    node.create_subscription(Image, f"{NODE}/depth/image", on_depth, _qos())
    node.create_subscription(FeatureTensor, f"{NODE}/features", on_features, _qos())
    _spin(node, options.executor)
    print(json.dumps({"depths": depths, "ways_ms": ways[20:]}), flush=True)


def _bare(options: argparse.Namespace, *, echo: bool) -> None:
    """A subscriber to images; `echo` answers with messages made beforehand."""
    from omnistream_ros.msg import FeatureTensor
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    node = _node("bare")
    height, width = DEPTH[options.resolution]
    depth = Image(height=height, width=width, encoding="32FC1", step=4 * width)
    depth.data = _bytes(np.ones((height, width), np.float32))
    features = FeatureTensor()
    features.data = _bytes(np.ones(FEATURES, np.float32))
    times: list[float] = []
    if echo:
        depths = node.create_publisher(Image, f"{NODE}/depth/image", _qos())
        tensors = node.create_publisher(FeatureTensor, f"{NODE}/features", _qos())

    def on_image(message: Any) -> None:
        begin = time.monotonic()
        if echo:
            depth.header = features.header = message.header
            depths.publish(depth)
            tensors.publish(features)
        times.append(time.monotonic() - begin)

    node.create_subscription(Image, "image", on_image, qos_profile_sensor_data)
    before = time.process_time()
    _spin(node, options.executor)
    stages = {"latency median (ms)": 1e3 * statistics.median(times[20:] or [0.0])}
    stages["latency p95 (ms)"] = 1e3 * float(np.percentile(times[20:] or [0.0], 95))
    cpu = time.process_time() - before
    print(json.dumps({"cpu_s": cpu, "stages": stages}), flush=True)


def _tested_node(options: argparse.Namespace) -> None:
    """The real node; only its engine is replaced, and what it says of each frame is kept."""
    from omnistream_ros.nodes import model_setup, perception, process
    from omnistream_ros.nodes.statistics import StreamStatistics

    rows: list[dict[str, float]] = []
    begin = 0.0
    note = StreamStatistics.image_processed

    def image_processed(self: Any, timings_ms: dict[str, float]) -> None:
        nonlocal begin
        begin = begin or time.process_time()
        rows.append(timings_ms)
        note(self, timings_ms)

    StreamStatistics.image_processed = image_processed  # type: ignore[method-assign]
    model_setup.make_engine = lambda _, network, *__: _nothing(network)
    process.SingleThreadedExecutor = _EXECUTORS[options.executor]  # type: ignore[misc]
    if options.executor == "events":
        _suit_events_executor()
    if options.switch_ms is not None:
        sys.setswitchinterval(1e-3 * options.switch_ms)
    arguments = ["--ros-args", "-p", "autostart:=true", "-p", "threads:=1"]
    arguments += ["-p", f"resolution:={options.resolution}", "--log-level", "error"]
    perception.main(arguments)
    cpu = time.process_time() - begin
    rows = rows[20:]
    stages = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        stages[f"{name} median (ms)"] = statistics.median(values)
        if name == "latency":
            stages["latency p10 (ms)"] = float(np.percentile(values, 10))
            stages["latency p95 (ms)"] = float(np.percentile(values, 95))
    print(json.dumps({"cpu_s": cpu, "stages": stages}), flush=True)


def _suit_events_executor() -> None:
    """That of this rclpy knows no guard conditions, and its `spin_until...` cannot be ended."""
    from omnistream_ros.nodes import lifecycle, process

    class Guard:
        def __init__(self, node: Any, callback: Callable[[], None]) -> None:
            self.node, self.callback = node, callback

        def trigger(self) -> None:
            def once() -> None:
                timer.cancel()
                self.callback()

            timer = self.node.create_timer(0.05, once)

    def spin(executor: Any, _: Any, stop: Any) -> None:
        while not stop.done():
            executor.spin_once(timeout_sec=0.2)

    lifecycle.ManagedNode.create_guard_condition = lambda node, callback: Guard(node, callback)
    process._spin = spin


def _nothing(network: Any) -> Any:
    """An engine that returns the same tensors for every image."""
    import torch

    from omnistream_ros.model import BackboneOutput, Prediction
    from omnistream_ros.stream.engines import TorchEngine

    class Nothing(TorchEngine):
        prediction: Any = None

        def step(self, pixels: Any, cache: Any, **wanted: Any) -> Any:
            if self.prediction is None:
                normed = torch.ones(1, cache.tokens_per_frame, network.config.width)
                hidden = [normed] * network.config.depth
                features = BackboneOutput.of(hidden, normed, cache.grid, {})
                self.prediction = Prediction(features)
                depth = torch.ones(1, *pixels.shape[-2:])
                self.prediction.depth = self.prediction.depth_confidence = depth
            cache.frames_seen += 1
            wanted["lap"]("model")
            return self.prediction

    # Its pose would be that of the images' noise; nobody asks for it but the warm-up.
    network.matching_head = network.camera_head = None
    return Nothing(network, name="nothing")


_EXECUTORS: dict[str, Callable[[], Any]] = {"single": _single, "multi": _multi, "events": _events}
_PROCESSES = ("receive", "echo", "node")
_ROLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "camera": _camera,
    "listener": _listener,
    "receive": lambda options: _bare(options, echo=False),
    "echo": lambda options: _bare(options, echo=True),
    "node": _tested_node,
}

if __name__ == "__main__":
    main()
