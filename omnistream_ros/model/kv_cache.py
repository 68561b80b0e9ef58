# SPDX-License-Identifier: Apache-2.0
"""The memory of streams: one policy says what is kept, one storage holds it; allocated once.

Here the two meet. A step of one frame is begin_frame, `attend` once per layer, end_frame: the
policy plans for each stream of the batch, the storage is written and read accordingly, and what
the policy places elsewhere in time is turned (see `rope`: only t channels change).

A turn starts from an untouched copy of those channels each time, so a stream may run for a week and
the sink's keys carry one rounding, not a million.

Tokens of a stream, N of a frame, n of a keyframe (the tokens before the patches, then one for each
square of patches):

    slots * N     frames at full resolution
    entries * n   keyframes

A keyframe's keys and values are the means over its squares. Keys are averaged as they are stored,
turned by their places: what a query says to the mean is then the mean of what it would have said
to each, and all patches of a frame share their time, so the mean can be moved in time like any key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnistream_ros.model.cache_policy import Kept, Keyframe, Plan, Policy, StreamState, Window
from omnistream_ros.model.cache_storage import Storage, TensorStorage
from omnistream_ros.model.config import ModelConfig
from omnistream_ros.model.rope import TIME_CHANNELS, Rotation, time_rotation, turn_by_frames

# (layers, streams, heads, tokens, head_dim, *, device, dtype, counts) -> an empty storage
StorageFactory = Callable[..., Storage]


@dataclass(frozen=True)
class _Group:
    """Neighbouring streams that do the same in this step, so that they do it in one call."""

    batch: slice  # of the step's inputs
    rows: slice  # of the storage
    plan: Plan


class KVCache:
    """Keys and values of all layers for B streams over one set of weights.

    The streams of a cache are independent: each has its own frame count, and a step may advance
    some of them and leave the others as they are.

    Attributes:
        policy: what is kept.
        storage: keys and values; token slot * N is the first of a slot, N = `tokens_per_frame`.
        streams: the state of each stream.
    """

    def __init__(
        self,
        config: ModelConfig,
        grid: tuple[int, int],
        policy: Policy,
        *,
        batch: int,
        camera_token: bool,
        device: torch.device,
        dtype: torch.dtype,
        storage: StorageFactory = TensorStorage,
    ) -> None:
        if batch < 1:
            raise ValueError(f"a cache for {batch} streams: batch must be at least 1")
        self.policy = policy
        self.grid = grid
        self.batch = batch
        self.camera_token = camera_token
        self.head_dim = config.head_dim
        self.dtype = dtype
        self.prefix = config.prefix_tokens(camera_token)
        self.tokens_per_frame = self.prefix + grid[0] * grid[1]  # N
        counts = _keyframe_counts(self.prefix, grid, policy.cell)
        precise = torch.promote_types(dtype, torch.float32)
        self._means = [_means(side, policy.cell).to(device, precise) for side in grid]
        self.tokens_per_keyframe = len(counts)  # n
        self.streams = [StreamState() for _ in range(batch)]
        self._first_keyframe = policy.slots * self.tokens_per_frame
        stands_for = None
        if policy.entries:
            stands_for = torch.cat(
                (torch.ones(self._first_keyframe), counts.repeat(policy.entries))
            )
        self.storage = storage(
            config.depth,
            batch,
            config.heads,
            self._first_keyframe + policy.entries * self.tokens_per_keyframe,
            self.head_dim,
            device=device,
            dtype=dtype,
            counts=stands_for,
        )

        def time_channels(tokens: int) -> Tensor:
            shape = (config.depth, batch, config.heads, tokens, self.head_dim // 4)
            return torch.zeros(shape, device=device, dtype=dtype)

        # The t channels of all that may be moved in time, as they were first written.
        self.sink_time = time_channels(policy.sink * self.tokens_per_frame)
        self.keyframe_time = time_channels(policy.entries * self.tokens_per_keyframe)
        # By stream: what the frame in each slot looks like, until it has left the window.
        self._appearances: list[dict[int, _HostCopy]] = [{} for _ in range(batch)]
        self._groups: list[_Group] = []

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        grid: tuple[int, int],
        *,
        sink: int = 1,
        window: int = 16,
        policy: Policy | None = None,
        batch: int = 1,
        camera_token: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        storage: StorageFactory = TensorStorage,
    ) -> KVCache:
        """An empty cache.

        Args:
            grid: patches (rows, columns) of the images that will come.
            sink, window: short for `policy=Window(sink, window)`.
            policy: what is kept.
            batch: number of streams.
            dtype: that of the model's matrix products (`Backbone.cache_dtype`).
            storage: how it is kept.

        Raises:
            ValueError: impossible sizes.
        """
        return cls(
            config,
            grid,
            policy or Window(sink, window),
            batch=batch,
            camera_token=camera_token,
            device=torch.device(device),
            dtype=dtype,
            storage=storage,
        )

    @staticmethod
    def fit(
        policy: Policy,
        megabytes: float,
        config: ModelConfig,
        grid: tuple[int, int],
        *,
        batch: int = 1,
        camera_token: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> Policy:
        """The same policy with a window that fits into 10^6 bytes times `megabytes`.

        The window is only ever made shorter; the rest of the policy stays.

        Raises:
            ValueError: not even a window of one frame fits; says how much it would take.
        """

        def size(window: int) -> int:
            return KVCache.allocate(
                config,
                grid,
                policy=replace(policy, window=window),  # type: ignore[type-var]
                batch=batch,
                camera_token=camera_token,
                device="meta",  # where tensors have a size and no memory
                dtype=dtype,
            ).nbytes

        longest = 1 + int(megabytes * 1e6 - size(1)) // (size(2) - size(1))
        if longest < 1:
            raise ValueError(
                f"a cache of {megabytes} MB cannot hold one frame of {grid[0]}x{grid[1]} patches "
                f"with {replace(policy, window=1)}: that takes {size(1) / 1e6:.1f} MB. Give it "  # type: ignore[type-var]
                "more, or a smaller sink or fewer keyframes"
            )
        return replace(policy, window=min(policy.window, longest))  # type: ignore[type-var]

    @property
    def nbytes(self) -> int:
        """Bytes of device memory; the same from the first frame to the last."""
        return self.storage.nbytes + self.sink_time.nbytes + self.keyframe_time.nbytes

    @property
    def frames_seen(self) -> int:
        """Frames since the start of the epoch, of streams that advance together.

        Raises:
            ValueError: the streams differ; ask `streams`.
        """
        seen = {stream.frames_seen for stream in self.streams}
        if len(seen) > 1:
            raise ValueError(
                f"streams of this cache have seen {sorted(seen)} frames; ask `streams`"
            )
        return seen.pop()

    @frames_seen.setter
    def frames_seen(self, frames: int) -> None:
        for stream in self.streams:
            stream.frames_seen = frames

    def kept_frames(self, stream: int = 0) -> list[Kept]:
        """(frame index, index in time) of what the last step attended to, itself included."""
        return self.policy.kept(self.streams[stream])

    def context_frames(self, stream: int = 0) -> int:
        """Frames kept now; as many as `kept_frames` lists."""
        state = self.streams[stream]
        return min(state.frames_seen, self.policy.slots) + len(state.keyframes)

    @property
    def _layout(self) -> dict[str, Any]:
        """All that must agree before a state means the same to another cache."""
        return {
            "policy": str(self.policy),
            "storage": type(self.storage).__name__,
            "shape": tuple(self.sink_time.shape),
            "dtype": str(self.dtype),
            "grid": self.grid,
            "camera_token": self.camera_token,
        }

    def reset(self, stream: int | None = None) -> None:
        """Forget everything, of one stream or of all: its next frame is the first of its epoch."""
        for row in range(self.batch) if stream is None else [stream]:
            self.streams[row].reset()
            self._appearances[row].clear()

    # A step that fails half-way changes nothing that the next one would read, so the same frame can
    # simply be tried again.

    def begin_frame(self, rows: Sequence[int] | None = None) -> None:
        """Plan the next frame of the streams `rows` (all by default), in the order of the batch."""
        rows = range(self.batch) if rows is None else rows
        self._groups = []
        for i, row in enumerate(rows):
            self._keep_what_leaves(row)
            plan = self.policy.plan(self.streams[row])
            last = self._groups[-1] if self._groups else None
            if last and last.rows.stop == row and last.plan == plan:
                batch, stored = slice(last.batch.start, i + 1), slice(last.rows.start, row + 1)
                self._groups[-1] = _Group(batch, stored, plan)
            else:
                self._groups.append(_Group(slice(i, i + 1), slice(row, row + 1), plan))
        for group in self._groups:
            self._move_in_time(group)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the frame's k and v of one layer, then attend to all that is kept: no mask.

        q, k, v and the result: (b, heads, N, d), b the streams of `begin_frame`.
        """
        N = self.tokens_per_frame
        outputs = []
        for group in self._groups:
            batch, rows, plan = group.batch, group.rows, group.plan
            first = plan.slot * N
            self.storage.write(layer, rows, first, k[batch], v[batch])
            if plan.slot < self.policy.sink:
                channels = k[batch, ..., TIME_CHANNELS]
                self.sink_time[layer, rows, :, first : first + N] = channels
            visible = plan.visible * N + len(plan.keyframe_shifts) * self.tokens_per_keyframe
            outputs.append(self.storage.attend(layer, rows, q[batch], visible))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def end_frame(self, patches: Tensor) -> None:
        """All layers are written: the frame is part of the past.

        patches: (b, P, D), what the network made of the frame; tells keyframes apart.
        """
        looks: list[_HostCopy] = []
        if self.policy.entries:
            looks = [_HostCopy(vector) for vector in _appearance(patches, self.grid)]
        for group in self._groups:
            batch, rows = range(len(patches))[group.batch], range(self.batch)[group.rows]
            for i, row in zip(batch, rows, strict=True):
                self.streams[row].frames_seen += 1
                if looks:
                    self._appearances[row][group.plan.slot] = looks[i]

    def _keep_what_leaves(self, row: int) -> None:
        """Make the frame that is about to be overwritten a keyframe, if it deserves it."""
        state = self.streams[row]
        leaving = self.policy.leaving(state)
        if leaving is None:
            return
        frame, slot = leaving
        look = self._appearances[row].get(slot)
        if look is None:
            return  # decided before: the step is being tried again
        appearance = look.tensor()
        entry = self.policy.entry_for(state, appearance)
        if entry is not None:
            self._condense(slice(row, row + 1), slot, entry)
            state.keep(entry, Keyframe(frame, appearance))
        del self._appearances[row][slot]

    def _condense(self, rows: slice, slot: int, entry: int) -> None:
        """Write the frame of a slot into an entry of the memory, in reduced resolution."""
        N, n = self.tokens_per_frame, self.tokens_per_keyframe
        first = self._first_keyframe + entry * n
        for layer in range(len(self.sink_time)):
            kept = self.storage.read(layer, rows, slot * N, N)  # each (1, heads, N, d)
            k, v = (_pool(x, self.prefix, *self._means) for x in kept)
            self.storage.write(layer, rows, first, k, v)
            self.keyframe_time[layer, rows, :, entry * n : (entry + 1) * n] = k[..., TIME_CHANNELS]

    def _move_in_time(self, group: _Group) -> None:
        """Turn sink and keyframes from where they were seen to where the plan wants them."""
        rows, plan = group.rows, group.plan
        device, dtype = self.sink_time.device, torch.promote_types(self.dtype, torch.float32)
        if plan.sink_shift:
            turn = time_rotation(plan.sink_shift, 1, self.head_dim, device, dtype)
            self._turn(rows, 0, self.sink_time[:, rows], self.tokens_per_frame, turn)
        if plan.keyframe_shifts:
            shifts = torch.tensor(plan.keyframe_shifts, dtype=torch.float64)
            if device.type == "cuda":
                shifts = shifts.pin_memory().to(device, non_blocking=True)
            turn = turn_by_frames(shifts.to(device), self.head_dim, dtype)
            n = self.tokens_per_keyframe
            written = self.keyframe_time[:, rows, :, : len(shifts) * n]
            self._turn(rows, self._first_keyframe, written, n, turn)

    def _turn(self, rows: slice, first: int, written: Tensor, n: int, turn: Rotation) -> None:
        """Turn t channels (L, b, heads, pieces * n, d/4), each piece by its row of `turn`."""
        # Layer by layer, while what is read and written stays near the processor. The tokens before
        # the patches have no position, and stay as they are.
        for layer, channels in enumerate(written):
            self.storage.turn(layer, rows, first, channels, n, turn, self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the streams' state; streams continued from it are the same to the last bit."""
        return {
            "layout": self._layout,
            "streams": [stream.state_dict() for stream in self.streams],
            "storage": self.storage.state_dict(),
            "sink_time": self.sink_time.clone(),
            "keyframe_time": self.keyframe_time.clone(),
            "appearances": [
                {slot: look.tensor().clone() for slot, look in looks.items()}
                for looks in self._appearances
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue streams saved from a cache of the same layout; ValueError if it is not."""
        if state.get("layout") != self._layout:
            raise ValueError(
                f"the state of a cache of {state.get('layout')} does not fit one of {self._layout}"
            )
        self.storage.load_state_dict(state["storage"])
        self.sink_time.copy_(state["sink_time"])
        self.keyframe_time.copy_(state["keyframe_time"])
        self._appearances = [
            {slot: _HostCopy(look) for slot, look in looks.items()}
            for looks in state["appearances"]
        ]
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(saved)


class _HostCopy:
    """A small tensor on its way to the host; nobody waits before it is looked at."""

    def __init__(self, source: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if source.device.type == "cuda":
            self._copy = torch.empty_like(source, device="cpu", pin_memory=True)
            self._copy.copy_(source, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(source.device))
        else:
            self._copy = source.clone()

    def tensor(self) -> Tensor:
        """The copy. It was begun a window of frames ago, so there is nothing left to wait for."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy


def _appearance(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """What frames look like, (b, 4 D) float32 from (b, P, D): the mean of each quarter."""
    plane = patches.float().transpose(1, 2).unflatten(2, grid)  # (b, D, h, w)
    return F.adaptive_avg_pool2d(plane, 2).flatten(1)


def _means(side: int, cell: int) -> Tensor:
    """Means of neighbours, `cell` at a time and the rest, as a matrix (ceil(side / cell), side)."""
    groups = torch.eye(side, dtype=torch.float64).split(cell)
    return torch.stack([group.mean(0) for group in groups])


def _pool(x: Tensor, prefix: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Keys or values of a frame (b, heads, N, d) to those of a keyframe (b, heads, n, d).

    By small matrices for rows and columns: on CPUs that is several times as fast as a pooling
    operation.
    """
    plane = x[:, :, prefix:].to(rows.dtype).unflatten(2, (rows.shape[1], -1))  # (b, heads, h, w, d)
    plane = (rows @ plane.flatten(3)).unflatten(3, plane.shape[3:])  # (b, heads, h', w, d)
    pooled = (columns @ plane).flatten(2, 3).to(x.dtype)  # (b, heads, h' * w', d)
    return torch.cat((x[:, :, :prefix], pooled), dim=2)


def _keyframe_counts(prefix: int, grid: tuple[int, int], cell: int) -> Tensor:
    """How many tokens of a frame each token of a keyframe stands for, (n,)."""
    rows, columns = (
        torch.arange(0, side, cell).neg().add(side).clamp(max=cell).float() for side in grid
    )
    return torch.cat((torch.ones(prefix), torch.outer(rows, columns).flatten()))
