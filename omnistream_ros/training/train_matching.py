# SPDX-License-Identifier: Apache-2.0
"""Trains the matching head of a finished model: minutes on one core, one command, resumably.

Everything else of the model is frozen, so clips go through it once, and pairs of what it saw are
trained on. The run folder holds the state; a run that goes on sees its clips again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from omnistream_ros.model import OmniStream, build_model, load_model, save_model
from omnistream_ros.training.annotations import read_annotation
from omnistream_ros.training.augment import AugmentSettings, augment
from omnistream_ros.training.clip_files import find_clips, is_validation
from omnistream_ros.training.export import MATCHING_RECORD
from omnistream_ros.training.head_features import read_takes
from omnistream_ros.training.matching_losses import match_pairs, matching_losses
from omnistream_ros.training.matching_pairs import (
    ObservedClip,
    PairBatch,
    PairSampler,
    hide_movers,
    observe,
)
from omnistream_ros.training.run_folder import lock_run, stop_on_signal
from omnistream_ros.training.state import (
    Progress,
    StateError,
    load_state,
    require_seed,
    save_state,
)

MATCHING_WIDTH = 48


@dataclasses.dataclass(frozen=True)
class MatchingSettings:
    """One training of the matching head."""

    clips: Path
    run: Path  # of the state; the same one again goes on
    steps: int = 800
    pairs_per_step: int = 4
    learning_rate: float = 4e-3
    clip_count: int = 150
    frames_per_clip: int = 10
    save_period: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "pairs_per_step", "clip_count", "save_period"):
            if getattr(self, name) < 1:
                raise ValueError(f"matching: {name} must be at least 1, got {getattr(self, name)}")
        if self.frames_per_clip < 2:
            raise ValueError("matching: a clip needs at least two frames to make a pair")


class MatchingTrainer:
    """Trains the matching head of `model`; `run()` goes to the end or until `stopped`.

    Raises:
        StateError: the run folder has a state of something else, or one that cannot be read.
    """

    weights = {"peak": 1.0, "position": 1.0, "confidence": 0.5, "motion": 1.0}  # noqa: RUF012

    def __init__(
        self,
        model: OmniStream,
        settings: MatchingSettings,
        *,
        report: Callable[[str], None] = print,
    ) -> None:
        assert model.matching_head is not None
        self.model, self.head = model, model.matching_head
        self.settings = settings
        self.report = report
        self.stopped = False
        self.optimiser = torch.optim.AdamW(self.head.parameters(), settings.learning_rate)
        self.state_path = settings.run / "state.safetensors"
        self.progress = self._restore()

    def _restore(self) -> Progress:
        s, network = self.settings, network_of(self.model)
        if not self.state_path.exists():
            return Progress(s.seed, network=network)
        progress = load_state(self.state_path, self.head, None, self.optimiser)
        require_seed(self.state_path, progress, s.seed)
        if progress.network != network:
            raise StateError(
                f"{self.state_path} is of a matching head for another network, which these weights "
                "do not have: give the weights that it was begun with, or another --run folder"
            )
        self.report(f"resuming at step {progress.step} of {self.state_path}")
        return progress

    @property
    def clip_count(self) -> int:
        """How many clips pairs are drawn from, of those that there were at the beginning."""
        return min(self.settings.clip_count, len(self.progress.clips))

    def run(self) -> bool:
        """Trains; returns whether the end has come. The state is saved in either case.

        Raises:
            ValueError: no training clips, or none to draw pairs from.
            ClipError: one of the clips cannot be read.
        """
        s, p = self.settings, self.progress
        if p.step >= s.steps:
            return True
        began, before = time.monotonic(), p.seconds
        p.clips = p.clips or training_clips(s.clips)
        self.report(f"{self.clip_count} of {len(p.clips)} clips through the frozen network")
        observed = []
        for clip in observe_clips(self.model, s, p.clips):
            if self.stopped:
                return False  # before the first step, or where the state says
            observed.append(clip)
        sampler = PairSampler(observed, seed=s.seed, pairs=s.pairs_per_step)
        self.head.train()
        recent: list[dict[str, float]] = []
        while p.step < s.steps and not self.stopped:
            recent = [*recent, self.step(sampler.batch(p.step))][-100:]
            p.seconds = before + time.monotonic() - began
            if p.step % s.save_period == 0:
                self.save()
            if p.step % 100 == 0 or p.step == s.steps:
                means = "  ".join(f"{k} {np.mean([r[k] for r in recent]):.3f}" for k in recent[0])
                self.report(f"step {p.step}/{s.steps}  {means}  {p.seconds:.0f} s")
        self.head.eval()
        self.save()
        return p.step >= s.steps

    def save(self) -> None:
        """Writes the state, in place of the one before."""
        save_state(self.state_path, self.progress, self.head, None, self.optimiser)

    def step(self, batch: PairBatch) -> dict[str, float]:
        """One step; returns the losses. A step whose gradient is not finite is left out."""
        done = self.progress.step / self.settings.steps
        factor = min(1.0, (self.progress.step + 1) / 50) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        losses = matching_losses(match_pairs(self.head, batch), batch)
        total = sum((self.weights[name] * loss for name, loss in losses.items()), torch.zeros(()))
        self.optimiser.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        if norm.isfinite():
            self.optimiser.step()
        else:
            self.progress.refused[f"step {self.progress.step}"] = f"gradient norm {norm.item()}"
        self.progress.step += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}


def network_of(model: OmniStream) -> str:
    """SHA-256 of the weights that the matching head is trained on top of."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if name.startswith(("backbone.", "depth_head.")):
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def training_clips(folder: Path) -> list[str]:
    """Names of the clips that may be trained on; ValueError without any."""
    names = [name for name in find_clips(folder) if not is_validation(name)]
    if not names:
        raise ValueError(f"no training clips in {folder}; see omnistream render --help")
    return names


def observe_clips(
    model: OmniStream, settings: MatchingSettings, names: Sequence[str]
) -> Iterator[ObservedClip]:
    """Takes of some of these clips, augmented and seen through the model; the same every time."""
    rng = np.random.default_rng(settings.seed)
    for name in rng.permutation(names)[: settings.clip_count]:
        # Each take is a stream of its own: the past of another place would spoil its depth.
        takes, left = list(read_takes(settings.clips / name)), settings.frames_per_clip
        annotation = read_annotation(settings.clips / name)
        for number in rng.permutation(len(takes)):
            take = hide_movers(takes[number], annotation.movers(number) if annotation else ())
            first = int(rng.integers(max(1, len(take) - left + 1)))
            take = take.frames(np.arange(first, min(len(take), first + left)))
            yield observe(model, augment(take, rng, AugmentSettings()))
            left -= len(take)
            if left < 2:
                break


def with_fresh_head(model: OmniStream, seed: int) -> OmniStream:
    """The same network with an untrained matching head, in evaluation mode."""
    torch.manual_seed(seed)
    fresh = build_model(dataclasses.replace(model.config, matching_width=MATCHING_WIDTH))
    others = {k: v for k, v in model.state_dict().items() if not k.startswith("matching_head.")}
    missing, unexpected = fresh.load_state_dict(others, strict=False)
    assert not unexpected
    assert all(name.startswith("matching_head.") for name in missing)
    return fresh.eval()


def train_matching(
    source: str | Path,
    output: Path,
    settings: MatchingSettings,
    *,
    start_from: str | Path | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Train the matching head of the model at `source` and write the whole model to `output`.

    Goes on where the run folder says. SIGINT and SIGTERM end it after the current step, saved.

    Args:
        start_from: a model whose matching head is the starting point, for a trunk that has changed
            only a little; by default the head begins anew, whatever `source` has.

    Returns:
        Whether it came to its end, and `output` is written.

    Raises:
        ModelError: a model cannot be read or written.
        ValueError: no clips, or `start_from` has no matching head.
        RunFolderError: another trainer uses the run folder.
        StateError: its state does not fit, or cannot be written.
    """
    with lock_run(settings.run):
        model, card = load_model(source)
        model = with_fresh_head(model, settings.seed)
        assert model.matching_head is not None
        if start_from is not None:
            start = load_model(start_from)[0].matching_head
            if start is None:
                raise ValueError(f"{start_from} has no matching head to start from")
            model.matching_head.load_state_dict(start.state_dict())
        trainer = MatchingTrainer(model, settings, report=report)

        def stop() -> None:
            trainer.stopped = True

        with stop_on_signal(stop, report):
            if not trainer.run():
                return False
        progress = trainer.progress
        record = {
            "steps": progress.step,
            "clips": trainer.clip_count,
            "seconds": round(progress.seconds),
        }
        training = {**card.training, MATCHING_RECORD: record}
        save_model(output, model, dataclasses.replace(card, training=training))
        left_out = len(progress.refused)
        report(f"wrote {output}" + (f"; {left_out} steps left out" if left_out else ""))
        return True
