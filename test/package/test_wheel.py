# SPDX-License-Identifier: Apache-2.0
"""What `pip install .` would install, read from the wheel that it builds."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from source_imports import PACKAGE, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("setuptools", reason="setuptools not installed")
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    built = source / "built"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(built), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    (file,) = built.glob("*.whl")
    return zipfile.ZipFile(file)


def _packaged(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if name.startswith(f"{PACKAGE.name}/")}


def test_all_modules_and_data_are_in_it(wheel: zipfile.ZipFile) -> None:
    files = {
        str(file.relative_to(ROOT))
        for file in PACKAGE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".so"
    }
    # The kernel is built with the wheel where there is a compiler, and may lie beside its source.
    assert {name for name in _packaged(wheel) if not name.endswith(".so")} == files


def test_it_brings_the_command_and_the_extras(wheel: zipfile.ZipFile) -> None:
    texts = {
        Path(name).name: wheel.read(name).decode()
        for name in wheel.namelist()
        if ".dist-info/" in name
    }
    assert "omnistream = omnistream_ros.cli:main" in texts["entry_points.txt"]
    extras = [line for line in texts["METADATA"].splitlines() if line.startswith("Provides-Extra")]
    assert {"onnx", "gpu", "train", "test"} <= {line.split()[1] for line in extras}
