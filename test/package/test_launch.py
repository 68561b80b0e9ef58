# SPDX-License-Identifier: Apache-2.0
"""The launch file, as far as it can be tried without starting the node."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
from source_imports import ROOT

FILE = ROOT / "launch" / "omnistream.launch.py"


@pytest.fixture(scope="module")
def launch_file() -> ModuleType:
    pytest.importorskip("launch_ros", reason="launch and launch_ros come with a ROS distribution")
    spec = importlib.util.spec_from_file_location("omnistream_launch", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["omnistream_launch"] = module
    spec.loader.exec_module(module)
    return module


def _started(launch_file: ModuleType, **arguments: str) -> tuple[Any, list, Any]:
    """The node action, all actions, and the context they were made in."""
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, OpaqueFunction
    from launch_ros.actions import LifecycleNode

    context = LaunchContext()
    context.launch_configurations.update(arguments)
    actions: list = []
    for entity in launch_file.generate_launch_description().entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
        elif isinstance(entity, OpaqueFunction):
            actions += entity.execute(context)
    (node,) = (action for action in actions if isinstance(action, LifecycleNode))
    return node, actions, context


def test_compiles() -> None:
    compile(FILE.read_text(encoding="utf-8"), str(FILE), "exec")


def test_every_argument_is_described(launch_file: ModuleType) -> None:
    arguments = launch_file.generate_launch_description().get_launch_arguments()
    assert {argument.name for argument in arguments} >= {
        "image",
        "camera_info",
        "namespace",
        "params_file",
        "model",
        "autostart",
        "use_sim_time",
        "log_level",
    }
    assert all(argument.description and argument.default_value for argument in arguments)


@pytest.mark.parametrize(
    ("image", "camera_info", "expected"),
    [
        ("image", "", "camera_info"),
        ("/camera/image_raw", "", "/camera/camera_info"),
        ("/image", "", "/camera_info"),
        ("front/color/image", "front/info", "front/info"),
    ],
)
def test_camera_info_is_beside_the_images(
    launch_file: ModuleType, image: str, camera_info: str, expected: str
) -> None:
    from launch.utilities import perform_substitutions

    node, _, context = _started(launch_file, image=image, camera_info=camera_info)
    remaps = [
        tuple(perform_substitutions(context, list(side)) for side in pair)
        for pair in node._Node__remappings
    ]
    assert remaps == [("image", image), ("camera_info", expected)]


def test_autostart_can_be_left_out(launch_file: ModuleType) -> None:
    assert len(_started(launch_file, autostart="false")[1]) == 1
    assert len(_started(launch_file, autostart="true")[1]) == 3


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
