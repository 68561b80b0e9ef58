# SPDX-License-Identifier: Apache-2.0
"""Perception and action in one process: from an image to a command, without features on a topic."""

from __future__ import annotations

import re
from pathlib import Path

from action_bench import SCRIPTED, Bench, arguments
from omnistream_ros.msg import ActionStatus, FeatureTensor
from ros_processes import NODE as PERCEPTION
from ros_processes import NodeStarter, User

from omnistream_ros.nodes import container


def test_from_an_image_to_a_command(
    domain: int, weights: Path, user: User, start_node: NodeStarter
) -> None:
    perception = start_node.arguments(autostart=True, image_width=64, image_height=48)
    action = arguments(
        **{
            **SCRIPTED,
            "autostart": True,
            "features": ["camera: 1:patch:normed"],  # the last block of the tiny model
            "features_timeout": 5.0,
        }
    )
    # Both nodes have parameters of the same names: each is told which are its own.
    line = _only_for("omnistream_perception", perception) + _only_for("omnistream_action", action)
    node = start_node.fork(container.main, line)
    bench = Bench(user, node)
    bench.robot.spoil_features = lambda message: None  # they come from the real node
    node.wait_for("waiting for images")
    send = user.camera()

    def look() -> None:
        image = user.picture()
        image.header.stamp = bench.robot.now().to_msg()
        send(image)

    user.node.create_timer(0.1, look)
    bench.executes()
    user.wait_until(lambda: len(bench.chunks) > 2)
    assert bench.chunks[-1].stream_ids == [PERCEPTION]
    names = dict(user.node.get_topic_names_and_types())
    assert f"{PERCEPTION}/features" in names
    assert user.node.count_subscribers(f"{PERCEPTION}/features") == 0  # by reference

    # Somebody else may still listen, and the action node does not hear twice.
    heard: list[FeatureTensor] = user.collect(FeatureTensor, f"{PERCEPTION}/features")
    user.wait_until(lambda: len(heard) > 2)
    assert node.count("is not known") == 0
    bench.executes()
    assert sum(bench.last.drop_counts) == 0, list(bench.last.drop_kinds)

    assert node.end() == 0
    user.wait_until(lambda: bench.last.state == ActionStatus.INACTIVE, "the last status")
    bench.ended_with_a_hold()


def _only_for(node: str, line: list[str]) -> list[str]:
    return [re.sub(r"^(\w+:=)", rf"{node}:\1", word) for word in line]
