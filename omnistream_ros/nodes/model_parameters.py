# SPDX-License-Identifier: Apache-2.0
"""The parameters of the model of the perception node: which, on what, and how much of the past."""

from __future__ import annotations

import dataclasses
import re

from omnistream_ros.model.cache_policy import POLICIES, Policy, make_policy
from omnistream_ros.nodes.parameter_options import Change, option
from omnistream_ros.stream.engines import ENGINES

_CONFIGURE = Change.UNCONFIGURED


def _check_device(text: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", text):
        raise ValueError(f"must be auto, cpu, cuda or cuda:N, got {text!r}")


def _check_not_empty(text: str) -> None:
    if not text:
        raise ValueError("must not be empty")


@dataclasses.dataclass(frozen=True)
class ModelParameters:
    """Values of these parameters; ROS names are the names of the fields."""

    model: str = option(
        "omnistream-nano",
        "Name of a model of this package, a safetensors file, or a folder with config.json and "
        "model.safetensors.",
        check=_check_not_empty,
        change=_CONFIGURE,
    )
    device: str = option(
        "auto",
        "Where the model runs: cpu, cuda, cuda:N; auto takes a GPU if there is one.",
        check=_check_device,
        change=_CONFIGURE,
    )
    precision: str = option(
        "float32",
        "Number format of the matrix products.",
        choices=("float32", "bfloat16", "float16"),
        change=_CONFIGURE,
    )
    engine: str = option(
        "default",
        "What runs the model: eager (torch), fast (CPU: packed weights and our own kernel), "
        "compiled (torch), onnx, tensorrt (ONNX Runtime), default (on a CPU fast, where its "
        "results are those of eager to 0.1 %, else eager), auto (the fastest of this machine; it "
        "measures the first time, which takes minutes).",
        choices=ENGINES,
        change=_CONFIGURE,
    )
    engine_file: str = option(
        "",
        "For onnx and tensorrt: a file written by `omnistream export`; empty: exported once and "
        "kept in the user's cache folder.",
        change=_CONFIGURE,
        only_with=("engine", ("onnx", "tensorrt", "auto")),
    )
    image_width: int = option(
        640,
        "Width of the camera's images, for which engines are prepared; only the ratio to the "
        "height matters.",
        low=16,
        high=16384,
        change=_CONFIGURE,
    )
    image_height: int = option(
        480, "Height of the camera's images.", low=16, high=16384, change=_CONFIGURE
    )
    threads: int = option(
        0,
        "CPU threads of the model; 0 leaves it to PyTorch (one per core).",
        low=0,
        high=256,
        change=_CONFIGURE,
    )
    batching: str = option(
        "auto",
        "Whether several cameras share a step of the network: always, never, auto (where it is "
        "faster).",
        choices=("auto", "always", "never"),
        change=_CONFIGURE,
    )
    memory: str = option(
        "window",
        "What the model sees of the past: window (the first and the most recent frames), full "
        "(every frame until `window` are seen, then a new epoch), window+memory (between first and "
        "recent frames, keyframes in reduced resolution).",
        choices=POLICIES,
        change=_CONFIGURE,
    )
    window: int = option(
        16,
        "Recent frames that the model sees, the present one included.",
        low=1,
        high=512,
        change=_CONFIGURE,
    )
    sink: int = option(
        1,
        "First frames of an epoch that stay visible for ever.",
        low=0,
        high=16,
        change=_CONFIGURE,
    )
    keyframes: int = option(
        16,
        "Frames between sink and window that are remembered; for memory: window+memory.",
        low=1,
        high=256,
        change=_CONFIGURE,
        only_with=("memory", ("window+memory",)),
    )
    keyframe_cell: int = option(
        2,
        "Patches along each side of a square of which a keyframe remembers the mean.",
        low=1,
        high=16,
        change=_CONFIGURE,
        only_with=("memory", ("window+memory",)),
    )
    cache_megabytes: float = option(
        0.0,
        "Budget for the memory of the past of all cameras, 10^6 bytes: the window is made as short "
        "as it wants; 0: as long as it says.",
        low=0.0,
        high=1e6,
        change=_CONFIGURE,
    )
    max_gap: float = option(
        2.0,
        "Seconds between two images after which a new epoch begins.",
        low=0.01,
        high=86400.0,
        change=_CONFIGURE,
    )

    @property
    def policy(self) -> Policy:
        """``memory`` and its numbers."""
        return make_policy(
            self.memory,
            sink=self.sink,
            window=self.window,
            keyframes=self.keyframes,
            cell=self.keyframe_cell,
        )
