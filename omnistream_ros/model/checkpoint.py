# SPDX-License-Identifier: Apache-2.0
"""Weights on disk: the released folder and our own single file. Safetensors; nothing is unpickled.

- The released layout (`StreamFormer/OmniStream`): a folder with `config.json` and
  `model.safetensors`, a backbone whose keys begin with `patch_embed.`.
- Our own: one safetensors file whose metadata holds the config and the model card as JSON. A folder
  with such a `model.safetensors` and no `config.json` is read as well.

A model is returned only when every tensor was there, had the right shape and was finite.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omnistream_ros.model.config import NAMED_CONFIGS, ModelConfig
from omnistream_ros.model.network import OmniStream, build_model

_log = logging.getLogger(__name__)

FORMAT = "omnistream-1"
DATA = Path(__file__).resolve().parents[1] / "data"
RELEASED_PREFIX = "patch_embed."
# What training leaves beside the backbone: ignored where a name says so, and only there.
TRAINING_LEFTOVERS = re.compile(
    r"(^|[._])(heads?|decoder|teacher|student|loss|center|prototypes?|projector|predictor"
    r"|aggregator|language_model|llm|lm_head|momentum|gram)([._]|$)"
)


class ModelError(Exception):
    """A model that cannot be loaded or saved; the message names file, key and remedy."""


@dataclass(frozen=True)
class ModelCard:
    """What a user must know of weights before trusting them."""

    name: str
    licence: str
    training: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    storage_dtype: str = "float32"
    sha256: str = ""  # of the file; filled in on loading


def load_model(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[OmniStream, ModelCard]:
    """A model in evaluation mode and its card.

    Args:
        source: a name of ours ("omnistream-nano"), a file of ours, or a folder (see above).
        dtype: type of the matrix products; norms, tokens and layer scales stay in float32.

    Raises:
        ModelError: missing, truncated or foreign files; missing, unknown, wrongly shaped or
            non-finite tensors; a config that makes no sense; a device that is not there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch raises depends on its build
        raise ModelError(f"device {device!r} cannot be used: {error}") from error
    file, config_file = locate(source)
    tensors, metadata = read_tensors(file)
    if config_file is None:
        config, card = _read_metadata(file, metadata)
        model = build_model(config, device="meta")
        _fill(model, file, tensors)
    else:
        config = _read_released_config(config_file, file, tensors)
        card = ModelCard(name=config.name, licence="that of the checkpoint's publisher")
        model = build_model(config, device="meta")
        _fill(model.backbone, file, _drop_leftovers(file, tensors), RELEASED_PREFIX)
    model.to(device).lay_out()
    return model.set_compute_dtype(dtype).eval(), replace(card, sha256=_sha256(file))


def save_model(path: str | Path, model: OmniStream, card: ModelCard) -> None:
    """Write one file of ours; whoever reads `path` meets the old file or the new one, never a half.

    Tensors are stored in `card.storage_dtype` ("float32", "float16" or "bfloat16").

    Raises:
        ModelError: a tensor that is not finite, in the storage type; a path that cannot be written.
    """
    path = Path(path)
    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}.get(
        card.storage_dtype
    )
    if dtype is None:
        raise ModelError(f"{path}: cannot store tensors as {card.storage_dtype!r}")
    tensors = {
        name: tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()
    }
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelError(f"{path}: {name} is not finite as {card.storage_dtype}; not saved")
    metadata = {
        "format": FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "card": json.dumps({**asdict(card), "sha256": ""}),
    }
    write_tensors(path, tensors, metadata)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all; ModelError if it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # what the user's umask gives a file
        save_file({name: t.contiguous() for name, t in tensors.items()}, partial, metadata)
        partial.chmod(mode)  # some versions of safetensors make files that nobody else can read
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ModelError(f"{path}: cannot be written ({error})") from error


def locate(source: str | Path) -> tuple[Path, Path | None]:
    """The weights, and the config.json beside them where the layout is the released one."""
    if str(source) in NAMED_CONFIGS:
        file = DATA / f"{source}.safetensors"
        if not file.is_file():
            raise ModelError(
                f"no weights of {source!r} in this installation ({file}); pass a file or a folder "
                "with config.json and model.safetensors instead"
            )
        return file, None
    path = Path(source)
    if path.is_dir():
        file, config_file = path / "model.safetensors", path / "config.json"
        if not file.is_file():
            raise ModelError(f"{path}: a model folder must hold model.safetensors")
        return file, config_file if config_file.is_file() else None
    if not path.is_file():
        raise ModelError(
            f"{path}: no such file or folder, nor the name of a model ({', '.join(NAMED_CONFIGS)})"
        )
    return path, None


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; ModelError unless it is a whole one.

    The tensors are in memory of their own: a file that changes later cannot change them.
    """
    try:
        with safe_open(file, framework="pt", device="cpu") as archive:
            tensors = {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118
            return tensors, archive.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{file}: not a complete safetensors file ({error}); download or copy it again"
        ) from error


def _read_metadata(file: Path, metadata: dict[str, str]) -> tuple[ModelConfig, ModelCard]:
    if metadata.get("format") != FORMAT:
        raise ModelError(
            f"{file}: no config.json beside it, and its metadata is not that of a model of ours "
            f"(format {metadata.get('format')!r}, expected {FORMAT!r})"
        )
    try:
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
        card = ModelCard(**json.loads(metadata["card"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{file}: unreadable config or card in its metadata: {error}") from error
    return config, card


def _read_released_config(config_file: Path, file: Path, tensors: dict[str, Tensor]) -> ModelConfig:
    """The config of a released folder; shapes decide where `config.json` is silent."""
    try:
        told = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{config_file}: not readable as JSON: {error}") from error
    if not isinstance(told, dict):
        raise ModelError(f"{config_file}: expected a JSON object, got {type(told).__name__}")
    key = RELEASED_PREFIX + "patch_embed.proj.weight"
    if key not in tensors or tensors[key].ndim != 4:
        raise ModelError(f"{file}: {key} is missing or not a convolution; not this kind of model")
    width, _, patch_size, _ = tensors[key].shape
    blocks = [re.match(re.escape(RELEASED_PREFIX) + r"blocks\.(\d+)\.", name) for name in tensors]
    depth = 1 + max((int(match[1]) for match in blocks if match), default=-1)

    def number(name: str, otherwise: float, kind: type[int] | type[float] = int) -> Any:
        value = told.get(name, otherwise)
        if isinstance(value, bool) or not isinstance(value, int | kind) or not value > 0:
            raise ModelError(
                f"{config_file}: {name} must be a positive {kind.__name__}, got {value!r}"
            )
        return value

    for name, shape_says in (
        ("hidden_size", width),
        ("video_aggregator_layer", depth),
        ("patch_size", patch_size),
    ):
        if number(name, shape_says) != shape_says:
            raise ModelError(
                f"{config_file}: {name} is {told[name]}, but {file.name} has {shape_says}; "
                "the two files do not belong together"
            )
    if told.get("ffn_layer", "mlp") != "mlp":
        raise ModelError(
            f"{config_file}: ffn_layer {told['ffn_layer']!r} is not supported, only mlp"
        )
    try:
        return ModelConfig(
            name="omnistream-l" if (width, depth) == (1024, 24) else file.parent.name,
            width=width,
            depth=depth,
            heads=number("num_attention_heads", width // 64),
            taps=_spread_taps(depth),
            model_pixels=NAMED_CONFIGS["omnistream-l"].model_pixels,
            mlp_ratio=number("mlp_ratio", 4.0, float),
            patch_size=patch_size,
        )
    except ValueError as error:
        raise ModelError(f"{config_file}: {error}") from error


def _spread_taps(depth: int) -> tuple[int, int, int, int]:
    """Four blocks of the upper half (11, 15, 19, 23 of 24), of all where there are few."""
    first = depth // 2 if depth >= 8 else max(1, depth // 4)
    a, b, c, d = (round(first + (depth - first) * i / 3) - 1 for i in range(4))
    return a, b, c, d


def _drop_leftovers(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what training left beside the backbone; ignored by name, and said once."""
    ignored = [
        name
        for name in tensors
        if not name.startswith(RELEASED_PREFIX) and TRAINING_LEFTOVERS.search(name)
    ]
    if ignored:
        _log.warning(
            "%s: ignored %d tensors of training heads: %s", file, len(ignored), ", ".join(ignored)
        )
    return {name: tensor for name, tensor in tensors.items() if name not in ignored}


def _fill(module: nn.Module, file: Path, tensors: dict[str, Tensor], prefix: str = "") -> None:
    """Give a module on the meta device its weights, if they are all there and all right.

    Raises:
        ModelError: a tensor missing, unknown, of a wrong shape or not finite; names it as the file.
    """
    expected = {prefix + name: like.shape for name, like in module.state_dict().items()}
    for name in tensors:
        if name not in expected:
            raise ModelError(f"{file}: unknown tensor {name}")
    for name, shape in expected.items():
        if name not in tensors:
            raise ModelError(f"{file}: tensor {name} is missing")
        if tensors[name].shape != shape:
            raise ModelError(
                f"{file}: tensor {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(shape)}"
            )
        if not tensors[name].is_floating_point() or not tensors[name].isfinite().all():
            raise ModelError(f"{file}: tensor {name} holds values that are not finite numbers")
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    module.load_state_dict(state, assign=True)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
