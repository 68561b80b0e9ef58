# SPDX-License-Identifier: Apache-2.0
"""Labels in words of the user's own choosing, for models that were trained with language.

A patch gets the word whose sentence embedding is nearest to what the language head says of it. The
words need not be among those of the training; near in meaning is near enough, to a degree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnistream_ros.model import OmniStream
from omnistream_ros.model.sentence_encoder import installed_encoder

TEMPERATURE = 0.07  # as in training


@dataclass(frozen=True)
class LabelMap:
    """words; indices (h, w) int64 into them; probability (h, w) of the word that was chosen."""

    words: tuple[str, ...]
    indices: Tensor
    probability: Tensor


class OpenVocabulary:
    """Names what a stream sees, from its normed patch tokens (`FeatureKind.PATCH`)."""

    def __init__(
        self,
        model: OmniStream,
        words: Sequence[str],
        encoder: Callable[[Sequence[str]], Tensor] | None = None,
    ) -> None:
        """`words`: two or more, such as "chair", "potted plant"; embedded once, here.

        Raises:
            ValueError: fewer than two words, or a model without a language head.
            SentenceEncoderError: the sentence encoder is not installed; says what to install.
        """
        if model.language_head is None:
            raise ValueError(
                f"these weights of {model.config.name} have no language head: give them one "
                "(omnistream train-language), or train with it (omnistream train --language 0.2)"
            )
        if len(words) < 2:
            raise ValueError(f"give two words or more to choose among, got {list(words)}")
        self.words = tuple(words)
        self._head = model.language_head
        vectors = (encoder or installed_encoder())([f"a {word}" for word in words])
        self._vectors = vectors.to(model.backbone.device)

    @torch.no_grad()
    def __call__(self, patches: Tensor) -> LabelMap:
        """patches (h, w, D), after the final norm."""
        likeness = self._head(patches) @ self._vectors.T / TEMPERATURE  # (h, w, words)
        probability, indices = likeness.softmax(dim=-1).max(dim=-1)
        return LabelMap(self.words, indices, probability)
