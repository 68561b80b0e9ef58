# SPDX-License-Identifier: Apache-2.0
"""A policy server on the loopback that speaks openpi's protocol, as well as the test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from omnistream_ros.action.msgpack_arrays import pack, unpack

Answer = Callable[[dict, ServerConnection], Any]


def lean(question: dict, _: ServerConnection) -> Any:
    """Eight actions of two numbers."""
    return {"actions": np.full((8, 2), 0.25, np.float32), "server_timing": {"infer_ms": 1.0}}


class OpenPiServer:
    """Context manager; `answer` may be changed at any time.

    An answer that is a dict is packed, bytes and texts are sent as they are, None is not sent.
    """

    def __init__(self, answer: Answer = lean, metadata: Any = None, port: int = 0) -> None:
        self.answer = answer
        self.metadata: Any = {"policy": "test"} if metadata is None else metadata
        self.questions: list[dict] = []
        self.connections = 0
        self._port = port
        self._open: set[ServerConnection] = set()

    @property
    def uri(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    def __enter__(self) -> OpenPiServer:
        self._server: Server = serve(
            self._serve, "127.0.0.1", self._port, compression=None, max_size=None
        )
        self._port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self.hang_up()
        self._thread.join()

    def hang_up(self) -> None:
        """End all connections without a word."""
        for connection in list(self._open):
            connection.close_socket()

    def _serve(self, connection: ServerConnection) -> None:
        self.connections += 1
        self._open.add(connection)
        try:
            metadata = self.metadata
            connection.send(pack(metadata) if isinstance(metadata, dict) else metadata)
            while True:
                question = unpack(connection.recv())
                self.questions.append(question)
                answer = self.answer(question, connection)
                if answer is not None:
                    connection.send(pack(answer) if isinstance(answer, dict) else answer)
        except (ConnectionClosed, OSError):
            pass
        finally:
            self._open.discard(connection)
