# SPDX-License-Identifier: Apache-2.0
"""`omnistream train-language`: a language head for a finished model, minutes on one core.

The model stays as it is; rendered clips that know their objects are streamed through it once, and
the head learns to say of patches and of whole clips what lies near the words for them. It is judged
on clips that it was not trained on, by asking for all classes at once.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omnistream_ros.model import OmniStream, build_model, load_model, save_model
from omnistream_ros.model.language import LanguageHead
from omnistream_ros.model.sentence_encoder import WIDTH, installed_encoder
from omnistream_ros.training.annotations import CLASSES, UNKNOWN, read_annotation
from omnistream_ros.training.augment import AugmentSettings, augment
from omnistream_ros.training.clip_files import find_clips
from omnistream_ros.training.data import collate
from omnistream_ros.training.head_features import read_takes
from omnistream_ros.training.language_alignment import (
    Encoder,
    class_vectors,
    language_losses,
    patch_labels,
)
from omnistream_ros.training.optimise import learning_rate_factor
from omnistream_ros.training.probes.linear import accuracy, mean_iou
from omnistream_ros.training.words import PATCH, Words, describe

_FRAMES = 4  # of a take
_HELD_OUT = 10  # every n-th clip judges and does not train


class LanguageTrainingError(ValueError):
    """Nothing to learn words from; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class LanguageSettings:
    """One training of a language head."""

    clips: Path
    steps: int = 1500
    takes_per_step: int = 16
    learning_rate: float = 2e-3
    clip_count: int = 200
    takes_per_clip: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "takes_per_step", "clip_count", "takes_per_clip"):
            if getattr(self, name) < 1:
                raise ValueError(f"language: {name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class SeenTake:
    """tokens (T, P, D) float16 of a take, and its words."""

    tokens: Tensor
    words: Words


def seen_takes(
    model: OmniStream, folder: Path, names: Sequence[str], settings: LanguageSettings, plain: bool
) -> Iterator[SeenTake]:
    """Takes of clips through the frozen model: as they are (`plain`), or augmented."""
    rng = np.random.default_rng((settings.seed, int(plain)))
    changes = AugmentSettings()
    if plain:
        changes = AugmentSettings(
            zoom_probability=0, roll_probability=0, mirror_probability=0, photometric=False
        )
    for name in names:
        for number, take in enumerate(read_takes(folder / name)):
            if number == settings.takes_per_clip:
                break
            if len(take) < _FRAMES:
                continue
            frames = np.arange(_FRAMES)
            clip = take.frames(frames)
            augmented = augment(clip, rng, changes)
            words = describe(folder / name, number, frames, clip, augmented)
            assert words is not None
            with torch.no_grad():
                tokens = model.backbone.forward_clip(collate([augmented]).pixels).patches[0].half()
            yield SeenTake(tokens, words)


@torch.no_grad()
def judge(head: LanguageHead, takes: Sequence[SeenTake], encoder: Encoder) -> dict[str, float]:
    """Share of patches whose class is the nearest of all, mean IoU, and of takes whose own caption
    is the nearest of all captions here."""
    vectors = class_vectors(encoder)
    found, true = [], []
    for take in takes:
        classes = torch.from_numpy(patch_labels(take.words.classes, UNKNOWN))
        known = classes != UNKNOWN
        said = head(take.tokens.float())[known]
        found.append((said @ vectors.T).argmax(dim=-1))
        true.append(classes[known])
    one, other = torch.cat(found), torch.cat(true)
    captions = encoder([take.words.caption for take in takes])
    pooled = torch.stack([head(t.tokens.float().mean(dim=(0, 1))) for t in takes])
    nearest = captions[(pooled @ captions.T).argmax(dim=-1)]
    own = (nearest * captions).sum(dim=-1) > 1 - 1e-4  # equal captions are equally right
    return {
        "class of a patch": round(accuracy(one, other), 3),
        "mean IoU": round(mean_iou(one, other, len(CLASSES)), 3),
        f"own caption among {len(takes)}": round(float(own.float().mean()), 3),
    }


def train_language(
    source: str | Path,
    output: Path,
    settings: LanguageSettings,
    *,
    encoder: Encoder | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train a language head for the model at `source`, write the whole to `output`; its figures.

    Raises:
        ModelError: the model cannot be read or written.
        SentenceEncoderError: the encoder is not installed; says what to install.
        LanguageTrainingError: too few clips that know their objects.
    """
    encoder = encoder or installed_encoder()
    model, card = load_model(source)
    if model.config.patch_size != PATCH:
        raise LanguageTrainingError(f"labels are of patches of {PATCH}: {source} has others")
    torch.manual_seed(settings.seed)
    whole = build_model(dataclasses.replace(model.config, language_width=WIDTH))
    old = {k: v for k, v in model.state_dict().items() if not k.startswith("language_head.")}
    whole.load_state_dict(old, strict=False)
    head = whole.eval().language_head
    assert head is not None

    described = [n for n in find_clips(settings.clips) if read_annotation(settings.clips / n)]
    described = described[: settings.clip_count]
    held_out = described[::_HELD_OUT]
    training = [name for name in described if name not in held_out]
    if not training:
        raise LanguageTrainingError(
            f"{settings.clips}: {len(described)} clips that know their objects, two or more are "
            "needed: render some (omnistream render --clips)"
        )
    began = time.monotonic()
    report(f"{len(described)} clips through the frozen network, {len(held_out)} held out")
    takes = list(seen_takes(whole, settings.clips, training, settings, plain=False))
    judges = list(seen_takes(whole, settings.clips, held_out, settings, plain=True))
    if not takes or not judges:
        raise LanguageTrainingError(f"{settings.clips}: no take of {_FRAMES} frames")
    _fit(head, takes, encoder, settings, report)
    figures = judge(head, judges, encoder)
    record = {
        "steps": settings.steps,
        "takes": len(takes),
        "sentences": "all-MiniLM-L6-v2, Apache-2.0",
        "seconds": round(time.monotonic() - began),
    }
    card = dataclasses.replace(
        card,
        training={**card.training, "language head": record},
        accuracy={**card.accuracy, "language head, held-out rendered clips": figures},
    )
    save_model(output, whole, card)
    report(f"wrote {output}: {figures}")
    return figures


def _fit(
    head: LanguageHead,
    takes: Sequence[SeenTake],
    encoder: Encoder,
    settings: LanguageSettings,
    report: Callable[[str], None],
) -> None:
    optimiser = torch.optim.AdamW(head.parameters(), settings.learning_rate, weight_decay=0.02)
    recent: list[dict[str, float]] = []
    for step in range(settings.steps):
        rng = np.random.default_rng((settings.seed, step))
        chosen = [takes[i] for i in rng.integers(len(takes), size=settings.takes_per_step)]
        tokens = torch.stack([take.tokens for take in chosen]).float()
        parts = language_losses(head, tokens, [take.words for take in chosen], encoder)
        factor = learning_rate_factor(step, 50, step / settings.steps)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * factor
        optimiser.zero_grad()
        loss = torch.stack(list(parts.values())).sum()
        loss.backward()
        if math.isfinite(loss.item()):
            optimiser.step()
        recent = [*recent, {k: v.item() for k, v in parts.items()}][-100:]
        if (step + 1) % 250 == 0 or step + 1 == settings.steps:
            means = "  ".join(f"{k} {np.mean([r[k] for r in recent]):.3f}" for k in recent[-1])
            report(f"step {step + 1}/{settings.steps}  {means}")
