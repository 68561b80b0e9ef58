# SPDX-License-Identifier: Apache-2.0
"""What stands in an ONNX file of a step: names of its tensors, and where it comes from.

Inputs are `pixels`, the small tensors of `step_graph.GraphInputs` by their names, and `keys.L`,
`values.L` (heads*S, d) of every layer. Outputs are `hidden.L` and `normed` (1, N, D), `pyramid.S`
by stride, of the heads, where the file has them, `depth`, `depth_confidence` (1, H, W),
`translation`, `quaternion`, `fov`, and `keys.L.out`, `values.L.out`: bind each to the memory of its
input, and the cache is written in place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from omnistream_ros.model import ModelConfig, OmniStream
from omnistream_ros.stream.engines.engine import EngineError, StepShape
from omnistream_ros.stream.engines.step_graph import tensors_of

FORMAT = "omnistream-step-1"
_KEY = "omnistream"
CAMERA_OUTPUTS = ("translation", "quaternion", "fov")
DEPTH_OUTPUTS = ("depth", "depth_confidence")
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class StepFacts:
    """What a graph was made from; kept in the metadata of the file.

    Attributes:
        model, sha256: name of the model and hash of its weights' file.
        config: `ModelConfig.to_dict`.
        height, width: of the pixels.
        tokens: S, the tokens of the cache.
        dtype: of pixels, caches and matrix products.
    """

    model: str
    sha256: str
    config: dict[str, Any]
    height: int
    width: int
    tokens: int
    dtype: str

    def to_metadata(self) -> dict[str, str]:
        """For `metadata_props`."""
        return {_KEY: json.dumps({"format": FORMAT, **asdict(self)})}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], file: str) -> StepFacts:
        """The inverse; EngineError if there is none or it is of another format."""
        try:
            values = json.loads(metadata[_KEY])
            if values.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            facts = cls(**values)
            ModelConfig.from_dict(facts.config)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(
                f"{file}: not a step written by `omnistream export` ({error}); export it anew"
            ) from error
        return facts

    def check_equal(self, wanted: StepFacts, file: str) -> None:
        """Refuse a file that was made for something else, naming the first thing that differs.

        Raises:
            EngineError: with both values.
        """
        if self.sha256 != wanted.sha256:
            raise EngineError(
                f"{file}: made from {self.model!r} with weights {self.sha256}, but the model here "
                f"is {wanted.model!r} with weights {wanted.sha256}; run `omnistream export` with "
                "this model"
            )
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(wanted, field.name)
            if mine != theirs and field.name != "model":
                raise EngineError(
                    f"{file}: made with {field.name} {mine}, wanted here is {theirs}; run "
                    "`omnistream export` with the image size, context and precision of this stream"
                )


def facts_of(model: OmniStream, sha256: str, shape: StepShape) -> StepFacts:
    """What an ONNX file must say to fit this model, in its present precision, and this shape.

    Raises:
        EngineError: the model computes in a type that ONNX files are not made for.
    """
    dtype = model.backbone.compute_dtype
    names = {value: name for name, value in DTYPES.items()}
    if dtype not in names:
        raise EngineError(f"ONNX steps are made in {' or '.join(DTYPES)}, not in {dtype}")
    cache = model.backbone.allocate_cache(shape.height, shape.width, policy=shape.policy)
    return StepFacts(
        model=model.config.name,
        sha256=sha256,
        config=model.config.to_dict(),
        height=shape.height,
        width=shape.width,
        tokens=tensors_of(cache).keys.shape[3],
        dtype=names[dtype],
    )
