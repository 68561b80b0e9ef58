# SPDX-License-Identifier: Apache-2.0
"""Up, down, and out: transitions, faults, memory and signals of the node's process."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from omnistream_ros.msg import FeatureTensor, StreamStatus
from ros_processes import NODE, NodeStarter, User
from sensor_msgs.msg import Image

from omnistream_ros.nodes import perception, process
from omnistream_ros.stream.session import StreamSession

FAULT_WIDTH = 80  # an image of this width makes the faulty session fail


def faulty_main(arguments: list[str]) -> int:
    """The node with a session that fails on one kind of image."""
    step = StreamSession.step

    def fail(self: StreamSession, frame, *others):
        if frame.width == FAULT_WIDTH:
            raise RuntimeError("device lost\nsecond line")
        return step(self, frame, *others)

    StreamSession.step = fail  # type: ignore[method-assign]
    return perception.main(arguments)


def test_missing_model_refuses_and_recovers(
    user: User, start_node: NodeStarter, weights: Path
) -> None:
    node = start_node(model="/nowhere/weights.safetensors", autostart=True)
    line = node.wait_for("cannot configure")
    assert "/nowhere/weights.safetensors" in line
    assert "Set the parameter 'model' and configure again" in line
    assert user.state() == "unconfigured"
    assert not user.change("configure")
    assert node.count("cannot configure") == 2
    assert user.set_parameter("model", str(weights)).successful
    assert user.change("configure", "activate")
    assert user.state() == "active"
    assert node.count("Traceback") == 0


@pytest.mark.parametrize("damage", ["cut in half", "not safetensors"])
def test_broken_model_refuses(
    user: User, start_node: NodeStarter, weights: Path, tmp_path: Path, damage: str
) -> None:
    broken = tmp_path / "broken.safetensors"
    content = weights.read_bytes()
    broken.write_bytes(content[: len(content) // 2] if damage == "cut in half" else b"hello" * 99)
    node = start_node(model=broken)
    assert not user.change("configure")
    assert str(broken) in node.wait_for("cannot configure")
    assert user.state() == "unconfigured"


def test_features_the_model_lacks_refuse_to_configure(user: User, start_node: NodeStarter) -> None:
    node = start_node(features='["7:patch"]')
    assert not user.change("configure")
    assert "blocks 0 to 1" in node.wait_for("cannot configure")


def test_fault_while_active_recovers_by_configure(user: User, start_node: NodeStarter) -> None:
    node = start_node.fork(faulty_main, start_node.arguments(autostart=True))
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images")
    send = user.camera()
    user.wait_until(lambda: status)
    user.process(send, status)
    send(width=FAULT_WIDTH)  # another size: refused while the first camera is fresh
    node.wait_for("two publishers share the topic")
    assert user.set_parameter("source_timeout", 0.0).successful
    send(width=FAULT_WIDTH)
    node.wait_for("recovered to unconfigured after: RuntimeError: device lost")
    assert "raise RuntimeError" in node.log  # with its traceback
    user.wait_until(lambda: status[-1].state == StreamStatus.FAULT)
    assert user.state() == "unconfigured"
    # Nothing is left behind: the subscription is gone until the node is activated again.
    user.wait_until(lambda: user.node.count_subscribers("/image") == 0)
    assert user.change("configure", "activate")
    send = user.camera()
    user.wait_until(lambda: status[-1].state == StreamStatus.WAITING)
    frame = user.process(send, status)
    assert (frame.epoch, frame.frame_index, frame.frames_processed) == (0, 0, 1)


def test_fifty_cycles_leave_memory_flat(user: User, start_node: NodeStarter) -> None:
    """A node that is configured and dropped again and again keeps its memory and its threads."""
    node = start_node()
    status = user.collect(StreamStatus, f"{NODE}/status")
    user.collect(Image, f"{NODE}/depth/image")
    user.collect(FeatureTensor, f"{NODE}/features")
    memory, threads = [], []
    for _ in range(50):
        assert user.change("configure", "activate")
        send = user.camera()
        user.wait_until(lambda: status and status[-1].state == StreamStatus.WAITING)
        user.process(send, status, width=640, height=480)
        assert user.change("deactivate", "activate", "deactivate", "cleanup")
        user.wait_until(lambda: user.node.count_subscribers("/image") == 0)
        status.clear()
        memory.append(node.resident_mib())
        threads.append(node.threads())
    assert node.alive
    print("resident MiB:", [round(m, 1) for m in memory])
    assert len(set(threads[10:])) == 1, threads
    # The first cycles fill pools; a leak of one frame or one model per cycle would be far more.
    assert memory[-1] - memory[10] < 4.0, memory


def test_parameters_are_refused_with_the_reason(user: User, start_node: NodeStarter) -> None:
    node = start_node(window=8)
    assert user.change("configure")
    refused = user.set_parameter("window", 4)
    assert not refused.successful
    assert "deactivate and clean up first" in refused.reason
    refused = user.set_parameter("depth_encoding", "8UC1")
    assert not refused.successful
    assert "32FC1" in refused.reason
    assert user.set_parameter("depth_encoding", "16UC1").successful
    refused = user.set_parameter("stall_timeout", float("nan"))
    assert not refused.successful
    assert not user.set_parameter("autostart", True).successful
    assert user.change("cleanup")
    assert user.set_parameter("window", 4).successful
    assert not user.set_parameter("window", 0).successful
    assert user.change("configure")
    node.wait_for("context of 5 frames")


def test_wrong_parameters_at_start_end_with_all_reasons(
    user: User, start_node: NodeStarter
) -> None:
    node = start_node(window=0, max_gap=1, depth_encoding="float", features='["patch"]')
    assert node.wait() == 2
    assert node.count("Traceback") == 0
    line = node.wait_for("^error: ")
    for name in ("window", "max_gap", "depth_encoding", "features"):
        assert f"parameter '{name}'" in line


def test_refused_quality_of_service_leaves_nothing_behind(
    user: User, start_node: NodeStarter
) -> None:
    override = f"qos_overrides.{NODE}/odometry.publisher.reliability:=sometimes"
    node = start_node("-p", override)
    assert not user.change("configure")
    node.wait_for("sometimes")
    assert user.state() == "unconfigured"
    assert user.node.count_publishers(f"{NODE}/depth/image") == 0


def test_misspelt_parameter_is_reported(start_node: NodeStarter) -> None:
    node = start_node(windoww=3)
    assert "did you mean 'window'" in node.wait_for("'windoww' is not known")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_streaming_ends_cleanly_and_quickly(
    user: User, start_node: NodeStarter, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "omnistream_ros.nodes.perception"]
    node = start_node.run(*command, *start_node.arguments(autostart=True))
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images")
    send = user.camera()
    user.wait_until(lambda: status)
    user.process(send, status)
    send()
    own_segments = _shared_memory(node.pid) - _shared_memory(os.getpid())
    # The process itself gives up an orderly end after a few seconds, with another status.
    assert node.end(number) == 0, node.log
    assert not [path for path in own_segments if Path(path).exists()]
    assert node.count("Traceback|terminate|Fatal|double free") == 0, node.log


def test_signal_during_a_callback_leaves_no_shared_memory(start_node: NodeStarter) -> None:
    """The executor then still knows the callback's node when the process wants to let go of it."""
    node = start_node.fork(stopped_in_a_callback_main, start_node.arguments())
    own_segments = node.wait_for("segments: ").partition("segments: ")[2].split()
    assert node.wait() == 0, node.log
    assert own_segments
    assert not [path for path in own_segments if Path(path).exists()]


def stopped_in_a_callback_main(arguments: list[str]) -> int:
    """The node with a timer whose callback is running while the signal arrives."""

    class Stopped(perception.PerceptionNode):
        def __init__(self) -> None:
            super().__init__()
            self.create_timer(0.01, self._stop_process)

        def _stop_process(self) -> None:
            self.get_logger().info("segments: " + " ".join(_shared_memory(os.getpid())))
            os.kill(os.getpid(), signal.SIGINT)
            heard.wait()

    heard = threading.Event()
    set_result = process.Future.set_result

    def tell(future: process.Future, result: object) -> None:
        set_result(future, result)
        heard.set()

    process.Future.set_result = tell
    return process.run(Stopped, arguments)


def _shared_memory(pid: int) -> set[str]:
    """The Fast DDS segments that a process maps: its own and those of its peers."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return set(re.findall(r"/dev/shm/fastdds_[0-9a-f]{16}", maps))


def test_killed_node_can_be_started_again(user: User, start_node: NodeStarter) -> None:
    """SIGKILL leaves shared memory behind; the next node of the same name must not mind."""
    first = start_node(autostart=True)
    status = user.collect(StreamStatus, f"{NODE}/status")
    first.wait_for("waiting for images")
    user.wait_until(lambda: status)
    user.process(user.camera(), status)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = start_node(autostart=True)
    second.wait_for("waiting for images")
    send = user.camera()

    def streaming_again() -> bool:
        send()
        return bool(status) and status[-1].state == StreamStatus.STREAMING

    status.clear()
    user.wait_until(streaming_again)


def test_transition_that_raises_is_logged_and_recovers(user: User, start_node: NodeStarter) -> None:
    node = start_node.fork(broken_configure_main, start_node.arguments())
    assert not user.change("configure")
    node.wait_for("configure failed")
    assert "in the middle of set_up" in node.log
    assert user.state() == "unconfigured"
    assert user.change("configure", "activate")


def broken_configure_main(arguments: list[str]) -> int:
    """The node whose first configure breaks after the model was loaded."""
    warm_up: Callable = perception.PerceptionNode._warm_streams

    def fail_once(self: perception.PerceptionNode) -> None:
        perception.PerceptionNode._warm_streams = warm_up
        raise KeyError("in the middle of set_up")

    perception.PerceptionNode._warm_streams = fail_once
    return perception.main(arguments)
