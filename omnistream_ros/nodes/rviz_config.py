# SPDX-License-Identifier: Apache-2.0
"""config/omnistream.rviz for another node, other image topics, or several cameras.

The file itself is for one camera without a name. rviz has no parameters for its files, so where
names differ a copy is written: one group of displays for each camera.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_NODE = "/omnistream_perception"
_IMAGE = "/image"
_GROUP = "camera"


def write_config(template: str | Path, node: str, images: Mapping[str, str]) -> str:
    """Write a configuration for a node into a temporary file and return its path.

    Args:
        template: config/omnistream.rviz.
        node: full name of the perception node.
        images: topic of the camera images by name of the camera; "" for one without a name.
    """
    text = Path(template).read_text(encoding="utf-8")
    config = configured(yaml.safe_load(text), node, images)
    with tempfile.NamedTemporaryFile(
        "w", prefix="omnistream_", suffix=".rviz", delete=False, encoding="utf-8"
    ) as file:
        yaml.safe_dump(config, file, sort_keys=False)
    return file.name


def configured(config: dict[str, Any], node: str, images: Mapping[str, str]) -> dict[str, Any]:
    """The configuration with one group of displays per camera; see `write_config`."""
    config = copy.deepcopy(config)
    displays = config["Visualization Manager"]["Displays"]
    groups = [display for display in displays if display["Name"] == _GROUP]
    if len(groups) != 1:
        raise ValueError(f"the rviz configuration needs one group of the name '{_GROUP}'")
    (group,) = groups
    place = displays.index(group)
    displays[place : place + 1] = [
        _renamed(group, camera, node, image) for camera, image in images.items()
    ]
    return config


def _renamed(group: dict[str, Any], camera: str, node: str, image: str) -> dict[str, Any]:
    below = f"{node}/{camera}" if camera else node
    image = image if image.startswith("/") else f"{node.rpartition('/')[0]}/{image}"

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rename(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rename(item) for item in value]
        if value == _IMAGE:
            return image
        if isinstance(value, str) and value.startswith(f"{_NODE}/"):
            return below + value[len(_NODE) :]
        return value

    renamed = rename(copy.deepcopy(group))
    renamed["Name"] = camera or _GROUP
    for display in renamed["Displays"]:
        if camera and display["Class"].endswith("/Image"):
            display["Name"] = f"{camera} {display['Name']}"  # the name of its window
    return renamed
