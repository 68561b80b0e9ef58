# SPDX-License-Identifier: Apache-2.0
"""Small ONNX policies, written by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from omnistream_ros.action.policy_facts import (
    FeatureInput,
    InstructionInput,
    PolicyFacts,
    ProprioceptionInput,
)
from omnistream_ros.action.policy_file import write_policy_facts
from omnistream_ros.action.spaces import ActionSpec, Space

SHA256 = "0123456789abcdef" * 4
FACTS = PolicyFacts(
    name="lean",
    licence="Apache-2.0",
    model_sha256=SHA256,
    features=(FeatureInput("camera", "3:patch:normed", (2, 3, 4), "features"),),
    proprioception=ProprioceptionInput("state", ("shoulder", "elbow"), ("rad", "rad")),
    instruction=InstructionInput("words"),
    output="actions",
    action=ActionSpec(
        space=Space.JOINT_POSITION,
        names=("shoulder", "elbow"),
        units=("rad", "rad"),
        frame="",
        horizon=8,
        dt=0.05,
        low=(-1.0, -2.0),
        high=(1.0, 2.0),
    ),
    tasks={"lean": "lean forward"},
)


def write_graph(path: Path, facts: PolicyFacts, **sizes: tuple[Any, ...]) -> Path:
    """An ONNX file without metadata: every action is the mean of each input, summed.

    `sizes` replaces the shape of an input or of the output by name; None leaves a name out.
    """
    import onnx
    from onnx import TensorProto, helper

    shapes = {**facts.inputs, **sizes}
    inputs = {name: shapes[name] for name in facts.inputs if shapes[name] is not None}
    nodes, sums = [], []
    for name in inputs:
        nodes.append(helper.make_node("ReduceMean", [name], [f"mean_{name}"], keepdims=0))
        sums.append(f"mean_{name}")
    nodes.append(helper.make_node("Sum", sums, ["sum"]))
    output_shape = shapes.get(facts.output, facts.outputs[facts.output])
    target = helper.make_tensor("size", TensorProto.INT64, [len(output_shape)], output_shape)
    nodes.append(helper.make_node("Expand", ["sum", "size"], [facts.output]))
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(facts.output, TensorProto.FLOAT, output_shape)],
        [target],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def write_policy(path: Path, facts: PolicyFacts = FACTS) -> Path:
    """A policy that can be run."""
    write_policy_facts(write_graph(path, facts), facts)
    return path


def with_action(facts: PolicyFacts = FACTS, **changes: Any) -> PolicyFacts:
    """The same with another action."""
    return dataclasses.replace(facts, action=dataclasses.replace(facts.action, **changes))


def run_inputs(facts: PolicyFacts, value: float = 0.0) -> dict[str, np.ndarray]:
    """All inputs, constant."""
    return {name: np.full(shape, value, np.float32) for name, shape in facts.inputs.items()}
