# SPDX-License-Identifier: Apache-2.0
"""What each way to remember is worth, and what it costs.

    python benchmarks/memory_policies.py accuracy RECORDING[=START:STOP:STEP] ... --out FOLDER
    python benchmarks/memory_policies.py cost --out FOLDER
    python benchmarks/memory_policies.py report --out FOLDER

`accuracy` replays recordings under every policy with the evaluation of the package: depth after one
scale for the sequence, position error, and how far depth is from that of the stream which forgets
nothing. Recordings that are in the folder already are left out, so it can be stopped and continued.
`cost` times steps with a full memory, policies taking turns, in processor time of all threads, as
other programs disturb that least, and counts bytes. `report` writes memory_policies.md and
memory_policies.png from both.

Loops that return to their start come from `omnistream render --motion loop`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import numpy as np
import torch

from omnistream_ros.evaluation.collector import Scoring
from omnistream_ros.evaluation.predictors import FramePrediction, ModelPredictor
from omnistream_ros.evaluation.protocols import ALL_FRAMES, FrameRange
from omnistream_ros.evaluation.recordings import open_recording
from omnistream_ros.evaluation.replay import replay
from omnistream_ros.evaluation.summary import surroundings
from omnistream_ros.model import OmniStream, build_model, load_model
from omnistream_ros.model.cache_policy import Full, Keyframe, Policy, Window, WindowMemory
from omnistream_ros.model.fast_cpu import fast_model
from omnistream_ros.stream.frame import Frame

POLICIES: dict[str, Policy] = {
    "full": Full(200),
    "one frame": Window(0, 1),
    "window 8": Window(1, 8),
    "window 16": Window(1, 16),
    "window 32": Window(1, 32),
    "window 8 + 16 keyframes / 3x3": WindowMemory(1, 8, 16, 3),
    "window 8 + 16 keyframes / 2x2": WindowMemory(1, 8, 16, 2),
    "window 8 + 32 keyframes / 2x2": WindowMemory(1, 8, 32, 2),
}
# ViT-L with random weights: only for what a step costs.
LARGE_POLICIES: dict[str, Policy] = {
    "window 64": Window(0, 64),
    "window 32": Window(1, 31),
    "window 16": Window(1, 15),
    "window 16 + 48 keyframes / 2x2": WindowMemory(1, 15, 48, 2),
    "window 16 + 48 keyframes / 4x4": WindowMemory(1, 15, 48, 4),
}


class Remembering:
    """A predictor that keeps what it said of each frame, reduced, to be compared with another."""

    def __init__(self, predictor: ModelPredictor) -> None:
        self._predictor = predictor
        self.log_depths: dict[int, np.ndarray] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._predictor, name)

    def predict(self, number: int, frame: Frame) -> FramePrediction:
        prediction = self._predictor.predict(number, frame)
        assert prediction.depth is not None
        self.log_depths[number] = np.log(prediction.depth[::4, ::4])
        return prediction


def accuracy(path: Path, frames: FrameRange, model: str) -> list[dict]:
    """One row for each policy on one recording; the full memory first."""
    rows, reference = [], {}
    for name, policy in POLICIES.items():
        predictor = Remembering(ModelPredictor(model, device="cpu", policy=policy))
        result = replay(open_recording(path), predictor, Scoring(frames=frames))  # type: ignore[arg-type]
        if result.status != "ok":
            raise SystemExit(f"{path}: {result.error}")
        reference = reference or predictor.log_depths
        differences = [
            np.abs(depth - reference[number]).mean()
            for number, depth in predictor.log_depths.items()
        ]
        depth = result.depth["scale"].metrics
        rows.append(
            {
                "recording": path.name,
                "frames": len(result.rows),
                "range": str(frames),
                "policy": name,
                "abs_rel": depth.abs_rel,
                "delta1": depth.delta1,
                "abs_rel_metric": result.depth["metric"].metrics.abs_rel,
                "ate_m": result.pose["se3"].ate_m if "se3" in result.pose else None,
                "from_full": float(np.mean(differences)),
            }
        )
        print(
            f"{path.name:<22}{name:<32}AbsRel {depth.abs_rel:.4f}  "
            f"delta {depth.delta1:.3f}  from full {rows[-1]['from_full']:.4f}",
            flush=True,
        )
    return rows


def cost(rounds: int) -> list[dict]:
    """Median processor time of a step with a full memory, and its bytes, by model and policy."""
    rows = []
    nano, _ = load_model("omnistream-nano")
    rows += time_policies("omnistream-nano, float32", nano, (144, 192), POLICIES, rounds)
    nano, _ = load_model("omnistream-nano")
    fast = fast_model(nano, torch.bfloat16)
    rows += time_policies("omnistream-nano, bfloat16 kernel", fast, (144, 192), POLICIES, rounds)
    large = random_large()
    rows += time_policies(
        "omnistream-l, bfloat16 kernel", large, (224, 224), LARGE_POLICIES, max(3, rounds // 10)
    )
    return rows


def random_large() -> OmniStream:
    """ViT-L with any numbers in it, quickly."""
    model = build_model("omnistream-l", device="meta").to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.05, 0.05, generator=generator)
    return fast_model(model, torch.bfloat16)


def time_policies(
    title: str,
    model: OmniStream,
    size: tuple[int, int],
    policies: dict[str, Policy],
    rounds: int,
) -> list[dict]:
    pixels = torch.randn(8, 1, 3, *size)
    caches = {}
    with torch.inference_mode():
        for name, policy in policies.items():
            cache = caches[name] = model.backbone.allocate_cache(*size, policy=policy)
            # As full as it will ever be: frames that did not come cost as much as those that did.
            cache.frames_seen = policy.slots - 1 if isinstance(policy, Full) else 1000
            for entry in range(policy.entries):
                look = torch.randn(4 * model.config.width)
                cache.streams[0].keep(entry, Keyframe(entry + 1, look))
            model.backbone.step(pixels[0], cache)
        seconds: dict[str, list[float]] = {name: [] for name in policies}
        for i in range(rounds):
            for name, policy in policies.items():
                if isinstance(policy, Full):
                    caches[name].frames_seen = policy.slots - 1
                start = time.process_time()
                model.backbone.step(pixels[i % 8], caches[name])
                seconds[name].append(time.process_time() - start)
    rows = []
    for name, values in seconds.items():
        rows.append(
            {
                "model": title,
                "policy": name,
                "ms": 1e3 * statistics.median(values),
                "cache_mb": caches[name].nbytes / 1e6,
                "threads": torch.get_num_threads(),
            }
        )
        print(f"{title:<34}{name:<32}{rows[-1]['ms']:8.1f} ms {rows[-1]['cache_mb']:8.1f} MB")
    return rows


def report(folder: Path) -> None:
    """Tables and plot of what is in the folder."""
    rows = load(folder / "accuracy.json")["rows"]
    costs = load(folder / "cost.json")["rows"]
    nano = {row["policy"]: row for row in costs if row["model"] == "omnistream-nano, float32"}
    names = list(dict.fromkeys(row["recording"] for row in rows))
    by = {(row["policy"], row["recording"]): row for row in rows}

    def mean(policy: str, key: str) -> float:
        return float(np.mean([by[policy, name][key] for name in names]))

    lines = [
        "| policy | ms | cache, MB | from full | mean AbsRel | without scale | "
        + " | ".join(names)
        + " |",
        "|---" * (6 + len(names)) + "|",
    ]
    for policy in POLICIES:
        cells = [f"{by[policy, name]['abs_rel']:.4f}" for name in names]
        lines.append(
            f"| {policy} | {nano[policy]['ms']:.1f} | {nano[policy]['cache_mb']:.1f} | "
            f"{100 * mean(policy, 'from_full'):.2f} % | {mean(policy, 'abs_rel'):.4f} | "
            f"{mean(policy, 'abs_rel_metric'):.4f} | " + " | ".join(cells) + " |"
        )
    lines += ["", "| policy | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for policy in POLICIES:
        errors = [by[policy, name]["ate_m"] for name in names]
        cells = ["" if error is None else f"{error:.3f}" for error in errors]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    costs = [row for row in costs if row["policy"] in {**POLICIES, **LARGE_POLICIES}]
    lines += ["", "| model | policy | ms | cache, MB |", "|---|---|---|---|"]
    lines += [
        f"| {row['model']} | {row['policy']} | {row['ms']:.1f} | {row['cache_mb']:.1f} |"
        for row in costs
    ]
    (folder / "memory_policies.md").write_text("\n".join(lines) + "\n")
    draw(
        [
            (p, nano[p]["ms"], nano[p]["cache_mb"], mean(p, "from_full"), mean(p, "abs_rel"))
            for p in POLICIES
        ],
        folder / "memory_policies.png",
    )
    print("\n".join(lines))


def draw(points: list[tuple[str, float, float, float, float]], path: Path) -> None:
    """Accuracy against cost: difference from the full memory, and error, over time and bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for (name, ms, megabytes, from_full, error), marker in zip(points, "osD^v<>P", strict=False):
        style = {"color": "#c2410c" if "keyframes" in name else "#2563eb", "marker": marker}
        left.plot(megabytes, 100 * from_full, linestyle="", label=name, **style)
        right.plot(ms, error, linestyle="", **style)
    right.set_ylim(0, 1.15 * max(error for *_, error in points))
    left.set_xscale("log")
    left.set_xlabel("cache, MB")
    left.set_ylabel("depth differs from the full memory's by, %")
    right.set_xlabel("a step of the backbone, ms of processor time")
    right.set_ylabel("AbsRel, mean over recordings")
    for axes in (left, right):
        axes.grid(color="#e6e8eb", linewidth=0.7)
    figure.legend(loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, dpi=120)


def load(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {"rows": []}


def save(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps({**surroundings(sys.argv), "rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("accuracy", "cost", "report"))
    parser.add_argument("recordings", nargs="*", metavar="RECORDING[=START:STOP:STEP]")
    parser.add_argument("--model", default="omnistream-nano")
    parser.add_argument("--rounds", type=int, default=40, help="of `cost`; default: %(default)s")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "accuracy":
        torch.set_num_threads(1)
        rows = load(args.out / "accuracy.json")["rows"]
        for text in args.recordings:
            name, _, frames = text.partition("=")
            path = Path(name).resolve()
            if any(row["recording"] == path.name for row in rows):
                continue
            chosen = FrameRange.parse(frames) if frames else ALL_FRAMES
            rows += accuracy(path, chosen, args.model)
            save(args.out / "accuracy.json", rows)
    elif args.what == "cost":
        save(args.out / "cost.json", cost(args.rounds))
    else:
        report(args.out)


if __name__ == "__main__":
    main()
