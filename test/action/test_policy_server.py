# SPDX-License-Identifier: Apache-2.0
"""A policy behind openpi's protocol: asked by the client of this package, and by one that errs."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("msgpack", reason="needs the extra 'openpi'")
pytest.importorskip("websockets", reason="needs the extra 'openpi'")

import numpy as np
from policy_files import with_action
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from omnistream_ros.action.msgpack_arrays import pack, unpack
from omnistream_ros.action.openpi_policy import OpenPiPolicy
from omnistream_ros.action.policy import Needs, Observation, PolicyError
from omnistream_ros.action.policy_facts import FeatureInput
from omnistream_ros.action.policy_server import PolicyServer

SPEC = with_action().action
NEEDS = Needs(
    features=(FeatureInput("camera", "3:cls", (4,), "unused"),),
    images=("observation/image",),
    joints=("shoulder", "elbow"),
    instruction=True,
    embedding=True,
)


class Adder:
    """Answers with the sum of the joints, and remembers what it saw."""

    name, sha256, spec = "adder", "", SPEC

    def __init__(self, needs: Needs) -> None:
        self.needs = needs
        self.seen = Observation()

    def act(self, observation: Observation) -> np.ndarray:
        self.seen = observation
        return np.full((SPEC.horizon, 2), observation.joints.sum())

    def reset(self) -> None:
        pass

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_policy_is_served_to_the_client_of_this_package() -> None:
    policy = Adder(NEEDS)
    observation = Observation(
        features={("camera", "3:cls"): np.arange(4, dtype=np.float32)},
        images={"observation/image": np.full((5, 6, 3), 7, np.uint8)},
        joints=np.array([0.25, 0.5]),
        instruction="lean",
    )
    embedded: list[str] = []

    def embed(text: str) -> np.ndarray:
        embedded.append(text)
        return np.full(384, float(len(text)), np.float32)

    with PolicyServer(policy, embed) as server:
        client = OpenPiPolicy(
            server.uri, SPEC, NEEDS, state_key="observation/state", timeout_s=20.0
        )
        for _ in range(2):
            np.testing.assert_array_equal(
                client.act(observation), np.full((SPEC.horizon, 2), 0.75, np.float32)
            )
        assert client.metadata["action_names"] == list(SPEC.names)
        client.close()
    seen = policy.seen
    np.testing.assert_array_equal(seen.features["camera", "3:cls"], [0, 1, 2, 3])
    assert seen.images["observation/image"].shape == (5, 6, 3)
    np.testing.assert_array_equal(seen.joints, [0.25, 0.5])
    assert seen.instruction == "lean"
    assert seen.embedding is not None
    np.testing.assert_array_equal(seen.embedding, np.full(384, 4.0))
    assert embedded == ["lean"]  # once


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (b"\xc1", "no msgpack"),
        ("a text", "a question is a dict"),
        (pack([1]), "a question is a dict"),
        (pack({}), r"'observation/state' of shape \[2\], got nothing"),
        (pack({"observation/state": np.zeros(3)}), r"of shape \[2\], got \[3\]"),
        (pack({"observation/state": np.zeros(2), "prompt": 3}), "prompt must be a text"),
    ],
)
def test_a_question_that_cannot_be_answered_is_told_so_and_the_server_goes_on(
    question: str | bytes, words: str
) -> None:
    with PolicyServer(Adder(Needs(joints=NEEDS.joints))) as server:
        with connect(server.uri, compression=None) as connection:
            assert unpack(connection.recv())["request_id"] is True
            connection.send(question)
            answer = connection.recv()
            assert isinstance(answer, str)
            assert re.search(words, answer)
            with pytest.raises(ConnectionClosed):
                connection.recv()
        with connect(server.uri, compression=None) as connection:
            connection.recv()
            connection.send(pack({"observation/state": np.ones(2), "request_id": 9}))
            answer = unpack(connection.recv())
            assert answer["request_id"] == 9
            np.testing.assert_array_equal(answer["actions"], np.full((SPEC.horizon, 2), 2.0))


def test_a_server_whose_actions_mean_something_else_is_refused() -> None:
    with PolicyServer(Adder(NEEDS)) as server:
        for changes, words in (
            ({"names": ("elbow", "shoulder")}, r"action_names is \['shoulder', 'elbow'\] there"),
            ({"dt": 0.1, "horizon": 4}, "horizon is 8 there and 4 here; dt is 0.05 there and 0.1"),
        ):
            spec = with_action(**changes).action
            with pytest.raises(PolicyError, match=words):
                OpenPiPolicy(server.uri, spec, NEEDS, state_key="x", timeout_s=20.0)
