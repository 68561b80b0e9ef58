# SPDX-License-Identifier: Apache-2.0
"""The parameters in code, in the commented file and in the documentation are the same ones."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from ros_processes import NODE, NodeStarter, User

from omnistream_ros.nodes.camera_parameters import parse_feature
from omnistream_ros.nodes.image_checks import Drop
from omnistream_ros.nodes.parameter_options import Change
from omnistream_ros.nodes.perception_parameters import PerceptionParameters
from omnistream_ros.stream.result import FeatureKey, FeatureKind

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {field.name: field for field in dataclasses.fields(PerceptionParameters)}
MARKS = {Change.NEVER: "start", Change.UNCONFIGURED: "configure", Change.ANY_TIME: "any time"}


def test_commented_file_has_every_parameter_with_its_default() -> None:
    text = (ROOT / "config" / "omnistream.yaml").read_text()
    given = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert list(given) != []
    defaults = {
        name: list(field.default) or [""] if isinstance(field.default, tuple) else field.default
        for name, field in FIELDS.items()
    }
    assert given == defaults
    for name, field in FIELDS.items():
        comment = re.search(rf"((?:    # .*\n)+)    {name}:", text)
        assert comment is not None, f"{name} has no comment"
        record = field.metadata["option"]
        mark = f"[{MARKS[record.change]}]{' (each camera)' if record.own else ''}"
        assert mark in comment[1], name
        assert ("(each camera)" in comment[1]) == record.own, name


def parameters_of(file: Path) -> dict[str, object]:
    """The parameters in a file by their full names; those of cameras as NAME.parameter."""
    given = yaml.safe_load(file.read_text())["/**"]["ros__parameters"]
    flat = {}
    for name, value in given.items():
        if isinstance(value, dict) and name != "qos_overrides":
            flat.update({f"{name}.{own}": inner for own, inner in value.items()})
        else:
            flat[name] = value
    return flat


@pytest.mark.parametrize("name", ["omnistream", "several_cameras", "jetson", "replay"])
def test_every_file_can_be_used(name: str, start_node: NodeStarter, user: User) -> None:
    """All names are known and all values allowed: the node starts with it and reports nothing."""
    file = ROOT / "config" / f"{name}.yaml"
    node = start_node("--params-file", str(file))
    assert user.state() == "unconfigured"
    assert node.count("is not known") == 0
    given = parameters_of(file)
    for name, value in given.items():
        request = GetParameters.Request(names=[name])
        (answer,) = user.call(GetParameters, f"{NODE}/get_parameters", request).values
        held = parameter_value_to_python(answer)
        if name not in ("model", "threads", "diagnostics_period", "camera_info_timeout"):
            assert held == value, name


def test_documentation_has_every_parameter_and_every_reason() -> None:
    text = (ROOT / "docs" / "perception_node.md").read_text()
    for name, field in FIELDS.items():
        row = re.search(rf"^\| `{name}` \| (.*?) \| (.*?) \|", text, re.MULTILINE)
        assert row is not None, f"{name} is not documented"
        record = field.metadata["option"]
        assert row[2] == MARKS[record.change] + (", each" if record.own else ""), name
    for reason in Drop:
        assert f"| `{reason.value}` |" in text, f"{reason.value} is not documented"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("3:patch", FeatureKey(3, FeatureKind.PATCH, False)),
        ("-1:cls:normed", FeatureKey(-1, FeatureKind.CLS, True)),
        ("0:register", FeatureKey(0, FeatureKind.REGISTER, False)),
    ],
)
def test_features_are_parsed(text: str, key: FeatureKey) -> None:
    assert parse_feature(text) == key


@pytest.mark.parametrize(
    "text", ["patch", "1:", "1:tokens", "1.5:cls", "1:cls:raw", " 1:cls", "9999:cls"]
)
def test_other_features_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="for example -1:patch:normed"):
        parse_feature(text)


@pytest.mark.parametrize(
    ("name", "values"),
    [("cameras", [f"c{i}" for i in range(65)]), ("features", [f"{i}:cls" for i in range(65)])],
)
def test_lists_have_an_end(name: str, values: list[str]) -> None:
    check = FIELDS[name].metadata["option"].check
    check(tuple(values[:64]))
    with pytest.raises(ValueError, match=f"at most 64 {name}, got 65"):
        check(tuple(values))


def test_what_is_set_and_not_used_is_told(start_node: NodeStarter, user: User) -> None:
    """A parameter must not be accepted and ignored, nor a scale be missing without a word."""
    node = start_node(
        *("-p", "left.scale:=height", "-p", "front.camera_height:=1.5"),
        cameras='["front", "left"]',
        scale_factor=2.0,
        keyframes=8,
        autostart=True,
        stall_timeout=0.1,
    )
    send = user.camera("/left/image")
    user.wait_until(lambda: send() and node.count("no scale from height"), "a word on the scale")
    assert "left: no scale from height: camera_height is 0" in node.wait_for("no scale from")
    told = [line.split("parameter ")[1] for line in node.lines if "is set and not used" in line]
    assert sorted(told) == [
        "'front.camera_height' is set and not used: it needs 'front.scale' set to height",
        "'keyframes' is set and not used: it needs 'memory' set to window+memory",
        "'scale_factor' is set and not used: it needs 'scale' set to fixed",
    ]
