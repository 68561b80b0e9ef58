# SPDX-License-Identifier: Apache-2.0
"""The models, the shape and the engines that the tests of this folder are about."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "model"))

from tiny_models import TINY, TINY_TRUNK, lively

from omnistream_ros.model import OmniStream
from omnistream_ros.model.cache_policy import Window
from omnistream_ros.stream.engines import StepShape

SHAPE = StepShape(32, 48, Window(1, 3))
SHA256 = "5e" * 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMBINATIONS = [
    ("eager", "float32"),
    ("eager", "bfloat16"),
    ("fast", "float32"),
    ("fast", "bfloat16"),
    ("compiled", "float32"),
    ("onnx", "float32"),
    ("onnx", "float16"),
]


def model_in(dtype: str, engine: str = "eager") -> OmniStream:
    """Always the same weights; without a trunk, which takes long to compile, where one compiles."""
    config = TINY if engine == "compiled" else TINY_TRUNK
    return lively(config).set_compute_dtype(DTYPES[dtype])
