# SPDX-License-Identifier: Apache-2.0
"""Hours of the perception node with random faults: does it come back each time, does it grow?

    source scripts/env.sh
    python test/soak/perception_soak.py [--minutes 60] [--speed 2] [--model tiny] [--out FILE]

Two cameras play the bundled recording in a loop at twice real time, stamps and all, to a real node
with the bundled model; a user listens to everything. Every few seconds one of the faults below
happens. A fault is survived when both cameras stream again within the limit. The memory that the
process has taken for itself is read all the time (pages of files and shared memory come and go with
what else the machine does); growth is the slope of a line through it, by process, without the
first two minutes of each. The soak goes on after a missed recovery; it ends with status 1 when
there was one, the process died of something but the soak, or memory grew by more than the limit.
With --out all that the node said lies beside the report, with the faults and recoveries between.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "nodes"))

import ros_processes
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from omnistream_ros.msg import FeatureTensor, StreamStatus
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from ros_processes import NODE, NodeProcess, NodeStarter, User, locked_domain
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from omnistream_ros.evaluation.recordings import open_recording
from omnistream_ros.model import ModelCard, ModelConfig, build_model, save_model
from omnistream_ros.nodes import perception
from omnistream_ros.nodes.distribution import byte_array
from omnistream_ros.stream.batch import StreamBatch
from omnistream_ros.stream.frame import Frame

ROOT = Path(__file__).resolve().parents[2]
CAMERAS = ("front", "left")
RECORDING = ROOT / "omnistream_ros" / "data" / "furnished_room"
FAULT_WIDTH = 48  # an image of this width makes the model fail
SETTLING_S = 120.0  # memory of a young process is not looked at
RECOVERY_S = 60.0
GROWTH_MIB_PER_HOUR = 20.0
JUDGED_MINUTES = 15.0  # the slope of less says nothing


def faulty_main(arguments: list[str]) -> int:
    """The node with a device that is lost when an image of a certain width comes."""
    step = StreamBatch.step

    def fail(self: StreamBatch, frames, *others):
        if any(frame.width == FAULT_WIDTH for frame in frames.values()):
            raise RuntimeError("device lost")
        return step(self, frames, *others)

    StreamBatch.step = fail  # type: ignore[method-assign]
    return perception.main(arguments)


def _own_mib(pid: int) -> float:
    """Memory of a process that no file and no other process has a part in."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def write_tiny(folder: Path) -> Path:
    """Weights of a model that costs next to nothing."""
    config = ModelConfig(
        name="tiny",
        width=64,
        depth=2,
        heads=1,
        taps=(0, 0, 1, 1),
        head_width=16,
        model_pixels=64 * 48,
        metric=True,
    )
    path = folder / "tiny.safetensors"
    save_model(path, build_model(config), ModelCard(name="tiny", licence="none"))
    return path


class Soak:
    """The robot, its faults, and what was seen of them."""

    def __init__(self, options: argparse.Namespace, user: User, start: NodeStarter) -> None:
        self.options, self.user, self.start = options, user, start
        self.random = random.Random(options.seed)
        self.frames: list[Frame] = list(open_recording(RECORDING).frames())
        stamps = [frame.stamp_ns for frame in self.frames]
        self.period_ns = (stamps[-1] - stamps[0]) // (len(stamps) - 1)
        self.stamp_ns = 10**18
        self.sent = 0
        self.next_s = time.monotonic()
        self.silent: set[str] = set()
        self.samples: list[tuple[int, float, float, int, int]] = []  # pid, s, MiB, threads, fds
        self.outcome: dict[str, list[float]] = collections.defaultdict(list)
        self.missed: list[str] = []
        self.died = 0
        self.nodes: list[NodeProcess] = []
        self.newest: dict[str, StreamStatus] = {}
        self.publishers = {}
        for name in CAMERAS:
            create = user.node.create_publisher
            self.publishers[name] = (
                create(Image, f"/{name}/image", 5),
                create(CameraInfo, f"/{name}/camera_info", 5),
            )
            self._listen(name)
        latched = QoSProfile(depth=10, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        self.static = user.node.create_publisher(TFMessage, "/tf_static", latched)
        self.node = self.launch()

    def _listen(self, name: str) -> None:
        def remember(status: StreamStatus) -> None:
            self.newest[name] = status

        subscribe, prefix = self.user.node.create_subscription, f"{NODE}/{name}"
        subscribe(StreamStatus, f"{prefix}/status", remember, 10)
        for topic, kind in {
            "depth/image": Image,
            "depth/points": PointCloud2,
            "depth/image_color": Image,
            "odometry": Odometry,
            "path": PathMessage,
            "features": FeatureTensor,
        }.items():
            subscribe(kind, f"{prefix}/{topic}", lambda _: None, 5)

    def launch(self) -> NodeProcess:
        """A node process, up and running."""
        arguments = self.start.arguments(
            model=self.options.model,
            cameras="[front, left]",
            autostart=True,
            threads=0,
            source_timeout=0.5,
            stall_timeout=1.0,
            diagnostics_period=1.0,
        )
        self.nodes.append(self.start.fork(faulty_main, arguments))
        return self.nodes[-1]

    # --- time ---

    def run_for(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let the cameras send and the user listen; returns whether ``until`` came true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if time.monotonic() >= self.next_s:
                self._send()
                self.next_s += self.period_ns * 1e-9 / self.options.speed
                self.next_s = max(self.next_s, time.monotonic() - 1.0)
            self.user.serve(max(0.0, min(0.01, self.next_s - time.monotonic())))
            if until():
                return True
        return until()

    def _send(self) -> None:
        frame = self.frames[self.sent % len(self.frames)]
        self.sent += 1
        self.stamp_ns += self.period_ns
        for name in CAMERAS:
            if name not in self.silent:
                self._publish(name, frame.image)

    def _publish(self, name: str, pixels: np.ndarray, **spoilt: object) -> None:
        height, width = pixels.shape[:2]
        image = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        image.header.frame_id = f"{name}_optical"
        stamp = image.header.stamp
        stamp.sec, stamp.nanosec = divmod(self.stamp_ns, 10**9)
        image.data = byte_array(np.ascontiguousarray(pixels))
        for field, value in spoilt.items():
            setattr(image, field, value)
        info = ros_processes.camera_info(width, height, focal=0.9 * width)
        info.header = image.header
        images, infos = self.publishers[name]
        infos.publish(info)
        images.publish(image)

    def sample(self) -> None:
        """Note what the process takes now."""
        if not self.node.alive:
            return
        with contextlib.suppress(OSError, StopIteration):  # it may end at this very moment
            descriptors = len(os.listdir(f"/proc/{self.node.pid}/fd"))
            row = (_own_mib(self.node.pid), self.node.threads(), descriptors)
            self.samples.append((self.node.pid, time.monotonic(), *row))

    def streaming(self) -> bool:
        """Whether every camera streams, with images of now."""
        for name in CAMERAS:
            status = self.newest.get(name)
            if status is None or status.state != StreamStatus.STREAMING:
                return False
            stamp = status.header.stamp
            if abs(self.stamp_ns - stamp.sec * 10**9 - stamp.nanosec) > 10 * 10**9:
                return False
        return True

    # --- faults; each ends with what should bring the node back ---

    def bad_images(self) -> None:
        for _ in range(20):
            name, pixels = self.random.choice(CAMERAS), self.frames[0].image
            spoilt = self.random.choice(
                [{"encoding": "magic"}, {"step": 1}, {"width": 0}, {"data": byte_array(pixels[:1])}]
            )
            self._publish(name, pixels, **spoilt)
            self.run_for(0.02)

    def other_camera(self) -> None:
        for _ in range(5):
            self._publish(self.random.choice(CAMERAS), np.zeros((60, 80, 3), np.uint8))
            self.run_for(0.05)

    def unplugged(self) -> None:
        name = self.random.choice(CAMERAS)
        self.silent.add(name)
        self.run_for(self.random.uniform(1.0, 5.0))
        self.silent.clear()

    def publisher_restarts(self) -> None:
        name = self.random.choice(CAMERAS)
        for publisher in self.publishers[name]:
            self.user.node.destroy_publisher(publisher)
        create = self.user.node.create_publisher
        self.publishers[name] = (
            create(Image, f"/{name}/image", 5),
            create(CameraInfo, f"/{name}/camera_info", 5),
        )

    def clock_jumps(self) -> None:
        self.stamp_ns += self.random.choice([-1, 1]) * 3600 * 10**9

    def many_publishers(self) -> None:
        node = self.user.node
        made = [node.create_publisher(Image, f"/{CAMERAS[i % 2]}/image", 1) for i in range(100)]
        self.run_for(1.0)
        for publisher in made:
            node.destroy_publisher(publisher)

    def parameter_storm(self) -> None:
        wishes = [("points_stride", 2), ("points_stride", 0), ("depth_encoding", "16UC1")]
        wishes += [("depth_encoding", "32FC1"), ("window", 4), ("front.feature_dtype", "float16")]
        client = self.user.node.create_client(SetParameters, f"{NODE}/set_parameters")
        for _ in range(20):
            parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in wishes]
            if client.service_is_ready():
                client.call_async(SetParameters.Request(parameters=parameters))
            self.run_for(0.02)
        self.user.node.destroy_client(client)

    def tree_with_a_loop(self) -> None:
        message = TFMessage()
        for parent, child in (("a", "b"), ("b", "a"), ("base_link", "mast")):
            link = TransformStamped(child_frame_id=child)
            link.header.frame_id = parent
            link.transform.rotation.w = 1.0
            message.transforms.append(link)
        self.static.publish(message)

    def resets(self) -> None:
        self.user.call(Trigger, f"{NODE}/reset", Trigger.Request())

    def down_and_up(self) -> None:
        self._change("deactivate", "activate")

    def all_the_way_down_and_up(self) -> None:
        self._change("deactivate", "cleanup", "configure", "activate")

    def device_lost(self) -> None:
        lost = self.node.count("recovered to unconfigured")

        def gone() -> bool:
            self._publish("front", np.zeros((36, FAULT_WIDTH, 3), np.uint8))
            self.silent.add("front")
            return self.node.count("recovered to unconfigured") > lost

        self.run_for(RECOVERY_S, gone)
        self.silent.clear()
        self._change("configure", "activate")

    def _change(self, *names: str) -> None:
        """Transitions in a row, which all have to succeed."""
        for name in names:
            before = self.user.state()
            if not self.user.change(name):
                self.missed.append(f"{name} from {before}")
                self._tell(f"REFUSED {name}: {before} before, {self.user.state()} after")

    def killed(self) -> None:
        os.kill(self.node.pid, signal.SIGKILL)
        self.node.wait()
        self.node = self.launch()

    def run(self) -> None:
        """Faults until the time is up."""
        usual = [
            self.bad_images, self.other_camera, self.unplugged, self.publisher_restarts,
            self.clock_jumps, self.many_publishers, self.parameter_storm, self.tree_with_a_loop,
            self.resets, self.down_and_up, self.all_the_way_down_and_up, self.device_lost,
        ]  # fmt: skip
        begin = time.monotonic()
        self._recover("start")
        last_kill_s = begin
        while time.monotonic() - begin < 60.0 * self.options.minutes:
            end = time.monotonic() + self.random.uniform(3.0, 12.0)
            while time.monotonic() < end:
                self.run_for(1.0)
                self.sample()
            fault = self.random.choice(usual)
            if time.monotonic() - last_kill_s > 60.0 * self.options.kill_every:
                fault, last_kill_s = self.killed, time.monotonic()
            self._tell(f"now: {fault.__name__}")
            try:
                fault()
            except AssertionError as error:  # the user waited in vain, as for a service
                self.missed.append(f"{fault.__name__}: {error}")
                self._tell(f"MISSED in {fault.__name__}: {error}")
            self._recover(fault.__name__)

    def _recover(self, fault: str) -> None:
        begin = time.monotonic()
        self.newest.clear()
        back = self.run_for(RECOVERY_S, self.streaming)
        self.outcome[fault].append(time.monotonic() - begin)
        if not back:
            self.missed.append(fault)
            self._tell(f"MISSED after {fault}: {self._circumstances()}")
            if not self.node.alive:
                self.died += 1
                self.node = self.launch()
        self._tell(f"{fault}: {self.outcome[fault][-1]:.1f} s")

    def _circumstances(self) -> str:
        """What a missed recovery may come from."""
        others = self.user.node.get_publishers_info_by_topic(f"{NODE}/transition_event")
        told = f"{len(others)} nodes of this name, the process is {self.node.alive=}"
        with contextlib.suppress(AssertionError):
            told += f", {self.user.state()}"
        states = {name: (s.state, s.frames_received) for name, s in self.newest.items()}
        return f"{told}, newest {states}, load {os.getloadavg()}"

    def _tell(self, text: str) -> None:
        """Into the node's own output, so that both stand in the order of time."""
        self.node.lines.append(f"[soak] [{time.time():.3f}] {text}")
        print(text, flush=True)

    def report(self) -> dict:
        """What came of it."""
        growth = []
        for pid in dict.fromkeys(row[0] for row in self.samples):
            rows = np.array([row[1:] for row in self.samples if row[0] == pid])
            seconds = rows[:, 0] - rows[0, 0]
            settled = seconds > SETTLING_S
            if settled.sum() < 30:
                continue
            slope = float(np.polyfit(seconds[settled], rows[settled, 1], 1)[0]) * 3600.0
            growth.append(
                {
                    "minutes": float(seconds[-1] / 60.0),
                    "MiB, median of each 5 minutes": [
                        round(float(np.median(rows[seconds // 300 == part, 1])), 1)
                        for part in np.unique(seconds // 300)
                    ],
                    "MiB per hour": slope,
                    "threads": [int(rows[settled, 2].min()), int(rows[settled, 2].max())],
                    "file descriptors": [int(rows[settled, 3].min()), int(rows[settled, 3].max())],
                }
            )
        return {
            "minutes": self.options.minutes,
            "speed": self.options.speed,
            "model": Path(self.options.model).stem,
            "images sent": self.sent * len(CAMERAS),
            "faults": {n: len(s) for n, s in self.outcome.items()},
            "slowest recovery (s)": {n: round(max(s), 1) for n, s in self.outcome.items()},
            "missed": self.missed,
            "ended by themselves": self.died,
            "processes": growth,
            "unexpected tracebacks": self._unexpected(),
        }

    def everything_said(self) -> str:
        """The output of all node processes, one after the other, with what the soak did."""
        return "".join(f"--- process {node.pid} ---\n{node.log}\n" for node in self.nodes)

    def _unexpected(self) -> int:
        return sum(
            node.count("Traceback") - node.count("fault while active: RuntimeError: device lost")
            for node in self.nodes
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--model",
        default="omnistream-nano",
        help="or tiny: random weights, so small that the node's own time dominates",
    )
    parser.add_argument("--speed", type=float, default=2.0, help="of the recording")
    parser.add_argument("--kill-every", type=float, default=20.0, help="minutes between kill -9")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--domain", type=int, help="default: one that no test of this machine uses")
    parser.add_argument("--out", type=Path, help="of the report, JSON")
    options = parser.parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    profile = f"FAST{'RTPS' if os.environ.get('ROS_DISTRO') == 'jazzy' else 'DDS'}"
    os.environ[f"{profile}_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds.xml")
    os.environ["ROS_LOG_DIR"] = tempfile.mkdtemp(prefix="omnistream_soak_")
    if options.model == "tiny":
        options.model = str(write_tiny(Path(tempfile.mkdtemp(prefix="omnistream_soak_"))))
    with contextlib.ExitStack() as stack:
        domain = options.domain or stack.enter_context(locked_domain())
        user = stack.enter_context(User(domain))
        start = stack.enter_context(NodeStarter(domain, Path()))
        soak = Soak(options, user, start)
        try:
            soak.run()
        finally:
            report = soak.report()
            text = json.dumps(report, indent=1)
            print(text)
            if options.out:
                options.out.write_text(text + "\n")
                options.out.with_suffix(".node.log").write_text(soak.everything_said())
    judged = [p for p in report["processes"] if p["minutes"] >= JUDGED_MINUTES]
    grown = max((p["MiB per hour"] for p in judged), default=0.0)
    failed = report["missed"] or report["ended by themselves"] or report["unexpected tracebacks"]
    return int(bool(failed) or grown > GROWTH_MIB_PER_HOUR)


if __name__ == "__main__":
    sys.exit(main())
