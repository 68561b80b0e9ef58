# SPDX-License-Identifier: Apache-2.0
"""Alignment with language: what is seen lies where the words for it lie.

The generator knows what stands where (`annotations`). A clip's mean patch, through the language
head, is drawn to the embedding of its caption and away from the others of the batch; a patch to the
name of the object it shows and, among all classes, to its class. Embeddings are those of a frozen
sentence encoder, so that words that were never trained on can be asked for as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from omnistream_ros.model.language import LanguageHead
from omnistream_ros.training.annotations import CLASSES, UNKNOWN
from omnistream_ros.training.words import Words

TEMPERATURE = 0.07

#: Sentences to unit vectors (n, width).
Encoder = Callable[[Sequence[str]], Tensor]


def patch_labels(labels: NDArray[np.integer], nothing: int) -> NDArray[np.int64]:
    """Per patch its label (T, P), or `nothing` where its middle four (T, 2h, 2w) disagree."""
    agreed = labels[:, ::2, ::2]
    for dy, dx in ((0, 1), (1, 0), (1, 1)):
        agreed = np.where(labels[:, dy::2, dx::2] == agreed, agreed, nothing)
    return agreed.reshape(len(labels), -1).astype(np.int64)


def language_losses(
    head: LanguageHead,
    patches: Tensor,
    words: Sequence[Words | None],
    encoder: Encoder,
) -> dict[str, Tensor]:
    """`caption`, `class` and `name` of what is described in a batch; empty where nothing is.

    patches (B, T, P, D): tokens after the final norm; words: of each of the B clips, or None.
    """
    rows = [b for b, known in enumerate(words) if known is not None]
    known = [w for w in words if w is not None]
    if not rows:
        return {}
    seen = patches[rows]  # (b, T, P, D)
    pooled = F.normalize(head(seen.mean(dim=(1, 2))), dim=-1)
    captions = encoder([w.caption for w in known])
    likeness = pooled @ captions.T  # (b, b)
    parts = {"caption": (1 - likeness.diagonal()).mean()}
    if len(rows) > 1:
        own = torch.arange(len(rows))
        parts["caption"] = parts["caption"] + F.cross_entropy(likeness / TEMPERATURE, own)
    said = head(seen)  # (b, T, P, width)
    classes = torch.from_numpy(np.stack([patch_labels(w.classes, UNKNOWN) for w in known]))
    labelled = classes != UNKNOWN
    if labelled.any():
        logits = said[labelled] @ class_vectors(encoder).T / TEMPERATURE
        parts["class"] = F.cross_entropy(logits, classes[labelled])
    objects = np.stack([patch_labels(w.objects, -1) for w in known])
    is_object = torch.from_numpy(objects >= 0)
    if is_object.any():
        names = [w.names[o] for w, own in zip(known, objects, strict=True) for o in own[own >= 0]]
        vectors = encoder([f"a {name.lower()}" for name in names])
        parts["name"] = (1 - (said[is_object] * vectors).sum(dim=-1)).mean()
    return parts


def class_vectors(encoder: Encoder) -> Tensor:
    """The vectors of all CLASSES, in their order."""
    return encoder([f"a {name}" for name in CLASSES])
