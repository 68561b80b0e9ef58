# SPDX-License-Identifier: Apache-2.0
"""Labels from boxes and depth: right where geometry is known by hand, sane on a rendered clip."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from omnistream_ros.training.annotations import (
    CLASSES,
    UNKNOWN,
    Annotation,
    class_of,
    label,
    middle_pixels,
    read_annotation,
)
from omnistream_ros.training.clip_files import read_clip
from omnistream_ros.training.clips import training_clip, write_training_clip

WIDTH, HEIGHT = 192, 144  # of the renderer


def _info(**changes: object) -> dict[str, object]:
    """A room of 4 x 3 x 2.5 m: a table (1 m, turned 90 degrees) with a box on it."""
    info: dict[str, object] = {
        "room": "kitchen",
        "motion": "orbit",
        "height": 2.5,
        "corners": [[0, 0], [4, 0], [4, 3], [0, 3]],
        "objects": ["Oak table", "box"],
        "boxes": [[2, 1.5, 0, np.pi / 2, 1.6, 0.8, 0.7], [2, 1.5, 0.7, 0, 0.2, 0.2, 0.2]],
    }
    return {**info, **changes}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Sofa 2 seats", "sofa"),
        ("Bar chair", "chair"),
        ("Bedside table", "cabinet"),
        ("Children table", "table"),
        ("Desk lamp", "lamp"),
        ("Bunk bed", "bed"),
        ("Sitting female", "person or animal"),
        ("Double vanity", "bathroom fixture"),
        ("Christmas tree", "plant"),
        ("cylinder", "box"),
        ("Wall flat TV", "screen"),
        ("Salt shaker", "other thing"),
    ],
)
def test_names_have_classes(name: str, expected: str) -> None:
    assert class_of(name) == expected


def test_points_by_hand() -> None:
    annotation = Annotation.of_info(_info())
    assert annotation is not None
    points = np.array(
        [
            [2.0, 1.5, 0.8],  # in the box on the table
            [2.0, 2.25, 0.5],  # in the table, which is turned: 1.6 m along y
            [2.7, 1.5, 0.5],  # beside it
            [1.0, 1.0, 0.0],
            [1.0, 1.0, 2.5],
            [0.0, 1.0, 1.0],
            [-2.0, 1.0, 1.0],
        ]
    )
    objects = annotation.objects_at(points)
    assert objects.tolist() == [1, 0, -1, -1, -1, -1, -1]
    names = [CLASSES[c] for c in annotation.classes_of(points, objects)]
    assert names == ["box", "table", "other thing", "floor", "ceiling", "wall", "outside"]


def test_a_camera_that_looks_down_sees_table_and_floor() -> None:
    annotation = Annotation.of_info(_info())
    assert annotation is not None
    pose = np.eye(4)
    pose[:3, :3] = np.diag([1.0, -1.0, -1.0])  # optical axis down
    pose[:3, 3] = [2.0, 1.5, 2.4]
    depth = np.full((1, 3, 5), 2.4, np.float32)  # the floor
    depth[0, 1, 2] = 1.5  # the top of the box, 0.9 m above the floor
    depth[0, 0, 0] = np.nan
    labels = label(annotation, depth, pose[None], np.array([4.0, 4.0, 2.0, 1.0]))
    assert labels.classes[0, 0, 0] == UNKNOWN
    assert labels.objects[0, 1, 2] == 1
    assert CLASSES[labels.classes[0, 2, 4]] == "floor"
    assert labels.visible().tolist() == [1]
    assert annotation.caption(labels.visible()) == "a kitchen with a box"
    moving = annotation.caption(np.array([0, 1]), annotation.motions[0])
    assert moving == "the camera circles around a thing in a kitchen with a box on an oak table"


def test_captions_count_and_stay_short() -> None:
    names = ["Apple iMac 1998", "box", "box", *(f"thing {i}" for i in range(9))]
    # A metre from each other and from the walls of a long room: nothing else is to be said.
    boxes = [[2 * i + 2, 3, 0, 0, 1, 1, 1] for i in range(len(names))]
    corners = [[0, 0], [26, 0], [26, 6], [0, 6]]
    annotation = Annotation.of_info(_info(objects=names, boxes=boxes, corners=corners))
    assert annotation is not None
    assert annotation.caption(np.arange(len(names))) == (
        "a kitchen with an apple imac 1998, two boxes, a thing 0, a thing 1 and a thing 2"
    )
    assert annotation.caption(np.arange(0), "orbit").endswith("in a kitchen")


def test_old_and_foreign_clips_have_no_annotation(tmp_path: Path) -> None:
    path = tmp_path / "clip_000001.npz"
    for info in (b"{}", b"not json", json.dumps({"room": "office"}).encode()):
        np.savez(path, info=np.frombuffer(info, np.uint8))
        assert read_annotation(path) is None
    np.savez(path, rgb=np.zeros(3))
    assert read_annotation(path) is None
    path.write_bytes(b"PK")
    assert read_annotation(path) is None
    assert read_annotation(tmp_path / "nothing.npz") is None


def test_labels_of_a_rendered_clip_fit_what_is_seen(tmp_path: Path, maker, renderer) -> None:
    """Depth and boxes come from different code: nearly every pixel must lie on something."""
    path = tmp_path / "clip_000001.npz"
    write_training_clip(training_clip(10000014, maker, renderer), path)
    annotation = read_annotation(path)
    assert annotation is not None
    clip = read_clip(path).frames(np.arange(3))
    labels = label(annotation, clip.depth, clip.poses, clip.intrinsics)
    shares = np.bincount(labels.classes.ravel(), minlength=len(CLASSES)) / labels.classes.size
    assert shares[CLASSES.index("other thing")] < 0.1  # boxes without a class, or on nothing
    assert (labels.objects < 0).mean() > 0.1  # structure
    assert len(labels.visible()) >= 2
    # Neighbouring pixels mostly agree: objects are regions.
    assert (labels.classes[:, :, 1:] == labels.classes[:, :, :-1]).mean() > 0.85


def test_middle_pixels_alone_say_the_same_and_a_mirror_mirrors() -> None:
    annotation = Annotation.of_info(_info())
    assert annotation is not None
    pose = np.eye(4)
    pose[:3, :3] = np.diag([1.0, -1.0, -1.0])
    pose[:3, 3] = [1.9, 1.5, 2.4]
    depth = np.linspace(1.4, 2.4, 32 * 48, dtype=np.float32).reshape(1, 32, 48)
    camera = np.array([30.0, 30.0, 22.0, 15.0])
    whole = label(annotation, depth, pose[None], camera)
    middle = label(annotation, depth, pose[None], camera, patch=16)
    rows, columns = middle_pixels(32, 16), middle_pixels(48, 16)
    for name in ("classes", "objects"):
        expected = getattr(whole, name)[0][rows][:, columns]
        np.testing.assert_array_equal(getattr(middle, name)[0], expected)
    flip = np.diag([-1.0, 1, 1, 1])
    other_camera = np.array([30.0, 30.0, 47 - 22.0, 15.0])
    seen = label(annotation.mirrored(), depth[:, :, ::-1], flip @ pose[None] @ flip, other_camera)
    np.testing.assert_array_equal(seen.classes[:, :, ::-1], whole.classes)
    np.testing.assert_array_equal(seen.objects[:, :, ::-1], whole.objects)
    assert len(np.unique(whole.classes)) > 2
