# SPDX-License-Identifier: Apache-2.0
"""Start the perception node on one or several cameras and bring it up.

ros2 launch omnistream_ros omnistream.launch.py image:=/camera/image_raw
ros2 launch omnistream_ros omnistream.launch.py cameras:=front,left image:=/{camera}/image_raw

`--show-args` lists the arguments.
"""

import os

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition

from omnistream_ros.dds_profile import profile_variable
from omnistream_ros.nodes.rviz_config import write_config

_CONFIG = PathJoinSubstitution([FindPackageShare("omnistream_ros"), "config"])
_BOOLEAN = {"choices": ["true", "false"]}
_RESPAWN_DELAY_S = 2.0


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*_arguments(), OpaqueFunction(function=_start)])


def _arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument(
            "image",
            default_value="",
            description="Topic of the camera images; with several cameras '{camera}' in it stands "
            "for the name of each. Empty: 'image', or '{camera}/image_raw' with several.",
        ),
        DeclareLaunchArgument(
            "camera_info",
            default_value="",
            description="Topic of their camera_info; empty: 'camera_info' beside the images.",
        ),
        DeclareLaunchArgument(
            "cameras",
            default_value="",
            description="Names of the cameras, 'front,left'; empty: one camera without a name.",
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
            "remap",
            default_value="",
            description="Further names to change, 'FROM:=TO FROM:=TO'.",
        ),
        DeclareLaunchArgument(
            "autostart",
            default_value="true",
            description="Configure and activate the node; otherwise 'ros2 lifecycle set' does.",
            **_BOOLEAN,
        ),
        DeclareLaunchArgument(
            "respawn",
            default_value="false",
            description="Start the perception node again when its process dies.",
            **_BOOLEAN,
        ),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value="",
            description="Take the time from /clock: for bags played with --clock, and simulators. "
            "Empty: as params_file says.",
            choices=["", "true", "false"],
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            description="How much the nodes say.",
            choices=["debug", "info", "warn", "error", "fatal"],
        ),
        DeclareLaunchArgument(
            "rviz",
            default_value="false",
            description="Open rviz on what the node publishes.",
            **_BOOLEAN,
        ),
        DeclareLaunchArgument(
            "action",
            default_value="false",
            description="Start the action node too, and configure it.",
            **_BOOLEAN,
        ),
        DeclareLaunchArgument(
            "action_params_file",
            default_value=PathJoinSubstitution([_CONFIG, "omnistream_action.yaml"]),
            description="Parameters of the action node; it needs a policy at least.",
        ),
        DeclareLaunchArgument(
            "action_autostart",
            default_value="false",
            description="Activate the action node as well: the robot may move at once.",
            **_BOOLEAN,
        ),
    ]


def _start(context: LaunchContext) -> list:
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context).strip()

    cameras = [name.strip() for name in argument("cameras").split(",") if name.strip()]
    images = _image_topics(cameras, argument("image"), argument("camera_info"))
    clock = []  # parameters of all nodes
    if argument("use_sim_time"):
        clock = [{"use_sim_time": argument("use_sim_time") == "true"}]
    parameters = [argument("params_file"), *clock]
    if argument("model"):
        parameters.append({"model": argument("model")})
    if cameras:
        parameters.append({"cameras": cameras})
    bring_up, respawn = argument("autostart") == "true", argument("respawn") == "true"
    if bring_up and respawn:
        # By itself: a request of ours would go to the dead process, which discovery still believes
        # in for 20 s.
        parameters.append({"autostart": True})
    common = {
        "package": "omnistream_ros",
        "namespace": argument("namespace"),
        "ros_arguments": ["--log-level", argument("log_level")],
        "additional_env": _shared_memory(context),
        "output": "screen",
        "emulate_tty": True,
    }
    node = LifecycleNode(
        executable="omnistream_perception",
        name=argument("name"),
        parameters=parameters,
        remappings=[pair for image in images for pair in image] + _pairs(argument("remap")),
        respawn=respawn,
        respawn_delay=_RESPAWN_DELAY_S,
        **common,
    )
    actions = []
    if bring_up and not respawn:
        actions += _bring_up(node, activate=True)
    actions.append(node)
    if argument("action") == "true":
        action = LifecycleNode(
            executable="omnistream_action",
            name="omnistream_action",
            parameters=[argument("action_params_file"), *clock],
            remappings=_pairs(argument("remap")),
            **common,
        )
        actions += [*_bring_up(action, activate=argument("action_autostart") == "true"), action]
    if argument("rviz") == "true":
        names = (argument("namespace").strip("/"), argument("name"))
        full_name = "/" + "/".join(name for name in names if name)
        topics = {camera: pair[0][1] for camera, pair in zip(cameras or [""], images, strict=True)}
        actions.append(_rviz(context, full_name, topics, clock))
    return actions


def _image_topics(cameras: list[str], image: str, info: str) -> list[list[tuple[str, str]]]:
    """For each camera what its two topics are remapped to."""
    image = image or ("{camera}/image_raw" if cameras else "image")
    info = info or "/".join([*image.split("/")[:-1], "camera_info"])
    for argument, topic in (("image", image), ("camera_info", info)):
        if len(cameras) > 1 and "{camera}" not in topic:
            raise RuntimeError(
                f"several cameras cannot share the topic '{topic}': write {{camera}} where the "
                f"name of the camera stands, for example {argument}:=/{{camera}}/"
                f"{topic.split('/')[-1]}"
            )
    remappings = []
    for camera in cameras or [""]:
        prefix = f"{camera}/" if camera else ""
        pairs = ((f"{prefix}image", image), (f"{prefix}camera_info", info))
        remappings.append([(name, to.replace("{camera}", camera)) for name, to in pairs])
    return remappings


def _pairs(text: str) -> list[tuple[str, str]]:
    """'a:=b c:=d' as remappings."""
    pairs = [tuple(word.split(":=")) for word in text.split()]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise RuntimeError(f"remap must be 'FROM:=TO FROM:=TO', got '{text}'")
    return pairs


def _bring_up(node: LifecycleNode, *, activate: bool) -> list:
    """Configure a node when its process starts, and activate it after that."""

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
        entities=[change(Transition.TRANSITION_ACTIVATE)] if activate else [],
    )
    started = OnProcessStart(target_action=node, on_start=[change(Transition.TRANSITION_CONFIGURE)])
    return [RegisterEventHandler(configured), RegisterEventHandler(started)]


def _rviz(context: LaunchContext, node: str, images: dict[str, str], parameters: list) -> object:
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError:
        return LogInfo(
            msg="rviz2 is not installed here (apt install ros-$ROS_DISTRO-rviz2); "
            "`omnistream view` shows the same in a browser"
        )
    template = PathJoinSubstitution([_CONFIG, "omnistream.rviz"]).perform(context)
    return Node(
        package="rviz2",
        executable="rviz2",
        name="rviz",
        arguments=["-d", write_config(template, node, images)],
        parameters=parameters,
        output="log",
    )


def _shared_memory(context: LaunchContext) -> dict[str, str]:
    """The Fast DDS profile for images, unless the user has one; see config/fastdds.xml."""
    name = profile_variable(os.environ)
    profile = PathJoinSubstitution([_CONFIG, "fastdds.xml"]).perform(context)
    return {name: profile} if name else {}
