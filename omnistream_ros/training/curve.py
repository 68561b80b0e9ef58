# SPDX-License-Identifier: Apache-2.0
"""The course of a training run: one CSV row per step, one per judgement, and a picture of both."""

from __future__ import annotations

import csv
from collections import deque
from pathlib import Path
from statistics import fmean

from omnistream_ros.training.held_out import HeldOutScore
from omnistream_ros.training.loss_terms import GEOMETRIC_TERMS
from omnistream_ros.training.objectives import TERMS as OBJECTIVE_TERMS

_TERMS = [
    "loss",
    *GEOMETRIC_TERMS,
    "step_translation",
    "step_rotation",
    *OBJECTIVE_TERMS,
]
_COLUMNS = ["step", "frames", "seconds", "gradient_norm", *_TERMS]
_SCORE_COLUMNS = ["step", "abs_rel", "abs_rel_scaled", "delta_1", "delta_1_scaled", "log_mae"]


class LossTable:
    """`loss.csv`, `held_out.csv` and `loss.png` in the run folder.

    Opened at a step: rows beyond it belong to work that a kill undid, and are removed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.losses = folder / "loss.csv"
        self.scores = folder / "held_out.csv"
        for path, columns in ((self.losses, _COLUMNS), (self.scores, _SCORE_COLUMNS)):
            rows = [row for row in _read(path) if int(row["step"]) <= step]
            partial = path.with_name(path.name + ".part")
            with partial.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows(rows)
            partial.replace(path)
        self._recent: deque[dict[str, float]] = deque(maxlen=50)

    def add(self, step: int, frames: int, seconds: float, parts: dict[str, float]) -> None:
        """Appends the row of one step; terms that the step did not compute stay empty."""
        self._recent.append(parts)
        values = {k: f"{v:.6g}" for k, v in parts.items()}
        row = {"step": step, "frames": frames, "seconds": f"{seconds:.1f}", **values}
        _append(self.losses, _COLUMNS, row)

    def add_score(self, step: int, score: HeldOutScore) -> None:
        """Appends one judgement on the held-out clips."""
        values = {k: f"{v:.5f}" for k, v in score.as_dict().items()}
        _append(self.scores, _SCORE_COLUMNS, {"step": step, **values})

    def recent(self) -> str:
        """Mean of the last steps, for the progress line."""
        loss = fmean(parts["loss"] for parts in self._recent)
        depth = fmean(parts["log_l1"] for parts in self._recent if "log_l1" in parts)
        return f"loss {loss:.3f}  log depth {depth:.3f}"

    def draw(self) -> None:
        """Redraws the picture from the tables."""
        draw_curve(self.losses, self.scores, self.folder / "loss.png")


def _append(path: Path, columns: list[str], row: dict[str, object]) -> None:
    with path.open("a", newline="") as file:
        csv.DictWriter(file, columns, restval="").writerow(row)


def _read(path: Path) -> list[dict[str, str]]:
    """Complete rows of a table; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    return list(csv.DictReader(lines))


def draw_curve(losses: Path, scores: Path, picture: Path) -> None:
    """Smoothed loss terms above, held-out depth error below, both over frames seen."""
    from matplotlib.figure import Figure

    rows = _read(losses)
    if not rows:
        return
    frames_at = {row["step"]: int(row["frames"]) for row in rows}
    figure = Figure(figsize=(8, 6), layout="constrained")
    terms, judged = figure.subplots(2, 1, sharex=True)
    window = max(1, len(rows) // 60)
    for name in _TERMS:
        points = [(frames_at[r["step"]], float(r[name])) for r in rows if r[name]]
        if not points:
            continue
        chunks = [points[i : i + window] for i in range(0, len(points), window)]
        terms.plot(
            [fmean(x for x, _ in c) for c in chunks],
            [fmean(y for _, y in c) for c in chunks],
            label=name.replace("_", " "),
        )
    terms.set_yscale("symlog", linthresh=0.1)
    terms.set_ylabel("training loss (mean)")
    terms.legend(ncols=2, fontsize=7)
    judgements = [row for row in _read(scores) if row["step"] in frames_at]
    for name, label in (
        ("log_mae", "log MAE"),
        ("abs_rel", "AbsRel"),
        ("abs_rel_scaled", "AbsRel, one scale per clip"),
    ):
        # Rows of before a number was told have none.
        points = [(frames_at[row["step"]], float(row[name])) for row in judgements if row[name]]
        judged.plot([x for x, _ in points], [y for _, y in points], marker=".", label=label)
    judged.set_ylabel("error, held-out clips")
    judged.set_xlabel("frames seen")
    judged.set_ylim(bottom=0)
    judged.grid(alpha=0.3)
    judged.legend(fontsize=8)
    figure.savefig(picture, dpi=110)
