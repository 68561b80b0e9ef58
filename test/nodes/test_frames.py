# SPDX-License-Identifier: Apache-2.0
"""Odometry frames: who moves, where it starts, and that nobody gets two parents."""

from __future__ import annotations

import time

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from hypothesis import given, settings
from hypothesis import strategies as st
from tf2_msgs.msg import TFMessage

from omnistream_ros.nodes import frames, sent_transforms
from omnistream_ros.nodes.distribution import fill_transform
from omnistream_ros.nodes.frames import OdometryFrame, StaticTree
from omnistream_ros.nodes.sent_transforms import SentTransforms
from omnistream_ros.stream.geometry import (
    matrix_to_quaternion,
    quaternion_to_matrix,
    rigid,
    rigid_inverse,
    rotation_from_vector,
)
from omnistream_ros.stream.result import Pose

numbers = st.floats(-3.0, 3.0)
motions = st.tuples(st.tuples(numbers, numbers, numbers), st.tuples(numbers, numbers, numbers)).map(
    lambda pair: rigid(rotation_from_vector(np.array(pair[0])), np.array(pair[1]))
)


def transform(parent: str, child: str, motion: np.ndarray) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    fill_transform(motion, message.transform.translation, message.transform.rotation)
    return message


def tree(*links: tuple[str, str, np.ndarray]) -> StaticTree:
    known = StaticTree()
    assert known.add(TFMessage(transforms=[transform(*link) for link in links])) == []
    return known


def pose(world_from_camera: np.ndarray, covariance: np.ndarray | None = None) -> Pose:
    return Pose(
        world_from_camera[:3, 3], matrix_to_quaternion(world_from_camera[:3, :3]), covariance
    )


@settings(max_examples=30, deadline=None)
@given(motions, motions, motions)
def test_lookup_through_a_common_ancestor(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    known = tree(("root", "base", a), ("root", "mast", b), ("mast", "camera", c))
    base_from_camera = known.lookup("base", "camera")
    np.testing.assert_allclose(base_from_camera, rigid_inverse(a) @ b @ c, atol=1e-9)
    np.testing.assert_allclose(
        known.lookup("camera", "base") @ base_from_camera, np.eye(4), atol=1e-9
    )
    assert known.lookup("base", "elsewhere") is None


def test_loops_and_nonsense_do_not_hang() -> None:
    known = StaticTree()
    links = [("a", "b"), ("b", "a"), ("c", "c")]
    message = TFMessage(transforms=[transform(p, c, np.eye(4)) for p, c in links])
    (loop,) = known.add(message)
    assert "in a loop (a -> b -> a)" in loop
    assert known.add(message) == []  # told once
    assert known.lookup("a", "x") is None
    assert known.lookup("a", "b") is not None
    broken = TransformStamped(child_frame_id="child")
    broken.header.frame_id = "parent"
    broken.transform.rotation.w = 0.0
    (fault,) = known.add(TFMessage(transforms=[broken]))
    assert "parent -> child cannot be used" in fault


def test_the_tree_may_grow_while_it_is_asked() -> None:
    """As when a node starts and /tf_static arrives with the first images."""
    known = tree(*(("base", f"link_{i}", np.eye(4)) for i in range(5)))

    class Asked(str):
        """A name that a transform arrives with whenever it is compared."""

        def __eq__(self, other: object) -> bool:
            link = ("base", f"new_{time.monotonic_ns()}", np.eye(4))
            known.add(TFMessage(transforms=[transform(*link)]))
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    assert Asked("mast") not in known
    assert Asked("base") in known


@settings(max_examples=30, deadline=None)
@given(motions, motions)
def test_base_moves_as_the_robot_does(base_from_camera: np.ndarray, drive: np.ndarray) -> None:
    """Independent of any convention: if the base drove by ``drive``, odometry says so."""
    frame = OdometryFrame("odom", "base", tree(("base", "camera", base_from_camera)))
    start = frame.place(pose(np.eye(4)), "camera")
    assert start.child == "base"
    np.testing.assert_allclose(start.motion, np.eye(4), atol=1e-9)
    # where the camera is then, seen from where it was first
    moved = rigid_inverse(base_from_camera) @ drive @ base_from_camera
    np.testing.assert_allclose(frame.place(pose(moved), "camera").motion, drive, atol=1e-8)


def test_camera_alone_starts_upright() -> None:
    """Looking along x with z up: one metre ahead of the lens is x = 1, right of it is y = -1."""
    frame = OdometryFrame("odom", "base", StaticTree())
    start = frame.place(pose(np.eye(4)), "camera")
    assert start.child == "camera"
    ahead, right = start.motion @ [0, 0, 1, 1], start.motion @ [1, 0, 0, 1]
    np.testing.assert_allclose(ahead[:3], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(right[:3], [0, -1, 0], atol=1e-12)


def test_base_that_becomes_known_later_does_not_bend_the_path() -> None:
    known = StaticTree()
    frame = OdometryFrame("odom", "base", known)
    moved = rigid(rotation_from_vector(np.array([0.1, 0.2, 0.3])), np.array([1.0, 2.0, 3.0]))
    odom_from_camera = frame.place(pose(moved), "camera").motion
    mount = rigid(rotation_from_vector(np.array([1.0, 0.0, 0.5])), np.array([0.3, 0.0, 0.5]))
    known.add(TFMessage(transforms=[transform("base", "camera", mount)]))
    later = frame.place(pose(moved), "camera")
    assert later.child == "base"
    np.testing.assert_allclose(later.motion @ mount, odom_from_camera, atol=1e-9)


@pytest.mark.parametrize(
    ("links", "moving", "advice"),
    [
        # the camera hangs on something that does not lead to the base
        ([("gimbal", "camera")], [], "set base_frame to 'gimbal'"),
        # the base is not the root of its own tree
        ([("footprint", "base"), ("base", "camera")], [], "set base_frame to 'footprint'"),
        # wheel odometry or a filter places the base already
        ([("base", "camera")], [("map", "base")], "stop the other publisher"),
        # a pan-tilt head moves the camera
        ([], [("head", "camera")], "stop the other publisher"),
    ],
)
def test_nobody_gets_a_second_parent(links: list, moving: list, advice: str) -> None:
    frame = OdometryFrame("odom", "base", tree(*((p, c, np.eye(4)) for p, c in links)))
    frame.hear(TFMessage(transforms=[transform(p, c, np.eye(4)) for p, c in moving]))
    refused = frame.place(pose(np.eye(4)), "camera").tf_refused
    assert "already has the parent" in refused
    assert advice in refused


@pytest.mark.parametrize(("camera", "words"), [("", "no frame_id"), ("odom", "odom_frame itself")])
def test_names_that_make_no_tree_are_not_published(camera: str, words: str) -> None:
    frame = OdometryFrame("odom", "base", StaticTree())
    assert words in frame.place(pose(np.eye(4)), camera).tf_refused


def stamped(parent: str, child: str, stamp: int) -> TransformStamped:
    message = transform(parent, child, np.eye(4))
    message.header.stamp.sec = stamp
    return message


def test_our_own_transforms_are_no_second_parent() -> None:
    """Not even those of the stream before, which arrive when the next one has begun."""
    known, sent = tree(("base", "camera", np.eye(4))), SentTransforms()
    for _ in range(2):
        frame = OdometryFrame("odom", "base", known, sent)
        for stamp in (0, 1, 1, 1):  # a driver that stamps several images alike
            frame.sent.add(stamped("odom", "base", stamp))
        frame.hear(TFMessage(transforms=[stamped("/odom", "base", stamp) for stamp in (0, 1, 1)]))
        assert frame.place(pose(np.eye(4)), "camera").tf_refused == ""
    late = OdometryFrame("odom", "base", known, sent)
    late.hear(TFMessage(transforms=[stamped("odom", "base", 1)]))
    assert late.place(pose(np.eye(4)), "camera").tf_refused == ""


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(
    ("sent", "heard"),
    [
        ([], [1]),  # before the first of our own
        ([1, 2], [1, 3, 2]),  # wheel odometry, with stamps of its own
        ([1, 2], [1, 1]),  # a second copy of the node, on the same images
    ],
)
def test_somebody_else_who_publishes_our_transform_is_noticed(
    sent: list[int], heard: list[int], inverted: bool
) -> None:
    edge = ("base", "odom") if inverted else ("odom", "base")
    frame = OdometryFrame("odom", "base", tree(("base", "camera", np.eye(4))), inverted=inverted)
    assert frame.place(pose(np.eye(4)), "camera").tf_refused == ""
    for stamp in sent:
        frame.sent.add(stamped(*edge, stamp))
    frame.hear(TFMessage(transforms=[stamped(*edge, stamp) for stamp in heard]))
    refused = frame.place(pose(np.eye(4)), "camera").tf_refused
    assert f"somebody else publishes '{edge[0]}' -> '{edge[1]}'" in refused
    assert "publish_tf to false" in refused
    assert "odom_frame" in refused
    assert ("tf_inverted" in refused) == (not inverted)


def test_a_static_transform_in_the_place_of_ours_is_noticed() -> None:
    frame = OdometryFrame(
        "odom", "base", tree(("odom", "base", np.eye(4)), ("base", "camera", np.eye(4)))
    )
    assert "somebody else publishes" in frame.place(pose(np.eye(4)), "camera").tf_refused


def test_what_is_sent_and_never_heard_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent_transforms, "_MAX_SENT", 10)
    sent = SentTransforms()
    for stamp in range(100):
        sent.add(stamped("odom", "base", stamp))
    assert [stamp for stamp in range(100) if sent.take(stamped("odom", "base", stamp))] == [
        *range(90, 100)
    ]


def test_covariance_of_the_base_by_sampling() -> None:
    """Against random small errors of the camera's pose, pushed through the exact motions."""
    rng = np.random.default_rng(0)
    mount = rigid(rotation_from_vector(np.array([0.4, -0.2, 0.9])), np.array([0.5, 0.1, 0.8]))
    frame = OdometryFrame("odom", "base", tree(("base", "camera", mount)))
    world_from_camera = rigid(
        rotation_from_vector(np.array([0.3, 1.0, 0.2])), np.array([1.0, 2, 3])
    )
    root = rng.normal(size=(6, 6)) * 1e-4
    placed = frame.place(pose(world_from_camera, root @ root.T), "camera")
    exact = placed.motion
    errors = []
    for sample in rng.normal(size=(1000, 6)) @ root.T:
        disturbed = rigid(
            rotation_from_vector(sample[3:]) @ world_from_camera[:3, :3],
            world_from_camera[:3, 3] + sample[:3],
        )
        motion = frame.place(pose(disturbed), "camera").motion
        turn = matrix_to_quaternion(motion[:3, :3] @ exact[:3, :3].T)
        errors.append([*(motion[:3, 3] - exact[:3, 3]), *(2.0 * turn[:3])])
    sampled = np.cov(np.array(errors).T)
    np.testing.assert_allclose(placed.covariance, sampled, atol=0.15 * np.abs(sampled).max())


@settings(max_examples=30, deadline=None)
@given(motions)
def test_messages_carry_motions(motion: np.ndarray) -> None:
    q = transform("a", "b", motion).transform.rotation
    np.testing.assert_allclose(
        quaternion_to_matrix(np.array([q.x, q.y, q.z, q.w])), motion[:3, :3], atol=1e-9
    )
    assert q.w >= 0.0


@settings(max_examples=30, deadline=None)
@given(motions, motions)
def test_inverted_is_the_same_transform(mount: np.ndarray, drive: np.ndarray) -> None:
    known = tree(("base", "camera", mount))
    plain = OdometryFrame("odom", "base", known).place(pose(drive), "camera")
    inverted = OdometryFrame("odom", "base", known, inverted=True).place(pose(drive), "camera")
    np.testing.assert_array_equal(plain.motion, inverted.motion)
    parent, child, motion = inverted.transform
    assert (parent, child) == ("base", "odom")
    assert plain.transform[:2] == ("odom", "base")
    np.testing.assert_allclose(motion @ plain.transform[2], np.eye(4), atol=1e-9)


def test_inverted_leaves_the_base_its_parent_and_gives_odom_only_one() -> None:
    frame = OdometryFrame("odom", "base", tree(("base", "camera", np.eye(4))), inverted=True)
    frame.hear(TFMessage(transforms=[transform("map", "base", np.eye(4))]))
    assert frame.place(pose(np.eye(4)), "camera").tf_refused == ""
    # Heard back from /tf, our own transform is none of somebody else.
    own = transform("base", "odom", np.eye(4))
    frame.sent.add(own)
    frame.hear(TFMessage(transforms=[own]))
    assert frame.place(pose(np.eye(4)), "camera").tf_refused == ""
    frame.hear(TFMessage(transforms=[transform("map", "odom", np.eye(4))]))
    refused = frame.place(pose(np.eye(4)), "camera").tf_refused
    assert "'odom' already has the parent 'map'" in refused
    assert "tf_inverted" in refused


def test_a_missing_link_is_told() -> None:
    """Only where the robot publishes its tree: most cameras on a desk have none."""
    known = StaticTree()
    frame = OdometryFrame("odom", "base", known)
    assert frame.place(pose(np.eye(4)), "camera").remark == ""
    known.add(TFMessage(transforms=[transform("base", "mast", np.eye(4))]))
    placement = frame.place(pose(np.eye(4)), "camera")
    assert placement.child == "camera"
    assert "no static transform connects 'base' with 'camera'" in placement.remark
    known.add(TFMessage(transforms=[transform("mast", "camera", np.eye(4))]))
    assert frame.place(pose(np.eye(4)), "camera").remark == ""


def test_nobody_can_make_a_node_remember_more_and_more_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frames, "_MAX_FRAMES", 100)
    tree = StaticTree()
    frame = OdometryFrame("odom", "base", tree)
    told = []
    for start in range(0, 300, 10):
        links = [transform("base", f"frame_{i}", np.eye(4)) for i in range(start, start + 10)]
        told += tree.add(TFMessage(transforms=links))
        frame.hear(TFMessage(transforms=links))
    assert told == ["more than 100 static transforms: the rest is ignored"]
    assert "frame_99" in tree
    assert "frame_100" not in tree
    assert len(frame._moving_parents) == 100
    # What is known may still move.
    assert tree.add(TFMessage(transforms=[transform("mast", "frame_0", np.eye(4))])) == []
    assert tree.parent("frame_0") == "mast"
