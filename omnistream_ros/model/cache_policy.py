# SPDX-License-Identifier: Apache-2.0
"""What a stream remembers: which frames are kept, in which slots, at which logical times.

A policy is plain arithmetic on the host; it sees neither keys nor values. `kv_cache` carries out
what it plans, `cache_storage` holds the numbers. Three policies:

    Full              every frame, up to a stated number
    Window            the first frames (sink) and the most recent ones (window)
    WindowMemory      the same, and between them keyframes in reduced resolution

`make_policy` makes one from a name and numbers, as they stand in a configuration.

Memory is divided into slots of one frame each. Frame f of an epoch is written into

    slot f                              while f < sink
    slot sink + (f - sink) % window     afterwards: a ring, the oldest frame is overwritten

Attention does not care in which order keys stand, so nothing is ever moved, and the current frame
counts as the last of the window: before it is written, the frame it replaces is gone.

Time. A frame of the window stands at its own frame index. What is older is moved in time to stand
right before the window, in order and without gaps, as if the frames in between had never been: so
no distance ever exceeds the number of frames that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Kept(NamedTuple):
    """One frame that a step attends to: its index in the epoch, and the time it stands at."""

    frame: int
    time: int


class Keyframe(NamedTuple):
    """A frame that is kept in reduced resolution, and what it looked like, (n,) on the host."""

    frame: int
    appearance: Tensor


@dataclass(frozen=True)
class Plan:
    """What the step of one frame reads and writes.

    Attributes:
        slot: where the frame at hand is written.
        visible: slots [0, visible) are attended to, `slot` among them.
        sink_shift: frames by which the sink stands later than it was written; 0: where it was.
        keyframe_shifts: the same for each entry of the memory; as many entries are attended to.
    """

    slot: int
    visible: int
    sink_shift: int = 0
    keyframe_shifts: tuple[int, ...] = ()


@dataclass
class StreamState:
    """What a policy remembers of one stream.

    Attributes:
        frames_seen: frames since the start of the epoch; a Python int, it cannot overflow.
        keyframes: what is in the memory, by entry.
        landmarks: frames of the epoch that the pose is measured by, told from outside; None: nobody
            measures, and keyframes are chosen by their looks.
    """

    frames_seen: int = 0
    keyframes: list[Keyframe] = field(default_factory=list)
    landmarks: frozenset[int] | None = None

    def reset(self) -> None:
        """The next frame is the first of its epoch."""
        self.frames_seen = 0
        self.keyframes.clear()
        self.landmarks = None

    def keep(self, entry: int, keyframe: Keyframe) -> None:
        """Put a keyframe into an entry of the memory, a new one or one in use."""
        self.keyframes[entry : entry + 1] = [keyframe]

    def state_dict(self) -> dict[str, Any]:
        """A copy, in plain types and tensors."""
        keyframes = [(key.frame, key.appearance.clone()) for key in self.keyframes]
        landmarks = None if self.landmarks is None else sorted(self.landmarks)
        return {"frames_seen": self.frames_seen, "keyframes": keyframes, "landmarks": landmarks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.frames_seen = int(state["frames_seen"])
        self.keyframes = [Keyframe(frame, seen.clone()) for frame, seen in state["keyframes"]]
        landmarks = state["landmarks"]
        self.landmarks = None if landmarks is None else frozenset(landmarks)


class Policy(Protocol):
    """One way to remember. Immutable, shared by all streams of a cache.

    Attributes:
        sink: the first slots, whose frames may be moved in time.
        window: the slots after it.
        slots: frames that are kept at full resolution, at most.
        entries: keyframes that are kept in reduced resolution, at most.
        cell: patches along each side of a square of which a keyframe keeps one.
        limit: frames after which an epoch cannot go on; math.inf where nothing limits it.
    """

    @property
    def sink(self) -> int: ...

    @property
    def window(self) -> int: ...

    @property
    def slots(self) -> int: ...

    @property
    def entries(self) -> int: ...

    @property
    def cell(self) -> int: ...

    @property
    def limit(self) -> float: ...

    def plan(self, state: StreamState) -> Plan:
        """How to step frame `state.frames_seen`; changes nothing.

        Raises:
            ValueError: the limit is reached; the stream must begin a new epoch.
        """
        ...

    def kept(self, state: StreamState) -> list[Kept]:
        """What the last step attended to, itself included, in order of time."""
        ...

    def leaving(self, state: StreamState) -> tuple[int, int] | None:
        """(frame, slot) that the next frame overwrites, if that frame may become a keyframe."""
        ...

    def entry_for(self, state: StreamState, appearance: Tensor) -> int | None:
        """The entry of the memory that a leaving frame deserves; None: it adds too little."""
        ...


@dataclass(frozen=True)
class Window:
    """The first frames of the epoch (sink) and the most recent ones (window).

    Attributes:
        sink: frames that are never forgotten; may be 0.
        window: recent frames, the current one included; may be smaller than the sink, which costs
            nothing else: the two are kept side by side.

    Raises:
        ValueError: impossible sizes.
    """

    sink: int = 1
    window: int = 16

    entries = 0
    cell = 1
    limit = math.inf

    def __post_init__(self) -> None:
        _check_sizes(self.sink, self.window)

    @property
    def slots(self) -> int:
        return self.sink + self.window

    def plan(self, state: StreamState) -> Plan:
        return _ring(state, self.sink, self.window, ())

    def kept(self, state: StreamState) -> list[Kept]:
        return _kept(state, self.sink, self.window)

    def leaving(self, state: StreamState) -> tuple[int, int] | None:
        return None

    def entry_for(self, state: StreamState, appearance: Tensor) -> int | None:
        return None


@dataclass(frozen=True)
class Full:
    """Every frame of the epoch, up to `window`; then a stream must begin a new epoch.

    Attributes:
        window: how many fit.

    Raises:
        ValueError: impossible sizes.
    """

    window: int = 64

    sink = 0
    entries = 0
    cell = 1

    def __post_init__(self) -> None:
        _check_sizes(0, self.window)

    @property
    def slots(self) -> int:
        return self.window

    @property
    def limit(self) -> float:
        return self.window

    def plan(self, state: StreamState) -> Plan:
        if state.frames_seen >= self.window:
            raise ValueError(
                f"the cache keeps every frame and holds {self.window}: it is full. Reset it, "
                "allocate a longer one, or keep a window"
            )
        return Plan(state.frames_seen, state.frames_seen + 1)

    def kept(self, state: StreamState) -> list[Kept]:
        return [Kept(f, f) for f in range(state.frames_seen)]

    def leaving(self, state: StreamState) -> tuple[int, int] | None:
        return None

    def entry_for(self, state: StreamState, appearance: Tensor) -> int | None:
        return None


@dataclass(frozen=True)
class WindowMemory:
    """Sink and window, and between them keyframes that each keep one token for a square of patches.

    Where the pose is measured by keyframes of its own, the two share them: of the frames that leave
    the window only those become keyframes here, and those that the pose has given up go first.

    Otherwise, and among those, looks decide: a frame becomes a keyframe if it adds something, that
    is if, among the keyframes and it, the two that look most alike are two others, or if there is
    still room. Of the two, the one that is closer to all the rest is dropped. The memory thereby
    spreads over what the epoch has seen, however long ago, without a threshold to tune.

    Attributes:
        sink, window: as of `Window`.
        entries: keyframes.
        cell: patches along each side of a square.

    Raises:
        ValueError: impossible sizes.
    """

    sink: int = 1
    window: int = 8
    entries: int = 16
    cell: int = 3

    limit = math.inf

    def __post_init__(self) -> None:
        _check_sizes(self.sink, self.window)
        if self.entries < 1 or self.cell < 1:
            raise ValueError(
                f"a memory of {self.entries} keyframes, cells of {self.cell} patches: both must be "
                "at least 1"
            )

    @property
    def slots(self) -> int:
        return self.sink + self.window

    def plan(self, state: StreamState) -> Plan:
        return _ring(state, self.sink, self.window, tuple(key.frame for key in state.keyframes))

    def kept(self, state: StreamState) -> list[Kept]:
        return _kept(state, self.sink, self.window, sorted(key.frame for key in state.keyframes))

    def leaving(self, state: StreamState) -> tuple[int, int] | None:
        frame = state.frames_seen
        if frame < self.slots:
            return None
        return frame - self.window, self.sink + (frame - self.sink) % self.window

    def entry_for(self, state: StreamState, appearance: Tensor) -> int | None:
        landmarks = state.landmarks
        if landmarks is not None and state.frames_seen - self.window not in landmarks:
            return None
        if len(state.keyframes) < self.entries:
            return len(state.keyframes)
        for entry, key in enumerate(state.keyframes):
            if landmarks is not None and key.frame not in landmarks:
                return entry
        seen = torch.stack([*(key.appearance for key in state.keyframes), appearance])
        distance = torch.cdist(seen, seen).fill_diagonal_(math.inf)
        a, b = divmod(int(distance.argmin()), len(seen))
        # Each is the other's nearest; the next nearest tells which of them is less of a loss.
        nearest = distance.topk(2, largest=False).values[:, 1]
        entry = a if nearest[a] <= nearest[b] else b
        return None if entry == self.entries else entry


POLICIES = ("window", "full", "window+memory")


def make_policy(name: str, *, sink: int, window: int, keyframes: int, cell: int) -> Policy:
    """A policy by its name in `POLICIES`; each takes of the numbers what it has a use for.

    Raises:
        ValueError: an unknown name, or numbers that this policy cannot have.
    """
    if name == "window":
        return Window(sink, window)
    if name == "full":
        return Full(window)
    if name == "window+memory":
        return WindowMemory(sink, window, keyframes, cell)
    raise ValueError(f"unknown memory policy {name!r}; known: {', '.join(POLICIES)}")


def describe_policy(policy: Policy) -> dict[str, str | int]:
    """The name of a policy and the numbers that it has a use for, as `make_policy` takes them."""
    if isinstance(policy, WindowMemory):
        numbers = {"keyframes": policy.entries, "cell": policy.cell}
        return {"name": "window+memory", "sink": policy.sink, "window": policy.window, **numbers}
    if isinstance(policy, Full):
        return {"name": "full", "window": policy.window}
    return {"name": "window", "sink": policy.sink, "window": policy.window}


def _check_sizes(sink: int, window: int) -> None:
    if sink < 0 or window < 1:
        raise ValueError(
            f"a cache of sink {sink} and window {window}: the window counts the current frame, so "
            "it must be at least 1, and the sink at least 0"
        )


def _ring(state: StreamState, sink: int, window: int, keyframes: tuple[int, ...]) -> Plan:
    """Sink, then a ring; `keyframes` are the frames in the memory, by entry."""
    frame, slots = state.frames_seen, sink + window
    slot = frame  # slots fill from the left, then the window goes round
    if frame >= slots:
        slot = sink + (frame - sink) % window
    forgotten = max(0, frame + 1 - slots) - len(keyframes)
    first = frame + 1 - window - len(keyframes)  # time of the earliest keyframe
    rank = {key: i for i, key in enumerate(sorted(keyframes))}
    shifts = tuple(first + rank[key] - key for key in keyframes)
    return Plan(slot, min(frame + 1, slots), forgotten if sink else 0, shifts)


def _kept(state: StreamState, sink: int, window: int, keyframes: Sequence[int] = ()) -> list[Kept]:
    seen = state.frames_seen
    forgotten = max(0, seen - sink - window) - len(keyframes)
    first = seen - window - len(keyframes)
    return [
        *(Kept(f, f + forgotten) for f in range(min(sink, seen))),
        *(Kept(f, first + i) for i, f in enumerate(keyframes)),
        *(Kept(f, f) for f in range(max(min(sink, seen), seen - window), seen)),
    ]
