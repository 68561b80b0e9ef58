# SPDX-License-Identifier: Apache-2.0
"""docs/action_node.md, the yaml file and the node name the same parameters, topics and reasons."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from action_bench import NODE, SCRIPTED, arguments
from ros_processes import NodeStarter, User

from omnistream_ros.action.limits import Clamp
from omnistream_ros.action.safety import Drop, Reason
from omnistream_ros.nodes import action
from omnistream_ros.nodes.action_parameters import ActionParameters

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "action_node.md").read_text(encoding="utf-8")
FIELDS = {field.name: field for field in dataclasses.fields(ActionParameters)}


def _section(title: str) -> str:
    """The text below a heading, up to the next one of its level."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return text


def _names(text: str, column: int) -> set[str]:
    """Names in backticks in one column of all tables."""
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {n for row in rows if len(row) > column for n in re.findall(r"`([^`]+)`", row[column])}


def test_parameters() -> None:
    assert _names(_section("Parameters"), 0) == set(FIELDS)


def test_the_yaml_file_has_all_parameters_with_their_defaults() -> None:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "config" / "omnistream_action.yaml").read_text(encoding="utf-8")
    given = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert set(given) == set(FIELDS)
    for name, field in FIELDS.items():
        default = field.default
        assert given[name] == ((list(default) or [""]) if isinstance(default, tuple) else default)


def test_reasons_to_hold() -> None:
    inner = {Reason.NONE, Reason.NOT_ACTIVE}
    assert _names(_section("When the robot holds"), 0) == {
        r.value for r in Reason if r not in inner
    }


def test_limits() -> None:
    documented = _names(_section("From chunk to command"), 0)
    assert documented == {clamp.value for clamp in Clamp}


def test_bad_input() -> None:
    section = _section("Bad input")
    assert _names(section, 1) - {"range"} == {drop.value for drop in Drop}
    for test in set(re.findall(r"`(test_\w+)`", section)):
        files = (ROOT / "test" / "nodes").glob("test_action*.py")
        assert any(f"def {test}(" in file.read_text(encoding="utf-8") for file in files), test


def test_topics_and_services(user: User, start_node: NodeStarter) -> None:
    line = arguments(**{**SCRIPTED, "autostart": True, "joint_output": "joint_trajectory"})
    start_node.fork(action.main, line).wait_for("active")
    name, node = NODE.lstrip("/"), user.node

    def own(pairs: list[tuple[str, list[str]]]) -> set[str]:
        return {topic.replace(f"{NODE}/", "~/") for topic, _ in pairs}

    def topics() -> set[str]:
        published = own(node.get_publisher_names_and_types_by_node(name, "/"))
        return published | own(node.get_subscriber_names_and_types_by_node(name, "/"))

    def in_code() -> set[str]:
        common = {"/parameter_events", "/rosout", "~/transition_event"}
        return {t if t[0] == "~" or "diag" in t else t[1:] for t in topics() - common}

    def services() -> set[str]:
        found = own(node.get_service_names_and_types_by_node(name, "/"))
        return {s for s in found if "emergency" in s or "instruction" in s}

    others = {f"~/{place}/{kind}" for place in ("command", "dry_run") for kind in _OTHER_OUTPUTS}
    documented = _names(_section("Topics"), 0)
    # Discovery tells of one endpoint after another, in no order that could be relied on.
    user.wait_until(lambda: (name, "/") in node.get_node_names_and_namespaces(), "the node")
    user.wait_until(
        lambda: len(in_code() | others) >= len(documented) and len(services()) > 1, "the graph"
    )
    assert in_code() | others == documented
    assert services() == _names(_section("Services"), 0)


_OTHER_OUTPUTS = ("joint_state", "twist")
