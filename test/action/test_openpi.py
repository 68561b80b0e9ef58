# SPDX-License-Identifier: Apache-2.0
"""The client of openpi's policy server against a server that misbehaves in every way we know."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("msgpack", reason="needs the extra 'openpi'")
pytest.importorskip("websockets", reason="needs the extra 'openpi'")

import msgpack
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from openpi_server import OpenPiServer, lean
from policy_files import with_action

from omnistream_ros.action.msgpack_arrays import BadMessageError, pack, unpack
from omnistream_ros.action.openpi_policy import OpenPiPolicy
from omnistream_ros.action.policy import Needs, Observation, PolicyError
from omnistream_ros.action.policy_facts import FeatureInput

SPEC = with_action().action
NEEDS = Needs(
    features=(FeatureInput("camera", "3:cls", (), "unused"),),
    images=("observation/image",),
    joints=("shoulder", "elbow"),
    instruction=True,
)
OBSERVATION = Observation(
    features={("camera", "3:cls"): np.arange(4, dtype=np.float32)},
    images={"observation/image": np.arange(48, dtype=np.uint8).reshape(4, 4, 3)},
    joints=np.array([0.5, -0.5]),
    instruction="lean forward",
)


@pytest.fixture
def server() -> Iterator[OpenPiServer]:
    with OpenPiServer() as running:
        yield running


def _policy(server: OpenPiServer, timeout_s: float = 20.0) -> OpenPiPolicy:
    return OpenPiPolicy(server.uri, SPEC, NEEDS, state_key="observation/state", timeout_s=timeout_s)


def test_a_question_and_its_answer(server: OpenPiServer) -> None:
    policy = _policy(server)
    assert policy.act(OBSERVATION) == pytest.approx(np.full((8, 2), 0.25))
    assert policy.metadata == {"policy": "test"}
    (question,) = server.questions
    assert question["prompt"] == "lean forward"
    assert question["observation/image"].dtype == np.uint8
    assert (question["observation/image"] == OBSERVATION.images["observation/image"]).all()
    assert question["observation/state"] == pytest.approx([0.5, -0.5])
    assert question["features/camera/3:cls"] == pytest.approx([0.0, 1.0, 2.0, 3.0])
    assert "request_id" not in question
    policy.close()


def test_the_bytes_are_those_of_openpi() -> None:
    """Maps with byte keys, as its client and server write them."""
    record = msgpack.unpackb(pack({"a": np.array([[1.5]], np.float32), "b": np.int16(7)}))
    assert record["a"] == {
        b"__ndarray__": True,
        b"data": b"\x00\x00\xc0\x3f",
        b"dtype": "<f4",
        b"shape": [1, 1],
    }
    assert record["b"] == {b"__npgeneric__": True, b"data": 7, b"dtype": "<i2"}


def _gone(_: dict, connection: Any) -> None:
    connection.close_socket()


def _text(*_: object) -> str:
    return "Traceback (most recent call last):\n  ...\nKeyError: 'observation/image'\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_gone, "the server is gone"),
        (_text, "error in the server: KeyError: 'observation/image'"),
        (lambda *_: b"\xc1 garbage", "the answer is garbage"),
        (lambda *_: b"", "the answer is garbage"),
        (lambda *_: pack({"actions": np.zeros((8, 2))}) + b"x", "the answer is garbage"),
        (lambda *_: pack([1, 2]), "no array 'actions'"),
        (lambda *_: {"actions": [[0.0, 0.0]] * 8}, "no array 'actions'"),
        (lambda *_: {"actions": np.zeros((10, 2))}, "[10, 2], the parameters say [8, 2]"),
        (lambda *_: {"actions": np.zeros((8, 2), np.int32)}, "actions are int32"),
    ],
)
def test_a_bad_answer_is_told_and_the_next_one_is_good(
    server: OpenPiServer, answer: Any, words: str
) -> None:
    policy = _policy(server)
    server.answer = answer
    with pytest.raises(PolicyError) as caught:
        policy.act(OBSERVATION)
    assert words in str(caught.value)
    server.answer = lean
    assert policy.act(OBSERVATION).shape == (8, 2)
    policy.close()


def test_a_late_answer_is_never_taken_for_the_next_one(server: OpenPiServer) -> None:
    policy = _policy(server, timeout_s=0.3)
    let_go = threading.Event()

    def late(*_: object) -> dict:
        let_go.wait(10.0)
        return {"actions": np.full((8, 2), 99.0)}

    server.answer = late
    with pytest.raises(PolicyError, match=r"no answer within 0\.3 s"):
        policy.act(OBSERVATION)
    server.answer = lean
    let_go.set()
    policy._timeout_s = 20.0
    for _ in range(3):
        assert policy.act(OBSERVATION) == pytest.approx(np.full((8, 2), 0.25))
    assert server.connections == 2  # the first was given up
    policy.close()


def test_with_request_ids_late_answers_are_dropped_and_the_connection_is_kept() -> None:
    owed: list[int] = []

    def answer(question: dict, connection: Any) -> dict | None:
        if not owed:  # the first is answered with the second
            owed.append(question["request_id"])
            return None
        for number in [*owed, question["request_id"]]:
            value = 99.0 if number in owed else 0.5
            actions = np.full((8, 2), value, np.float32)
            connection.send(pack({"actions": actions, "request_id": number}))
        return None

    with OpenPiServer(answer, metadata={"request_id": True}) as server:
        policy = _policy(server, timeout_s=0.5)
        with pytest.raises(PolicyError, match="no answer"):
            policy.act(OBSERVATION)
        policy._timeout_s = 20.0
        assert policy.act(OBSERVATION) == pytest.approx(np.full((8, 2), 0.5))
        assert server.connections == 1
        policy.close()


def test_a_server_that_comes_back_is_found_again() -> None:
    with OpenPiServer() as server:
        policy = _policy(server)
        policy.act(OBSERVATION)
        port = int(server.uri.rpartition(":")[2])
    with pytest.raises(PolicyError):
        policy.act(OBSERVATION)
    with pytest.raises(PolicyError, match="no connection"):
        policy.act(OBSERVATION)
    with OpenPiServer(port=port):
        assert policy.act(OBSERVATION).shape == (8, 2)
        policy.close()


def test_a_call_can_be_broken_off(server: OpenPiServer) -> None:
    policy = _policy(server, timeout_s=600.0)
    asked = threading.Event()

    def never(*_: object) -> None:
        asked.set()

    server.answer = never
    threading.Thread(target=lambda: (asked.wait(), policy.cancel()), daemon=True).start()
    began = time.monotonic()
    with pytest.raises(PolicyError, match="gone"):
        policy.act(OBSERVATION)
    assert time.monotonic() - began < 60.0
    server.answer = lean
    assert policy.act(OBSERVATION).shape == (8, 2)
    policy.close()


@pytest.mark.parametrize("metadata", ["hello", b"\x93\x01\x02\x03", b"\xc1"])
def test_what_is_no_openpi_server_is_refused(metadata: Any) -> None:
    with OpenPiServer(metadata=metadata) as server, pytest.raises(PolicyError):
        _policy(server)


def test_no_server_at_all() -> None:
    with OpenPiServer() as server:
        uri = server.uri
    with pytest.raises(PolicyError, match="no connection"):
        OpenPiPolicy(uri, SPEC, NEEDS, state_key="state", timeout_s=5.0)
    with pytest.raises(PolicyError, match="no connection"):
        OpenPiPolicy("ws://host:port:x", SPEC, NEEDS, state_key="state", timeout_s=5.0)


@given(
    arrays.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.uint8, np.int64, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=4, max_side=5),
    )
)
@settings(deadline=None, max_examples=50)
def test_arrays_survive(array: np.ndarray) -> None:
    back = unpack(pack({"a": [array]}))["a"][0]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_garbage_is_refused_in_one_way(data: bytes) -> None:
    with contextlib.suppress(BadMessageError):
        unpack(data)


@pytest.mark.parametrize(
    "changes",
    [
        {b"dtype": "|O"},
        {b"dtype": "<c8"},
        {b"dtype": "nonsense"},
        {b"dtype": 7},
        {b"dtype": [["a", "<f4"]]},
        {b"shape": [3]},
        {b"shape": [-2]},
        {b"shape": [2**62, 4]},
        {b"shape": ["2"]},
        {b"shape": None},
        {b"data": "text"},
        {b"data": b""},
    ],
)
def test_an_array_that_lies_is_refused(changes: dict) -> None:
    good = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    assert unpack(msgpack.packb(good)).shape == (2,)
    with pytest.raises(BadMessageError):
        unpack(msgpack.packb({**good, **changes}))


def test_objects_are_not_sent() -> None:
    for value in (np.array([object()]), np.array([1j]), object()):
        with pytest.raises(TypeError):
            pack({"a": value})
