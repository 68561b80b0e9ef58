#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time of a step by engine: the same model, images and cache, one engine after the other in turn.

    python benchmarks/engines.py [MODEL] [--engines eager:float32 onnx:float32 ...] [--rounds 30]
        [--out FILE.json]

Each engine is checked against eager float32 first, as the node does. Times are by the clock and in
processor time of all threads, which other programs disturb less; torch's threads sleep while they
wait, ONNX Runtime's own do not, so its processor time is too high by their waiting.
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

from omnistream_ros.evaluation.summary import surroundings
from omnistream_ros.model import load_model
from omnistream_ros.model.cache_policy import Window
from omnistream_ros.stream.engines import EngineError, EngineMaker, StepShape
from omnistream_ros.stream.engines.choice import machine
from omnistream_ros.stream.preprocess import model_size

DEFAULT = ["eager:float32", "fast:float32", "compiled:float32", "onnx:float32", "fast:bfloat16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="omnistream-nano")
    parser.add_argument("--engines", nargs="+", default=DEFAULT, metavar="NAME:PRECISION")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--image", type=int, nargs=2, default=(640, 480))
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, card = load_model(options.model)
    size = model_size(*reversed(options.image), model.config.model_pixels, model.config.patch_size)
    shape = StepShape(*size, Window(1, options.window))
    engines, caches = {}, {}
    for wish in options.engines:
        name, _, precision = wish.partition(":")
        begin = time.perf_counter()
        maker = EngineMaker(model, card.sha256, shape, getattr(torch, precision), tell=print)
        try:
            engine = maker.make(name)
        except EngineError as error:
            print(f"{wish}: {error}")
            continue
        print(f"{wish}: made and checked in {time.perf_counter() - begin:.1f} s")
        if engine.remark:
            continue
        engines[wish] = engine
        caches[wish] = engine.allocate_cache(*size, shape.policy)
        caches[wish].frames_seen = shape.policy.slots  # full
    times: dict[str, list[tuple[float, float]]] = {wish: [] for wish in engines}
    for _ in range(options.rounds):
        pixels = torch.randn(1, 3, *size)
        for wish, engine in engines.items():
            given = pixels.to(engine.model.backbone.compute_dtype)
            begin = time.perf_counter(), time.process_time()
            engine.step(given, caches[wish], depth=True, camera=True)
            times[wish].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    first, rows = next(iter(times)), {}
    for wish, pairs in times.items():
        clock, cpu = (
            statistics.median(
                a[kind] / b[kind] for a, b in zip(times[first][3:], pairs[3:], strict=True)
            )
            for kind in range(2)
        )
        median, late = np.percentile([pair[0] for pair in pairs[3:]], (50, 95))
        rows[wish] = {
            "median_ms": 1e3 * float(median),
            "p95_ms": 1e3 * float(late),
            "ratio": clock,
            "cpu_ms": 1e3 * statistics.median(pair[1] for pair in pairs[3:]),
            "cpu_ratio": cpu,
        }
    print(f"\n{options.model} at {size[1]}x{size[0]}, {machine(torch.device('cpu'))}, all heads")
    print(f"{'engine':20}{'median ms':>11}{'p95 ms':>9}{'ratio':>7}{'cpu ms':>9}{'ratio':>7}")
    for wish, row in rows.items():
        print(
            f"{wish:20}{row['median_ms']:11.1f}{row['p95_ms']:9.1f}{row['ratio']:7.2f}"
            f"{row['cpu_ms']:9.1f}{row['cpu_ratio']:7.2f}"
        )
    if options.out:
        content = {**surroundings(sys.argv), "model": options.model, "rows": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
