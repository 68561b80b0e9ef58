# SPDX-License-Identifier: Apache-2.0
"""A policy that runs elsewhere: a client of openpi's websocket policy server.

On connection the server sends a dict of its metadata. Then every binary message with an observation
is answered by one with `actions` (horizon, numbers); a text message is the traceback of an error,
after which the server closes. The observation is a flat dict: camera images (H, W, 3) uint8, the
joint positions, the `prompt`, and features under ``features/STREAM/KEY``.

An answer belongs to the newest question or to none. A server that announces ``"request_id": true``
in its metadata returns the `request_id` of the question, and late answers are dropped by it; from
any other (openpi's own) a late answer is never read, since the connection is given up when the time
is over.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from typing import Any

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from omnistream_ros.action.msgpack_arrays import BadMessageError, pack, unpack
from omnistream_ros.action.policy import Needs, Observation, PolicyError
from omnistream_ros.action.spaces import ActionSpec

API_KEY = "OPENPI_API_KEY"
_MAX_BYTES = 64 << 20
_CLOSE_S = 0.5


class OpenPiPolicy:
    """See `policy.Policy`.

    Args:
        uri: ws://HOST:PORT or wss://HOST:PORT. A key is taken from the environment, OPENPI_API_KEY.
        spec: what the server's numbers mean; it does not say it itself.
        needs: what it is sent.
        state_key: under which it reads the joint positions.
        timeout_s: for a connection, and for an answer.

    Raises:
        PolicyError: there is no such server, or it announces actions of another form.
    """

    def __init__(
        self, uri: str, spec: ActionSpec, needs: Needs, *, state_key: str, timeout_s: float
    ) -> None:
        self.name = f"openpi at {uri}"
        self.sha256 = ""
        self.spec = spec
        self.needs = needs
        self.metadata: dict[str, Any] = {}
        self._uri = uri
        self._state_key = state_key
        self._timeout_s = timeout_s
        self._ids = itertools.count(1)
        self._connection: ClientConnection | None = None
        self._connect(time.monotonic() + timeout_s)

    def act(self, observation: Observation) -> np.ndarray:
        deadline = time.monotonic() + self._timeout_s
        if self._connection is None:
            self._connect(deadline)
        question = self._question(observation)
        answer = self._answer(question, deadline)
        return self._actions(answer)

    def reset(self) -> None:
        """The server remembers nothing from one question to the next."""

    def cancel(self) -> None:
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._give_up()

    def _connect(self, deadline: float) -> None:
        key = os.environ.get(API_KEY)
        try:
            self._connection = connect(
                self._uri,
                compression=None,
                max_size=_MAX_BYTES,
                open_timeout=max(0.01, deadline - time.monotonic()),
                close_timeout=_CLOSE_S,
                ping_interval=None,  # a server that computes does not answer pings
                additional_headers={"Authorization": f"Api-Key {key}"} if key else None,
            )
        except (OSError, ValueError, WebSocketException) as error:
            raise PolicyError(f"{self._uri}: no connection ({_words(error)})") from error
        metadata = self._receive(deadline)
        if not isinstance(metadata, dict):
            self._give_up()
            raise PolicyError(f"{self._uri}: began with no metadata; is it an openpi server?")
        differs = _differences(metadata, self.spec)
        if differs:
            self._give_up()
            raise PolicyError(f"{self._uri}: the server and the parameters differ: {differs}")
        self.metadata = metadata

    def _question(self, observation: Observation) -> dict[str, Any]:
        question: dict[str, Any] = {
            f"features/{stream}/{key}": tensor
            for (stream, key), tensor in observation.features.items()
        }
        question.update(observation.images)
        if self.needs.joints:
            question[self._state_key] = observation.joints.astype(np.float32)
        question["prompt"] = observation.instruction
        return question

    def _answer(self, question: dict[str, Any], deadline: float) -> Any:
        """The answer to this question, and to no other."""
        assert self._connection is not None
        number = next(self._ids)
        echoes = self.metadata.get("request_id") is True
        if echoes:
            question["request_id"] = number
        try:
            self._connection.send(pack(question))
        except (OSError, WebSocketException) as error:
            self._give_up()
            raise PolicyError(f"{self._uri}: the server is gone ({_words(error)})") from error
        while True:
            answer = self._receive(deadline, keep=echoes)
            if not echoes or (isinstance(answer, dict) and answer.get("request_id") == number):
                return answer

    def _receive(self, deadline: float, *, keep: bool = False) -> Any:
        """One message; `keep` the connection when none comes in time."""
        assert self._connection is not None
        try:
            data = self._connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            if not keep:
                self._give_up()
            words = f"no answer within {self._timeout_s:g} s"
            raise PolicyError(f"{self._uri}: {words}") from error
        except (OSError, WebSocketException) as error:
            self._give_up()
            raise PolicyError(f"{self._uri}: the server is gone ({_words(error)})") from error
        if isinstance(data, str):
            self._give_up()
            last = (data.strip().splitlines() or ["without a word"])[-1]
            raise PolicyError(f"{self._uri}: error in the server: {last[:200]}")
        try:
            return unpack(data)
        except BadMessageError as error:
            self._give_up()
            raise PolicyError(f"{self._uri}: the answer is garbage: {error}") from error

    def _actions(self, answer: Any) -> np.ndarray:
        actions = answer.get("actions") if isinstance(answer, dict) else None
        if not isinstance(actions, np.ndarray):
            raise PolicyError(f"{self._uri}: the answer holds no array 'actions'")
        wanted = (self.spec.horizon, len(self.spec.names))
        if actions.shape != wanted:
            raise PolicyError(
                f"{self._uri}: actions have shape {list(actions.shape)}, the parameters say "
                f"{list(wanted)} (horizon, action_names)"
            )
        if actions.dtype.kind != "f":
            raise PolicyError(f"{self._uri}: actions are {actions.dtype}, not floating point")
        return actions

    def _give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, WebSocketException):
                connection.socket.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError, WebSocketException):
                connection.close()


def _differences(metadata: dict[str, Any], spec: ActionSpec) -> str:
    """Where a server that says what its actions are (`policy_server`) says something else."""
    ours = {
        "action_space": spec.space.value,
        "action_names": list(spec.names),
        "horizon": spec.horizon,
        "dt": spec.dt,
    }
    found = [
        f"{name} is {metadata[name]} there and {value} here"
        for name, value in ours.items()
        if name in metadata and metadata[name] != value
    ]
    return "; ".join(found)


def _words(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
