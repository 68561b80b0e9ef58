# SPDX-License-Identifier: Apache-2.0
"""Dependencies point down only, and everything below the nodes works without ROS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from source_imports import PACKAGE, ROOT, imports, packages_used

# Floor of each folder; one may import its own folder and lower floors, never a neighbour.
FLOORS = {
    **{"dds_profile": 0},
    **{"model": 1, "action": 1, "simulation": 1},
    **{"stream": 2, "evaluation": 3, "nodes": 3, "training": 4},
}
COMMAND_LINE = 5
# What comes from PyPI and needs no ROS.
ANYWHERE = {"cv2", "matplotlib", "numpy", "rosbags", "safetensors", "torch"}
OUTSIDE = {
    "model": {"safetensors", "torch"},
    "action": {"msgpack", "numpy", "onnxruntime", "websockets"},
    "stream": {"cv2", "numpy", "onnxruntime", "onnxscript", "safetensors", "torch"},
    "simulation": {"cv2", "metaworld", "mujoco", "numpy"},
    "evaluation": {*ANYWHERE, "ray"},
    "training": {*ANYWHERE, "moderngl", "onnxscript"},
    "cli": {"torch"},
    "__init__.py": set(),
    "dds_profile.py": set(),
}
SOURCES = sorted(PACKAGE.rglob("*.py"))
CORE = [file for file in SOURCES if "nodes" not in file.relative_to(PACKAGE).parts]


def _floor(part: str) -> int:
    return FLOORS.get(part.removesuffix(".py"), COMMAND_LINE)


def test_every_folder_has_a_floor() -> None:
    parts = {file.relative_to(PACKAGE).parts[0] for file in SOURCES} - {"cli", "__init__.py"}
    assert {part.removesuffix(".py") for part in parts} <= set(FLOORS)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    mine = file.relative_to(PACKAGE).parts[0]
    for name in imports(file):
        package, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if package != PACKAGE.name or not other or other == mine:
            continue
        if other in ("msg", "srv"):
            assert mine == "nodes", f"{name}: message packages belong to nodes/"
        else:
            assert _floor(other) < _floor(mine), f"{mine} must not import {name}"


@pytest.mark.parametrize("part", sorted(OUTSIDE))
def test_foreign_packages(part: str) -> None:
    used = packages_used(PACKAGE / part)
    assert set(used) <= OUTSIDE[part], {name: used[name] for name in set(used) - OUTSIDE[part]}


def test_core_can_be_imported_where_no_ros_is() -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in CORE
    ]
    program = f"""
import importlib, sys

class NoRos:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ("rclpy", "ament_index_python", "launch", "tf2_ros", "cv_bridge") or \\
                top.endswith(("_msgs", "_srvs", "_interfaces")) or \\
                name in ("omnistream_ros.msg", "omnistream_ros.srv"):
            raise ModuleNotFoundError(f"ROS asked for: {{name}}", name=name)

sys.meta_path.insert(0, NoRos())
for name in {modules!r}:
    importlib.import_module(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
