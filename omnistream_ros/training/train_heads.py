# SPDX-License-Identifier: Apache-2.0
"""`omnistream train-heads`: depth, ray and camera heads for a backbone that stays as it is.

The released checkpoint has no heads. This freezes it (or any model of ours), streams the user's own
posed RGB-D recordings through it once, keeps the features on disk and trains the heads on them. The
result is one file that `load_model` and the node take. The run folder can be stopped and started at
any time; the last part of every recording is held out and says how good the heads are.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from omnistream_ros.model import CameraPrediction, OmniStream, build_model, load_model, save_model
from omnistream_ros.training.camera_score import camera_score
from omnistream_ros.training.curve import LossTable
from omnistream_ros.training.export import RENDERED
from omnistream_ros.training.frozen_features import StoredClip, read_features
from omnistream_ros.training.head_features import HeadFeatures
from omnistream_ros.training.head_settings import HeadSettings
from omnistream_ros.training.held_out import HeldOutScore, score_depths
from omnistream_ros.training.losses import total_loss
from omnistream_ros.training.optimise import follow, learning_rate_factor, stop_at_non_finite
from omnistream_ros.training.run_folder import lock_run, stop_on_signal
from omnistream_ros.training.state import Progress, load_state, save_state, write_atomically

_HEADS = ("depth_head.", "camera_head.")


def with_heads(model: OmniStream, settings: HeadSettings) -> OmniStream:
    """The model with depth and camera heads: those it has, or fresh ones."""
    config = model.config
    width = settings.head_width or config.head_width or max(64, config.width // 16 * 4)
    pixels = settings.pixels or config.model_pixels
    wanted = replace(config, head_width=width, model_pixels=pixels, metric=True)
    if width == config.head_width:
        model.config = wanted
        return model
    torch.manual_seed(settings.seed)
    whole = build_model(wanted)
    old = {k: v for k, v in model.state_dict().items() if not k.startswith(_HEADS)}
    whole.load_state_dict(old, strict=False)
    return whole


class HeadTrainer:
    """Computes what features are missing, then trains; `run()` goes to the end or to `stop`."""

    def __init__(self, settings: HeadSettings, *, report: Callable[[str], None] = print) -> None:
        self.settings = settings
        self.report = report
        self.stopped = False
        settings.run.mkdir(parents=True, exist_ok=True)
        model, self.card = load_model(settings.backbone)
        self.model = with_heads(model, settings).to(settings.device).eval().requires_grad_(False)
        if settings.bfloat16:  # features alone; heads train in float32
            for module in self.model.backbone.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(torch.bfloat16)
            self.model.backbone.ar_embedder.float()
        assert self.model.depth_head is not None
        assert self.model.camera_head is not None
        self.heads = nn.ModuleDict(
            {"depth_head": self.model.depth_head, "camera_head": self.model.camera_head}
        ).requires_grad_(True)
        self.average = copy.deepcopy(self.heads).eval().requires_grad_(False)
        self.features = HeadFeatures(self.model, self.card.sha256, settings, report)
        self.state_path = settings.run / "state.safetensors"

    def run(self) -> HeldOutScore | None:
        """Features, training, judgement, and the file; None when stopped before that."""
        stored = self.features.compute(lambda: self.stopped)
        if self.stopped:
            return None
        training = [clip for clip in stored if not clip.held_out]
        held_out = [clip for clip in stored if clip.held_out]
        s = self.settings
        optimiser = torch.optim.AdamW(
            [
                {
                    "params": [p for p in self.heads.parameters() if (p.ndim > 1) == decayed],
                    "weight_decay": s.weight_decay if decayed else 0.0,
                }
                for decayed in (True, False)
            ],
            lr=s.learning_rate,
            betas=(0.9, 0.98),
        )
        progress = Progress(s.seed)
        if self.state_path.exists():
            progress = load_state(self.state_path, self.heads, self.average, optimiser)
            self.report(f"resuming at step {progress.step} of {self.state_path}")
        table = LossTable(s.run, progress.step)
        self.heads.train()
        score, began, before = None, time.monotonic(), progress.seconds
        while progress.step < s.steps and not self.stopped:
            parts = self._step(progress.step, training, optimiser)
            progress.step += 1
            progress.frames += s.clips_per_step * s.frames_per_clip
            progress.seconds = before + time.monotonic() - began
            follow(self.average, self.heads, progress.step, s.average_decay)
            table.add(progress.step, progress.frames, progress.seconds, parts)
            judged = progress.step % s.judge_period == 0
            if judged:  # before the state is saved, which knows the best so far
                score = self._judge(held_out, progress, table)
            if judged or progress.step % s.save_period == 0:
                save_state(self.state_path, progress, self.heads, self.average, optimiser)
                rest = (s.steps - progress.step) * (progress.seconds / progress.step)
                self.report(
                    f"step {progress.step}  {table.recent()}  {rest / 60:.0f} min remaining"
                )
        save_state(self.state_path, progress, self.heads, self.average, optimiser)
        if score is None or progress.step % s.judge_period:
            score = self._judge(held_out, progress, table)
        save_state(self.state_path, progress, self.heads, self.average, optimiser)
        self._export(training, held_out, progress)
        return score

    def _step(
        self, step: int, training: Sequence[StoredClip], optimiser: torch.optim.Optimizer
    ) -> dict[str, float]:
        s = self.settings
        rng = np.random.default_rng((s.seed, step))
        weights = np.array([clip.frames for clip in training], np.float64)
        first = training[int(rng.choice(len(training), p=weights / weights.sum()))]
        # Clips of one size, and either all posed or none, make a batch.
        alike = [c for c in training if c.posed == first.posed and c.size == first.size]
        choices = []
        for _ in range(s.clips_per_step):
            clip = alike[int(rng.integers(len(alike)))]
            later = 1 + rng.permutation(clip.frames - 1)[: s.frames_per_clip - 1]
            later = np.resize(later, s.frames_per_clip - 1)  # again, where a clip is that short
            choices.append((clip, np.concatenate([[0], np.sort(later)])))
        features, batch = read_features(choices, self.model, s.device)
        prediction = self.model.predict(features, rays=first.posed, camera=first.posed)
        loss, parts = total_loss(prediction, batch, self.model.config.canonical_fx, s.weights)
        for group in optimiser.param_groups:
            group["lr"] = s.learning_rate * learning_rate_factor(
                step, s.warmup_steps, step / s.steps
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.heads.parameters(), s.gradient_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            stop_at_non_finite(s.run, self.state_path, step, batch.tensors(), loss, norm)
        optimiser.step()
        values = {name: value.item() for name, value in parts.items()}
        return {"loss": loss.item(), "gradient_norm": norm.item(), **values}

    def _averaged(self) -> OmniStream:
        """The model with the averaged heads in place of those that are being trained."""
        whole = copy.copy(self.model)
        whole._modules = {**self.model._modules, **self.average._modules}
        return whole

    @torch.no_grad()
    def _judge(
        self, held_out: Sequence[StoredClip], progress: Progress, table: LossTable
    ) -> HeldOutScore:
        table.draw()
        model = self._averaged()

        def depths() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for clip in held_out:
                predicted, true = [], []
                for start in range(0, clip.frames, 8):
                    frames = np.arange(start, min(start + 8, clip.frames))
                    features, batch = read_features([(clip, frames)], model, self.settings.device)
                    depth = model.predict(features, rays=False, camera=False).depth
                    assert depth is not None
                    to_real = batch.intrinsics[..., 0] / model.config.canonical_fx
                    metres = depth * to_real[..., None, None]
                    predicted.append(metres[0].cpu().numpy())
                    true.append(batch.depth[0].cpu().numpy())
                yield np.concatenate(predicted), np.concatenate(true)

        score = score_depths(depths())
        table.add_score(progress.step, score)
        if score.better_than(progress.best):
            pose = _camera_errors(model, [c for c in held_out if c.posed], self.settings.device)
            progress.best = {"step": progress.step, **score.as_dict(), **pose}
            named = {name: value for name, value in self.average.state_dict().items()}
            write_atomically(self.settings.run / "best_heads.safetensors", named, {})
        self.report(f"step {progress.step}  held out: {score}")
        return score

    def _export(
        self,
        training: Sequence[StoredClip],
        held_out: Sequence[StoredClip],
        progress: Progress,
    ) -> None:
        s = self.settings
        # The backbone as it was given, not as it was computed with.
        whole = with_heads(load_model(s.backbone)[0], s)
        best_heads = load_file(s.run / "best_heads.safetensors")
        missing, unexpected = whole.load_state_dict(best_heads, strict=False)
        assert not unexpected
        assert not any(name.startswith(_HEADS) for name in missing)
        best = {k: round(v, 4) for k, v in progress.best.items()}
        heads = {
            "steps": progress.step,
            "minutes": round(progress.seconds / 60, 1),
            "recordings": s.licences_of_recordings(),
            "rendered clips": f"{s.clips}: {RENDERED}" if s.clips else "none",
            "frames": sum(clip.frames for clip in training),
            "seed": s.seed,
        }
        of = ", ".join(str(p) for p in s.held_out) or (
            f"the last {100 * s.held_out_share:.0f} % of what they were trained on"
        )
        frames = sum(clip.frames for clip in held_out)
        card = replace(
            self.card,
            training={**self.card.training, "heads": heads},
            # What was measured before was measured with other heads.
            accuracy={f"heads, {frames} frames held out ({of})": best},
            storage_dtype=s.storage or self.card.storage_dtype,
        )
        s.output.parent.mkdir(parents=True, exist_ok=True)
        save_model(s.output, whole, card)
        self.report(f"wrote {s.output}: {best}")


@torch.no_grad()
def _camera_errors(model: OmniStream, clips: Sequence[StoredClip], device: str) -> dict[str, float]:
    """Errors of the camera head, by the names they have in the card; empty without posed clips."""

    def predictions() -> Iterator[tuple[CameraPrediction, Tensor]]:
        for clip in clips:
            features, batch = read_features([(clip, np.arange(clip.frames))], model, device)
            camera = model.predict(features, depth=False, rays=False).camera
            assert camera is not None
            one = CameraPrediction(camera.translation[0], camera.quaternion[0], camera.fov[0])
            yield one, batch.poses[0]

    if not clips:
        return {}
    names = ("translation m", "rotation deg", "standing still m", "standing still deg")
    return dict(zip(names, camera_score(predictions()).as_dict().values(), strict=True))


def train_heads(
    settings: HeadSettings, report: Callable[[str], None] = print
) -> HeldOutScore | None:
    """One training of heads; SIGINT and SIGTERM end it after the current step or clip, saved."""
    with lock_run(settings.run):
        trainer = HeadTrainer(settings, report=report)

        def stop() -> None:
            trainer.stopped = True

        with stop_on_signal(stop, report):
            return trainer.run()
