# SPDX-License-Identifier: Apache-2.0
"""Play a recording to the perception node, record what it says, and measure that.

ros2 launch omnistream_ros replay.launch.py bag:=my_bag out:=result

The recording may be anything that `omnistream inspect` reads. When it has been played, the table is
printed, `out` holds it with a picture and the node's bag, and everything ends. rviz:=true to watch.
`omnistream evaluate` measures the same without ROS, every frame, as fast as the machine can.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.event_handlers import OnProcessExit, OnProcessIO
from launch.events import matches_action
from launch.events.process import ProcessIO, SignalProcess
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from omnistream_ros.dds_profile import profile_variable

_SHARE = FindPackageShare("omnistream_ros")
_NODE = "/omnistream_perception"
_TOPICS = ["depth/image", "depth/camera_info", "odometry", "status"]
_OMNISTREAM = [sys.executable, "-m", "omnistream_ros.cli"]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "bag", description="The recording: a rosbag2, a data set folder or a video."
            ),
            DeclareLaunchArgument(
                "out",
                default_value="replay_output",
                description="Folder for table, picture and what the node published; a node_bag "
                "in it is replaced.",
            ),
            DeclareLaunchArgument(
                "speed", default_value="1.0", description="2.0 plays twice as fast."
            ),
            DeclareLaunchArgument(
                "params_file",
                default_value=PathJoinSubstitution([_SHARE, "config", "omnistream.yaml"]),
                description="Parameters of the node.",
            ),
            DeclareLaunchArgument(
                "model", default_value="", description="Model, instead of that of params_file."
            ),
            DeclareLaunchArgument(
                "wait",
                default_value="300",
                description="Seconds in which the node must have loaded its model and publish.",
            ),
            DeclareLaunchArgument(
                "image_topic",
                default_value="",
                description="Topic of the images in the bag; empty: the only ones.",
            ),
            DeclareLaunchArgument(
                "rviz",
                default_value="false",
                description="Watch it in rviz.",
                choices=["true", "false"],
            ),
            OpaqueFunction(function=_start),
        ]
    )


def _start(context: LaunchContext) -> list:
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context).strip()

    bag, out = argument("bag"), Path(argument("out"))
    out.mkdir(parents=True, exist_ok=True)
    node_bag = out / "node_bag"
    shutil.rmtree(node_bag, ignore_errors=True)
    topic = ["--image-topic", argument("image_topic")] if argument("image_topic") else []

    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([_SHARE, "launch", "omnistream.launch.py"])
        ),
        launch_arguments=[
            *((name, argument(name)) for name in ("params_file", "model", "rviz")),
            ("use_sim_time", "false"),  # the player publishes no /clock
        ],
    )
    recorder = ExecuteProcess(
        cmd=[*_OMNISTREAM, "record", "--wait", argument("wait"), str(node_bag),
             *(f"{_NODE}/{t}" for t in _TOPICS), "/tf"],
        name="record",
    )  # fmt: skip
    player = ExecuteProcess(
        cmd=[*_OMNISTREAM, "play", bag, "--speed", argument("speed"), *topic], name="play"
    )
    played: list[str] = []

    def hears_the_node(event: ProcessIO) -> list | None:
        """Only now, so that the bag holds the first frame."""
        return [player] if _line(event, "recording") else None

    def report(event: ProcessIO) -> None:
        played.extend(filter(None, [_line(event, "frames")]))

    def measure(event: object, context: LaunchContext) -> list:
        if not played:
            return [Shutdown(reason="the recording was not played to its end, see above")]
        measuring = ExecuteProcess(
            cmd=[*_OMNISTREAM, "measure", bag, str(node_bag), "--played", played[-1],
                 "--out", str(out), *topic],
            name="measure",
            output="screen",
            on_exit=[Shutdown(reason=f"measured; see {out}")],
        )  # fmt: skip
        return [measuring]

    stop_recording = EmitEvent(
        event=SignalProcess(signal_number=signal.SIGINT, process_matcher=matches_action(recorder))
    )
    handlers = [
        OnProcessIO(target_action=recorder, on_stdout=hears_the_node),
        OnProcessIO(target_action=player, on_stdout=report),
        OnProcessExit(target_action=player, on_exit=[LogInfo(msg="played"), stop_recording]),
        OnProcessExit(target_action=recorder, on_exit=measure),
    ]
    unbuffered = SetEnvironmentVariable("PYTHONUNBUFFERED", "1")
    return [unbuffered, *_shared_memory(), *map(RegisterEventHandler, handlers), recorder,
            node]  # fmt: skip


def _line(event: ProcessIO, key: str) -> str | None:
    """The line of JSON with this key in what a process printed, if there is one."""
    for line in event.text.decode(errors="replace").splitlines():
        try:
            if key in json.loads(line):
                return line
        except (ValueError, TypeError):
            continue
    return None


def _shared_memory() -> list:
    """The Fast DDS profile for player and recorder too; see config/fastdds.xml."""
    name = profile_variable(os.environ)
    profile = PathJoinSubstitution([_SHARE, "config", "fastdds.xml"])
    return [SetEnvironmentVariable(name, profile)] if name else []
