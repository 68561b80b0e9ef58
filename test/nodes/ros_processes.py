# SPDX-License-Identifier: Apache-2.0
"""The two sides of a node test: the node in a process of its own, and the user in this one.

Nothing here sleeps: every wait is for something to be seen, with a limit that only a failure meets.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import ListParameters, SetParameters
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from omnistream_ros.nodes import perception
from omnistream_ros.nodes.distribution import byte_array

NODE = "/omnistream_perception"
PATIENCE_S = 60.0  # met only by failures, on the slowest machine
# Beyond 101 the ports of a domain reach into those the kernel hands out.
_DOMAINS = range(2, 102)
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}


@contextlib.contextmanager
def locked_domain() -> Iterator[int]:
    """A domain that no other test run of this machine uses inside this context."""
    for domain in _DOMAINS:
        path = Path(tempfile.gettempdir()) / f"omnistream_test_domain_{domain}.lock"
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain
            return
    raise RuntimeError("every ROS domain is in use by another test run")


class _Command:
    """subprocess.Popen with the interface of multiprocessing.Process."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._popen = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.pid = self._popen.pid
        self.output = self._popen.stdout

    @property
    def exitcode(self) -> int | None:
        return self._popen.poll()

    def join(self, timeout: float) -> None:
        self._popen.wait(timeout)

    def kill(self) -> None:
        self._popen.kill()


class _Fork:
    """A Python function in a process forked from one that has torch and rclpy imported already.

    A real process of its own, without the seconds of import that a fresh interpreter costs.
    """

    def __init__(
        self, target: Callable[..., int], arguments: list[str], environment: dict[str, str]
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            fifo = str(Path(folder, "output"))
            os.mkfifo(fifo)
            self._process = _FORKS.Process(
                target=_run_forked, args=(target, arguments, environment, fifo)
            )
            self._process.start()
            self.output = open(fifo, "rb")  # noqa: SIM115  (returns once the child has opened it)
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.kill = self._process.kill
        self.join = self._process.join

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["omnistream_ros.nodes.perception", "omnistream_ros.nodes.action"])


def _run_forked(
    target: Callable[..., int], arguments: list[str], environment: dict[str, str], fifo: str
) -> None:
    with open(fifo, "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    sys.exit(target(arguments))


class NodeProcess:
    """A process whose output is kept and can be waited for."""

    def __init__(self, process: _Command | _Fork) -> None:
        self.lines: list[str] = []
        self.pid = process.pid
        self._news = threading.Condition()
        self._ended = False
        self._process = process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.output:
            with self._news:
                self.lines.append(line.decode(errors="replace").rstrip())
                self._news.notify_all()
        self._process.output.close()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def log(self) -> str:
        """All output so far."""
        return "\n".join(self.lines)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.exitcode is None

    def count(self, pattern: str) -> int:
        """Lines that contain a match."""
        return sum(re.search(pattern, line) is not None for line in list(self.lines))

    def wait_for(self, pattern: str) -> str:
        """Wait for an output line that matches (also an earlier one) and return it."""
        deadline = time.monotonic() + PATIENCE_S
        seen = 0
        with self._news:
            while True:
                for line in self.lines[seen:]:
                    seen += 1
                    if re.search(pattern, line):
                        return line
                left = deadline - time.monotonic()
                if left <= 0 or (self._ended and seen == len(self.lines)):
                    raise AssertionError(f"no line {pattern!r} in:\n{self.log}")
                self._news.wait(left)

    def resident_mib(self) -> float:
        """Memory in RAM."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20

    def threads(self) -> int:
        """Number of threads."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def wait(self) -> int:
        """Wait for the end; returns the exit status."""
        self._process.join(PATIENCE_S)
        status = self._process.exitcode
        assert status is not None, f"still running:\n{self.log}"
        self._reader.join(PATIENCE_S)
        return status

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and wait. Returns the exit status."""
        os.kill(self.pid, number)
        return self.wait()

    def put_away(self) -> None:
        """End it: in order, so that it takes its shared memory along; by force if need be."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.join(PATIENCE_S / 4)
        if self.alive:
            self._process.kill()
            self._process.join(PATIENCE_S)
        self._reader.join(PATIENCE_S)


class NodeStarter:
    """Context manager that ends whatever was started in it."""

    def __init__(self, domain: int, weights: Path) -> None:
        self._here = {"ROS_DOMAIN_ID": str(domain)}
        self._weights = weights
        self._started: list[NodeProcess] = []

    def __call__(self, *arguments: str, **parameters: object) -> NodeProcess:
        return self.fork(perception.main, self.arguments(*arguments, **parameters))

    def fork(self, main: Callable[[list[str]], int], arguments: list[str]) -> NodeProcess:
        """Start a function of this package or of a test as a process in the domain."""
        return self._keep(_Fork(main, arguments, self._here))

    def arguments(self, *arguments: str, **parameters: object) -> list[str]:
        """The node's command line."""
        given = {"model": str(self._weights), "threads": 1, "camera_info_timeout": 0.0}
        given["diagnostics_period"] = 0.1  # tells a subscriber of the status that it is connected
        line = ["--ros-args"]
        for name, value in {**given, **parameters}.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            line += ["-p", f"{name}:={text}"]
        return [*line, *arguments]

    def run(self, *command: str) -> NodeProcess:
        """Start any command in the domain."""
        return self._keep(_Command(list(command), self._here))

    def _keep(self, process: _Command | _Fork) -> NodeProcess:
        self._started.append(NodeProcess(process))
        return self._started[-1]

    def __enter__(self) -> NodeStarter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._started:
            process.put_away()
            print(f"--- output of {process.pid} ---\n{process.log}")  # shown where a test failed


class User:
    """A node of the test itself, in a context of its own, spun only while it waits."""

    def __init__(self, domain: int) -> None:
        self._domain = domain

    def __enter__(self) -> User:
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=self._domain)
        self.node = rclpy.create_node("user", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._clients: dict[str, Client] = {}
        self._cameras: dict[str, Publisher] = {}
        self._stamp_ns = 1_000_000_000
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def wait_until(self, condition: Callable[[], object], what: str = "") -> None:
        """Serve this node until the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what or condition}"
            self._executor.spin_once(timeout_sec=0.05)

    def serve(self, seconds: float) -> None:
        """Serve this node for one callback, or for so long if there is none."""
        self._executor.spin_once(timeout_sec=seconds)

    def call(self, kind: type, name: str, request: Any) -> Any:
        """Call a service and return its response."""
        future = self.client(kind, name).call_async(request)
        self.wait_until(future.done, f"answer of {name}")
        return future.result()

    def client(self, kind: type, name: str) -> Client:
        """The client of a service that is there and can answer it."""
        if name not in self._clients:
            client = self.node.create_client(kind, name)
            self.wait_until(client.service_is_ready, f"service {name}")
            self._wait_until_answers_arrive(name)
            self._clients[name] = client
        return self._clients[name]

    def _wait_until_answers_arrive(self, name: str) -> None:
        """Wait until the node of a service knows every client that was created before this call.

        A service that is ready for its client may not have heard of that client's reader yet: it
        then carries the request out and drops the response. Readers are announced in order, so
        that an answer to a later client, asked for what changes nothing, proves the earlier.
        """
        service = f"/{name.split('/')[1]}/list_parameters"
        client = self.node.create_client(ListParameters, service)
        self.wait_until(client.service_is_ready, f"service {service}")
        futures = []
        asked_s = -np.inf

        def answered() -> bool:
            nonlocal asked_s
            if time.monotonic() - asked_s > 1.0:
                futures.append(client.call_async(ListParameters.Request(prefixes=["none"])))
                asked_s = time.monotonic()
            return any(future.done() for future in futures)

        self.wait_until(answered, f"answer of {service}")
        self.node.destroy_client(client)

    def change(self, *names: str) -> bool:
        """Lifecycle transitions in a row; returns whether all succeeded."""
        for name in names:
            request = ChangeState.Request(transition=Transition(id=TRANSITIONS[name]))
            if not self.call(ChangeState, f"{NODE}/change_state", request).success:
                return False
        return True

    def state(self) -> str:
        """Lifecycle state of the node."""
        return self.call(GetState, f"{NODE}/get_state", GetState.Request()).current_state.label

    def set_parameter(self, name: str, value: object) -> SetParametersResult:
        """Set one parameter of the node."""
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        return self.call(SetParameters, f"{NODE}/set_parameters", request).results[0]

    def collect(self, kind: type, topic: str, qos: QoSProfile | int = 50) -> list:
        """Subscribe; the list fills while this node waits for something."""
        messages: list = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def camera(self, topic: str = "/image", kind: type = Image) -> Callable[..., Image]:
        """An image publisher that the node has found; call it to send one picture."""
        if topic not in self._cameras:
            self._cameras[topic] = self.node.create_publisher(kind, topic, 10)
        publisher = self._cameras[topic]
        self.wait_until(lambda: publisher.get_subscription_count() > 0, f"subscriber of {topic}")

        def send(message: Image | None = None, **changes: Any) -> Image:
            message = message if message is not None else self.picture(**changes)
            publisher.publish(message)
            return message

        return send

    def unplug(self, topic: str) -> None:
        """Take a camera's publisher away, and wait until it has gone from the graph."""
        self.node.destroy_publisher(self._cameras.pop(topic))
        self.wait_until(lambda: self.node.count_publishers(topic) == 0, f"no publisher of {topic}")

    def process(
        self,
        send: Callable[..., Image],
        status: list,
        meanwhile: Callable[[], None] = lambda: None,
        **changes: Any,
    ) -> Any:
        """Send a picture and wait for the status of its frame, which is returned.

        The two sides of a connection do not come up at the same moment: as long as the node says
        that it has received nothing more, the picture is sent again.
        """
        received = status[-1].frames_received if status else 0
        message = send(**changes)
        stamp = message.header.stamp
        sent_s = time.monotonic()

        def done() -> list:
            nonlocal sent_s
            meanwhile()
            silent = status and status[-1].state in (status[-1].WAITING, status[-1].STALLED)
            silent = silent and status[-1].frames_received == received
            if silent and time.monotonic() - sent_s > 2.0:
                send(message)
                sent_s = time.monotonic()
            return [s for s in status if s.state == s.STREAMING and s.header.stamp == stamp]

        self.wait_until(done, f"status of image {stamp}")
        return next(s for s in reversed(status) if s.header.stamp == stamp)

    def restart_clock(self, stamp_ns: int) -> None:
        """Pictures continue from this stamp."""
        self._stamp_ns = stamp_ns

    def picture(
        self, width: int = 64, height: int = 48, frame_id: str = "camera", stamp_ns: int = 0
    ) -> Image:
        """A random rgb8 image; each is 0.1 s later than the one before."""
        if not stamp_ns:
            self._stamp_ns += 100_000_000
            stamp_ns = self._stamp_ns
        message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        message.header = Header(frame_id=frame_id)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        pixels = np.random.default_rng(stamp_ns).integers(0, 256, 3 * width * height, np.uint8)
        message.data = byte_array(pixels)
        return message


def camera_info(width: int = 64, height: int = 48, focal: float = 60.0) -> CameraInfo:
    """A pinhole camera."""
    info = CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    info.k = [focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0]
    info.p = [focal, 0.0, cx, 0.0, 0.0, focal, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info
