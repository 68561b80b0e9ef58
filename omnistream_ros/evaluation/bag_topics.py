# SPDX-License-Identifier: Apache-2.0
"""Which topic of a bag is the camera, its depth, its calibration and its pose."""

from __future__ import annotations

import dataclasses
from typing import Any

from omnistream_ros.evaluation.bag_messages import (
    CAMERA_INFO,
    COMPRESSED,
    IMAGE,
    ODOMETRY,
    POSE,
    TF,
)
from omnistream_ros.evaluation.bag_reader import BagReader
from omnistream_ros.evaluation.recordings import RecordingError, Selection

_POSES = (TF, ODOMETRY, POSE)


@dataclasses.dataclass(frozen=True)
class Topics:
    """The topics that an evaluation reads; None where there is none."""

    image: str
    info: str | None
    depth: str | None
    depth_info: str | None
    pose: str | None
    notes: tuple[str, ...] = ()


def find_topics(bag: BagReader, selection: Selection) -> Topics:
    """Decide what each topic is, by type, name and first message.

    Raises:
        RecordingError: a named topic is absent or of the wrong type; no image topic; several fit.
    """
    notes: list[str] = []
    images = [n for n, (kind, _) in bag.topics.items() if kind in (IMAGE, COMPRESSED)]
    depths = [name for name in images if _is_depth(bag, name)]
    colours = [n for n in images if n not in depths and not n.endswith("/theora")]
    image = _choose(bag, "image", selection.image_topic, _prefer_raw(colours), (IMAGE, COMPRESSED))
    if image is None:
        listing = ", ".join(f"{n} ({kind})" for n, (kind, _) in sorted(bag.topics.items()))
        raise RecordingError(f"{bag.path} has no image topic; it has: {listing or 'nothing'}")
    depth = _choose(bag, "depth", selection.depth_topic, _prefer_raw(depths), (IMAGE, COMPRESSED))
    infos = [n for n, (kind, _) in bag.topics.items() if kind == CAMERA_INFO]
    info = selection.info_topic
    if info is not None:
        _choose(bag, "info", info, [], (CAMERA_INFO,))
    else:
        info = _sibling_info(image, infos)
        if info is None and len(infos) == 1:
            info = infos[0]
        if info is None and infos:
            notes.append(f"no camera_info beside {image}; ignored: {', '.join(sorted(infos))}")
    poses = [n for n, (kind, _) in bag.topics.items() if kind in _POSES]
    if any(bag.topics[n][0] == TF for n in poses):
        # TF names its frames, which makes it the safest; other sources are there for the asking.
        others = [n for n in poses if bag.topics[n][0] != TF]
        poses = [
            n for n in poses if bag.topics[n][0] == TF and not n.endswith("tf_static")
        ] or others
        notes += [
            f"pose from TF; {n} is there too (--pose-topic)" for n in others if n not in poses
        ]
    pose = _choose(bag, "pose", selection.pose_topic, poses, _POSES)
    depth_info = _sibling_info(depth, infos) if depth else None
    return Topics(image, info, depth, depth_info, pose, tuple(notes))


def _choose(
    bag: BagReader, role: str, named: str | None, found: list[str], kinds: tuple[str, ...]
) -> str | None:
    """The named topic after checking it, else the only one found."""
    option = f"--{role}-topic"
    if named is not None:
        if named not in bag.topics:
            raise RecordingError(
                f"{bag.path} has no topic {named}; it has {', '.join(sorted(bag.topics))}"
            )
        if bag.topics[named][0] not in kinds:
            raise RecordingError(
                f"{named} is a {bag.topics[named][0]}; {option} needs {' or '.join(kinds)}"
            )
        return named
    if len(found) > 1:
        raise RecordingError(
            f"{bag.path} has several {role} topics: {', '.join(sorted(found))}; "
            f"name one with {option}"
        )
    return found[0] if found else None


def _is_depth(bag: BagReader, topic: str) -> bool:
    """Whether an image topic is depth: by the encoding of its first message, else by its name."""
    if bag.topics[topic][1] == 0:
        return "depth" in topic
    message: Any = bag.first(topic)
    if bag.topics[topic][0] == COMPRESSED:
        return "compressedDepth" in message.format or message.format.startswith(("16UC1", "32FC1"))
    if message.encoding == "mono16":
        return "depth" in topic
    return message.encoding in ("16UC1", "32FC1", "64FC1")


def _prefer_raw(topics: list[str]) -> list[str]:
    """Without the compressed twins of topics that are there uncompressed."""
    return [t for t in topics if _base(t) == t or _base(t) not in topics]


def _base(topic: str) -> str:
    for suffix in ("/compressed", "/compressedDepth", "/zstd"):
        topic = topic.removesuffix(suffix)
    return topic


def _sibling_info(topic: str, infos: list[str]) -> str | None:
    """The camera_info that image_transport would pair with an image topic."""
    sibling = _base(topic).rpartition("/")[0] + "/camera_info"
    return sibling if sibling in infos else None


def is_rectified(topic: str) -> bool:
    return "rect" in _base(topic).rpartition("/")[2]
