# SPDX-License-Identifier: Apache-2.0
"""``omnistream bench``: time and memory of a frame against the length of the context.

The table of the paper's efficiency section: cached streaming, on CPUs also with the kernels made
for them (``fast``), beside full recomputation at T = 1 ... 512 frames of context, with the speed of
this machine's matrix product beside all.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from omnistream_ros.evaluation.bench_row import Case, Measurement, Way
from omnistream_ros.evaluation.summary import surroundings

CONTEXTS = (1, 16, 32, 64, 128, 256, 512)
WAYS: tuple[Way, ...] = ("fast", "cached", "recompute")

#: Scores and mask of full attention may take this share of the memory that is free.
_MEMORY_SHARE = 0.4
_STYLES = (("fast", "#2a9d5c", "^"), ("cached", "#2f6db3", "o"), ("recompute", "#e4572e", "s"))


@dataclasses.dataclass(frozen=True)
class Row:
    """One case with its measurement, or the reason why there is none."""

    case: Case
    measurement: Measurement | None
    reason: str = ""


def bench(
    model: str,
    *,
    size: tuple[int, int] | None = None,
    contexts: Sequence[int] = CONTEXTS,
    ways: Sequence[Way] = WAYS,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 0,
    timeout_s: float = 300.0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Measure a model with random weights, every case in a fresh process.

    Args:
        size: (height, width) of the image that the model sees; by default the model's own at 4:3.
        timeout_s: for one case; a case that takes longer, and all longer contexts of its way, are
            reported as too slow.

    Raises:
        ValueError: an unknown model, or a size that its patches do not divide.
    """
    from omnistream_ros.model import build_model
    from omnistream_ros.stream.preprocess import model_size

    config = build_model(model, device="meta").config
    height, width = size or model_size(480, 640, config.model_pixels, config.patch_size)
    if height % config.patch_size or width % config.patch_size:
        raise ValueError(f"size {height}x{width} must be multiples of {config.patch_size}")
    patches = (height // config.patch_size) * (width // config.patch_size)
    rows: list[Row] = []
    given_up: dict[str, str] = {}
    for way in ways:
        if way == "fast" and device != "cpu":
            continue
        for frames in contexts:
            case = Case(model, way, frames, height, width, device, dtype, threads=threads)
            reason = given_up.get(way, "")
            tokens = frames * (patches + config.prefix_tokens(True))
            if not reason and way == "recompute" and device == "cpu":
                reason = _too_large(tokens)
            row = Row(case, None, reason) if reason else _run(case, timeout_s)
            rows.append(row)
            if row.measurement is None:
                given_up[way] = row.reason
            say(line(row))
    return rows


def _too_large(tokens: int) -> str:
    """Why full attention over so many tokens is not tried; empty when it may be."""
    need = 2 * 4.0 * tokens * tokens  # mask and scores of one head, float32
    free = _available_bytes()
    if need <= _MEMORY_SHARE * free:
        return ""
    return f"would need {need / 2**30:.0f} GiB"


def _available_bytes() -> float:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for entry in file:
                if entry.startswith("MemAvailable:"):
                    return 1024.0 * int(entry.split()[1])
    except OSError:
        pass
    return float("inf")


def _run(case: Case, timeout_s: float) -> Row:
    text = json.dumps(dataclasses.asdict(case))
    command = [sys.executable, "-m", "omnistream_ros.evaluation.bench_row", text]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Row(case, None, f"more than {timeout_s:.0f} s")
    try:
        content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        lines = done.stderr.strip().splitlines()
        killed = f"ended with status {done.returncode}" + (f": {lines[-1]}" if lines else "")
        return Row(case, None, killed)
    if "error" in content:
        return Row(case, None, content["error"])
    return Row(case, Measurement(**content))


# -- output ---------------------------------------------------------------------------------------

HEAD = (
    f"{'':<10}{'T':>5}{'ms/frame':>11}{'peak MiB':>10}{'cache MiB':>11}{'GFLOP':>9}{'of peak':>9}"
)


def line(row: Row) -> str:
    """One line of the table."""
    start = f"{row.case.way:<10}{row.case.frames:>5}"
    if row.measurement is None:
        return f"{start}  {row.reason}"
    m = row.measurement
    return (
        f"{start}{m.milliseconds:>11.1f}{m.peak_mib:>10.0f}{m.cache_mib:>11.1f}{m.gflop:>9.2f}"
        f"{100 * m.fraction_of_peak:>7.0f} %"
    )


def write(rows: Sequence[Row], out: Path, command: Sequence[str]) -> None:
    """Write ``bench.json`` and ``bench.png``.

    Raises:
        OSError: the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    content = {
        **surroundings(command),
        "rows": [
            {
                **dataclasses.asdict(row.case),
                **({} if row.measurement is None else dataclasses.asdict(row.measurement)),
                "fraction_of_peak": row.measurement and row.measurement.fraction_of_peak,
                "reason": row.reason,
            }
            for row in rows
        ],
    }
    (out / "bench.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _draw(rows, out / "bench.png")


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Time and memory against the context, all ways."""
    figure = Figure(figsize=(9.5, 3.8), facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for way, colour, marker in _STYLES:
        of = [row for row in rows if row.case.way == way and row.measurement is not None]
        frames = [row.case.frames for row in of]
        for axes, name in ((left, "milliseconds"), (right, "peak_mib")):
            values = [getattr(row.measurement, name) for row in of]
            axes.plot(frames, values, marker=marker, color=colour, linewidth=1.8, label=way)
    for axes, label in ((left, "ms per frame"), (right, "peak memory (MiB)")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({row.case.frames for row in rows})
        axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("frames in context")
        axes.set_ylabel(label)
        axes.grid(color="#e6e8eb", which="both", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
    case = rows[0].case
    figure.suptitle(
        f"{case.model}, {case.width}x{case.height}, {case.dtype} on {case.device}", fontsize=11
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
