# SPDX-License-Identifier: Apache-2.0
"""Writes measured accuracy into the card of a weights file: the file says how good it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omnistream_ros.evaluation.evaluate import Options, evaluate_one
from omnistream_ros.evaluation.pose_metrics import pose_metrics
from omnistream_ros.evaluation.sequence_result import SequenceResult
from omnistream_ros.evaluation.summary import latency
from omnistream_ros.evaluation.trajectory import TrajectoryError
from omnistream_ros.model import ModelCard, load_model, save_model

_RPE_FRAMES = 10


def measure_into_card(
    weights: Path, recordings: Sequence[Path], report: Callable[[str], None] = print
) -> ModelCard:
    """Streams whole recordings through the model and records the figures, one entry for each.

    A recording measured before is measured anew; entries of other recordings stay. Nothing is
    written unless every recording could be measured.

    Raises:
        ModelError: the weights cannot be read or written.
        RuntimeError: a recording could not be measured; names it and the reason.
    """
    accuracy: dict[str, Any] = {}
    for path in recordings:
        result = evaluate_one(path, Options(model=str(weights)))
        if result.status != "ok":
            raise RuntimeError(f"{path}: {result.error or result.status}; the card is unchanged")
        accuracy[result.name] = figures(result)
        report(f"{result.name}: {accuracy[result.name]}")
    model, card = load_model(weights)
    card = replace(card, accuracy={**card.accuracy, **accuracy})
    save_model(weights, model, card)
    return card


def figures(result: SequenceResult) -> dict[str, float]:
    """What the card tells of one recording; the alignment stands beside every figure."""
    values: dict[str, float] = {"frames": len(result.rows)}
    for name, label in (("metric", "no alignment"), ("scale", "one scale")):
        if name in result.depth:
            metrics = result.depth[name].metrics
            values[f"AbsRel ({label})"] = round(metrics.abs_rel, 3)
            values[f"delta<1.25 ({label})"] = round(metrics.delta1, 3)
    if result.constant_depth is not None:
        values["AbsRel of a constant depth"] = round(result.constant_depth.abs_rel, 3)
    for name, label in (("se3", "no scale"), ("static", "camera that stands still")):
        if name in result.pose:
            values[f"ATE m ({label})"] = round(result.pose[name].ate_m, 3)
    if result.trajectory is not None and result.truth is not None:
        with suppress(TrajectoryError):  # too short a way for that
            motion = pose_metrics(
                result.trajectory, result.truth, alignment="se3", delta=_RPE_FRAMES
            )
            values[f"RPE m ({_RPE_FRAMES} frames)"] = round(motion.rpe_m, 3)
            values[f"RPE deg ({_RPE_FRAMES} frames)"] = round(motion.rpe_deg, 2)
    if "total" in (took := latency(result)):
        values["ms a frame (one thread, median)"] = round(took["total"]["median"], 1)
    return values
