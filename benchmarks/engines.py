#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time of a step by engine: the same model, images and cache, one engine after the other in turn.

    python benchmarks/engines.py [MODEL] [--engines eager:float32 onnx:float32 ...] [--rounds 30]

Each engine is checked against eager float32 first, as the node does; its agreement is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

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
    options = parser.parse_args()
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
    times: dict[str, list[float]] = {wish: [] for wish in engines}
    for _ in range(options.rounds):
        pixels = torch.randn(1, 3, *size)
        for wish, engine in engines.items():
            given = pixels.to(engine.model.backbone.compute_dtype)
            begin = time.perf_counter()
            engine.step(given, caches[wish], depth=True, camera=True)
            times[wish].append(time.perf_counter() - begin)
    print(f"\n{options.model} at {size[1]}x{size[0]}, {machine(torch.device('cpu'))}, all heads")
    print(f"{'engine':20}{'median ms':>11}{'p95 ms':>9}{'times eager':>13}")
    first = next(iter(times))
    for wish, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(times[first], seconds, strict=True))
        median, late = np.percentile(seconds[3:], (50, 95))
        print(f"{wish:20}{1e3 * median:11.1f}{1e3 * late:9.1f}{ratio:13.2f}")


if __name__ == "__main__":
    main()
