# SPDX-License-Identifier: Apache-2.0
"""An hour of the action node with everything going wrong at random, in a few minutes.

A real node in a process of its own, over real DDS, on a clock of its own that runs faster; this
process is the robot, its camera and its operator. A monitor that shares no code with the package
reads nothing but the commands: none may leave range, velocity or acceleration limits, none may move
while the emergency stop is latched, while features or joints are silent, or while the instruction
is unusable. Memory and threads of the node may not grow; pages of files that are mapped, such as
the vocabulary of the sentence encoder, of which new words bring more, are told apart.

    python test/soak/action_soak.py --hours 1 --speed 6 [--seed 0] [--json result.json]

The exit status is 1 if something unsafe was commanded or something grew.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "action"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "nodes"))

import numpy as np
import rclpy
from monitor import JointMonitor
from omnistream_ros.msg import ActionStatus, FeatureTensor
from policy_files import SHA256, with_action, write_policy
from rclpy.executors import SingleThreadedExecutor
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

JOINTS = ("shoulder", "elbow")
NODE = "/omnistream_action"
FEATURES = "/omnistream_perception/features"
NS = 1_000_000_000
VELOCITY, ACCELERATION = 0.5, 2.0
FEATURES_TIMEOUT, JOINTS_TIMEOUT = 0.5, 0.4
# After the cause begins, the node may need its limit, a tick, and what the clock's steps add.
GRACE = 0.3
_LATE_S = 0.05  # of real time, which is made up for
FACTS = with_action(horizon=16)


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that goes wrong for a while.

    Attributes:
        stands_after: simulated seconds after its beginning from which no command may move the
            robot until it is over; None: the robot may go on.
        features, joints: change or suppress (None) what the robot says.
        begin, end: called once.
    """

    name: str
    stands_after: float | None
    features: Callable[[FeatureTensor], FeatureTensor | None] = lambda message: message
    joints: Callable[[JointState], JointState | None] = lambda message: message
    begin: Callable[[Soak], None] = lambda soak: None
    end: Callable[[Soak], None] = lambda soak: None


def _change(**fields: Any) -> Callable[[FeatureTensor], FeatureTensor]:
    def changed(message: FeatureTensor) -> FeatureTensor:
        for name, value in fields.items():
            setattr(message, name, value)
        return message

    return changed


def _not_finite(message: FeatureTensor) -> FeatureTensor:
    values = np.frombuffer(message.data, np.float16).copy()
    values[3] = np.nan
    message.data = values.tobytes()
    return message


def _wild(message: FeatureTensor) -> FeatureTensor:
    values = np.random.default_rng().normal(size=24) * 60.0
    message.data = values.astype(np.float16).tobytes()
    return message


def _old(message: Any) -> Any:
    message.header.stamp.sec -= 5
    return message


def _bad_joint(message: JointState) -> JointState:
    message.position = [float("nan")] * len(message.position)
    return message


def _one_joint(message: JointState) -> JointState:
    message.name, message.position = message.name[:1], message.position[:1]
    return message


def _reordered(message: JointState) -> JointState:
    message.name, message.position = message.name[::-1], message.position[::-1]
    return message


_SILENT = FEATURES_TIMEOUT + GRACE
_NUMB = JOINTS_TIMEOUT + GRACE
FAULTS = [
    Fault("features silent", _SILENT, features=lambda message: None),
    Fault("sizes that lie", _SILENT, features=_change(shape=[2, 300, 4])),
    Fault("another shape", _SILENT, features=_change(shape=[4, 3, 2])),
    Fault("another model", _SILENT, features=_change(weights_sha256="f" * 64)),
    Fault("another layer", _SILENT, features=_change(layer=2)),
    Fault("not finite", _SILENT, features=_not_finite),
    Fault("old features", _SILENT, features=_old),
    Fault("wild features", None, features=_wild),
    Fault("joints silent", _NUMB, joints=lambda message: None),
    Fault("joints not finite", _NUMB, joints=_bad_joint),
    Fault("a joint missing", _NUMB, joints=_one_joint),
    Fault("joints reordered", None, joints=_reordered),
    Fault("old joints", _NUMB, joints=_old),
    Fault("a new epoch", None, begin=lambda soak: soak.new_epoch()),
    Fault("another instruction", None, begin=lambda soak: soak.say(f"lean {soak.turn}")),
    Fault("no instruction", GRACE, begin=lambda s: s.say(""), end=lambda s: s.say("lean")),
    Fault("100 kB", GRACE, begin=lambda s: s.say("x" * 100_000), end=lambda s: s.say("lean")),
    Fault("stop button", GRACE, begin=lambda s: s.press(), end=lambda s: s.clear()),
]


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the node holds at a moment; MiB of its own and shared memory, and of mapped files."""

    own: float
    mapped: float
    threads: int
    files: int


class Soak:
    """The robot's side."""

    def __init__(self, folder: Path, hours: float, speed: float, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._speed, self._end_s = speed, hours * 3600.0
        domain = os.environ.setdefault("ROS_DOMAIN_ID", str(60 + os.getpid() % 40))
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=int(domain))
        self.node = rclpy.create_node("soak", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._clock = self.node.create_publisher(Clock, "/clock", 1)
        self._features = self.node.create_publisher(FeatureTensor, FEATURES, 5)
        self._joints = self.node.create_publisher(JointState, "/joint_states", 10)
        self._words = self.node.create_publisher(String, "/instruction", 10)
        self._button = self.node.create_publisher(Bool, f"{NODE}/emergency_stop", 10)
        self._clear = self.node.create_client(Trigger, f"{NODE}/clear_emergency_stop")
        self.node.create_subscription(JointState, f"{NODE}/command/joint_state", self._obey, 200)
        self.node.create_subscription(ActionStatus, f"{NODE}/status", self._hear, 50)
        self.monitor = JointMonitor(
            low=dict(zip(JOINTS, FACTS.action.low, strict=True)),
            high=dict(zip(JOINTS, FACTS.action.high, strict=True)),
            velocity=dict.fromkeys(JOINTS, VELOCITY),
            acceleration=dict.fromkeys(JOINTS, ACCELERATION),
        )
        self.positions = dict(zip(JOINTS, (0.1, -0.2), strict=True))
        self.status = ActionStatus()
        self.states: collections.Counter[int] = collections.Counter()
        self.faults: collections.Counter[str] = collections.Counter()
        self.moved_while_it_should_stand: list[str] = []
        self.memory: list[Sample] = []
        self.turn = self._epoch = self._frame = 0
        self._stands: tuple[float, str] | None = None
        self._last: tuple[int, dict[str, float]] | None = None
        self.now_ns = 1000 * NS
        self._process = self._start(folder)

    def _start(self, folder: Path) -> Any:
        import subprocess

        from action_bench import arguments

        line = arguments(
            autostart=True,
            use_sim_time=True,
            policy=str(write_policy(folder / "soak.onnx", FACTS)),
            provider="cpu",
            instruction="lean",
            blending="ensemble",
            control_rate=20.0,
            replan_actions=1.0,
            joint_output="joint_state",
            max_velocity=[f"*: {VELOCITY}"],
            max_acceleration=[f"*: {ACCELERATION}"],
            dry_run=False,
            features_timeout=FEATURES_TIMEOUT,
            proprioception_timeout=JOINTS_TIMEOUT,
            watchdog_timeout=0.5,
            stop_mode="hold",
        )
        return subprocess.Popen([sys.executable, "-m", "omnistream_ros.nodes.action", *line])

    # --- what faults do ---

    def new_epoch(self) -> None:
        self._epoch, self._frame = self._epoch + 1, -1

    def say(self, words: str) -> None:
        self._words.publish(String(data=words))

    def press(self) -> None:
        self._button.publish(Bool(data=True))

    def clear(self) -> None:
        self._button.publish(Bool(data=False))
        self._clear.call_async(Trigger.Request())

    # --- the robot ---

    def _obey(self, message: JointState) -> None:
        stamp_ns = message.header.stamp.sec * NS + message.header.stamp.nanosec
        positions = dict(zip(message.name, message.position, strict=True))
        if self._last is not None:
            before_ns, before = self._last
            seconds = max((stamp_ns - before_ns) / NS, 1e-3)
            self.monitor.command(stamp_ns / NS, seconds, positions)
            moves = any(abs(positions[name] - before[name]) > 1e-9 for name in positions)
            stands = self._stands
            if moves and stands is not None and stamp_ns / NS > stands[0]:
                self.moved_while_it_should_stand.append(f"{stamp_ns / NS:.2f} s: {stands[1]}")
        self._last = (stamp_ns, positions)
        self.positions.update(positions)

    def _hear(self, status: ActionStatus) -> None:
        self.status = status
        self.states[status.state] += 1

    def _stamp(self, message: Any) -> Any:
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(self.now_ns, NS)
        return message

    def _see(self, fault: Fault | None) -> None:
        self._frame += 1
        swing = np.sin(self.now_ns / NS * 0.7) + 0.2 * np.sin(self.now_ns / NS * 5.1)
        message = FeatureTensor(
            stream_id="camera",
            epoch=self._epoch,
            frame_index=self._frame,
            model_name="soak",
            weights_sha256=SHA256,
            layer=3,
            kind=FeatureTensor.PATCH,
            normed=True,
            dtype_code=FeatureTensor.DTYPE_FLOAT,
            dtype_bits=16,
            dtype_lanes=1,
            shape=[2, 3, 4],
            data=np.full(24, swing, np.float16).tobytes(),
        )
        told = fault.features(self._stamp(message)) if fault else self._stamp(message)
        if told is not None:
            self._features.publish(told)

    def _feel(self, fault: Fault | None) -> None:
        message = JointState(name=list(self.positions), position=list(self.positions.values()))
        told = fault.joints(self._stamp(message)) if fault else self._stamp(message)
        if told is not None:
            self._joints.publish(told)

    # --- time ---

    def run(self) -> dict[str, Any]:
        """The whole soak; the report."""
        self._wait_for_the_node()
        step_ns = NS // 40  # half a turn of the control loop
        begun_s, begun_ns = time.monotonic(), self.now_ns
        fault: Fault | None = None
        change_ns = self.now_ns + 5 * NS
        sample_ns = self.now_ns
        late_s = 0.0
        while (self.now_ns - begun_ns) / NS < self._end_s and self._process.poll() is None:
            self.now_ns += step_ns
            self.turn += 1
            self._clock.publish(Clock(clock=self._stamp(JointState()).header.stamp))
            if self.turn % 2 == 0:
                self._feel(fault)
            if self.turn % 4 == 0:
                self._see(fault)
            if self.now_ns > change_ns:
                fault, change_ns = self._another(fault), self.now_ns + self._some(1.0, 4.0)
            if self.now_ns > sample_ns:
                self._sample()
                sample_ns += 20 * NS
            due_s = begun_s + late_s + (self.now_ns - begun_ns) / NS / self._speed
            self._executor.spin_once(timeout_sec=0.0)
            while (left_s := due_s - time.monotonic()) > 0:
                self._executor.spin_once(timeout_sec=left_s)
            # A machine that does not keep up makes the simulated clock slower, not jumpy.
            late_s += max(0.0, -left_s - _LATE_S)
        return self._report((self.now_ns - begun_ns) / NS, time.monotonic() - begun_s)

    def _some(self, low: float, high: float) -> int:
        return round(self._random.uniform(low, high) * NS)

    def _another(self, before: Fault | None) -> Fault | None:
        """A fault, then none, then another."""
        if before is not None:
            before.end(self)
            self._stands = None
            return None
        fault = FAULTS[self._random.integers(len(FAULTS))]
        self.faults[fault.name] += 1
        fault.begin(self)
        if fault.stands_after is not None:
            self._stands = (self.now_ns / NS + fault.stands_after, fault.name)
        return fault

    def _wait_for_the_node(self) -> None:
        deadline = time.monotonic() + 120.0
        while self.status.state != ActionStatus.EXECUTING:
            assert time.monotonic() < deadline, f"the node never executes: {self.status.detail}"
            assert self._process.poll() is None, "the node has ended"
            self.now_ns += 10_000_000
            self.turn += 1
            self._clock.publish(Clock(clock=self._stamp(JointState()).header.stamp))
            self._feel(None)
            self._see(None)
            self._executor.spin_once(timeout_sec=0.005)

    def _sample(self) -> None:
        folder = Path(f"/proc/{self._process.pid}")
        lines = (line.split(":") for line in (folder / "status").read_text().splitlines())
        mib = {name: int(value.split()[0]) / 1024 for name, value in lines if name[:3] == "Rss"}
        threads, files = len(list((folder / "task").iterdir())), len(os.listdir(folder / "fd"))
        own = mib["RssAnon"] + mib["RssShmem"]
        self.memory.append(Sample(own, mib["RssFile"], threads, files))

    def _report(self, simulated_s: float, real_s: float) -> dict[str, Any]:
        count = len(self.memory)
        early, late = self.memory[count // 4 : count // 2], self.memory[3 * count // 4 :]
        growth = statistics.median(m.own for m in late) - statistics.median(m.own for m in early)
        some = self.memory[:: max(1, count // 12)]
        status = self.status
        names = {getattr(ActionStatus, n): n.lower() for n in ("WAITING", "EXECUTING", "HOLDING")}
        names[ActionStatus.STOPPED] = "stopped"
        total = sum(self.states.values())
        return {
            "simulated_s": round(simulated_s),
            "real_s": round(real_s),
            "commands": self.monitor.commands,
            "largest_speed": round(self.monitor.largest_speed, 4),
            "unsafe": self.monitor.faults,
            "moved_while_it_should_stand": self.moved_while_it_should_stand[:20],
            "share_of_time": {
                names.get(state, str(state)): round(number / total, 3)
                for state, number in self.states.items()
            },
            "faults": dict(sorted(self.faults.items())),
            "drops": dict(zip(status.drop_kinds, map(int, status.drop_counts), strict=True)),
            "holds": dict(zip(status.hold_kinds, map(int, status.hold_counts), strict=True)),
            "clamps": dict(zip(status.clamp_kinds, map(int, status.clamp_counts), strict=True)),
            "chunks": int(status.chunks),
            "memory_mib": [round(m.own, 2) for m in some],
            "growth_mib": round(growth, 2),
            "mapped_mib": [round(m.mapped, 2) for m in some],
            "threads": sorted({m.threads for m in self.memory[1:]}),
            "files": sorted({m.files for m in self.memory[1:]}),
            "ended_early": self._process.poll() is not None,
        }

    def close(self) -> int:
        """End everything; the node's exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        status = self._process.wait(60.0)
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)
        return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0, help="simulated time")
    parser.add_argument("--speed", type=float, default=6.0, help="simulated seconds per second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth-mib", type=float, default=1.0, help="of memory, at most")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), options.hours, options.speed, options.seed)
        try:
            report = soak.run()
        finally:
            status = soak.close()
    report["exit_status"] = status
    text = json.dumps(report, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    wrong = report["unsafe"] or report["moved_while_it_should_stand"] or status
    grown = report["growth_mib"] > options.growth_mib or max(report["threads"]) > min(
        report["threads"]
    )
    return int(bool(wrong or grown or report["ended_early"]))


if __name__ == "__main__":
    sys.exit(main())
