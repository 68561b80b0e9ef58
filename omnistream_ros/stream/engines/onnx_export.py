# SPDX-License-Identifier: Apache-2.0
"""Writes the step of a model as an ONNX file (`onnx_format`), for one shape.

Needs `onnx` and `onnxscript`, which only exporting needs: `pip install omnistream_ros[onnx]`.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnistream_ros.model import OmniStream
from omnistream_ros.stream.engines.engine import EngineError, StepShape, one_line
from omnistream_ros.stream.engines.onnx_format import StepFacts, facts_of
from omnistream_ros.stream.engines.step_graph import (
    FlatMemory,
    GraphInputs,
    StepGraph,
    StepInputs,
    flat,
    tensors_of,
)

# Old enough for every runtime in use, new enough for LayerNormalization.
_OPSET = 18


class _WholeStep(nn.Module):
    """Backbone and, if wanted, heads on caches that are returned instead of written."""

    def __init__(self, model: OmniStream, shape: StepShape, heads: bool) -> None:
        super().__init__()
        self.model = model
        self.heads = heads
        self.step = StepGraph(model, shape)  # `graph` is taken by the exporter

    def forward(
        self, pixels: Tensor, inputs: GraphInputs, keys: list[Tensor], values: list[Tensor]
    ) -> dict[str, Tensor]:
        memory = FlatMemory(keys, values, inputs.rows, inputs.bias, in_place=False)
        hidden, normed, pyramid = self.step(pixels, inputs, memory)
        features = self.step.output(hidden, normed, pyramid)
        prediction = self.model.predict(features, depth=self.heads, rays=False, camera=self.heads)
        outputs = {f"hidden.{layer}": h for layer, h in enumerate(hidden)}
        outputs["normed"] = normed
        outputs |= {f"pyramid.{stride}": x for stride, x in pyramid.items()}
        if prediction.depth is not None and prediction.depth_confidence is not None:
            outputs["depth"] = prediction.depth
            outputs["depth_confidence"] = prediction.depth_confidence
        if prediction.camera is not None:
            outputs["translation"] = prediction.camera.translation
            outputs["quaternion"] = prediction.camera.quaternion
            outputs["fov"] = prediction.camera.fov
        outputs |= {f"keys.{layer}.out": x for layer, x in enumerate(memory.keys)}
        outputs |= {f"values.{layer}.out": x for layer, x in enumerate(memory.values)}
        return outputs


def export_step(
    path: str | Path, model: OmniStream, sha256: str, shape: StepShape, *, heads: bool = True
) -> StepFacts:
    """Write the step of `model`, in its present precision; the file is whole or not there.

    Args:
        sha256: of the weights' file, from its card.
        heads: whether the file also computes depth and pose, with every step. Without them it
            ends with the features, and who wants more computes it from those in torch.

    Raises:
        EngineError: packages for exporting are missing, or the model cannot be exported.
    """
    path = Path(path)
    facts = facts_of(model, sha256, shape)
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EngineError(
            f"exporting needs the Python package {error.name!r}: pip install onnx onnxscript"
        ) from error
    if model.backbone.device.type != "cpu":
        model = copy.deepcopy(model).to("cpu")
    step = _WholeStep(model, shape, heads).eval()
    arguments, names = _example(model, shape)
    with torch.no_grad(), _quiet():
        outputs = step(*arguments)  # also fills the model's tables, with tensors that are real
        try:
            program = torch.onnx.export(
                step,
                arguments,
                input_names=names,
                output_names=list(outputs),
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # a tower of exceptions of three packages
            raise EngineError(f"torch cannot export {facts.model!r}: {one_line(error)}") from error
    assert program is not None
    program.model.metadata_props.update(facts.to_metadata())
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        program.save(str(partial))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return facts


def _example(model: OmniStream, shape: StepShape) -> tuple[tuple[Any, ...], list[str]]:
    """Arguments of `_WholeStep`, and the names of its inputs in order."""
    cache = model.backbone.allocate_cache(shape.height, shape.width, policy=shape.policy)
    inputs = StepInputs(model, shape).begin(cache)
    dtype = model.backbone.compute_dtype
    pixels = torch.zeros(1, 3, shape.height, shape.width, dtype=dtype)
    storage = tensors_of(cache)
    # Copies: to the exporter, views of one tensor are one tensor.
    keys = [layer.clone() for layer in flat(storage.keys)]
    values = [layer.clone() for layer in flat(storage.values)]
    names = ["pixels", *GraphInputs._fields]
    for what in ("keys", "values"):
        names += [f"{what}.{layer}" for layer in range(len(keys))]
    return (pixels, inputs, keys, values), names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that nothing here uses."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
