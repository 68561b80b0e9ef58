# SPDX-License-Identifier: Apache-2.0
"""A recording played to a real node over real DDS: player, node and recorder as three processes.

Nothing here imports ROS: the processes are this Python with this package's own commands, and what
they report arrives through the lines that they print and the bag that the recorder leaves behind.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import omnistream_ros
from omnistream_ros.dds_profile import profile_variable
from omnistream_ros.evaluation.child_process import ChildProcess, children, wait_until
from omnistream_ros.evaluation.recordings import Selection

NODE = "/omnistream_perception"
TOPICS = (
    f"{NODE}/depth/image",
    f"{NODE}/depth/camera_info",
    f"{NODE}/odometry",
    f"{NODE}/status",
    "/tf",
)

#: Loading and warming up a large model on a slow machine; nano takes seconds.
_START_S = 300.0
_END_S = 60.0

# Ports of a DDS domain (RTPS 9.6.1.1): domains up to 101 stay below Linux's ephemeral ports.
_PORT_BASE, _PORTS_PER_DOMAIN, _LAST_DOMAIN = 7400, 250, 101


@dataclasses.dataclass(frozen=True)
class LiveRun:
    """What a live run left behind.

    Attributes:
        bag: everything that the node published, as a rosbag2.
        played: the player's report: frames, duration_s, late_frames, complete ...
    """

    bag: Path
    played: dict[str, Any]


def run_live(
    recording: Path,
    out: Path,
    *,
    selection: Selection | None = None,
    parameters: dict[str, str] | None = None,
    speed: float = 1.0,
    topics: Sequence[str] = TOPICS,
    say: Callable[[str], None] = lambda _: None,
) -> LiveRun:
    """Play a recording to a node and record what it publishes.

    Args:
        out: folder for the bag (``node_bag``, replaced if there) and the logs of the processes.
        parameters: of the node, such as ``{"model": "..."}``.
        speed: 2 plays twice as fast.
        topics: what to record; the node's status must be among them.
        say: told what is happening, a line at a time.

    Raises:
        ChildError: a process failed or hung; the message shows the end of its log.
        ValueError: ``speed`` is not positive.
    """
    check_speed(speed)
    out.mkdir(parents=True, exist_ok=True)
    bag = out / "node_bag"
    shutil.rmtree(bag, ignore_errors=True)
    env = environment()
    with children() as running:

        def start(name: str, command: Sequence[str]) -> ChildProcess:
            child = ChildProcess(name, [sys.executable, "-m", *command], out / f"{name}.log", env)
            running.append(child)
            return child

        say("starting the node")
        settings = {"autostart": "true", **(parameters or {})}
        node = start(
            "node",
            [
                "omnistream_ros.nodes.perception",
                "--ros-args",
                *(word for k, v in settings.items() for word in ("-p", f"{k}:={v}")),
            ],
        )
        recorder = start("recorder", ["omnistream_ros.cli", "record", str(bag), *topics])
        wait_until(
            lambda: _ready(node, recorder), _START_S, [recorder, node], "it could record the node"
        )
        say("playing")
        player = start(
            "player",
            ["omnistream_ros.cli", "play", str(recording), "--speed", str(speed),
             *selection_arguments(selection or Selection())],
        )  # fmt: skip
        played = wait_until(
            lambda: _report(player),
            math.inf,  # as long as the recording is
            [node, recorder],
            "the recording was played",
        )
        wait_until(lambda: player.returncode is not None, _END_S, [player], "it ended")
        say("closing the bag")
        for child in (player, node, recorder):  # in this order nothing is lost
            child.stop()
        if recorder.json_line("recorded") is None:
            raise recorder.failure("did not complete the bag")
    return LiveRun(bag, played)


def check_speed(speed: float) -> None:
    """Refuse, before anything is started, a speed that no recording can be played at.

    Raises:
        ValueError: not positive, or not finite.
    """
    if not 0.0 < speed < math.inf:
        raise ValueError(f"speed must be a positive number (1 for real time), got {speed:g}")


def _ready(node: ChildProcess, recorder: ChildProcess) -> bool:
    """Whether the recorder hears the node; a node that says why it cannot start is believed."""
    if "[ERROR]" in node.output():
        raise node.failure("could not start")
    return recorder.json_line("recording") is not None


def _report(player: ChildProcess) -> dict[str, Any] | None:
    """What the player said at its end, None before that.

    Raises:
        ChildError: it ended without a word.
    """
    ended = player.returncode is not None  # asked first: what it printed is complete by then
    report = player.json_line("frames")
    if report is None and ended:
        raise player.failure(f"ended with status {player.returncode}")
    return report


def selection_arguments(selection: Selection) -> list[str]:
    """A selection as the options of the command line."""
    words = []
    for field in dataclasses.fields(selection):
        value = getattr(selection, field.name)
        if value is not None:
            words += [f"--{field.name.replace('_', '-')}", value]
    return words


def environment() -> dict[str, str]:
    """This process's environment with a DDS domain of our own and the transport for images."""
    env = dict(os.environ)
    env["ROS_DOMAIN_ID"] = str(free_domain())
    env["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    env["PYTHONUNBUFFERED"] = "1"
    profile = transport_profile()
    name = profile_variable(env)
    if profile is not None and name:
        env[name] = str(profile)
    return env


def transport_profile() -> Path | None:
    """The package's Fast DDS profile, in the source tree or where it was installed."""
    source = Path(omnistream_ros.__file__).resolve().parents[1]
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    places = [source, *(Path(prefix, "share", "omnistream_ros") for prefix in prefixes if prefix)]
    files = [place / "config" / "fastdds.xml" for place in places]
    return next((file for file in files if file.is_file()), None)


def free_domain() -> int:
    """A DDS domain in which nobody on this machine has taken part yet.

    The first participant of a domain on a machine takes the first unicast port of the domain, which
    therefore cannot be bound a second time.

    Raises:
        OSError: all domains are taken.
    """
    domains = list(range(1, _LAST_DOMAIN + 1))
    random.SystemRandom().shuffle(domains)
    for domain in domains:
        port = _PORT_BASE + _PORTS_PER_DOMAIN * domain + 10
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return domain
    raise OSError("all DDS domains from 1 to 101 are taken on this machine")
