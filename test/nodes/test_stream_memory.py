# SPDX-License-Identifier: Apache-2.0
"""The node's memory of the past: allocated once, chosen by parameters, given back when it fails."""

from __future__ import annotations

import torch
from omnistream_ros.msg import StreamStatus
from ros_processes import NODE, NodeStarter, User

from omnistream_ros.model import Backbone, KVCache
from omnistream_ros.nodes import perception


def telling_main(arguments: list[str]) -> int:
    """The node, which says each time that a cache is allocated."""
    allocate = KVCache.__init__

    def tell(self: KVCache, *args, **kwargs):
        allocate(self, *args, **kwargs)
        if kwargs["device"].type != "meta":
            print(f"allocated a cache of {self.policy}", flush=True)

    KVCache.__init__ = tell  # type: ignore[method-assign]
    return perception.main(arguments)


def exhausted_main(arguments: list[str]) -> int:
    """The node with a device whose memory runs out at the second image of a camera."""
    step, seen = Backbone.step, []

    def fail(self: Backbone, pixels: torch.Tensor, *others, **more):
        seen.append(float(pixels[:, 0].std()) > 0.01)  # the warm-up is black
        if seen[-1] and sum(seen) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(self, pixels, *others, **more)

    Backbone.step = fail  # type: ignore[method-assign]
    return telling_main(arguments)


def test_the_cache_is_allocated_once(user: User, start_node: NodeStarter) -> None:
    node = start_node.fork(telling_main, start_node.arguments(engine="eager"))
    status = user.collect(StreamStatus, f"{NODE}/status")
    assert user.change("configure", "activate")
    for _ in range(2):
        send = user.camera()
        user.wait_until(lambda: status and status[-1].state == StreamStatus.WAITING)
        first = user.process(send, status)
        assert (first.epoch, first.frame_index, first.epoch_reason) == (0, 0, "start")
        assert user.process(send, status).context_frames == 2
        assert user.change("deactivate")
        user.wait_until(lambda: status[-1].state == StreamStatus.INACTIVE)
        status.clear()
        assert user.change("activate")
    assert node.count("allocated a cache of Window") == 1


def test_the_policy_is_a_parameter(user: User, start_node: NodeStarter) -> None:
    node = start_node.fork(
        telling_main,
        start_node.arguments(
            autostart=True, memory="window+memory", window=3, keyframes=5, keyframe_cell=2
        ),
    )
    node.wait_for("allocated a cache of WindowMemory")
    assert "context of 9 frames (window+memory)" in node.wait_for("context of")
    status = user.collect(StreamStatus, f"{NODE}/status")
    user.wait_until(lambda: status)
    assert status[-1].context_capacity == 9
    assert not user.set_parameter("memory", "everything").successful


def test_a_budget_too_small_refuses_to_configure(user: User, start_node: NodeStarter) -> None:
    node = start_node(cache_megabytes=0.001)
    assert not user.change("configure")
    assert "cannot hold one frame" in node.wait_for("cannot configure")
    assert user.set_parameter("cache_megabytes", 0.1).successful
    assert user.change("configure", "activate")


def test_running_out_of_memory_recovers_by_configure(user: User, start_node: NodeStarter) -> None:
    node = start_node.fork(exhausted_main, start_node.arguments(autostart=True, engine="eager"))
    status = user.collect(StreamStatus, f"{NODE}/status")
    node.wait_for("waiting for images")
    send = user.camera()
    user.wait_until(lambda: status)
    user.process(send, status)
    send()
    line = node.wait_for("recovered to unconfigured after")
    assert "StreamMemoryError: out of memory on cpu" in line
    assert "take a shorter window or smaller images" in line
    assert user.state() == "unconfigured"
    status.clear()
    assert user.change("configure", "activate")
    send = user.camera()
    user.wait_until(lambda: status and status[-1].state == StreamStatus.WAITING)
    frame = user.process(send, status)
    assert (frame.epoch, frame.frame_index, frame.frames_processed) == (0, 0, 1)
    assert node.count("allocated a cache") == 2
