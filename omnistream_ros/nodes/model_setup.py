# SPDX-License-Identifier: Apache-2.0
"""From parameters to streams that are ready: the model, what runs it, its memory, warmed up.

What cannot be is a `TransitionRefusedError` that says which parameter to correct.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from omnistream_ros.model import KVCache, ModelError, OmniStream, load_model
from omnistream_ros.model.cache_policy import Policy
from omnistream_ros.nodes.lifecycle import TransitionRefusedError
from omnistream_ros.nodes.output_messages import ModelFacts
from omnistream_ros.nodes.perception_parameters import PerceptionParameters
from omnistream_ros.stream.batch import StreamBatch
from omnistream_ros.stream.device_memory import StreamMemoryError
from omnistream_ros.stream.engines import (
    Engine,
    EngineError,
    EngineMaker,
    StepShape,
    TorchEngine,
)
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.preprocess import model_size
from omnistream_ros.stream.result import Outputs
from omnistream_ros.stream.session import StreamSession
from omnistream_ros.stream.streams import Streams, StreamTurns

# On a CPU, a wider network keeps the cores busy with one camera (docs/memory_policies.md).
_WIDEST_TOGETHER = 512


def choose_device(name: str) -> str:
    """The device for a value of the parameter `device`."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if available else "cpu"
    if name != "cpu" and int(name.partition(":")[2] or 0) >= available:
        raise TransitionRefusedError(
            f"device '{name}' does not exist: PyTorch sees {available} CUDA device(s). Set the "
            "parameter 'device' to cpu or auto and configure again"
        )
    return name


def load_engine(
    wish: PerceptionParameters, device: str, *, cameras: int, tell: Callable[[str], None]
) -> tuple[Engine, ModelFacts]:
    """The model, and what runs it: chosen by parameter, checked against the model itself."""
    try:
        network, card = load_model(wish.model, device=device)
    except ModelError as error:
        raise TransitionRefusedError(
            f"{error}. Set the parameter 'model' and configure again"
        ) from error
    engine = make_engine(wish, network, card.sha256, cameras, tell)
    facts = ModelFacts(
        name=card.name,
        sha256=card.sha256,
        patch_size=network.config.patch_size,
        layers=network.config.depth,
        has_depth=network.depth_head is not None,
        has_pose=network.has_pose,
        metric=network.config.metric,
        licence=card.licence,
        accuracy=card.accuracy,
    )
    return engine, facts


def make_streams(
    wish: PerceptionParameters,
    engine: Engine,
    facts: ModelFacts,
    cameras: Mapping[str, PerceptionParameters],
) -> Streams:
    """The streams of all cameras (by name, with their own parameters), after two frames each.

    The first use of anything costs time and memory; what they allocated serves every stream until
    cleanup.
    """
    everything = Outputs(
        depth=facts.has_depth,
        pose=facts.has_pose,
        features=tuple({key: None for own in cameras.values() for key in own.feature_keys}),
    )
    pixels = np.zeros((wish.image_height, wish.image_width, 3), np.uint8)
    pose = None if wish.pose == "auto" else wish.pose
    consistent = None if wish.consistent_depth else False  # None: where the pose allows it
    budget = wish.cache_megabytes / len(cameras) or None

    def session(resolution: str) -> StreamSession:
        return StreamSession(
            engine.model,
            engine=engine,
            policy=wish.policy,
            cache_megabytes=budget,
            max_gap_s=wish.max_gap,
            resolution=resolution,
            pose=pose,
            consistent_depth=consistent,
        )

    try:
        streams: Streams = StreamTurns(session)
        if len(cameras) > 1 and _together(wish, engine):
            streams = StreamBatch(
                engine.model,
                len(cameras),
                policy=_fitted_policy(wish, engine.model, len(cameras)),
                max_gap_s=wish.max_gap,
                pose=pose,
                consistent_depth=consistent,
            )
        for name, own in cameras.items():
            streams.join(name, resolution=own.resolution)
        for stamp_ns in (0, 1):
            frames = dict.fromkeys(cameras, Frame(pixels, stamp_ns))
            streams.step(frames, dict.fromkeys(cameras, everything))
    except (ValueError, StreamMemoryError) as error:
        raise TransitionRefusedError(
            f"{error}. Correct the parameters and configure again"
        ) from error
    return streams


def _together(wish: PerceptionParameters, engine: Engine) -> bool:
    """Whether several cameras share a step of the network."""
    able = isinstance(engine, TorchEngine)
    if wish.batching == "always" and not able:
        raise TransitionRefusedError(
            f"engine {engine.name} is made for one stream, so cameras cannot share a step: set "
            "'batching' to never, or 'engine' to eager or fast, and configure again"
        )
    config, device = engine.model.config, engine.model.backbone.device
    pays = device.type != "cpu" or config.width <= _WIDEST_TOGETHER
    return able and (wish.batching == "always" or (wish.batching == "auto" and pays))


def make_engine(
    wish: PerceptionParameters,
    network: OmniStream,
    sha256: str,
    cameras: int,
    tell: Callable[[str], None],
) -> Engine:
    """What runs the network, for the caches that so many cameras will have."""
    config = network.config
    file = Path(wish.engine_file) if wish.engine_file else None
    dtype = getattr(torch, wish.precision)
    try:
        size = model_size(
            wish.image_height, wish.image_width, config.model_pixels, config.patch_size
        )
        shape = StepShape(*size, _fitted_policy(wish, network, cameras, dtype))
        return EngineMaker(network, sha256, shape, dtype, file, tell=tell).make(wish.engine)
    except (EngineError, ValueError) as error:
        raise TransitionRefusedError(
            f"{error}. Correct the parameters and configure again"
        ) from error


def _fitted_policy(
    wish: PerceptionParameters, network: OmniStream, cameras: int, dtype: torch.dtype | None = None
) -> Policy:
    """The policy with the window that `cache_megabytes` leaves to each camera."""
    if not wish.cache_megabytes:
        return wish.policy
    config = network.config
    size = model_size(wish.image_height, wish.image_width, config.model_pixels, config.patch_size)
    return KVCache.fit(
        wish.policy,
        wish.cache_megabytes / cameras,
        config,
        config.grid(*size),
        dtype=dtype or network.backbone.cache_dtype,
    )
