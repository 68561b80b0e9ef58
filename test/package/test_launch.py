# SPDX-License-Identifier: Apache-2.0
"""The launch files, as far as they can be tried without starting anything; and what rviz shows."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from source_imports import ROOT

FILES = sorted((ROOT / "launch").glob("*.launch.py"))
NO_LAUNCH = "launch and launch_ros come with a ROS distribution"


def _load(name: str) -> ModuleType:
    pytest.importorskip("launch_ros", reason=NO_LAUNCH)
    file = ROOT / "launch" / f"{name}.launch.py"
    spec = importlib.util.spec_from_file_location(f"{name}_launch", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def launch_file() -> ModuleType:
    return _load("omnistream")


def _actions(launch_file: ModuleType, **arguments: str) -> tuple[list, Any]:
    """All actions of a launch file, and the context they were made in."""
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    context = LaunchContext()
    context.launch_configurations.update(arguments)
    actions: list = []
    for entity in launch_file.generate_launch_description().entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
        elif isinstance(entity, OpaqueFunction):
            actions += entity.execute(context)
    return actions, context


def _started(launch_file: ModuleType, **arguments: str) -> tuple[Any, list, Any]:
    """The perception node's action, all actions, and the context they were made in."""
    from launch_ros.actions import LifecycleNode

    actions, context = _actions(launch_file, **arguments)
    node = next(action for action in actions if isinstance(action, LifecycleNode))
    return node, actions, context


def _remappings(node: Any, context: Any) -> list[tuple[str, str]]:
    from launch.utilities import perform_substitutions

    return [
        tuple(perform_substitutions(context, list(side)) for side in pair)  # type: ignore[misc]
        for pair in node._Node__remappings
    ]


def _parameters(node: Any, context: Any) -> dict[str, Any]:
    """What the node gets beyond its file."""
    from launch_ros.utilities import evaluate_parameters

    evaluated = evaluate_parameters(context, node._Node__parameters)
    return {
        key: value for part in evaluated if isinstance(part, dict) for key, value in part.items()
    }


def _arguments(node: Any) -> dict[str, Any]:
    """Parameters on the node's command line."""
    words = node._Node__ros_arguments
    assert set(words[::2]) == {"-p"}
    return {name: json.loads(value) for name, _, value in (w.partition(":=") for w in words[1::2])}


def test_there_are_launch_files() -> None:
    assert [file.name.partition(".")[0] for file in FILES] == [
        "demo",
        "omnistream",
        "replay",
        "sim",
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_compiles(file: Path) -> None:
    compile(file.read_text(encoding="utf-8"), str(file), "exec")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_argument_is_described(file: Path) -> None:
    arguments = _load(file.name.partition(".")[0]).generate_launch_description()
    names = set()
    for argument in arguments.get_launch_arguments():
        assert argument.description
        assert argument.default_value is not None or argument.name == "bag"
        names.add(argument.name)
    # Each of them is used, and nothing else is asked for.
    used = set(re.findall(r'argument\("(\w+)"\)', file.read_text(encoding="utf-8")))
    passed_on = {"params_file", "model", "rviz"} & names
    assert names == used | passed_on


@pytest.mark.parametrize(
    ("image", "camera_info", "expected"),
    [
        ("", "", "camera_info"),
        ("image", "", "camera_info"),
        ("/camera/image_raw", "", "/camera/camera_info"),
        ("/image", "", "/camera_info"),
        ("front/color/image", "front/info", "front/info"),
    ],
)
def test_camera_info_is_beside_the_images(
    launch_file: ModuleType, image: str, camera_info: str, expected: str
) -> None:
    node, _, context = _started(launch_file, image=image, camera_info=camera_info)
    remaps = [("image", image or "image"), ("camera_info", expected)]
    assert _remappings(node, context) == remaps


def test_several_cameras(launch_file: ModuleType) -> None:
    node, _, context = _started(
        launch_file, cameras="front, left", image="/rig/{camera}/image_raw", remap="a:=b c:=/d"
    )
    assert _remappings(node, context) == [
        ("front/image", "/rig/front/image_raw"),
        ("front/camera_info", "/rig/front/camera_info"),
        ("left/image", "/rig/left/image_raw"),
        ("left/camera_info", "/rig/left/camera_info"),
        ("a", "b"),
        ("c", "/d"),
    ]
    assert list(_parameters(node, context)["cameras"]) == ["front", "left"]


def test_one_camera_has_no_name(launch_file: ModuleType) -> None:
    node, _, context = _started(launch_file)
    assert "cameras" not in _parameters(node, context)


def test_the_clock_is_that_of_the_parameter_files_unless_it_is_given(
    launch_file: ModuleType,
) -> None:
    from launch_ros.actions import LifecycleNode

    def clocks(**arguments: str) -> list[object]:
        actions, context = _actions(launch_file, action="true", **arguments)
        nodes = [action for action in actions if isinstance(action, LifecycleNode)]
        assert len(nodes) == 2
        return [_parameters(node, context).get("use_sim_time") for node in nodes]

    assert clocks() == [None, None]
    assert clocks(use_sim_time="true") == [True, True]
    assert clocks(use_sim_time="false") == [False, False]


def test_topics_that_several_cameras_would_share_are_refused(launch_file: ModuleType) -> None:
    with pytest.raises(RuntimeError, match=r"\{camera\}"):
        _started(launch_file, cameras="front,left", image="/camera/image_raw")
    with pytest.raises(RuntimeError, match=r"'/rig/info'.* camera_info:=/\{camera\}/info"):
        _started(launch_file, cameras="front,left", camera_info="/rig/info")
    with pytest.raises(RuntimeError, match="'/rig/camera_info'"):  # that beside the images
        _started(launch_file, cameras="front,left", image="/rig/{camera}")
    with pytest.raises(RuntimeError, match="FROM:=TO"):
        _started(launch_file, remap="a=b")


def test_autostart_can_be_left_out(launch_file: ModuleType) -> None:
    assert len(_started(launch_file, autostart="false")[1]) == 1
    assert len(_started(launch_file, autostart="true")[1]) == 3


def test_a_node_that_is_started_again_brings_itself_up(launch_file: ModuleType) -> None:
    node, actions, context = _started(launch_file, respawn="true")
    assert len(actions) == 1
    assert _parameters(node, context)["autostart"] is True
    node, actions, context = _started(launch_file, respawn="true", autostart="false")
    assert len(actions) == 1
    assert "autostart" not in _parameters(node, context)


def test_the_action_node_is_only_started_when_asked_for(launch_file: ModuleType) -> None:
    from launch_ros.actions import LifecycleNode

    def executables(**arguments: str) -> list[str]:
        actions = _actions(launch_file, **arguments)[0]
        nodes = [action for action in actions if isinstance(action, LifecycleNode)]
        return [node._Node__node_executable for node in nodes]

    assert executables() == ["omnistream_perception"]
    assert executables(action="true") == ["omnistream_perception", "omnistream_action"]


def test_rviz_is_missed_in_words(launch_file: ModuleType) -> None:
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix
    from launch.actions import LogInfo

    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError:
        actions = _actions(launch_file, rviz="true")[0]
        assert any(isinstance(action, LogInfo) for action in actions)
    else:
        pytest.skip("rviz2 is installed here")


def test_transport_profile_of_the_user_is_kept(
    launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def environment() -> dict[str, str]:
        from launch.utilities import perform_substitutions

        node, _, context = _started(launch_file)
        return {
            perform_substitutions(context, list(name)): perform_substitutions(context, list(value))
            for name, value in node.additional_env or ()
        }

    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.setenv("ROS_DISTRO", "kilted")
    ((name, value),) = environment().items()
    assert name == "FASTDDS_DEFAULT_PROFILES_FILE"
    assert value.endswith("/config/fastdds.xml")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert list(environment()) == ["FASTRTPS_DEFAULT_PROFILES_FILE"]
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "/etc/mine.xml")
    assert environment() == {}


def test_replay_plays_records_and_nothing_is_started_too_early(tmp_path: Path) -> None:
    pytest.importorskip("launch_ros", reason=NO_LAUNCH)
    from launch.actions import ExecuteProcess, IncludeLaunchDescription, RegisterEventHandler

    actions, _ = _actions(_load("replay"), bag="my_bag", out=str(tmp_path / "out"))
    (recorder,) = (action for action in actions if isinstance(action, ExecuteProcess))
    words = ["".join(part.text for part in word) for word in recorder.cmd]
    assert words[3] == "record"
    assert words[-1] == "/tf"
    (node,) = (action for action in actions if isinstance(action, IncludeLaunchDescription))
    assert ("use_sim_time", "false") in node.launch_arguments
    assert sum(isinstance(action, RegisterEventHandler) for action in actions) == 4
    assert (tmp_path / "out").is_dir()


# --- rviz ---


def _displays(config: dict[str, Any]) -> list[dict[str, Any]]:
    displays = config["Visualization Manager"]["Displays"]
    groups = [display["Displays"] for display in displays if "Displays" in display]
    return [display for group in groups for display in group]


def _configured(node: str, images: dict[str, str]) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    rviz_config = pytest.importorskip("omnistream_ros.nodes.rviz_config")
    text = (ROOT / "config" / "omnistream.rviz").read_text(encoding="utf-8")
    return rviz_config.configured(yaml.safe_load(text), node, images)


def test_rviz_shows_every_camera_under_its_own_name() -> None:
    config = _configured("/robot/eyes", {"front": "/front/image_raw", "left": "left/image"})
    topics = [display["Topic"]["Value"] for display in _displays(config)]
    assert "/front/image_raw" in topics
    assert "/robot/left/image" in topics
    for camera in ("front", "left"):
        for output in ("depth/image_color", "depth/points", "depth/confidence", "path"):
            assert f"/robot/eyes/{camera}/{output}" in topics
    assert not any("omnistream_perception" in topic for topic in topics)
    windows = [d["Name"] for d in _displays(config) if d["Class"].endswith("/Image")]
    assert len(windows) == len(set(windows)) == 6


def test_rviz_of_one_camera_is_the_file_itself() -> None:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "config" / "omnistream.rviz").read_text(encoding="utf-8")
    assert _configured("/omnistream_perception", {"": "/image"}) == yaml.safe_load(text)


def test_the_simulated_robot_is_launched_with_both_nodes() -> None:
    actions, context = _actions(_load("sim"), tasks="push drawer-open", attempts="2")
    from launch_ros.actions import Node

    nodes = {node.node_executable: node for node in actions if isinstance(node, Node)}
    assert set(nodes) == {"omnistream_perception", "omnistream_action", "omnistream_simulator"}
    told = {name: _arguments(node) for name, node in nodes.items()}
    assert told["omnistream_perception"]["use_sim_time"] is True
    assert list(told["omnistream_perception"]["features"]) == ["3:patch:normed"]
    assert told["omnistream_action"]["dry_run"] is False
    assert "gripper: 2.0" in told["omnistream_action"]["max_step"]
    assert list(told["omnistream_simulator"]["tasks"]) == ["push", "drawer-open"]
    assert told["omnistream_simulator"]["attempts"] == 2
    # Simulated time comes from the simulator, which must not wait for itself.
    assert "use_sim_time" not in told["omnistream_simulator"]
    assert ("command/joint_trajectory", "omnistream_action/command/joint_trajectory") in (
        _remappings(nodes["omnistream_simulator"], context)
    )


def test_the_simulated_robot_without_features_needs_no_perception() -> None:
    actions, _ = _actions(_load("sim"), tasks="toy-red", policy="scripted", script="0: 0 0; 1: 1 1")
    from launch_ros.actions import Node

    nodes = {node.node_executable: node for node in actions if isinstance(node, Node)}
    assert set(nodes) == {"omnistream_action", "omnistream_simulator"}
    told = _arguments(nodes["omnistream_action"])
    assert told["script"] == ["0: 0 0", "1: 1 1"]
    assert told["action_names"] == ["x", "y"]
    assert _arguments(nodes["omnistream_simulator"])["perception"] == ""
