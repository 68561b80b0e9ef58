# SPDX-License-Identifier: Apache-2.0
"""A simulated robot with a camera, the perception node and the action node: the loop closed.

ros2 launch omnistream_ros sim.launch.py tasks:="reach-red push" attempts:=5

The simulator conducts: it activates the action node for each attempt, tells the instruction, and
prints success by task at the end, when everything is shut down.
"""

import os

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from omnistream_ros.dds_profile import profile_variable
from omnistream_ros.evaluation.live_simulation import acting, perception_parameters, ros_arguments
from omnistream_ros.evaluation.policy_trials import SHIPPED
from omnistream_ros.simulation.tasks import DEFAULT

_CONFIG = PathJoinSubstitution([FindPackageShare("omnistream_ros"), "config"])


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "tasks", default_value=" ".join(DEFAULT), description="What is to be done."
            ),
            DeclareLaunchArgument(
                "attempts", default_value="3", description="At each task; 0: for ever."
            ),
            DeclareLaunchArgument(
                "policy",
                default_value=str(SHIPPED),
                description="An .onnx file of `omnistream train-policy`, ws://HOST:PORT of an "
                "openpi server, or scripted.",
            ),
            DeclareLaunchArgument(
                "horizon",
                default_value="8",
                description="openpi and scripted: actions in a chunk, one a frame.",
            ),
            DeclareLaunchArgument(
                "features",
                default_value="",
                description="openpi: features that the server is sent, LAYER:KIND[:normed]; "
                "empty: the image.",
            ),
            DeclareLaunchArgument(
                "script",
                default_value="",
                description="scripted: where the axes shall be when, SECONDS: NUMBERS; ...; empty: "
                "to and fro.",
            ),
            DeclareLaunchArgument(
                "model", default_value="omnistream-nano", description="Of the perception node."
            ),
            DeclareLaunchArgument(
                "instruction",
                default_value="",
                description="Told to the action node instead of the task's own words.",
            ),
            DeclareLaunchArgument(
                "speed",
                default_value="1.0",
                description="Simulated seconds per second; less where the machine is slow.",
            ),
            OpaqueFunction(function=_start),
        ]
    )


def _start(context: LaunchContext) -> list:
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context).strip()

    def node(name: str, parameters: dict, remappings: list) -> Node:
        return Node(
            package="omnistream_ros",
            executable=name,
            name=name,
            # Not `parameters`: launch writes `y`, a name of an axis, unquoted; ROS reads "yes".
            ros_arguments=ros_arguments(parameters),
            remappings=remappings,
            output="screen",
            emulate_tty=True,
            sigterm_timeout="20",  # they have much to put away where the machine is busy
        )

    tasks = argument("tasks").split()
    act = acting(
        argument("policy"),
        tasks,
        horizon=int(argument("horizon")),
        features=argument("features").split(),
        script=[entry.strip() for entry in argument("script").split(";") if entry.strip()],
    )
    perception = []
    if act.features:
        told = perception_parameters(argument("model"), act)
        perception = [node("omnistream_perception", told, [])]
    action = node("omnistream_action", act.parameters, [])
    simulator = node(
        "omnistream_simulator",
        {
            "tasks": tasks,
            "attempts": int(argument("attempts")),
            "instruction": argument("instruction"),
            "speed": float(argument("speed")),
            **({} if perception else {"perception": ""}),
        },
        [
            (f"command/{kind}", f"omnistream_action/command/{kind}")
            for kind in ("joint_trajectory", "joint_state")
        ],
    )
    nodes = [*perception, action, simulator]
    ends = [RegisterEventHandler(OnProcessExit(target_action=n, on_exit=_end)) for n in nodes]
    return [*_shared_memory(), *ends, *nodes]


def _end(event: ProcessExited, _: LaunchContext) -> EmitEvent:
    """None of them is of use without the others; the simulator ends when all attempts are made."""
    done = event.returncode == 0 and "omnistream_simulator" in event.process_name
    reason = "all attempts made" if done else f"{event.process_name} has ended"
    return EmitEvent(event=Shutdown(reason=reason))


def _shared_memory() -> list:
    """The Fast DDS profile for all of them; see config/fastdds.xml."""
    name = profile_variable(os.environ)
    profile = PathJoinSubstitution([_CONFIG, "fastdds.xml"])
    return [SetEnvironmentVariable(name, profile)] if name else []
