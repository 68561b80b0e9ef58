# SPDX-License-Identifier: Apache-2.0
"""One camera stream: a frame goes in, what the model knows about it comes out.

A session owns what belongs to one camera - the cache, the epoch, the pose - and borrows the model,
which several sessions may share. It is not thread-safe: one frame at a time.
"""

from __future__ import annotations

from typing import Any

import torch

from omnistream_ros.model import KVCache, OmniStream
from omnistream_ros.model.cache_policy import Policy, Window
from omnistream_ros.stream.camera_stream import POSES, RESOLUTIONS, CameraStream
from omnistream_ros.stream.device_memory import (
    StreamMemoryError,
    available_bytes,
    is_out_of_memory,
)
from omnistream_ros.stream.engines import Engine, TorchEngine
from omnistream_ros.stream.epochs import EpochReason
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.result import Outputs, StreamResult
from omnistream_ros.stream.stopwatch import Stopwatch

__all__ = ["POSES", "RESOLUTIONS", "StreamMemoryError", "StreamSession"]

_EVERYTHING = Outputs()


class StreamSession:
    """Advances the model by one frame per call and keeps a bounded memory of the past.

    Args:
        model: the network, on its device and in its dtype.
        sink, window: short for `policy=Window(sink, window)`: the first frames of an epoch that
            stay visible for ever, and the recent ones, the current one included.
        policy: what the stream remembers, see `model/cache_policy`.
        cache_megabytes: the window is made as short as this budget for the cache wants; None: no
            budget.
        max_gap_s: a longer time between two frames begins a new epoch.
        resolution: of depth and confidence: "model" as the network computes them, or "source", the
            size of the camera image (edges stay sharp, planes stay planes: see `depth_resize`).
        pose: where the pose comes from: "geometric" (`odometry`: matching, depth and a solver),
            "head" (the network's camera head) or "fused" (geometric, and the head's motion where
            that is lost). By default geometric where the model can.
        consistent_depth: bend each depth image until it agrees with the keyframes of the pose (see
            `room_depth`); the pose is then found for every frame whose depth is wanted. False: each
            as the network says. By default wherever the pose is not the head's.
        engine: runs the steps of this model; by default torch, operation by operation.

    Raises:
        ValueError: an argument that makes no sense, or that this model cannot do.
    """

    def __init__(
        self,
        model: OmniStream,
        *,
        sink: int = 1,
        window: int = 16,
        policy: Policy | None = None,
        cache_megabytes: float | None = None,
        max_gap_s: float = 2.0,
        resolution: str = "model",
        pose: str | None = None,
        consistent_depth: bool | None = None,
        engine: Engine | None = None,
    ) -> None:
        if cache_megabytes is not None and not cache_megabytes > 0:
            raise ValueError(f"cache_megabytes must be above 0, got {cache_megabytes}")
        self._model = model
        self._engine = engine or TorchEngine(model)
        self._policy = policy or Window(sink, window)
        self._budget = cache_megabytes
        self._stream = CameraStream(
            model,
            max_gap_s=max_gap_s,
            resolution=resolution,
            pose=pose,
            consistent_depth=consistent_depth,
        )
        # Made for the first image, kept as long as images of that shape come.
        self._cache: KVCache | None = None

    @property
    def policy(self) -> Policy:
        """What is remembered; from the first frame on as short as the budget wants."""
        return self._policy if self._cache is None else self._cache.policy

    @property
    def context_capacity(self) -> int:
        """Frames that attention can see at most, keyframes included."""
        return self.policy.slots + self.policy.entries

    @property
    def cache_bytes(self) -> int:
        """Device memory of the key/value cache; 0 before the first frame."""
        return 0 if self._cache is None else self._cache.nbytes

    def reset(self) -> None:
        """Begin a new epoch with the next frame (reason "request"); the pose stays continuous."""
        self._stream.request_epoch()

    def restart(self) -> None:
        """Be as new, in the memory that is allocated already: epoch 0, pose at the origin."""
        self._stream.forget()

    def release(self) -> None:
        """Give back all memory; the epoch ends, the next frame allocates anew."""
        self._cache = None
        self._stream.release()
        self._stream.request_epoch()
        if self._model.backbone.device.type == "cuda":
            torch.cuda.empty_cache()

    def step(self, frame: Frame, outputs: Outputs = _EVERYTHING) -> StreamResult:
        """Process the next frame.

        Args:
            frame: not earlier than the one before, else a new epoch begins.
            outputs: what to compute beyond advancing the stream.

        Raises:
            ValueError: an output that this model does not have, an image that is too elongated, or
                a budget too small for it; the stream is then as if the frame had never come.
            StreamMemoryError: the device has not enough memory. What the stream held is given back,
                its epoch is over, and the next frame begins another.
        """
        try:
            return self._step(frame, outputs)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        # Outside of the handler: the exception held every tensor of the step.
        self._end_epoch_for_memory()
        raise StreamMemoryError(
            f"out of memory on {self._model.backbone.device} at an image of "
            f"{frame.width}x{frame.height}: {reason}. The stream's memory was given back; take a "
            "shorter window or smaller images"
        )

    @torch.no_grad()
    def _step(self, frame: Frame, outputs: Outputs) -> StreamResult:
        stream = self._stream
        stream.check(outputs)
        watch = Stopwatch(self._model.backbone.device)
        reason = stream.begins(frame)
        if reason is None and self._is_full():
            reason = EpochReason.CONTEXT_FULL
            stream.request_epoch(reason)  # or it would be forgotten with the context if this fails
        if reason is not None:
            self._begin_epoch(frame)
        assert self._cache is not None
        pixels = stream.pixels(frame)  # (1, 3, h, w)
        watch.lap("preprocess")

        prediction = self._engine.step(
            pixels,
            self._cache,
            depth=outputs.depth,
            camera=stream.wants_camera(frame, outputs),
            lap=watch.lap,
        )
        stream.accept(frame, reason)
        result = stream.result(
            frame,
            reason,
            outputs,
            prediction,
            frame_index=self._cache.frames_seen - 1,
            context_frames=self._cache.context_frames(),
            watch=watch,
        )
        self._cache.streams[0].landmarks = stream.landmarks
        return result

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything the stream remembers; tensors, numpy arrays and plain numbers.

        A session of the same model and arguments that loads it continues to the last bit.
        """
        cache = self._cache
        return {
            **self._stream.state_dict(),
            "grid": None if cache is None else cache.grid,
            "cache": None if cache is None else cache.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a stream saved by ``state_dict``.

        Raises:
            ValueError: the state comes from another model or another size of cache; the session is
                then unchanged.
        """
        self._stream.check_state(state)
        cache = None
        if state["cache"] is not None:
            cache = self._cache  # which looks before it loads
            if cache is None or cache.grid != tuple(state["grid"]):
                patch = self._model.config.patch_size
                height, width = (side * patch for side in state["grid"])
                cache = self._allocate(height, width)
            cache.load_state_dict(state["cache"])
        self._cache = cache
        self._stream.load_state_dict(state)

    def _is_full(self) -> bool:
        return self._cache is not None and self._cache.frames_seen >= self._cache.policy.limit

    def _begin_epoch(self, frame: Frame) -> None:
        """Forget the past; memory is only allocated anew when the shape asks for it."""
        height, width = self._stream.model_size(frame)
        grid = self._model.config.grid(height, width)
        if self._cache is None or self._cache.grid != grid:
            self._check_room(frame, grid)
            self._cache = None  # before the new one: there may not be room for both
            self._cache = self._allocate(height, width)
        self._cache.reset()
        self._stream.begin_epoch()

    def _allocate(self, height: int, width: int) -> KVCache:
        """A cache for images of model size height x width."""
        return self._engine.allocate_cache(
            height, width, self._fitted(self._model.config.grid(height, width))
        )

    def _fitted(self, grid: tuple[int, int]) -> Policy:
        if self._budget is None:
            return self._policy
        return KVCache.fit(
            self._policy,
            self._budget,
            self._model.config,
            grid,
            dtype=self._model.backbone.cache_dtype,
        )

    def _check_room(self, frame: Frame, grid: tuple[int, int]) -> None:
        """Say no before the system ends the process.

        Raises:
            StreamMemoryError: cache and image will not fit into what is free.
        """
        backbone = self._model.backbone
        policy = self._fitted(grid)
        cache = KVCache.allocate(
            self._model.config, grid, policy=policy, device="meta", dtype=backbone.cache_dtype
        ).nbytes
        image = 3 * frame.height * frame.width
        # The image as bytes, and on a GPU as float32.
        needed = cache + image * (5 if backbone.device.type == "cuda" else 1)
        room = available_bytes(backbone.device) + self.cache_bytes
        if needed > room:
            self._end_epoch_for_memory()
            raise StreamMemoryError(
                f"a cache of {policy} for an image of {frame.width}x{frame.height} takes "
                f"{needed / 1e6:.0f} MB, and {backbone.device} has {room / 1e6:.0f} MB left; take "
                "a shorter window, another precision or smaller images"
            )

    def _end_epoch_for_memory(self) -> None:
        self._stream.request_epoch(EpochReason.OUT_OF_MEMORY)
        self.release()
