# SPDX-License-Identifier: Apache-2.0
"""Every engine of this machine, made once for the smallest model that has everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from engine_models import DTYPES, SHA256, SHAPE, model_in

from omnistream_ros.model import OmniStream
from omnistream_ros.stream.engines import Engine, EngineMaker
from omnistream_ros.stream.engines.onnx_export import export_step


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
