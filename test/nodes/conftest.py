# SPDX-License-Identifier: Apache-2.0
"""Real rclpy between real processes: a domain, a node process and a user's node for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: run scripts/test, or source a ROS 2 distribution")
pytest.importorskip("omnistream_ros.msg", reason="needs the built messages: run scripts/test")

import ros_processes
import torch

from omnistream_ros.model import ModelCard, ModelConfig, build_model, save_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with all heads, so small that the node's own time dominates."""
    torch.manual_seed(0)
    config = ModelConfig(
        name="tiny",
        width=64,
        depth=2,
        heads=1,
        taps=(0, 0, 1, 1),
        head_width=16,
        model_pixels=64 * 48,
        metric=True,
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(path, build_model(config), ModelCard(name="tiny", licence="none"))
    return path


@pytest.fixture(scope="session", autouse=True)
def loopback_only() -> None:
    """No test talks to other machines; images go through a segment that holds them."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ.pop("ROS_LOCALHOST_ONLY", None)
    jazzy = os.environ.get("ROS_DISTRO") == "jazzy"  # the older name, which others warn of
    profile = f"FAST{'RTPS' if jazzy else 'DDS'}_DEFAULT_PROFILES_FILE"
    os.environ[profile] = str(ROOT / "config" / "fastdds.xml")
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def domain() -> Iterator[int]:
    with ros_processes.locked_domain() as number:
        yield number


@pytest.fixture(scope="module")
def module_domain() -> Iterator[int]:
    with ros_processes.locked_domain() as number:
        yield number


@pytest.fixture
def user(domain: int) -> Iterator[ros_processes.User]:
    """The test's own node."""
    with ros_processes.User(domain) as node:
        yield node


@pytest.fixture
def start_node(domain: int, weights: Path) -> Iterator[ros_processes.NodeStarter]:
    """Starts perception nodes in processes of their own; all are ended with the test."""
    with ros_processes.NodeStarter(domain, weights) as starter:
        yield starter
