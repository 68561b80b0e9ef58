# SPDX-License-Identifier: Apache-2.0
"""The state of streams as a file: tensors in safetensors, the rest as JSON in its metadata.

A ``state_dict`` is nested dicts, lists and tuples of tensors, arrays and plain values; it comes
back the same, to the last bit. Nothing is unpickled, and nothing is read before its size is known:
a file larger than what the stream itself takes cannot belong to it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_FORMAT = "omnistream_stream_state_2"
_SUFFIX = ".safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# Beyond the tensors: the structure, and the header of the file.
_SLACK_BYTES = 4 << 20


class StateFileError(ValueError):
    """A state that cannot be written or read; the message says why and what to do."""


def state_path(folder: Path, name: str) -> Path:
    """Where a state of this name lies; the folder need not exist.

    Raises:
        StateFileError: the name could lead out of the folder, or is no plain file name.
    """
    if not _NAME.fullmatch(name):
        raise StateFileError(
            f"the name of a state must be 1 to 64 letters, digits, '_', '-' or '.', the first a "
            f"letter or digit; got {name!r}. States lie in {folder}"
        )
    return folder / f"{name}{_SUFFIX}"


def save_state(path: Path, state: dict[str, Any], weights_sha256: str) -> int:
    """Write a state, whole or not at all. Returns the bytes written.

    Raises:
        StateFileError: the folder or the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = _taken_apart(state, tensors)
    metadata = {
        "format": _FORMAT,
        "weights_sha256": weights_sha256,
        "structure": json.dumps(structure),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving_") as folder:
            temporary = Path(folder, "state")
            save_file(tensors, temporary, metadata)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            size = temporary.stat().st_size
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise StateFileError(f"cannot write {path}: {error}") from error
    return size


def load_state(path: Path, weights_sha256: str, largest_bytes: int) -> dict[str, Any]:
    """Read a state written by `save_state`.

    Args:
        weights_sha256: of the model that shall go on with it.
        largest_bytes: tensors of more than this are not read.

    Raises:
        StateFileError: no such file, another format, of other weights, too large, or damaged.
    """
    try:
        size = path.stat().st_size
        if size > largest_bytes + _SLACK_BYTES:
            raise StateFileError(
                f"{path} has {size / 1e6:.1f} MB, and the streams of this node at most "
                f"{largest_bytes / 1e6:.1f} MB: it belongs to other streams"
            )
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise StateFileError(f"{path} is no saved stream of this version")
            saved = metadata.get("weights_sha256", "")
            if saved != weights_sha256:
                raise StateFileError(
                    f"{path} was saved with the weights {saved[:12]}, the node has "
                    f"{weights_sha256[:12]}: what one model remembers means nothing to another"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        state = _put_together(json.loads(metadata["structure"]), tensors)
    except OSError as error:
        raise StateFileError(f"cannot read {path}: {error.strerror or error}") from error
    except StateFileError:
        raise
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise StateFileError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise StateFileError(f"{path} is damaged: it holds no state")
    return state


def _taken_apart(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON for a value, whose tensors and arrays go into ``tensors``.

    JSON has no tuples and only texts as keys, and what was a tuple must be one again, so containers
    are written as {"kind": [...]}.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.Tensor, np.ndarray)):
        key = str(len(tensors))
        kind = "array" if isinstance(value, np.ndarray) else "tensor"
        tensor = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value.cpu()
        tensors[key] = tensor.clone(memory_format=torch.contiguous_format)
        return {kind: key}
    if isinstance(value, dict):
        pairs = [[_taken_apart(k, tensors), _taken_apart(v, tensors)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_taken_apart(item, tensors) for item in value]}
    raise TypeError(f"a state cannot hold a {type(value).__name__}")


def _put_together(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError("a bare list in the structure")
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {_put_together(k, tensors): _put_together(v, tensors) for k, v in content}
    items = [_put_together(item, tensors) for item in content]
    if kind == "tuple":
        return tuple(items)
    if kind == "list":
        return items
    raise ValueError(f"unknown kind {kind!r} in the structure")
