# SPDX-License-Identifier: Apache-2.0
"""The thread that asks the policy: what it is shown, when words are embedded, how it ends."""

from __future__ import annotations

import dataclasses
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "action"))
pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

from robots import NEEDS, SPEC, Rig

from omnistream_ros.action.chunk import Chunk, Origin
from omnistream_ros.action.policy import Observation, PolicyError
from omnistream_ros.action.safety import Drop, State
from omnistream_ros.nodes.action_worker import PolicyWorker

KEY = ("camera", "3:patch:normed")


class Recorder:
    """A policy that keeps what it was shown and does as it is told."""

    name, sha256, spec = "recorder", "", SPEC
    needs = dataclasses.replace(NEEDS, embedding=True)

    def __init__(self) -> None:
        self.seen: list[Observation] = []
        self.resets = 0
        self.fail: Exception | None = None
        self.cancelled = threading.Event()
        self.waits = False

    def act(self, observation: Observation) -> np.ndarray:
        features = {key: tensor.copy() for key, tensor in observation.features.items()}
        self.seen.append(dataclasses.replace(observation, features=features))
        if self.waits:
            self.cancelled.wait(60.0)
            raise PolicyError("broken off")
        if self.fail is not None:
            raise self.fail
        return np.zeros((SPEC.horizon, len(SPEC.names)))

    def reset(self) -> None:
        self.resets += 1

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        pass


class Desk:
    """A worker with all around it."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.policy = Recorder()
        self.embedded: list[str] = []
        self.answers: queue.Queue[tuple[Chunk, str, Drop | None]] = queue.Queue()
        self.faults: queue.Queue[BaseException] = queue.Queue()
        self.warnings: queue.Queue[str] = queue.Queue()
        self.worker = PolicyWorker(
            self.policy,
            self.rig.controller,
            embed=self._embed,
            now_ns=lambda: self.rig.now_ns,
            on_chunk=lambda chunk, text, t0_ns, drop: self.answers.put((chunk, text, drop)),
            on_fault=self.faults.put,
            warn=self.warnings.put,
        )

    def _embed(self, text: str) -> np.ndarray:
        self.embedded.append(text)
        return np.full(384, len(text), np.float32)

    def show(self, value: float = 0.5, tensor: Any = None) -> None:
        """A new frame, and the news of it."""
        self.rig.now_ns += 10_000_000
        self.rig.feel()
        self.rig.frame += 1
        tensor = np.full((2, 3, 4), value, np.float16) if tensor is None else tensor
        origin = Origin("camera", 0, self.rig.frame, self.rig.now_ns)
        arrived = self.rig.controller.frame_arrived
        assert arrived("camera", origin, {KEY: tensor}, self.rig.now_ns) is None
        self.worker.notify()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.worker.close()


def test_words_are_embedded_once_and_again_when_they_change(desk: Desk) -> None:
    for number in range(3):
        desk.show(number)
        chunk, text, drop = desk.answers.get(timeout=30.0)
        assert (chunk.chunk_id, text, drop) == (number + 1, "lean forward", None)
    assert desk.embedded == ["lean forward"]
    desk.rig.controller.set_instruction("lean back", desk.rig.now_ns)
    desk.show()
    assert desk.answers.get(timeout=30.0)[1] == "lean back"
    assert desk.embedded == ["lean forward", "lean back"]
    assert desk.policy.seen[-1].embedding == pytest.approx(np.full(384, 9.0))
    assert desk.policy.resets == 2


def test_features_are_float32_whatever_came(desk: Desk) -> None:
    frozen = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    frozen.flags.writeable = False
    for tensor in (np.full((2, 3, 4), 1.5, np.float16), frozen, frozen[::-1]):
        desk.show(tensor=tensor)
        desk.answers.get(timeout=30.0)
        seen = desk.policy.seen[-1].features[KEY]
        assert seen.dtype == np.float32
        assert (seen == tensor).all()


def test_a_policy_that_fails_is_told_and_asked_again(desk: Desk) -> None:
    desk.policy.fail = PolicyError("no idea")
    desk.show()
    assert "no idea" in desk.warnings.get(timeout=30.0)
    desk.rig.tick()
    assert "no idea" in desk.rig.controller.decision.detail
    desk.policy.fail = None
    desk.show()
    desk.answers.get(timeout=30.0)
    desk.rig.tick()
    assert desk.rig.controller.decision.state is State.EXECUTING


def test_any_other_exception_is_a_fault_of_the_node(desk: Desk) -> None:
    desk.policy.fail = ZeroDivisionError("a bug")
    desk.show()
    assert isinstance(desk.faults.get(timeout=30.0), ZeroDivisionError)


def test_the_end_does_not_wait_for_the_policy(desk: Desk) -> None:
    desk.policy.waits = True
    desk.show()
    while not desk.policy.seen:
        assert not desk.policy.cancelled.wait(0.001)
    desk.worker.close()
    assert desk.policy.cancelled.is_set()
    assert desk.warnings.empty()  # being broken off is no failure
