# SPDX-License-Identifier: Apache-2.0
"""The trainer behind `omnistream train`: from a pretrained trunk and a folder of clips to weights.

AdamW with a slower trunk, warm-up, cosine decay over steps or over wall-clock, gradient clipping, a
moving average of the weights (which is what is judged and exported) and bfloat16 where asked for.
The run folder holds the state, the curve and the best weights so far; starting the same command
again goes on from the last saved step.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from omnistream_ros.model import (
    ModelConfig,
    OmniStream,
    Prediction,
    build_model,
    load_model,
)
from omnistream_ros.model.sentence_encoder import WIDTH
from omnistream_ros.training.best_weights import JUDGED_BY, BestWeights, judge_name
from omnistream_ros.training.bfloat16 import keep_depthwise_in_float32
from omnistream_ros.training.curve import LossTable
from omnistream_ros.training.data import Batch, ClipSampler
from omnistream_ros.training.deepen import deepened
from omnistream_ros.training.export import MATCHING_RECORD, training_behind
from omnistream_ros.training.held_out import HeldOutScore
from omnistream_ros.training.licences import licences_in, with_earlier
from omnistream_ros.training.losses import total_loss
from omnistream_ros.training.objectives import Objectives
from omnistream_ros.training.optimise import follow, learning_rate_factor, stop_at_non_finite
from omnistream_ros.training.pretrained import load_pretrained_trunk
from omnistream_ros.training.recorded_clips import recordings_of
from omnistream_ros.training.run_folder import lock_run, stop_on_signal
from omnistream_ros.training.state import Progress, load_state, require_seed, save_state
from omnistream_ros.training.team import Team
from omnistream_ros.training.train_settings import TrainSettings
from omnistream_ros.training.training_record import LAST_RUN


def _with_language(model: OmniStream, width: int) -> OmniStream:
    """The same model with a fresh language head of this width, or with none."""
    whole = build_model(replace(model.config, language_width=width))
    whole.load_state_dict(model.state_dict(), strict=False)
    return whole


class Trainer:
    """One run: builds or restores everything, then `run()` trains until done or stopped."""

    def __init__(
        self,
        config: ModelConfig | str,
        settings: TrainSettings,
        *,
        report: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
        team: Team | None = None,
    ) -> None:
        self.settings = settings
        self.team = team or Team()
        if settings.recorded is not None:
            _keep_apart(
                settings,
                recordings_of(settings.recorded),
                f"clips of it are in {settings.recorded}",
            )
        self.report = report if self.team.leads else _say_nothing
        self.clock = clock
        settings.run.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.model: OmniStream = build_model(config)
        before: dict[str, Any] = {}
        if settings.start_from is not None:
            self.model, card = load_model(settings.start_from)
            if settings.blocks is not None:
                self.model = deepened(self.model, settings.blocks)
            self.model.requires_grad_(True)
            before = training_behind(card)
            _keep_apart(
                settings, before["recorded"], f"{settings.start_from} has been trained on it"
            )
        elif settings.pretrained:
            load_pretrained_trunk(self.model)
        if settings.objectives.language and self.model.language_head is None:
            self.model = _with_language(self.model, WIDTH)
        elif self.model.language_head is not None and not settings.objectives.language:
            # It would stay as it is while what it reads changes.
            self.model = _with_language(self.model, 0)
            self.report("the language head is left out; omnistream train-language makes a new one")
        if settings.bfloat16:
            keep_depthwise_in_float32(self.model)
        self._freeze_early_trunk()
        self.model.train()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.objectives: Objectives | None = None
        if settings.objectives:
            self.objectives = Objectives(
                self.model.config, settings.objectives, settings.seed, rank=self.team.rank
            )
        self.optimiser = self._build_optimiser()
        self.sampler = ClipSampler(
            settings.clips,
            seed=settings.seed,
            frames_per_step=settings.frames_per_step,
            lengths={settings.stream_frames: 1.0} if settings.stream_frames else settings.lengths,
            to_and_fro=settings.stream_frames is not None,
            described=settings.objectives.language > 0,
            settings=settings.augmentation,
            recorded=settings.recorded,
            recorded_share=settings.recorded_share,
        )
        self.state_path = settings.run / "state.safetensors"
        self.progress = self._restore(before)
        self._agreed_refusals = len(self.sampler.refused)
        self.team.check_equal(
            step=self.progress.step,
            clips=len(self.sampler.names),
            recorded=len(self.sampler.recorded_names),
        )
        if self.team.leads:
            self.table = LossTable(settings.run, self.progress.step)
        self.stop = threading.Event()

    def _freeze_early_trunk(self) -> None:
        """Takes the first part of a pretrained trunk out of the training."""
        trunk = getattr(self.model.backbone.patch_embed, "trunk", None)
        s = self.settings
        if trunk is not None and (s.pretrained or s.start_from) and s.frozen_trunk_blocks:
            for module in (trunk.stem, *trunk.blocks[: s.frozen_trunk_blocks]):
                module.requires_grad_(False)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters of the model, and of the objectives beside it."""
        found = list(self.model.named_parameters())
        if self.objectives is not None:
            found += [(f"objectives.{n}", p) for n, p in self.objectives.named_parameters()]
        return found

    def _build_optimiser(self) -> torch.optim.AdamW:
        """The trunk learns slowly; biases, norms, scales and tokens are not decayed."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self._trained():
            if not parameter.requires_grad:
                continue
            key = (".trunk." in name, parameter.ndim > 1 and "token" not in name)
            groups.setdefault(key, []).append(parameter)
        s = self.settings
        return torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "base": s.trunk_learning_rate if trunk else s.learning_rate,
                    "weight_decay": s.weight_decay if decayed else 0.0,
                }
                for (trunk, decayed), parameters in groups.items()
            ],
            lr=s.learning_rate,
            betas=(0.9, 0.98),
            foreach=True,
        )

    def _restore(self, before: dict[str, Any]) -> Progress:
        if not self.state_path.exists():
            self.sampler.refresh()
            self.sampler.names = self.team.from_leader(self.sampler.names)
            return Progress(
                self.settings.seed,
                clips=list(self.sampler.names),
                recorded=list(self.sampler.recorded_names),
                before=before,
            )
        progress = load_state(
            self.state_path, self.model, self.average, self.optimiser, self.objectives
        )
        require_seed(self.state_path, progress, self.settings.seed)
        self.sampler.names, self.sampler.refused = list(progress.clips), dict(progress.refused)
        self.sampler.recorded_names = list(progress.recorded)
        self.report(f"resuming at step {progress.step} of {self.state_path}")
        return progress

    def run(self) -> HeldOutScore | None:
        """Trains to the end (or until `stop` is set) and returns the last held-out score."""
        s, p = self.settings, self.progress
        best: BestWeights | None = None  # the first process alone judges
        if self.team.leads:
            best = BestWeights(self.average, s, p, self.table, self._record, self.report)
            best.judge_what_is_there()
        score, started, spoken = None, self.clock(), self.clock()
        seconds_before, frames_before = p.seconds, p.frames
        # A run that has ended for want of patience does not go on by being started again.
        ending = best is not None and best.out_of_patience()
        stopping = bool(self.team.largest(self.stop.is_set() or ending)[0])
        while self._fraction_done() < 1 and not stopping:
            sizes = s.coarse_sizes if self._fraction_done() < s.coarse_part else s.full_sizes
            batch = self.sampler.batch(p.step, sizes, (self.team.rank, self.team.size))
            parts = self.team.mean(self._step(batch))
            p.step += 1
            now = self.clock()
            p.seconds, stopping = self._agree(seconds_before + now - started)
            if self.team.leads:
                self.table.add(p.step, p.frames, p.seconds, parts)
                if now - spoken > 15:
                    spoken = now
                    self._speak((p.frames - frames_before) / (now - started))
            judging = p.step % s.judge_period == 0
            if judging:  # before the state is saved, which knows the best so far
                if best is not None:
                    score = best.judge()
                    ending = best.out_of_patience()
                stopping = bool(self.team.largest(stopping or ending)[0])
            if judging or p.step % s.save_period == 0:
                self._save()
        self._save()  # first, for who ends a training may not wait for a judgement
        if best is not None:
            if p.step % s.judge_period or score is None:
                score = best.judge()
            best.leave()
        self._save()
        return score

    def _agree(self, seconds: float) -> tuple[float, bool]:
        """Time spent and whether to stop, as all processes see it; clips that one of them could
        not read are left out by all."""
        refused = len(self.sampler.refused)
        seconds, stopping, most = self.team.largest(seconds, self.stop.is_set(), refused)
        if most > self._agreed_refusals:
            for found in self.team.gather(self.sampler.refused):
                self.sampler.leave_out(found)
            self._agreed_refusals = len(self.sampler.refused)
        return seconds, bool(stopping)

    def _fraction_done(self) -> float:
        s, p = self.settings, self.progress
        if s.steps is not None:
            return p.step / s.steps
        assert s.minutes is not None
        return p.seconds / (60 * s.minutes)

    def _step(self, batch: Batch) -> dict[str, float]:
        s, p = self.settings, self.progress
        factor = learning_rate_factor(p.step, s.warmup_steps, self._fraction_done())
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=s.bfloat16):
            prediction: Prediction = self.model.forward_clip(
                batch.pixels,
                rays=p.step % s.ray_period == 0,
                context=s.context if s.stream_frames else None,
            )
        loss, parts = total_loss(prediction, batch, self.model.config.canonical_fx, s.weights)
        if self.objectives is not None:
            with torch.autocast("cpu", torch.bfloat16, enabled=s.bfloat16):
                more, named = self.objectives.losses(
                    self.model, self.average, batch, prediction.features.patches, p.step
                )
            loss, parts = loss + more, parts | named
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        trained = [parameter for _, parameter in self._trained()]
        self.team.average_gradients(trained)
        norm = nn.utils.clip_grad_norm_(trained, s.gradient_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            rank = self.team.rank if self.team.size > 1 else None
            stop_at_non_finite(s.run, self.state_path, p.step, batch.tensors(), loss, norm, rank)
        self.optimiser.step()
        follow(self.average, self.model, p.step, s.average_decay)
        if self.objectives is not None:
            self.objectives.follow(p.step, s.average_decay)
            self.team.average_tensors(list(self.objectives.buffers()))
        p.frames += batch.pixels.shape[0] * batch.pixels.shape[1] * self.team.size
        values = {name: value.item() for name, value in parts.items()}
        return {"loss": loss.item(), "gradient_norm": norm.item(), **values}

    def _speak(self, rate: float) -> None:
        s, p = self.settings, self.progress
        if s.minutes is not None:
            remaining = 60 * s.minutes - p.seconds
        else:
            assert s.steps is not None
            remaining = (s.steps - p.step) * p.frames / p.step / max(rate, 1e-6)
        self.report(
            f"step {p.step}  {self.table.recent()}  {rate:.1f} frames/s  "
            f"{100 * self._fraction_done():.1f} %, {remaining / 60:.0f} min remaining"
        )

    def _record(self) -> dict[str, object]:
        """What the model card says about the training, that of its first weights counted in."""
        p, s = self.progress, self.settings
        own = {} if s.recorded is None else recordings_of(s.recorded)
        return {
            "steps": p.step + p.before.get("steps", 0),
            "frames": p.frames + p.before.get("frames", 0),
            "hours": round(p.seconds / 3600 + p.before.get("hours", 0), 2),
            LAST_RUN: {"steps": p.step, "seed": s.seed, "clips": len(self.sampler.names)},
            "recorded": with_earlier(own, licences_in(p.before.get("recorded"))),
            "pretrained": p.before.get("pretrained", s.pretrained),
            **{k: v for k, v in p.before.items() if k == MATCHING_RECORD and v is not None},
            "held_out": {k: v for k, v in p.best.items() if k not in JUDGED_BY},
            **({"judge": judge_name(s)} if s.held_out else {}),
        }

    def _save(self) -> None:
        """Writes the state, with the clips that were in use, then looks for new clips."""
        self.progress.refused = dict(self.sampler.refused)
        if self.team.leads:
            self.sampler.refresh()
        self.sampler.names = self.team.from_leader(self.sampler.names)
        self.progress.clips = list(self.sampler.names)
        if self.team.leads:
            save_state(
                self.state_path,
                self.progress,
                self.model,
                self.average,
                self.optimiser,
                self.objectives,
            )


def _keep_apart(settings: TrainSettings, trained_on: Iterable[str], why: str) -> None:
    """ValueError when a recording that judges has been, or will be, trained on."""
    if both := set(trained_on) & {path.resolve().name for path in settings.held_out}:
        raise ValueError(
            f"{', '.join(sorted(both))}: held out, but {why}; hold out another recording"
        )


def _say_nothing(line: str) -> None:
    """The progress lines of processes that do not lead."""


def train(config: ModelConfig | str, settings: TrainSettings) -> bool:
    """Runs one training; SIGINT and SIGTERM end it after the current step, saved.

    Started by torchrun, it trains with the other processes of its kind. Returns whether it came to
    its end.

    Raises:
        RunFolderError: another trainer uses the run folder.
    """
    team = Team.from_environment()
    with contextlib.ExitStack() as stack:
        stack.callback(team.close)
        if team.leads:
            stack.enter_context(lock_run(settings.run))
        trainer = Trainer(config, settings, team=team)
        stack.enter_context(stop_on_signal(trainer.stop.set, trainer.report))
        trainer.run()
        return not trainer.stop.is_set()
