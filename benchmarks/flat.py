# SPDX-License-Identifier: Apache-2.0
"""Do latency and memory stay where they are while a stream runs on and on?

    python benchmarks/flat.py [--frames 100000] [--model tiny] [--modes ...] --out FOLDER

Every mode (kernel and type, times what the cache keeps) runs one stream in a process of its own.
Beside it stands a young stream through the same model, which is set back to frame 100 again and
again. Every 100 frames both take turns for a few steps, and the processor time of the old stream is
divided by that of the young one: what else the machine does meets both. A straight line is fitted
to the medians of 100 equal parts of the run (the median of the lines through any two of them, which
lets no outlier count for much), and the resident memory of the process is noted every 100 frames:
its own, for pages of mapped files come and go as the system needs their memory for others.
`full` keeps every frame until it is full and then begins a new epoch, as a stream does. The
heads, which remember nothing, are left out. Writes flat.json and flat.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from omnistream_ros.evaluation.summary import surroundings
from omnistream_ros.model import KVCache, ModelConfig, OmniStream, build_model, load_model
from omnistream_ros.model.cache_policy import Full, Policy, Window, WindowMemory
from omnistream_ros.model.fast_cpu import fast_model

TINY = ModelConfig(name="tiny", width=64, depth=1, heads=1, taps=(0, 0, 0, 0), model_pixels=32 * 32)
SIZES = {"tiny": (32, 32), "omnistream-nano": (144, 192)}
POLICIES: dict[str, Policy] = {
    "window": Window(1, 16),
    "memory": WindowMemory(1, 8, 16, 3),
    "full": Full(32),
}
KINDS = ("eager-float32", "fast-float32", "fast-bfloat16")
MODES = tuple(f"{kind}/{policy}" for kind in KINDS for policy in POLICIES)
FIRST = 100  # frames before which buffers may still fill
PARTS = 100
EVERY, TURNS = 100, 7  # frames between two comparisons; steps of each stream in one


def make_model(name: str, kind: str) -> OmniStream:
    """The model in one of the KINDS."""
    torch.manual_seed(0)
    model = build_model(TINY).eval() if name == "tiny" else load_model(name)[0]
    if kind == "eager-float32":
        return model
    return fast_model(model, getattr(torch, kind.removeprefix("fast-")))


def run(name: str, mode: str, frames: int) -> dict[str, list[float]]:
    """By comparison: old over young, seconds of a step of the old stream, and resident bytes."""
    kind, policy = mode.split("/")
    height, width = SIZES[name]
    model = make_model(name, kind)
    old, young = (
        model.backbone.allocate_cache(height, width, policy=POLICIES[policy]) for _ in range(2)
    )
    images = torch.randn(16, 1, 3, height, width)
    comparisons = frames // EVERY - 1
    ratios, seconds = (array("d", bytes(8 * comparisons)) for _ in range(2))
    resident = array("q", bytes(8 * comparisons))

    def step(cache: KVCache) -> float:
        if cache.frames_seen >= cache.policy.limit:
            cache.reset()
        pixels = images[old.streams[0].frames_seen * 7 % 16]
        start = time.process_time()
        model.backbone.step(pixels, cache)
        return time.process_time() - start

    with torch.inference_mode():
        for _ in range(FIRST):
            step(old)
        state = old.state_dict()
        for comparison in range(comparisons):
            for _ in range(EVERY - TURNS):
                step(old)
            young.load_state_dict(state)
            pairs = []
            for turn in range(TURNS):
                if policy == "full":  # the same number of frames in view
                    young.frames_seen = old.frames_seen
                both = (old, young) if turn % 2 else (young, old)
                times = {id(cache): step(cache) for cache in both}
                pairs.append((times[id(old)], times[id(young)]))
            ratios[comparison] = float(np.median([a / b for a, b in pairs]))
            seconds[comparison] = float(np.median([a for a, _ in pairs]))
            resident[comparison] = resident_bytes()
    return {"ratios": list(ratios), "seconds": list(seconds), "resident": list(resident)}


def resident_bytes() -> int:
    """Of this process now, without pages of files."""
    with open("/proc/self/statm", encoding="ascii") as file:
        _, resident, of_files, *_ = map(int, file.read().split())
    return (resident - of_files) * os.sysconf("SC_PAGESIZE")


def slope(values: np.ndarray) -> tuple[float, float]:
    """Growth of a straight line over all values, relative to their median, and its 95 % error.

    The median of the slopes between all pairs (Theil and Sen); its error from 500 samples of the
    values, drawn with repetition.
    """
    x = np.linspace(-0.5, 0.5, len(values))

    def growth(chosen: np.ndarray) -> float:
        i, j = (chosen[k] for k in np.triu_indices(len(chosen), 1))
        apart = x[i] != x[j]
        slopes = (values[j] - values[i])[apart] / (x[j] - x[i])[apart]
        return float(np.median(slopes) / np.median(values))

    rng, count = np.random.default_rng(0), len(values)
    samples = [growth(rng.integers(0, count, count)) for _ in range(500)]
    return growth(np.arange(count)), float(1.96 * np.std(samples))


def judge(mode: str, measured: dict[str, list[float]]) -> dict[str, object]:
    """Medians of the parts, resident memory by part, and what a straight line says of both."""
    parts = np.array([np.median(p) for p in np.array_split(measured["ratios"], PARTS)])
    resident = np.array(measured["resident"], dtype=np.float64)
    growth, error = slope(parts)
    return {
        "mode": mode,
        "frames": FIRST + EVERY * len(measured["ratios"]),
        "median_ms": 1e3 * float(np.median(measured["seconds"])),
        "latency_growth": growth,
        "latency_error": error,
        "resident_mib": float(resident[-1] / 2**20),
        "resident_growth": float(resident[-1] / resident[0] - 1),
        "ratios": parts.round(4).tolist(),
        "resident": [int(p.mean()) for p in np.array_split(resident, min(PARTS, len(resident)))],
    }


def draw(rows: list[dict], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.6), facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for row in rows:
        x = np.linspace(FIRST, row["frames"], len(row["ratios"])) / 1000
        left.plot(x, row["ratios"], lw=1, label=row["mode"])
        x = np.linspace(FIRST, row["frames"], len(row["resident"])) / 1000
        right.plot(x, np.array(row["resident"]) / row["resident"][0], lw=1, label=row["mode"])
    low, high = left.get_ylim()
    left.set_ylim(min(low, 0.8), max(high, 1.2))
    right.set_ylim(0.98, 1.02)
    for axes, label in (
        (left, "step time / that of a young stream"),
        (right, "resident memory / at frame 100"),
    ):
        axes.set_xlabel("thousand frames")
        axes.set_ylabel(label)
        axes.grid(color="#e6e8eb", linewidth=0.7)
    right.legend(frameon=False, fontsize=7, ncols=2, loc="upper center")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--model", choices=SIZES, default="tiny")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parallel", type=int, default=1, help="modes that run side by side")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        torch.set_num_threads(1)
        json.dump(run(args.model, args.child, args.frames), sys.stdout)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)

    def measure(mode: str) -> dict[str, object]:
        command = [sys.executable, __file__, "--child", mode, "--model", args.model]
        command += ["--frames", str(args.frames), "--out", str(args.out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        return judge(mode, json.loads(done.stdout))

    rows = []
    for row in ThreadPoolExecutor(args.parallel).map(measure, args.modes):
        rows.append(row)
        print(
            f"{row['mode']:<24}{row['median_ms']:>8.2f} ms, "
            f"growth {100 * row['latency_growth']:+.2f} % "
            f"(+-{100 * row['latency_error']:.2f}); {row['resident_mib']:.0f} MiB, growth "
            f"{100 * row['resident_growth']:+.2f} %",
            flush=True,
        )
        content = {**surroundings(sys.argv), "model": args.model, "rows": rows}
        (args.out / "flat.json").write_text(json.dumps(content, indent=1) + "\n")
        draw(rows, args.out / "flat.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
