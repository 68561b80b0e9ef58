# SPDX-License-Identifier: Apache-2.0
"""Every engine of this machine, made once for the smallest model that has everything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "model"))

from tiny_models import TINY, TINY_TRUNK, lively

from omnistream_ros.model import OmniStream
from omnistream_ros.model.cache_policy import Window
from omnistream_ros.stream.engines import Engine, EngineMaker, StepShape
from omnistream_ros.stream.engines.onnx_export import export_step

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


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the exported step of a type, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("onnx")

    def file(dtype: str = "float32") -> Path:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"needs {package}: pip install '.[onnx]'")
        path = folder / f"{dtype}.onnx"
        if not path.exists():
            export_step(path, model_in(dtype), SHA256, SHAPE)
        return path

    return file


@pytest.fixture(scope="session")
def engines(
    onnx_file: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Engine, OmniStream]]:
    """Gives (engine, its model) by name and type, made when they are first asked for."""
    made: dict[tuple[str, str], tuple[Engine, OmniStream]] = {}

    def engine(name: str, dtype: str) -> tuple[Engine, OmniStream]:
        if (name, dtype) not in made:
            file = onnx_file(dtype) if name == "onnx" else None
            folder = tmp_path_factory.mktemp("cache")
            model = model_in("float32", name)
            maker = EngineMaker(model, SHA256, SHAPE, DTYPES[dtype], file, folder)
            engine = maker.make(name)
            made[name, dtype] = engine, engine.model
        if made[name, dtype][0].remark.startswith("torch cannot compile"):
            pytest.skip(made[name, dtype][0].remark)
        return made[name, dtype]

    return engine
