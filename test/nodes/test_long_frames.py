# SPDX-License-Identifier: Apache-2.0
"""A model that takes minutes for one image: the process still ends, and says what is going on."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from omnistream_ros.msg import StreamStatus
from ros_processes import NODE, NodeProcess, NodeStarter, User

from omnistream_ros.nodes import bond, perception
from omnistream_ros.stream.session import StreamSession

SLOW_WIDTH = 80  # an image of this width keeps the model busy for ever


def slow_main(arguments: list[str]) -> int:
    step = StreamSession.step

    def work(self: StreamSession, frame, *others):
        if frame.width == SLOW_WIDTH:
            print("at work", flush=True)
            threading.Event().wait(600)
        return step(self, frame, *others)

    StreamSession.step = work  # type: ignore[method-assign]
    return perception.main(arguments)


def keep_busy(user: User, node: NodeProcess) -> None:
    """Send images until one is in work; the first may come before the two sides are connected."""
    node.wait_for("waiting for images")
    send = user.camera()

    def at_work() -> int:
        send(width=SLOW_WIDTH)
        return node.count("at work")

    user.wait_until(at_work)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_does_not_wait_for_the_frame_in_work(
    user: User, start_node: NodeStarter, number: signal.Signals
) -> None:
    node = start_node.fork(slow_main, start_node.arguments(autostart=True))
    keep_busy(user, node)
    own = shared_memory(node.pid) - shared_memory(os.getpid())
    begin = time.monotonic()
    assert node.end(number) == 0, node.log
    # A second, and what a busy machine takes for it; without this it would be eight.
    assert time.monotonic() - begin < 4.0
    assert "ends without waiting" in node.log
    assert not [path for path in own if Path(path).exists()]
    assert node.count("Traceback|terminate|Fatal|double free") == 0, node.log


def shared_memory(pid: int) -> set[str]:
    """The Fast DDS segments that a process maps: its own and those of its peers."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return set(re.findall(r"/dev/shm/fastdds_[0-9a-f]{16}", maps))


def test_the_watchdog_ends_the_process(user: User, start_node: NodeStarter) -> None:
    node = start_node.fork(slow_main, start_node.arguments(autostart=True, stall_timeout=0.2))
    status = user.collect(StreamStatus, f"{NODE}/status")
    arrays = user.collect(DiagnosticArray, "/diagnostics")
    keep_busy(user, node)
    assert "the device hangs" in node.wait_for("the model has been at work on one image")
    user.wait_until(
        lambda: (
            arrays
            and arrays[-1].status[0].level == DiagnosticStatus.ERROR
            and "at work on one image" in arrays[-1].status[0].message
        )
    )
    assert status[-1].frames_processed == 0
    assert user.set_parameter("watchdog_timeout", 0.3).successful
    assert node.wait() == perception.WATCHDOG_STATUS
    assert "to be started again" in node.wait_for("watchdog_timeout")


class Message:
    """Stands in for bond/msg/Status, whose package this machine may lack."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)
        self.header = type("Header", (), {})()


class Robot:
    """As much of a node as a bond needs."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.live = 0

    def create_publisher(self, kind: type, topic: str, qos: object) -> Robot:
        assert (kind, topic) == (Message, "bond")
        self.live += 1
        return self

    def create_timer(self, period_s: float, beat: object, clock: object) -> object:
        self.live += 1
        self.period_s, self.beat = period_s, beat
        return beat

    def publish(self, message: Message) -> None:
        self.sent.append(message)

    def destroy_timer(self, timer: object) -> None:
        assert timer == self.beat
        self.live -= 1

    def destroy_publisher(self, publisher: object) -> None:
        self.live -= 1

    def get_name(self) -> str:
        return "camera_node"

    def get_clock(self) -> Robot:
        return self

    now = to_msg = get_clock


def test_heartbeats_are_those_of_bondcpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bond, "Status", Message)
    assert bond.installed()
    robot = Robot()
    made = bond.Bond(robot, 0.25)  # type: ignore[arg-type]
    robot.beat()
    assert robot.period_s == 0.25
    assert [m.active for m in robot.sent] == [True, True]
    assert {m.id for m in robot.sent} == {"camera_node"}
    assert len({m.instance_id for m in robot.sent}) == 1
    assert robot.sent[0].heartbeat_period < robot.sent[0].heartbeat_timeout
    made.break_off()
    assert robot.sent[-1].active is False
    assert robot.live == 0
    again = Robot()
    bond.Bond(again, 0.25)  # type: ignore[arg-type]
    assert again.sent[0].instance_id != robot.sent[0].instance_id


def test_a_node_is_bonded_while_it_is_active(user: User, start_node: NodeStarter) -> None:
    status = pytest.importorskip("bond.msg", reason="needs the ROS package bond").Status
    start_node(bond_heartbeat_period=0.05)
    beats = user.collect(status, "/bond")
    assert user.change("configure", "activate")
    user.wait_until(lambda: len(beats) > 3)
    assert all(beat.active and beat.id == NODE.lstrip("/") for beat in beats)
    assert user.change("deactivate")
    user.wait_until(lambda: not beats[-1].active)
