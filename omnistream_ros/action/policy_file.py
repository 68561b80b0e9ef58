# SPDX-License-Identifier: Apache-2.0
"""An ONNX policy file: opened and checked against its metadata, or given its metadata.

What stands in the metadata is in `policy_facts`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from omnistream_ros.action.policy_facts import METADATA_KEY, PolicyFacts

# `metadata_props` is field 14 of onnx.ModelProto, a repeated message of strings 1: key, 2: value.
_FIELD_METADATA, _FIELD_KEY, _FIELD_VALUE = 14, 1, 2
_LENGTH_DELIMITED = 2


class PolicyFileError(ValueError):
    """A policy file that cannot be used; the text names the file and every fault."""


def write_policy_facts(file: str | Path, facts: PolicyFacts) -> None:
    """Add the metadata to an ONNX file that has none, and check that the two fit.

    A repeated field of a protobuf message may stand anywhere in it, so the entry is appended; a
    file that does not fit is left as it was.

    Raises:
        PolicyFileError: the file cannot be run, has an entry already, or does not fit the facts.
    """
    path = Path(file)
    session = _open(path, None)
    if METADATA_KEY in session.get_modelmeta().custom_metadata_map:
        raise PolicyFileError(f"{path}: has an entry {METADATA_KEY!r} already; export it anew")
    _refuse(path, _graph_faults(session, facts))
    entry = _field(_FIELD_KEY, METADATA_KEY.encode()) + _field(
        _FIELD_VALUE, facts.to_json().encode()
    )
    size = path.stat().st_size
    try:
        with path.open("ab") as stream:
            stream.write(_field(_FIELD_METADATA, entry))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        os.truncate(path, size)
        raise


def open_policy_file(
    file: str | Path, providers: Sequence[str] | None = None
) -> tuple[onnxruntime.InferenceSession, PolicyFacts]:
    """A session of ONNX Runtime on a policy, with its facts, checked against each other.

    Args:
        providers: execution providers in order of preference; None: the CPU.

    Raises:
        PolicyFileError: the file is not there, cannot be run, is no policy, or its graph is not
            what its metadata says; every mismatch is named.
    """
    path = Path(file)
    session = _open(path, providers)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise PolicyFileError(
            f"{path}: is no policy: it has no metadata {METADATA_KEY!r}. `omnistream train-policy` "
            "writes policies"
        )
    try:
        facts = PolicyFacts.from_json(text)
    except ValueError as error:
        raise PolicyFileError(f"{path}: {error}") from error
    _refuse(path, _graph_faults(session, facts))
    return session, facts


def _open(path: Path, providers: Sequence[str] | None) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise PolicyFileError(f"{path}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and told once
    # A policy runs beside the control loop: threads that spin would take its processor away.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=list(providers or ["CPUExecutionProvider"])
        )
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PolicyFileError(f"{path}: ONNX Runtime cannot run it ({reason})") from error


def _graph_faults(session: onnxruntime.InferenceSession, facts: PolicyFacts) -> list[str]:
    """Where the graph differs from the metadata."""
    return [
        *_tensor_faults("input", session.get_inputs(), facts.inputs),
        *_tensor_faults("output", session.get_outputs(), facts.outputs, others_allowed=True),
    ]


def _tensor_faults(
    side: str,
    tensors: Sequence[Any],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    others_allowed: bool = False,
) -> list[str]:
    present = {tensor.name: tensor for tensor in tensors}
    faults = []
    for name, shape in wanted.items():
        tensor = present.get(name)
        if tensor is None:
            faults.append(f"the metadata names {side} {name!r}, the graph has {sorted(present)}")
            continue
        if tensor.type != "tensor(float)":
            faults.append(f"{side} {name!r} must be float32, the graph has {tensor.type}")
        # A size that the graph leaves open is a text or None.
        fits = len(tensor.shape) == len(shape) and all(
            size == have or not isinstance(have, int)
            for size, have in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            faults.append(
                f"{side} {name!r} has shape {list(shape)} by the metadata, {tensor.shape} in the "
                "graph"
            )
    if not others_allowed:
        faults += [
            f"the graph has {side} {name!r}, of which the metadata says nothing"
            for name in sorted(set(present) - set(wanted))
        ]
    return faults


def _refuse(path: Path, faults: Sequence[str]) -> None:
    if faults:
        raise PolicyFileError(f"{path}: {'; '.join(faults)}")


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    groups = []
    while True:
        value, low = value >> 7, value & 0x7F
        groups.append(low | (0x80 if value else 0))
        if not value:
            return bytes(groups)
