# SPDX-License-Identifier: Apache-2.0
"""Words for what is seen, from the language head and any encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from omnistream_ros.model import ModelConfig, build_model
from omnistream_ros.stream.open_vocabulary import OpenVocabulary

TINY = ModelConfig(
    name="tiny", width=32, depth=1, heads=2, taps=(0, 0, 0, 0), model_pixels=1, language_width=8
)


def _encoder(sentences):  # type: ignore[no-untyped-def]
    assert all(s.startswith("a ") for s in sentences)
    return torch.eye(8)[: len(sentences)]


def test_a_patch_gets_the_nearest_word() -> None:
    model = build_model(TINY)
    assert model.language_head is not None
    with torch.no_grad():  # the head passes the first 8 channels on
        for layer in (model.language_head.fc1, model.language_head.fc2):
            layer.weight.zero_()
            layer.weight[:8, :8] = torch.eye(8)
            layer.bias.zero_()
    patches = torch.zeros(2, 3, 32)
    wanted = torch.tensor([[0, 1, 2], [2, 1, 0]])
    patches.scatter_(2, wanted[..., None], 5.0)
    found = OpenVocabulary(model, ["chair", "lamp", "cat"], _encoder)(patches)
    assert torch.equal(found.indices, wanted)
    assert (found.probability > 0.9).all()
    assert found.words == ("chair", "lamp", "cat")


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match="--language"):
        OpenVocabulary(build_model(replace(TINY, language_width=0)), ["a", "b"], _encoder)
    with pytest.raises(ValueError, match="two words"):
        OpenVocabulary(build_model(TINY), ["chair"], _encoder)
