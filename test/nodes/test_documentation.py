# SPDX-License-Identifier: Apache-2.0
"""docs/perception_node.md and the node name the same parameters, topics, services and reasons.

Topics and services are those of a real node, not what a search through its source would find.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ros_processes import NODE, NodeStarter, User

from omnistream_ros.nodes.image_checks import Drop
from omnistream_ros.nodes.perception_parameters import PerceptionParameters

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "perception_node.md").read_text(encoding="utf-8")
# What every node of rclpy, and every lifecycle node, has.
COMMON_TOPICS = {"/parameter_events", "/rosout", "~/transition_event"}
OF_OTHER_SCALES = {"/scale/odometry", "/scale/pose"}  # subscribed with another `scale`
COMMON_SERVICES = {
    *("change_state", "get_available_states", "get_available_transitions", "get_state"),
    *("describe_parameters", "get_parameter_types", "get_parameters", "get_transition_graph"),
    *("get_type_description", "list_parameters", "set_parameters", "set_parameters_atomically"),
    "get_logger_levels",
    "set_logger_levels",
}


LIFECYCLE_SERVICES = {f"~/{name}" for name in COMMON_SERVICES if "logger" not in name}


def section(title: str, page: str = PAGE) -> str:
    """The text below a heading, up to the next one of its level."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return text


def first_column(text: str) -> set[str]:
    """Names in backticks in the first column of all tables."""
    cells = re.findall(r"^\| ((?:`[^`|]+`(?:, )?)+) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_parameters() -> None:
    in_code = {field.name for field in dataclasses.fields(PerceptionParameters)}
    assert first_column(section("Parameters")) == in_code


def test_parameters_of_the_example_file() -> None:
    yaml = pytest.importorskip("yaml")
    for file in (ROOT / "config").glob("*.yaml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "/**" not in content or "action" in file.name or "simulator" in file.name:
            continue
        given = content["/**"]["ros__parameters"]
        fields = {field.name: field for field in dataclasses.fields(PerceptionParameters)}
        cameras = {name for name in given.get("cameras", []) if name}
        assert set(given) - cameras - {"qos_overrides", "use_sim_time"} <= set(fields), file.name
        if file.name == "omnistream.yaml":
            assert set(given) == set(fields)
            for name, field in fields.items():
                default = list(field.default) or [""] if name == "cameras" else field.default
                default = list(default) if isinstance(default, tuple) else default
                assert given[name] == default, name


def test_reasons_for_images_that_are_not_used() -> None:
    documented = first_column(section("Images that are not used"))
    assert documented == {drop.value for drop in Drop}


def test_faults_name_tests_that_there_are() -> None:
    rows = [row for row in section("Faults").splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.rpartition(" | ")[2])
        assert named, row
        for name in named:
            assert (ROOT / "test" / "nodes" / f"{name}.py").is_file(), row


def allowed(profile: ElementTree.Element, kind: str, direction: str, tag: str) -> set[str]:
    """What a profile of config/sros2_policy.xml allows."""
    found = profile.iterfind(f"{kind}[@{direction}='ALLOW']/{tag}")
    return {str(element.text) for element in found}


def profile_of(node: str) -> ElementTree.Element:
    policy = ElementTree.parse(ROOT / "config" / "sros2_policy.xml")
    (profile,) = policy.iterfind(f".//profile[@node='{node}']")
    return profile


def test_the_policy_of_the_action_node_is_its_page() -> None:
    page = (ROOT / "docs" / "action_node.md").read_text(encoding="utf-8")
    subscribed, published = section("Topics", page).split("| published |")

    def absolute(names: set[str]) -> set[str]:
        return {name if name[0] in "~/" else f"/{name}" for name in names}

    profile = profile_of("omnistream_action")
    heard = allowed(profile, "topics", "subscribe", "topic")
    assert heard == absolute(first_column(subscribed)) | {"/clock"}
    said = allowed(profile, "topics", "publish", "topic")
    assert said == absolute(first_column(published)) | COMMON_TOPICS
    services = allowed(profile, "services", "reply", "service")
    assert services == first_column(section("Services", page)) | LIFECYCLE_SERVICES


@pytest.fixture(scope="module")
def of_the_node() -> dict[str, set[str]]:
    """Filled by the node's test below; the configurations that others look at come after it."""
    return {}


def test_topics_and_services(
    user: User, start_node: NodeStarter, of_the_node: dict[str, set[str]]
) -> None:
    start_node(autostart=True, scale="range").wait_for("waiting for images")
    name = NODE.lstrip("/")

    def own(pairs: list[tuple[str, list[str]]]) -> set[str]:
        return {topic.replace(f"{NODE}/", "~/") for topic, _ in pairs}

    def published() -> set[str]:
        return own(user.node.get_publisher_names_and_types_by_node(name, "/")) - COMMON_TOPICS

    def subscribed() -> set[str]:
        return own(user.node.get_subscriber_names_and_types_by_node(name, "/")) - COMMON_TOPICS

    def services() -> set[str]:
        found = own(user.node.get_service_names_and_types_by_node(name, "/"))
        return {s for s in found if s.removeprefix("~/") not in COMMON_SERVICES}

    def relative() -> set[str]:
        in_code = published() | subscribed() | OF_OTHER_SCALES | {"/tf"}
        return {t if t.startswith(("~", "/tf", "/diag")) else t[1:] for t in in_code}

    topics = first_column(section("Topics"))
    documented = {s for s in first_column(section("Services")) if "NAME" not in s}
    # Discovery tells of one endpoint after another, in no order that could be relied on.
    nodes = user.node.get_node_names_and_namespaces
    user.wait_until(lambda: (name, "/") in nodes(), "the node")
    user.wait_until(
        lambda: len(relative()) >= len(topics) and len(services()) >= len(documented), "the graph"
    )
    assert topics == relative()
    assert documented == services()
    of_the_node["published"] = published()
    check_policy(published(), subscribed() | OF_OTHER_SCALES | {"/tf"}, services())


def check_policy(published: set[str], subscribed: set[str], services: set[str]) -> None:
    """config/sros2_policy.xml allows what the node does, and nothing else."""
    profile = profile_of("omnistream_perception")
    # And heartbeats, where the package bond is installed.
    said = published | COMMON_TOPICS | {"/tf", "/bond"}
    assert allowed(profile, "topics", "publish", "topic") == said
    # As image/compressed with that transport, and the clock with use_sim_time.
    subscribed |= {"/tf", "/image/compressed", "/clock"}
    assert allowed(profile, "topics", "subscribe", "topic") == subscribed
    assert allowed(profile, "services", "reply", "service") == services | LIFECYCLE_SERVICES


def test_viewers_show_topics_that_there_are(of_the_node: dict[str, set[str]]) -> None:
    if not of_the_node:
        pytest.skip("needs the test before it")
    published = {topic.replace("~/", f"{NODE}/") for topic in of_the_node["published"]}
    known = published | {"/image", "/diagnostics", "/tf", ""}
    rviz = (ROOT / "config" / "omnistream.rviz").read_text(encoding="utf-8")
    shown = set(re.findall(r"Value: (/\S+)", rviz))
    assert shown
    assert shown <= known
    foxglove = json.loads((ROOT / "config" / "foxglove.json").read_text(encoding="utf-8"))
    text = json.dumps(foxglove["configById"])
    used = {topic.partition(".")[0] for topic in re.findall(r'"(/[a-z][\w/.]*)"', text)}
    assert used
    assert used <= known


@pytest.mark.parametrize("source", ["odometry"])
def test_the_other_sources_of_scale(user: User, start_node: NodeStarter, source: str) -> None:
    start_node(autostart=True, scale=source).wait_for("waiting for images")

    def subscribed() -> set[str]:
        pairs = user.node.get_subscriber_names_and_types_by_node(NODE.lstrip("/"), "/")
        return {topic for topic, _ in pairs}

    nodes = user.node.get_node_names_and_namespaces
    user.wait_until(lambda: (NODE.lstrip("/"), "/") in nodes(), "the node")
    user.wait_until(lambda: {"/scale/odometry", "/scale/pose"} <= subscribed(), "subscriptions")
    assert not {"/scale/scan", "/scale/depth"} & subscribed()
