# SPDX-License-Identifier: Apache-2.0
"""Cameras by name, each a stream of its own, over one model: what steps them, and two ways to.

`StreamTurns` (here) steps a session for each camera, one after the other, with whatever engine;
`StreamBatch` (`batch`) advances several cameras in one step of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.result import Outputs, StreamResult
from omnistream_ros.stream.session import StreamSession


class Streams(Protocol):
    """The streams of some cameras. Not thread-safe; KeyError for a camera that has not joined."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """The names of the cameras that have joined."""
        ...

    @property
    def at_once(self) -> int:
        """Cameras that it pays to hand to one step."""
        ...

    @property
    def context_capacity(self) -> int:
        """Frames of a camera that attention can see at most, keyframes included."""
        ...

    def join(self, camera: str, *, resolution: str = "model") -> None:
        """Add a camera; its first frame begins its epoch 0."""
        ...

    def leave(self, camera: str) -> None:
        """Remove a camera and forget its stream."""
        ...

    def reset(self, camera: str) -> None:
        """Begin a new epoch with the next frame of one camera; its pose stays continuous."""
        ...

    def restart(self) -> None:
        """Be as new, in the memory that is allocated already: epochs 0, poses at the origin."""
        ...

    def cache_bytes(self, camera: str) -> int:
        """Device memory of a camera's key/value cache; 0 before the first frame."""
        ...

    def step(
        self, frames: Mapping[str, Frame], outputs: Mapping[str, Outputs]
    ) -> dict[str, StreamResult]:
        """Process the next frames of some cameras, at most one of each; the others wait.

        Raises:
            ValueError, StreamMemoryError: as `StreamSession.step`.
        """
        ...

    def state_dict(self, camera: str) -> dict[str, Any]:
        """A copy of everything that one stream remembers, see `StreamSession.state_dict`."""
        ...

    def load_state_dict(self, camera: str, state: dict[str, Any]) -> None:
        """Continue a stream saved by ``state_dict``; ValueError if it belongs to another model."""
        ...


class StreamTurns:
    """A session for each camera; frames of several cameras are processed one after the other.

    Args:
        make: a new session for depth of this resolution; all share one model and engine.
    """

    at_once = 1

    def __init__(self, make: Callable[[str], StreamSession]) -> None:
        self._make = make
        self._sessions: dict[str, StreamSession] = {}

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self._sessions)

    @property
    def context_capacity(self) -> int:
        return max((s.context_capacity for s in self._sessions.values()), default=0)

    def join(self, camera: str, *, resolution: str = "model") -> None:
        """Add a camera; ValueError if it is in already."""
        if camera in self._sessions:
            raise ValueError(f"camera {camera!r} has joined already")
        self._sessions[camera] = self._make(resolution)

    def leave(self, camera: str) -> None:
        self._sessions.pop(camera).release()

    def reset(self, camera: str) -> None:
        self._sessions[camera].reset()

    def restart(self) -> None:
        for session in self._sessions.values():
            session.restart()

    def cache_bytes(self, camera: str) -> int:
        return self._sessions[camera].cache_bytes

    def step(
        self, frames: Mapping[str, Frame], outputs: Mapping[str, Outputs]
    ) -> dict[str, StreamResult]:
        return {
            camera: self._sessions[camera].step(frame, outputs[camera])
            for camera, frame in frames.items()
        }

    def state_dict(self, camera: str) -> dict[str, Any]:
        return self._sessions[camera].state_dict()

    def load_state_dict(self, camera: str, state: dict[str, Any]) -> None:
        self._sessions[camera].load_state_dict(state)
