# SPDX-License-Identifier: Apache-2.0
"""A policy served to others: the other end of `openpi_policy`, on a machine that has the GPU.

It speaks openpi's protocol: metadata first, then an answer to each binary message; an error is sent
as text and ends the connection. It announces ``request_id`` and returns that of each question.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from omnistream_ros.action.msgpack_arrays import BadMessageError, pack, unpack
from omnistream_ros.action.policy import Observation, Policy, PolicyError

_MAX_BYTES = 64 << 20


class PolicyServer:
    """Context manager: serves from its begin to its end, one question at a time.

    Args:
        policy: what answers.
        embed: sentence to vector, for a policy that reads one.
        host, port: where; port 0 takes a free one, see `uri`.
        state_key: under which the joint positions come, in the order of the policy's needs.
    """

    def __init__(
        self,
        policy: Policy,
        embed: Callable[[str], np.ndarray] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        state_key: str = "observation/state",
    ) -> None:
        self._policy = policy
        self._embed = embed
        self._place = host, port
        self._state_key = state_key
        self._lock = threading.Lock()
        self._embedded: tuple[str, np.ndarray | None] = ("", None)
        self._open: set[ServerConnection] = set()

    @property
    def uri(self) -> str:
        """What a client is given; known once it serves."""
        host, port = self._place
        return f"ws://{host}:{port}"

    def __enter__(self) -> PolicyServer:
        self._server: Server = serve(
            self._serve, *self._place, compression=None, max_size=_MAX_BYTES
        )
        self._place = self._place[0], self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="server")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        for connection in list(self._open):
            connection.close_socket()
        self._thread.join()

    def _serve(self, connection: ServerConnection) -> None:
        spec = self._policy.spec
        metadata = {
            "policy": self._policy.name,
            "sha256": self._policy.sha256,
            "request_id": True,
            "action_space": spec.space.value,
            "action_names": list(spec.names),
            "horizon": spec.horizon,
            "dt": spec.dt,
        }
        self._open.add(connection)
        try:
            connection.send(pack(metadata))
            for message in connection:
                try:
                    connection.send(pack(self._answer(message)))
                except (BadMessageError, PolicyError) as error:
                    connection.send(f"{type(error).__name__}: {error}")
                    return
        except (ConnectionClosed, OSError):
            pass  # the client has gone
        finally:
            self._open.discard(connection)

    def _answer(self, message: str | bytes) -> dict[str, Any]:
        question = unpack(message) if isinstance(message, bytes) else None
        if not isinstance(question, dict):
            raise BadMessageError("a question is a dict in msgpack")
        with self._lock:
            actions = self._policy.act(self._observation(question))
        answer: dict[str, Any] = {"actions": np.asarray(actions, np.float32)}
        if "request_id" in question:
            answer["request_id"] = question["request_id"]
        return answer

    def _observation(self, question: dict[str, Any]) -> Observation:
        needs = self._policy.needs

        def array(key: str, *shape: int) -> np.ndarray:
            value = question.get(key)
            if not isinstance(value, np.ndarray) or (shape and value.shape != shape):
                came = list(value.shape) if isinstance(value, np.ndarray) else "nothing"
                wanted = f" of shape {list(shape)}" if shape else ""
                raise BadMessageError(f"the policy reads an array {key!r}{wanted}, got {came}")
            return value

        words = question.get("prompt", "")
        if not isinstance(words, str):
            raise BadMessageError("prompt must be a text")
        joints = np.zeros(0)
        if needs.joints:
            joints = array(self._state_key, len(needs.joints)).astype(np.float64)
        return Observation(
            features={
                (f.stream, f.key): np.asarray(
                    array(f"features/{f.stream}/{f.key}", *f.shape), np.float32
                )
                for f in needs.features
            },
            images={name: array(name) for name in needs.images},
            joints=joints,
            instruction=words,
            embedding=self._embedding(words) if needs.embedding else None,
        )

    def _embedding(self, words: str) -> np.ndarray:
        known, vector = self._embedded
        if vector is None or known != words:
            assert self._embed is not None, "a policy that reads words needs embed"
            vector = self._embed(words)
            self._embedded = (words, vector)
        return vector
