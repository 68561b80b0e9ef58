# SPDX-License-Identifier: Apache-2.0
"""What scripts/setup says when something is missing. Nothing is downloaded here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source_imports import ROOT

# What the script calls before it looks for a compiler.
TOOLS = ("bash", "cat", "cut", "dirname", "env", "flock", "mkdir", "sha256sum", "touch")

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] > (3, 12), reason="scripts/setup wants a Python 3.10 to 3.12"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the script reads, in a folder whose name has a blank."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


def _setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "ROS_", "AMENT_")) and name not in ("CC", "CXX")
    }
    return subprocess.run(
        [str(checkout / "scripts" / "setup")],
        env={**inherited, "PYTHON": sys.executable, "PIP_CONFIG_FILE": os.devnull, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def _stopped(done: subprocess.CompletedProcess[str], reason: str) -> bool:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "set-up stopped: " in done.stderr
    return reason in done.stderr


def test_unsuitable_python_is_named(checkout: Path) -> None:
    done = _setup(checkout, PYTHON="/bin/false")
    assert _stopped(done, "PYTHON=/bin/false is not a Python 3.10, 3.11 or 3.12")


def test_environment_of_someone_else_is_left_alone(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "theirs").touch()
    assert _stopped(_setup(checkout), "was not made by this script")
    assert [file.name for file in (checkout / ".venv").iterdir()] == ["theirs"]


def test_wrong_option_shows_the_usage(checkout: Path) -> None:
    done = subprocess.run(
        [str(checkout / "scripts" / "setup"), "--tests"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "usage: scripts/setup [--test]\n")


def test_missing_compiler_is_told_before_the_download(checkout: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in TOOLS:
        path = shutil.which(tool)
        assert path is not None, tool
        (programs / tool).symlink_to(path)
    done = _setup(checkout, PATH=str(programs))
    assert _stopped(done, "no C compiler was found")
    assert "build-essential" in done.stderr


def test_missing_network_is_told_and_nothing_is_taken_for_done(checkout: Path) -> None:
    if not (shutil.which("cc") and shutil.which("c++")):
        pytest.skip("no compiler on this machine")
    # Port 9 of this machine: nobody listens there.
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    for _ in range(2):
        done = _setup(checkout, **nowhere)
        assert _stopped(done, "the package index could not be reached"), done.stderr
    assert "virtual environment" not in done.stdout  # the second time it is there already
    assert {file.name for file in (checkout / ".build" / "stamps").iterdir()} == {"python"}
