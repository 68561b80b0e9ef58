# SPDX-License-Identifier: Apache-2.0
"""A trained policy as an ONNX file that says what it reads and what its numbers mean."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnistream_ros.action.policy_facts import (
    FeatureInput,
    InstructionInput,
    PolicyFacts,
    ProprioceptionInput,
)
from omnistream_ros.action.policy_file import write_policy_facts
from omnistream_ros.action.spaces import ActionSpec, Space
from omnistream_ros.model.sentence_encoder import WIDTH
from omnistream_ros.simulation.environment import Axis
from omnistream_ros.training.policy_network import PolicyNetwork

STREAM = "camera"
_OPSET = 18


class PolicyExportError(RuntimeError):
    """A policy that cannot be written; the message says what is missing."""


def facts_of(
    name: str,
    network: PolicyNetwork,
    keys: Sequence[str],
    model_sha256: str,
    axes: Sequence[Axis],
    frame_s: float,
    tasks: Mapping[str, Any],
) -> PolicyFacts:
    """What there is to say about a policy.

    Args:
        keys: of the features, in the order of the network's shape.
        frame_s: time between two frames.
        tasks: what it was trained for, in words and numbers.
    """
    shape = network.shape
    names = tuple(axis.name for axis in axes)
    units = tuple(axis.unit for axis in axes)
    return PolicyFacts(
        name=name,
        licence="Apache-2.0",
        # Of a policy that sees nothing any model is right.
        model_sha256=model_sha256 or "0" * 64,
        features=tuple(
            FeatureInput(STREAM, key, size, f"features_{i}")
            for i, (key, size) in enumerate(zip(keys, shape.features, strict=True))
        ),
        proprioception=ProprioceptionInput("positions", names, units),
        instruction=InstructionInput("instruction"),
        output="commands",
        action=ActionSpec(
            space=Space.JOINT_POSITION,
            names=names,
            units=units,
            frame="",
            horizon=shape.horizon,
            dt=frame_s,
            low=tuple(axis.low for axis in axes),
            high=tuple(axis.high for axis in axes),
        ),
        tasks=dict(tasks),
    )


def export_policy(path: Path, network: PolicyNetwork, facts: PolicyFacts) -> None:
    """Write the file; it is whole or not there.

    Raises:
        PolicyExportError: packages for exporting are missing, or it cannot be written.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise PolicyExportError(
            f"exporting needs the Python package {error.name!r}: pip install onnx onnxscript"
        ) from error
    shape = network.shape
    arguments = (
        torch.zeros(1, shape.axes),
        torch.zeros(1, WIDTH),
        *(torch.zeros(1, *size) for size in shape.features),
    )
    names = ["positions", "instruction", *(feature.input for feature in facts.features)]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that nothing here uses
            program = torch.onnx.export(
                _Clamped(network, facts.action).eval(),
                arguments,
                input_names=names,
                output_names=[facts.output],
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # Each operation notes the line of source that made it, with its path on this machine.
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
        program.save(str(part))
        write_policy_facts(part, facts)
        part.replace(path)
    except OSError as error:
        raise PolicyExportError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)


class _Clamped(nn.Module):
    """The network inside of the ranges that it promises."""

    low: Tensor
    high: Tensor

    def __init__(self, network: PolicyNetwork, action: ActionSpec) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("low", torch.tensor(action.low))
        self.register_buffer("high", torch.tensor(action.high))

    def forward(self, positions: Tensor, sentence: Tensor, *features: Tensor) -> Tensor:
        commands: Tensor = self.network(positions, sentence, *features)
        return torch.minimum(torch.maximum(commands, self.low), self.high)
