# SPDX-License-Identifier: Apache-2.0
"""Commands around recordings: `inspect`, `demo`, `measure`, `view`, `play`, `record`."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

from omnistream_ros.cli.arguments import (
    add_command,
    add_ros_args,
    add_selection,
    positive,
    selection,
)


def declare(commands: Any) -> None:
    _declare_inspect(commands)
    _declare_demo(commands)
    _declare_measure(commands)
    _declare_view(commands)
    _declare_play(commands)
    _declare_record(commands)


def _declare_inspect(commands: Any) -> None:
    command = add_command(commands, "inspect", _run_inspect, "say what is in a recording")
    command.add_argument("recording", help="a rosbag2, a data set folder or a video file")
    add_selection(command)


def _run_inspect(options: argparse.Namespace) -> None:
    from omnistream_ros.evaluation.inspection import describe
    from omnistream_ros.evaluation.recordings import open_recording

    print(describe(open_recording(options.recording, selection(options))))


def _declare_demo(commands: Any) -> None:
    command = add_command(
        commands,
        "demo",
        _run_demo,
        "play a recording through the node; draw and count what it does",
    )
    command.add_argument(
        "recording", nargs="?", type=Path, help="a rosbag2 or other recording (default: bundled)"
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("demo_output"),
        metavar="DIR",
        help="folder for the picture, the table and the bag (default: %(default)s)",
    )
    command.add_argument("--speed", type=positive, default=1.0, help="2 plays twice as fast")
    command.add_argument("--model", help="a model's name or file (default: the node's own)")
    add_selection(command)


def _run_demo(options: argparse.Namespace) -> None:
    from omnistream_ros.evaluation.demo import run_demo

    files = run_demo(
        options.recording,
        options.out,
        selection=selection(options),
        parameters={"model": options.model} if options.model else {},
        speed=options.speed,
        say=lambda line: print(f"... {line}", flush=True),
    )
    print(f"\n{files.table}\n\npicture: {files.picture}\nbag:     {files.bag}")


def _declare_measure(commands: Any) -> None:
    command = add_command(
        commands,
        "measure",
        _run_measure,
        "measure a bag of the node's topics against the recording that was played to it",
    )
    command.add_argument("recording", help="what was played: a rosbag2 or other recording")
    command.add_argument("bag", type=Path, help="what `omnistream record` wrote of the node")
    command.add_argument(
        "--played", required=True, metavar="JSON", help="the line that `omnistream play` ended with"
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for table and picture"
    )
    add_selection(command)


def _run_measure(options: argparse.Namespace) -> None:
    from omnistream_ros.evaluation.demo import measure_run
    from omnistream_ros.evaluation.recordings import open_recording

    recording = open_recording(options.recording, selection(options))
    try:
        played = json.loads(options.played)
        played = {name: float(played[name]) for name in ("frames", "duration_s")}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"--played must be the line that `omnistream play` printed at its end, with frames "
            f"and duration_s; got {options.played!r}"
        ) from error
    files = measure_run(recording, options.bag, played, options.out)
    print(f"{files.table}\n\npicture: {files.picture}")


def _declare_view(commands: Any) -> None:
    command = add_command(
        commands, "view", _run_view, "show what a running perception node says, in a browser"
    )
    command.add_argument(
        "--node", default="/omnistream_perception", help="its full name (default: %(default)s)"
    )
    command.add_argument(
        "--image", default="/image", help="topic of the camera (default: %(default)s)"
    )
    command.add_argument(
        "--port", type=int, default=8080, help="on this machine only (default: %(default)s)"
    )
    add_ros_args(command)


def _run_view(options: argparse.Namespace) -> int:
    from omnistream_ros.nodes.viewer import view

    return view(options.node, options.image, options.port, ["--ros-args", *options.ros_args])


def _declare_play(commands: Any) -> None:
    command = add_command(commands, "play", _run_play, "publish a recording as a camera would")
    command.add_argument("recording", help="a rosbag2, a data set folder or a video file")
    add_selection(command)
    command.add_argument("--speed", type=positive, default=1.0, help="2 plays twice as fast")
    command.add_argument(
        "--frame-id",
        default="camera_optical_frame",
        help="frame of the images (default: %(default)s)",
    )
    command.add_argument(
        "--transport",
        choices=("raw", "compressed"),
        default="raw",
        help="compressed: send JPEGs, on the topic with /compressed behind the name, for a node "
        "with input_transport: compressed",
    )
    command.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for a subscriber (default: %(default)g)",
    )
    add_ros_args(command)


def _run_play(options: argparse.Namespace) -> int:
    from omnistream_ros.evaluation.recordings import open_recording
    from omnistream_ros.nodes.player import play

    recording = open_recording(options.recording, selection(options))
    report = play(
        recording.frames(),
        frame_id=options.frame_id,
        transport=options.transport,
        speed=options.speed,
        wait_s=options.wait,
        ros_args=["--ros-args", *options.ros_args],
    )
    return 0 if report.complete else 128 + signal.SIGINT


def _declare_record(commands: Any) -> None:
    command = add_command(commands, "record", _run_record, "record topics into a rosbag2")
    command.add_argument("bag", help="folder to make")
    command.add_argument("topics", nargs="+", metavar="TOPIC")
    command.add_argument(
        "--wait",
        type=positive,
        metavar="SECONDS",
        help="give up unless all topics are there by then (default: wait for ever)",
    )
    add_ros_args(command)


def _run_record(options: argparse.Namespace) -> int:
    from omnistream_ros.nodes.recorder import record

    ros_args = ["--ros-args", *options.ros_args]
    return record(Path(options.bag), options.topics, ros_args, wait_s=options.wait)
