# SPDX-License-Identifier: Apache-2.0
"""What an ONNX policy says about itself, as it stands in one entry of its metadata.

The entry ``omnistream_policy`` of the file's ``metadata_props`` is JSON::

    {"format": 1, "name": "reach", "licence": "Apache-2.0", "model_sha256": "<64 hex digits>",
     "features": [{"stream": "camera", "key": "7:patch:normed", "shape": [9, 12, 192],
                   "input": "features"}],
     "proprioception": {"input": "state", "names": ["shoulder", "elbow"], "units": ["rad", "rad"]},
     "instruction": {"input": "words", "encoder": "all-MiniLM-L6-v2", "width": 384},
     "output": "actions",
     "action": {"space": "joint_position", "names": [...], "units": [...], "frame": "",
                "horizon": 16, "dt": 0.05, "low": [...], "high": [...]},
     "tasks": {...}}

``proprioception`` and ``instruction`` may be null. All inputs are float32 with a leading batch of
one: features (1, *shape), proprioception (1, n), instruction (1, width); the output is
(1, horizon, actions). ``key`` is LAYER:KIND or LAYER:KIND:normed, LAYER a block from 0. The shape
of a kind: patch [rows, columns, width], register [4, width], cls, camera and pooled [width].
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from omnistream_ros.action.json_record import Record
from omnistream_ros.action.spaces import ActionSpec, Space

METADATA_KEY = "omnistream_policy"
FORMAT = 1
SENTENCE_ENCODER = "all-MiniLM-L6-v2"
SENTENCE_WIDTH = 384
_DIMENSIONS = {"patch": 3, "register": 2, "cls": 1, "camera": 1, "pooled": 1}
_LAST = -1  # of the blocks, whichever that is
_KEY = re.compile(rf"(\d{{1,3}}|{_LAST}):({'|'.join(_DIMENSIONS)})(:normed)?")


def check_feature_key(text: str) -> None:
    """Refuse a text that names no feature.

    Raises:
        ValueError: with the right form.
    """
    match = _KEY.fullmatch(text)
    if match is None:
        raise ValueError(
            f"feature key {text!r} must be LAYER:KIND or LAYER:KIND:normed, LAYER a block from 0 "
            f"and KIND one of {', '.join(_DIMENSIONS)}"
        )
    if int(match[1]) == _LAST and match[3] is None:
        raise ValueError(
            f"feature key {text!r}: a tensor does not say whether its block is the last, unless it "
            f"is normed; give the number of the block, or '{text}:normed'"
        )


@dataclasses.dataclass(frozen=True)
class FeatureInput:
    """One feature tensor that a policy reads.

    Attributes:
        stream: name of the camera stream in the policy's own words.
        key: which tensor, LAYER:KIND or LAYER:KIND:normed.
        shape: without the batch.
        input: name of the ONNX input.
    """

    stream: str
    key: str
    shape: tuple[int, ...]
    input: str

    @property
    def layer(self) -> int:
        """Transformer block, from 0; -1: the last."""
        return int(self._parts()[1])

    @property
    def kind(self) -> str:
        """patch, register, cls, camera or pooled."""
        return self._parts()[2]

    @property
    def normed(self) -> bool:
        """After the final LayerNorm."""
        return self._parts()[3] is not None

    def is_in(self, layer: int, kind: str, normed: bool) -> bool:
        """Whether that tensor is this one; only the last block's features are ever normed."""
        wanted = layer if self.layer == _LAST else self.layer
        return (wanted, self.kind, self.normed) == (layer, kind, normed)

    def faults(self) -> list[str]:
        """What is wrong with it."""
        try:
            check_feature_key(self.key)
        except ValueError as error:
            return [str(error)]
        faults = [] if self.stream else [f"feature {self.key!r} names no stream"]
        if self.layer == _LAST:
            faults.append(f"feature {self.key!r}: a file gives the number of the block")
        dimensions = _DIMENSIONS[self.kind]
        if len(self.shape) != dimensions or min(self.shape) < 1:
            faults.append(
                f"feature {self.key!r}: shape {list(self.shape)} must be {dimensions} positive "
                "sizes"
            )
        return faults

    def _parts(self) -> re.Match[str]:
        match = _KEY.fullmatch(self.key)
        assert match is not None, self.key  # checked when the facts were made
        return match


@dataclasses.dataclass(frozen=True)
class ProprioceptionInput:
    """Joint positions that a policy reads, (1, len(names)), in this order."""

    input: str
    names: tuple[str, ...]
    units: tuple[str, ...]

    def faults(self) -> list[str]:
        """What is wrong with it."""
        faults = []
        if not self.names or len(set(self.names)) < len(self.names) or not all(self.names):
            faults.append(
                f"proprioception names must be different and not empty, got {list(self.names)}"
            )
        if len(self.units) != len(self.names):
            faults.append(f"proprioception: {len(self.units)} units for {len(self.names)} names")
        return faults


@dataclasses.dataclass(frozen=True)
class InstructionInput:
    """A sentence's embedding that a policy reads, (1, width)."""

    input: str
    encoder: str = SENTENCE_ENCODER
    width: int = SENTENCE_WIDTH

    def faults(self) -> list[str]:
        """What is wrong with it."""
        if (self.encoder, self.width) == (SENTENCE_ENCODER, SENTENCE_WIDTH):
            return []
        return [
            f"instruction encoder {self.encoder!r} of width {self.width} is not known; known: "
            f"{SENTENCE_ENCODER!r} of width {SENTENCE_WIDTH}"
        ]


@dataclasses.dataclass(frozen=True)
class PolicyFacts:
    """Everything that the metadata says; see the module.

    Attributes:
        model_sha256: weights whose features the policy was trained on.
        tasks: free text by task, such as the instruction it was trained with.

    Raises:
        ValueError: every fault, each in one sentence.
    """

    name: str
    licence: str
    model_sha256: str
    features: tuple[FeatureInput, ...]
    proprioception: ProprioceptionInput | None
    instruction: InstructionInput | None
    output: str
    action: ActionSpec
    tasks: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = [*self.features, self.proprioception, self.instruction]
        faults = [fault for part in parts if part is not None for fault in part.faults()]
        if not self.name:
            faults.append("the policy has no name")
        if not re.fullmatch(r"[0-9a-f]{64}", self.model_sha256):
            faults.append(
                f"model_sha256 must be 64 lower-case hexadecimal digits, got {self.model_sha256!r}"
            )
        if not self.features and self.proprioception is None:
            faults.append("the policy reads neither features nor proprioception")
        names = [*self.inputs]
        if len(set(names)) < sum(part is not None for part in parts) or not all(names):
            faults.append("every input needs an ONNX name of its own")
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shape of each ONNX input by name."""
        shapes = {feature.input: (1, *feature.shape) for feature in self.features}
        if self.proprioception is not None:
            shapes[self.proprioception.input] = (1, len(self.proprioception.names))
        if self.instruction is not None:
            shapes[self.instruction.input] = (1, self.instruction.width)
        return shapes

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shape of the one ONNX output by name."""
        return {self.output: (1, self.action.horizon, len(self.action.names))}

    def to_json(self) -> str:
        """The value of the metadata entry."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> PolicyFacts:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: it is no JSON, an entry is missing or of another type, or a value is wrong.
        """
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its metadata is no JSON ({error})") from error
        top = Record(record, "policy")
        version = top.take("format", int)
        if version != FORMAT:
            raise ValueError(f"its format is {version}, this version reads {FORMAT}")
        facts = {
            "features": tuple(
                _feature(Record(entry, "features")) for entry in top.take("features", list)
            ),
            "proprioception": top.optional("proprioception", _proprioception),
            "instruction": top.optional("instruction", _instruction),
            "action": _action(Record(top.take("action", dict), "action")),
            "tasks": top.take("tasks", dict),
        }
        texts = {
            name: top.take(name, str) for name in ("name", "licence", "model_sha256", "output")
        }
        top.finish()
        return cls(**texts, **facts)


def _feature(record: Record) -> FeatureInput:
    feature = FeatureInput(
        stream=record.take("stream", str),
        key=record.take("key", str),
        shape=record.integers("shape"),
        input=record.take("input", str),
    )
    record.finish()
    return feature


def _proprioception(record: Record) -> ProprioceptionInput:
    proprioception = ProprioceptionInput(
        input=record.take("input", str), names=record.texts("names"), units=record.texts("units")
    )
    record.finish()
    return proprioception


def _instruction(record: Record) -> InstructionInput:
    instruction = InstructionInput(
        input=record.take("input", str),
        encoder=record.take("encoder", str),
        width=record.take("width", int),
    )
    record.finish()
    return instruction


def _action(record: Record) -> ActionSpec:
    space = record.take("space", str)
    if space not in {known.value for known in Space}:
        known = ", ".join(known.value for known in Space)
        raise ValueError(f"action: space must be one of {known}, got {space!r}")
    spec = ActionSpec(
        space=Space(space),
        names=record.texts("names"),
        units=record.texts("units"),
        frame=record.take("frame", str),
        horizon=record.take("horizon", int),
        dt=record.number("dt"),
        low=record.numbers("low"),
        high=record.numbers("high"),
    )
    record.finish()
    return spec
