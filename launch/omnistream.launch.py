# SPDX-License-Identifier: Apache-2.0
"""Start the perception node on a camera and bring it up.

ros2 launch omnistream_ros omnistream.launch.py image:=/camera/image_raw

`--show-args` lists the arguments.
"""

import os

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition

_CONFIG = PathJoinSubstitution([FindPackageShare("omnistream_ros"), "config"])
_BOOLEAN = {"choices": ["true", "false"]}


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(
            "image", default_value="image", description="Topic of the camera images."
        ),
        DeclareLaunchArgument(
            "camera_info",
            default_value="",
            description="Topic of their camera_info; empty: 'camera_info' beside the images.",
        ),
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node."),
        DeclareLaunchArgument(
            "name", default_value="omnistream_perception", description="Name of the node."
        ),
        DeclareLaunchArgument(
            "params_file",
            default_value=PathJoinSubstitution([_CONFIG, "omnistream.yaml"]),
            description="Parameters of the node; the default file lists them all.",
        ),
        DeclareLaunchArgument(
            "model",
            default_value="",
            description="Model, instead of that of params_file: a name, a file or a folder.",
        ),
        DeclareLaunchArgument(
            "autostart",
            default_value="true",
            description="Configure and activate the node; otherwise 'ros2 lifecycle set' does.",
            **_BOOLEAN,
        ),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value="false",
            description="Take the time from /clock: for bags played with --clock, and simulators.",
            **_BOOLEAN,
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            description="How much the node says.",
            choices=["debug", "info", "warn", "error", "fatal"],
        ),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: LaunchContext) -> list:
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    image = argument("image")
    beside = "/".join([*image.split("/")[:-1], "camera_info"])
    parameters = [argument("params_file"), {"use_sim_time": argument("use_sim_time") == "true"}]
    if argument("model"):
        parameters.append({"model": argument("model")})
    node = LifecycleNode(
        package="omnistream_ros",
        executable="omnistream_perception",
        name=argument("name"),
        namespace=argument("namespace"),
        parameters=parameters,
        remappings=[("image", image), ("camera_info", argument("camera_info") or beside)],
        ros_arguments=["--log-level", argument("log_level")],
        additional_env=_shared_memory(context),
        output="screen",
        emulate_tty=True,
    )
    if argument("autostart") == "false":
        return [node]

    def change(transition: int) -> EmitEvent:
        return EmitEvent(
            event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)
        )

    # Only from `configuring`: a node that somebody deactivates by hand also becomes inactive, and
    # has to stay so.
    configured = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[change(Transition.TRANSITION_ACTIVATE)],
    )
    started = OnProcessStart(target_action=node, on_start=[change(Transition.TRANSITION_CONFIGURE)])
    return [RegisterEventHandler(configured), RegisterEventHandler(started), node]


def _shared_memory(context: LaunchContext) -> dict[str, str]:
    """The Fast DDS profile for images, unless the user has one; see config/fastdds.xml."""
    # Jazzy knows the older name only, and later distributions warn of it.
    old, new = "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"
    if os.environ.get(old) or os.environ.get(new):
        return {}
    name = old if os.environ.get("ROS_DISTRO") == "jazzy" else new
    return {name: PathJoinSubstitution([_CONFIG, "fastdds.xml"]).perform(context)}
