# SPDX-License-Identifier: Apache-2.0
"""What a camera costs when 1, 2 or 4 of them share a step.

    python benchmarks/camera_batch.py --out FOLDER [--rounds 30]

For each number of cameras, batched steps and single steps one after the other take turns on full
caches of 1 + 16 frames. Cameras stand at different frame counts, as they do on a robot. Times are
processor time of all threads, which other programs disturb least. Writes camera_batch.json and
camera_batch.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import torch

from omnistream_ros.evaluation.summary import surroundings
from omnistream_ros.model import OmniStream, build_model, load_model
from omnistream_ros.model.fast_cpu import fast_model

CAMERAS = (1, 2, 4)


def random_large() -> OmniStream:
    """ViT-L with any numbers in it, quickly."""
    model = build_model("omnistream-l", device="meta").to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.05, 0.05, generator=generator)
    return model


CASES: dict[str, tuple[Callable[[], OmniStream], tuple[int, int]]] = {
    "omnistream-nano with heads, 192x144, float32": (
        lambda: load_model("omnistream-nano")[0],
        (144, 192),
    ),
    "omnistream-nano with heads, 192x144, bfloat16 kernel": (
        lambda: fast_model(load_model("omnistream-nano")[0], torch.bfloat16),
        (144, 192),
    ),
    "omnistream-l, 224x224, bfloat16 kernel": (
        lambda: fast_model(random_large(), torch.bfloat16),
        (224, 224),
    ),
    "omnistream-l, 64x64, bfloat16 kernel": (
        lambda: fast_model(random_large(), torch.bfloat16),
        (64, 64),
    ),
}


def measure(title: str, model: OmniStream, size: tuple[int, int], rounds: int) -> list[dict]:
    """Median processor milliseconds per camera, batched and one after the other."""
    pixels = torch.randn(max(CAMERAS), 3, *size)
    steps: dict[tuple[int, str], Callable[[], object]] = {}
    for cameras in CAMERAS:
        batched = model.backbone.allocate_cache(*size, batch=cameras)
        alone = [model.backbone.allocate_cache(*size) for _ in range(cameras)]
        for i in range(cameras):
            batched.streams[i].frames_seen = alone[i].frames_seen = 1000 + 7 * i

        def together(cache=batched, n=cameras):  # type: ignore[no-untyped-def]
            model.step(pixels[:n], cache)

        def in_turn(caches=alone):  # type: ignore[no-untyped-def]
            for i, cache in enumerate(caches):
                model.step(pixels[i : i + 1], cache)

        steps[cameras, "batched"], steps[cameras, "in turn"] = together, in_turn
    seconds: dict[tuple[int, str], list[float]] = {key: [] for key in steps}
    with torch.inference_mode():
        for step in steps.values():
            step()
        for _ in range(rounds):
            for key, step in steps.items():
                start = time.process_time()
                step()
                seconds[key].append(time.process_time() - start)
    rows = []
    for cameras in CAMERAS:
        batched_ms, in_turn_ms = (
            1e3 * statistics.median(seconds[cameras, way]) / cameras
            for way in ("batched", "in turn")
        )
        ratios = [
            a / b
            for a, b in zip(seconds[cameras, "in turn"], seconds[cameras, "batched"], strict=True)
        ]
        rows.append(
            {
                "case": title,
                "cameras": cameras,
                "batched_ms": batched_ms,
                "in_turn_ms": in_turn_ms,
                "ratio": statistics.median(ratios),
                "threads": torch.get_num_threads(),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    lines = [
        "| | cameras | ms per camera, batched | in turn | ratio |",
        "|---|---|---|---|---|",
    ]
    for title, (make, size) in CASES.items():
        large = title.startswith("omnistream-l")
        for row in measure(title, make(), size, max(3, args.rounds // 8) if large else args.rounds):
            rows.append(row)
            lines.append(
                f"| {title} | {row['cameras']} | {row['batched_ms']:.1f} | "
                f"{row['in_turn_ms']:.1f} | {row['ratio']:.2f} |"
            )
            print(lines[-1], flush=True)
        content = {**surroundings(sys.argv), "rows": rows}
        (args.out / "camera_batch.json").write_text(json.dumps(content, indent=1) + "\n")
        (args.out / "camera_batch.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
