# SPDX-License-Identifier: Apache-2.0
"""`omnistream ablate`: the same short training with one thing different, and what it changed.

Small on purpose: half the image size and some hundred steps, so that all variants fit into hours of
one core. What helps here need not help at full length, but what does nothing seldom does there. The
first variant runs with a second seed as well: differences smaller than between those two mean
nothing.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omnistream_ros.model import ModelConfig, OmniStream
from omnistream_ros.training.camera_score import score_camera_on_clips
from omnistream_ros.training.clip_files import validation_clips
from omnistream_ros.training.held_out import score_clips
from omnistream_ros.training.losses import LossWeights
from omnistream_ros.training.objectives import ObjectiveWeights
from omnistream_ros.training.probes import table
from omnistream_ros.training.probes.features import streamed
from omnistream_ros.training.run_folder import lock_run, stop_on_signal
from omnistream_ros.training.train import Trainer
from omnistream_ros.training.train_settings import TrainSettings

_GEOMETRY = LossWeights()


@dataclass(frozen=True)
class Variant:
    """One training: what its losses are."""

    name: str
    weights: LossWeights = _GEOMETRY
    objectives: ObjectiveWeights = field(default_factory=ObjectiveWeights)
    seed: int = 0


VARIANTS = (
    Variant("geometry"),
    Variant("geometry, another seed", seed=1),
    Variant("without gradient matching", replace(_GEOMETRY, gradient=0.0)),
    Variant("without one scale per clip", replace(_GEOMETRY, scale_invariant=0.0)),
    Variant("without metric log depth", replace(_GEOMETRY, log_l1=0.0)),
    Variant("without confidence", replace(_GEOMETRY, confidence=0.0)),
    Variant("without rays", replace(_GEOMETRY, rays=0.0)),
    Variant("without field of view", replace(_GEOMETRY, field_of_view=0.0)),
    Variant("without camera", replace(_GEOMETRY, translation=0, rotation=0, field_of_view=0)),
    Variant("+ step motion", replace(_GEOMETRY, step_translation=0.5, step_rotation=0.5)),
    Variant("+ distillation", objectives=ObjectiveWeights(distillation=0.1)),
    Variant("+ temporal", objectives=ObjectiveWeights(temporal=0.3)),
    Variant("+ feature teacher", objectives=ObjectiveWeights(teacher=0.3)),
    Variant("+ language", objectives=ObjectiveWeights(language=0.2)),
    Variant(
        "+ all four",
        objectives=ObjectiveWeights(distillation=0.1, temporal=0.3, teacher=0.3, language=0.2),
    ),
)


@dataclass(frozen=True)
class AblationSettings:
    """clips to train on, and to probe with (never trained on); steps of each variant."""

    clips: Path
    probe_clips: Path
    run: Path
    steps: int = 600
    probe_count: int = 150
    motion_steps: int = 300  # of the attentive probe
    held_out: int = 20
    training: dict[str, Any] = field(default_factory=dict)  # other TrainSettings
    config: ModelConfig | str = "omnistream-nano"


def ablate(
    settings: AblationSettings,
    variants: Sequence[Variant] = VARIANTS,
    report: Callable[[str], None] = print,
) -> str:
    """Trains and measures each variant that is not done yet; the table so far, as markdown.

    Everything is resumable: a variant that was interrupted goes on from its last save, one that is
    done is not done again.

    Raises:
        RunFolderError: another process works in the run folder.
    """
    rows: list[dict[str, Any]] = []
    with lock_run(settings.run):
        for variant in variants:
            slug = re.sub(r"[^a-z0-9]+", "_", variant.name.replace("+", "plus")).strip("_")
            result = settings.run / f"{slug}.json"
            if not result.exists():
                row = _measure(settings, variant, settings.run / slug, report)
                if row is None:
                    break
                part = result.with_suffix(".part")
                part.write_text(json.dumps(row, indent=1))
                part.replace(result)
            row = json.loads(result.read_text())
            if row["name"] != variant.name or row["steps"] != settings.steps:
                raise ValueError(
                    f"{result} is of {row['name']!r} with {row['steps']} steps, not "
                    f"{variant.name!r} with {settings.steps}: give another --run folder"
                )
            rows.append(row)
            (settings.run / "ablation.md").write_text(as_markdown(rows))
            report(f"{variant.name}: done, {len(rows)} of {len(variants)}")
    return as_markdown(rows)


def _measure(
    settings: AblationSettings, variant: Variant, run: Path, report: Callable[[str], None]
) -> dict[str, Any] | None:
    """Figures of one variant by name; None when its training was interrupted."""
    began = time.monotonic()
    train_settings = TrainSettings(
        clips=settings.clips,
        run=run,
        steps=settings.steps,
        seed=variant.seed,
        weights=variant.weights,
        objectives=variant.objectives,
        **{"coarse_fraction": 1.0, "judge_period": 10**9, **settings.training},
    )
    trainer = Trainer(settings.config, train_settings, report=lambda line: report(f"  {line}"))
    report(f"{variant.name}: from step {trainer.progress.step}")
    with stop_on_signal(trainer.stop.set, report):
        trainer.run()
    if trainer.progress.step < settings.steps:
        return None
    model: OmniStream = trainer.average
    held_out = validation_clips(settings.clips, limit=settings.held_out, length=16)
    clips = list(held_out.values())
    depth, camera = score_clips(model, clips), score_camera_on_clips(model, clips)
    probing = table.ProbeSettings(
        settings.probe_clips, count=settings.probe_count, motion_steps=settings.motion_steps
    )
    (probes,) = table.probe({variant.name: streamed(model)}, probing, lambda line: None)
    return {
        "name": variant.name,
        "steps": settings.steps,
        "seed": variant.seed,
        "minutes": round(trainer.progress.seconds / 60, 1),
        "measured in minutes": round((time.monotonic() - began) / 60, 1),
        "depth": depth.as_dict(),
        "camera": camera.as_dict(),
        "probes": {
            name: getattr(probes, name)
            for name in ("room", "segments", "motion", "rendered_j_and_f")
        },
    }


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table; the best of each column is bold."""
    columns: list[tuple[str, Callable[[dict[str, Any]], float], str, int]] = [
        ("AbsRel", lambda r: r["depth"]["abs_rel"], "{:.3f}", -1),
        ("AbsRel, one scale", lambda r: r["depth"]["abs_rel_scaled"], "{:.3f}", -1),
        ("delta < 1.25", lambda r: r["depth"]["delta_1"], "{:.3f}", 1),
        ("camera m", lambda r: r["camera"]["translation"], "{:.3f}", -1),
        ("camera deg", lambda r: r["camera"]["rotation"], "{:.2f}", -1),
        ("room %", lambda r: 100 * r["probes"]["room"], "{:.1f}", 1),
        ("patches mIoU %", lambda r: 100 * r["probes"]["segments"], "{:.1f}", 1),
        ("motion %", lambda r: 100 * r["probes"]["motion"], "{:.1f}", 1),
        ("J&F %", lambda r: 100 * r["probes"]["rendered_j_and_f"], "{:.1f}", 1),
        ("min", lambda r: r["minutes"], "{:.0f}", 0),
    ]
    lines = [f"| losses | {' | '.join(c[0] for c in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = []
        for _, value, form, better in columns:
            text = form.format(value(row))
            best = better and max(better * value(r) for r in rows) == better * value(row)
            cells.append(f"**{text}**" if best and len(rows) > 1 else text)
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    if rows:
        still = rows[0]["camera"]
        lines.append(
            f"\nA camera that stands still is off by {still['still_translation']:.3f} m and "
            f"{still['still_rotation']:.2f} degrees."
        )
    return "\n".join(lines) + "\n"
