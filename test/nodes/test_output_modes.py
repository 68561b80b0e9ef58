# SPDX-License-Identifier: Apache-2.0
"""Outputs that are there always, never, or while somebody listens; tensors in other formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nav_msgs.msg import Odometry
from omnistream_ros.msg import FeatureTensor, StreamStatus
from ros_processes import NODE, NodeStarter, User
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from omnistream_ros.nodes.feature_messages import to_torch


def heads_ms(user: User, send, status: list) -> float:
    frames = [user.process(send, status) for _ in range(5)]
    return float(
        np.median([dict(zip(f.stage_names, f.stage_ms, strict=True))["heads"] for f in frames])
    )


def test_always_and_never(user: User, start_node: NodeStarter) -> None:
    """Of two cameras one computes depth for nobody, the other has no such topic."""
    node = start_node(
        "-p",
        "front.output_depth:=always",
        "-p",
        "left.output_depth:=never",
        cameras='["front", "left"]',
        autostart=True,
        publish_tf=False,
        engine="eager",
    )
    status = {n: user.collect(StreamStatus, f"{NODE}/{n}/status") for n in ("front", "left")}
    node.wait_for("waiting for images on '/left/image'")
    send = {name: user.camera(f"/{name}/image") for name in status}
    user.wait_until(lambda: all(status.values()))
    assert heads_ms(user, send["left"], status["left"]) < 0.2
    assert heads_ms(user, send["front"], status["front"]) > 0.2
    counts = user.node.count_publishers
    assert counts(f"{NODE}/left/depth/image") == counts(f"{NODE}/left/depth/camera_info") == 0
    assert counts(f"{NODE}/front/depth/image") == counts(f"{NODE}/left/depth/points") == 1
    depth = user.collect(Image, f"{NODE}/front/depth/image")
    while not depth:
        user.process(send["front"], status["front"])
    refused = user.set_parameter("left.output_depth", "lazy")
    assert not refused.successful
    assert "deactivate and clean up first" in refused.reason


def test_features_in_other_formats(user: User, start_node: NodeStarter) -> None:
    node = start_node(autostart=True, features='["-1:patch:normed", "-1:pooled:normed"]')
    status = user.collect(StreamStatus, f"{NODE}/status")
    tensors = user.collect(FeatureTensor, f"{NODE}/features")
    node.wait_for("waiting for images")
    send = user.camera()
    user.wait_until(lambda: status)
    while len(tensors) < 2:
        user.process(send, status)
    for name, rounding in (("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 2e-2)):
        assert user.set_parameter("feature_dtype", name).successful
        user.process(send, status)
        stamp = status[-1].header.stamp
        user.wait_until(lambda stamp=stamp: tensors[-2].header.stamp == stamp)
        full, pooled = (to_torch(message) for message in tensors[-2:])
        assert [m.kind for m in tensors[-2:]] == [FeatureTensor.PATCH, FeatureTensor.POOLED]
        assert full.dtype == pooled.dtype == getattr(torch, name)
        assert (tuple(full.shape), tuple(pooled.shape)) == ((3, 4, 64), (64,))
        torch.testing.assert_close(
            pooled.float(), full.float().mean((0, 1)), rtol=rounding, atol=rounding
        )


@pytest.mark.parametrize("inverted", [False, True])
def test_the_transform_may_stand_the_other_way_round(
    user: User, start_node: NodeStarter, inverted: bool
) -> None:
    node = start_node(autostart=True, tf_inverted=inverted)
    status = user.collect(StreamStatus, f"{NODE}/status")
    transforms = user.collect(TFMessage, "/tf")
    odometry = user.collect(Odometry, f"{NODE}/odometry")
    node.wait_for("waiting for images")
    send = user.camera()
    user.wait_until(lambda: status)
    while not (transforms and odometry):
        user.process(send, status)
    placed = transforms[-1].transforms[0]
    names = (placed.header.frame_id, placed.child_frame_id)
    assert names == (("camera", "odom") if inverted else ("odom", "camera"))
    # The odometry is the same in both.
    assert (odometry[-1].header.frame_id, odometry[-1].child_frame_id) == ("odom", "camera")
    q = placed.transform.rotation
    start = [0.5, -0.5, 0.5, 0.5] if inverted else [-0.5, 0.5, -0.5, 0.5]
    np.testing.assert_allclose(np.abs([q.x, q.y, q.z, q.w]), np.abs(start), atol=0.2)
