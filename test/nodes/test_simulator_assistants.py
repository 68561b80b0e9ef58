# SPDX-License-Identifier: Apache-2.0
"""The simulator's questions to the other nodes: what is lost is asked again, never done twice."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.task import Future

from omnistream_ros.nodes import simulator_assistants
from omnistream_ros.nodes.process import RefusedToStartError
from omnistream_ros.nodes.simulator_assistants import Assistants
from omnistream_ros.nodes.simulator_parameters import SimulatorParameters


class _LossyNode:
    """Clients of services that carry out each request and lose their first `lost` answers."""

    def __init__(self, lost: int) -> None:
        self.lost = lost
        self.asked: Counter[str] = Counter()
        self.state = State.PRIMARY_STATE_UNCONFIGURED

    def create_client(self, kind: type, name: str) -> _LossyClient:
        return _LossyClient(self, kind, name)


class _LossyClient:
    def __init__(self, node: _LossyNode, kind: type, name: str) -> None:
        self._node, self._kind, self.srv_name = node, kind, name

    def service_is_ready(self) -> bool:
        return True

    def call_async(self, request: Any) -> Future:
        node, future = self._node, Future()
        node.asked[self.srv_name] += 1
        answer = self._kind.Response()
        if self._kind is GetState:
            answer.current_state.id = node.state
        else:
            answer.success = True
        if self._kind is ChangeState:
            node.state = State.PRIMARY_STATE_INACTIVE
        elif node.asked[self.srv_name] <= node.lost:
            return future
        future.set_result(answer)
        return future


def assistants(node: _LossyNode) -> Assistants:
    wish = replace(SimulatorParameters(), perception="/eye", action="/hand", patience=1.0)
    return Assistants(node, wish, threading.Event())


def test_an_answer_that_is_lost_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator_assistants, "_ASK_AGAIN_S", 0.02)
    node = _LossyNode(lost=2)
    assistants(node).wait()
    assert node.asked["/eye/reset"] >= 3
    assert node.asked["/hand/get_state"] >= 3
    assert node.asked["/hand/change_state"] == 1
    assert node.state == State.PRIMARY_STATE_INACTIVE


def test_a_service_that_never_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator_assistants, "_ASK_AGAIN_S", 0.02)
    with pytest.raises(RefusedToStartError, match="nobody answers on /eye/reset within 1 s"):
        assistants(_LossyNode(lost=10**6)).wait()
