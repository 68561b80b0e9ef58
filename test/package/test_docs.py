# SPDX-License-Identifier: Apache-2.0
"""Pages: links lead somewhere, launch arguments and commands are those that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from source_imports import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LAUNCH_PAGE = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _anchors(page: Path) -> set[str]:
    """Headings as the targets of links."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in _anchors(file), target


@pytest.mark.parametrize("name", ["omnistream", "replay", "demo"])
def test_launch_arguments_are_those_of_the_page(name: str) -> None:
    source = (ROOT / "launch" / f"{name}.launch.py").read_text(encoding="utf-8")
    in_code = set(re.findall(r'DeclareLaunchArgument\(\s*"(\w+)"', source))
    (text,) = re.findall(rf"^## {name}\.launch\.py\n(.*?)(?=^## |\Z)", LAUNCH_PAGE, re.M | re.S)
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == in_code


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_of_this_package_exist(page: Path) -> None:
    """`omnistream COMMAND --options` in pages are accepted by the command's own parser."""
    from omnistream_ros import cli

    options = _options(cli)
    text = page.read_text(encoding="utf-8")
    used = re.findall(r"`omnistream ([a-z-]+)([^`\n]*)`", text)
    used += re.findall(r"^omnistream ([a-z-]+)([^\n#]*)", text, re.MULTILINE)
    for command, rest in used:
        assert command in options, f"omnistream {command}"
        ours = rest.split("--ros-args")[0]
        wrong = set(re.findall(r"(?<!\S)--[a-z-]+", ours)) - options[command]
        assert not wrong, f"omnistream {command} {rest}"


def _options(cli: object) -> dict[str, set[str]]:
    parser = cli._parser()  # type: ignore[attr-defined]
    (commands,) = (a.choices for a in parser._actions if getattr(a, "choices", None))
    return {
        name: {option for action in command._actions for option in action.option_strings}
        for name, command in commands.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_launch_commands_use_arguments_that_there_are(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, rest in re.findall(r"ros2 launch omnistream_ros (\w+)\.launch\.py([^`\n#]*)", text):
        source = (ROOT / "launch" / f"{name}.launch.py").read_text(encoding="utf-8")
        known = set(re.findall(r'DeclareLaunchArgument\(\s*"(\w+)"', source))
        words = [word for word in shlex.split(rest) if ":=" in word]
        assert {word.split(":=")[0] for word in words} <= known, rest


def test_the_dockerfile_copies_what_there_is() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    for source in re.findall(r"^COPY (\S+) ", text, re.MULTILINE):
        assert (ROOT / source).exists()
    assert "docker/entrypoint.sh" in text
    assert (ROOT / "docker" / "entrypoint.sh").stat().st_mode & 0o111
    keys = set(re.findall(r"--skip-keys \"([^\"]*)\"", text)[0].split())
    declared = ElementTree.parse(ROOT / "package.xml").getroot().iter("exec_depend")
    assert keys <= {element.text for element in declared}


def test_configuration_files_are_well_formed() -> None:
    for file in (ROOT / "config").glob("*.xml"):
        ElementTree.parse(file)
