# SPDX-License-Identifier: Apache-2.0
"""Watch the perception node at work without a camera: a recording, again and again.

ros2 launch omnistream_ros demo.launch.py                 # rviz, where it is installed
ros2 launch omnistream_ros demo.launch.py view:=true      # a browser: http://localhost:8080
"""

import os
import sys

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from omnistream_ros.dds_profile import profile_variable
from omnistream_ros.evaluation.demo import BUNDLED

_SHARE = FindPackageShare("omnistream_ros")
_BOOLEAN = {"choices": ["true", "false"]}
_OMNISTREAM = [sys.executable, "-m", "omnistream_ros.cli"]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "recording",
                default_value=str(BUNDLED),
                description="A rosbag2, a data set folder or a video; the default is bundled.",
            ),
            DeclareLaunchArgument(
                "speed", default_value="0.5", description="2.0 plays twice as fast as recorded."
            ),
            DeclareLaunchArgument(
                "model", default_value="", description="Model, instead of the default one."
            ),
            DeclareLaunchArgument(
                "rviz", default_value="true", description="Watch it in rviz.", **_BOOLEAN
            ),
            DeclareLaunchArgument(
                "view", default_value="false", description="Watch it in a browser.", **_BOOLEAN
            ),
            DeclareLaunchArgument(
                "port", default_value="8080", description="Of the browser page, on this machine."
            ),
            OpaqueFunction(function=_start),
        ]
    )


def _start(context: LaunchContext) -> list:
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context).strip()

    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([_SHARE, "launch", "omnistream.launch.py"])
        ),
        launch_arguments=[(name, argument(name)) for name in ("model", "rviz")],
    )
    player = ExecuteProcess(
        cmd=[*_OMNISTREAM, "play", argument("recording"), "--speed", argument("speed")],
        name="play",
        respawn=True,
        respawn_delay=1.0,
    )
    actions = [*_shared_memory(), node, player]
    if argument("view") == "true":
        page = ExecuteProcess(
            cmd=[*_OMNISTREAM, "view", "--port", argument("port")], name="view", output="screen"
        )
        actions.append(page)
    return actions


def _shared_memory() -> list:
    """The Fast DDS profile for the player too; see config/fastdds.xml."""
    name = profile_variable(os.environ)
    profile = PathJoinSubstitution([_SHARE, "config", "fastdds.xml"])
    return [SetEnvironmentVariable(name, profile)] if name else []
