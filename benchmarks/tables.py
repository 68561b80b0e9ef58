# SPDX-License-Identifier: Apache-2.0
"""docs/performance/*.json as Markdown tables and plots: `python benchmarks/tables.py FOLDER`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from flat import draw as draw_flat
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def against_released(folder: Path, model: str) -> str:
    """Time, share of the machine, memory and agreement of every way that was measured."""
    rows: list[str] = []
    parts = [
        json.loads(path.read_text())
        for path in sorted(folder.glob(f"against_released_{model}*.json"))
    ]
    peaks: dict[str, float] = {}
    agreement: dict[str, dict[str, float]] = {}
    for part in parts:
        peaks |= part.get("peak_mib", {})
        agreement |= part.get("agreement", {})
    for part in parts:
        for name, row in part.get("rows", {}).items():
            share = "" if row["of_peak"] is None else f"{100 * row['of_peak']:.0f} %"
            cpu = f"{row['cpu_ratio']:.2f}" if "cpu_ratio" in row else ""
            memory = f"{peaks[name]:.0f}" if name in peaks else ""
            agrees = agreement.get(name, {})
            cosine = f"{agrees['cosine']:.7f}" if "cosine" in agrees else ""
            depth = f"{100 * agrees['depth']:.3f} %" if agrees.get("depth") else ""
            rows.append(
                f"| {name} | {row['median_ms']:.0f} | {row['best_ms']:.0f} | {row['ratio']:.2f} "
                f"| {cpu} | {share} | {memory} | {cosine} | {depth} |"
            )
    head = "| | median ms | best ms | ratio | of processor time | of peak | peak MiB "
    head += "| feature cosine | depth off |"
    return "\n".join([head, "|---" * 9 + "|", *rows])


def profiles(folder: Path) -> str:
    """Parts of a step, a column for each model."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("profile_*.json"))]
    names = list(dict.fromkeys(name for one in found for name in one["milliseconds"]))
    names.sort(key=lambda name: (name == "all", name == "the rest"))
    rows = ["| |" + "|".join(f" {one['model']}, ms " for one in found) + "|"]
    rows.append("|---" * (len(found) + 1) + "|")
    for name in names:
        cells = [one["milliseconds"].get(name) for one in found]
        rows.append(
            f"| {name} |" + "|".join("" if c is None else f" {c:.1f} " for c in cells) + "|"
        )
    return "\n".join(rows)


def flat_rows(folder: Path) -> list[dict[str, Any]]:
    """What flat.py wrote, in however many runs."""
    paths = sorted(folder.glob("flat*.json"))
    return [row for path in paths for row in json.loads(path.read_text())["rows"]]


def flat(folder: Path) -> str:
    """What the straight lines say, by mode."""
    rows = ["| mode | frames | median ms | growth of time | growth of memory |", "|---" * 5 + "|"]
    rows += [
        f"| {row['mode']} | {row['frames']:,} | {row['median_ms']:.2f} "
        f"| {100 * row['latency_growth']:+.1f} % (+- {100 * row['latency_error']:.1f}) "
        f"| {100 * row['resident_growth']:+.2f} % |"
        for row in flat_rows(folder)
    ]
    return "\n".join(rows)


def engines(folder: Path) -> str:
    """What engines.py wrote."""
    rows = ["| engine | processor time, ms | ratio | of processor time |", "|---" * 4 + "|"]
    for path in sorted(folder.glob("engines*.json")):
        for name, row in json.loads(path.read_text())["rows"].items():
            rows.append(
                f"| {name} | {row['cpu_ms']:.0f} | {row['ratio']:.2f} | {row['cpu_ratio']:.2f} |"
            )
    return "\n".join(rows)


def draw(folder: Path) -> None:
    """Parts of a step as bars: profile.png."""
    found: list[dict[str, Any]] = [
        json.loads(path.read_text()) for path in sorted(folder.glob("profile_*.json"))
    ]
    figure = Figure(figsize=(8, 2.6), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = list(dict.fromkeys(n for one in found for n in one["milliseconds"] if n != "all"))
    colours = dict(zip(names, [f"C{i}" for i in range(10)], strict=False))
    for one in found:
        left = 0.0
        for name, milliseconds in one["milliseconds"].items():
            if name != "all":
                share = 100 * milliseconds / one["milliseconds"]["all"]
                axes.barh(one["model"], share, left=left, color=colours[name], height=0.5)
                left += share
    for name in names:
        axes.barh([0], [0], color=colours[name], label=name)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of a step")
    axes.legend(frameon=False, fontsize=7, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.4))
    figure.tight_layout()
    figure.savefig(folder / "profile.png", dpi=120)


def main(folder: Path) -> int:
    for model in ("l", "nano"):
        print(against_released(folder, model), "\n")
    print(profiles(folder), "\n")
    print(flat(folder), "\n")
    print(engines(folder))
    draw(folder)
    draw_flat(flat_rows(folder), folder / "flat.png")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="docs/performance")
    sys.exit(main(parser.parse_args().folder))
