# SPDX-License-Identifier: Apache-2.0
"""A step of the stream beside the released implementation's, in one run, interleaved.

    python benchmarks/against_released.py [--model omnistream-l] [--size 224 224] [--context 64]
        [--threads 2] [--rounds 7] [--agreement] --out FILE.json

All ways take turns, once each round, and the median of the rounds counts: whatever else the machine
does meets all of them. Ratios are given by the clock and in processor time of all threads, which
other programs disturb less (threads sleep while they wait, so that waiting costs none). Each round
also multiplies large matrices in both types, to say how much of this machine a step uses. Peak
memory is that of a process of its own for each way. --agreement first shows every way the same
`context` frames and compares features and depth with --reference.

`window + memory` keeps all frames, too: the first and the newest three eighths as they are, of the
others one token for 2x2 patches.

omnistream-l has random weights, which cost the same, with layer scales of 1, which hide no error;
omnistream-nano has its own, and its heads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import torch
from released import ReleasedStream, check
from torch import Tensor

from omnistream_ros.evaluation.bench_row import count_flop, matrix_speed
from omnistream_ros.evaluation.summary import surroundings
from omnistream_ros.model import KVCache, OmniStream, Prediction, build_model, load_model, native
from omnistream_ros.model.cache_policy import Policy, Window, WindowMemory
from omnistream_ros.model.cache_storage import TensorStorage
from omnistream_ros.model.fast_cpu import fast_model
from omnistream_ros.model.layers import LayerScale

BASELINE = "released"
EAGER = "eager float32"
TORCH = "fast bfloat16, torch attention"
MEMORY = "fast bfloat16, window + memory"
WAYS = (BASELINE, EAGER, "fast float32", TORCH, "fast bfloat16", MEMORY)


class Way:
    """One way to run the step that brings the frames in view to `context`."""

    def __init__(self, name: str, plain: OmniStream, size: tuple[int, int], context: int) -> None:
        self.name, self.context = name, context
        self.released = ReleasedStream(plain) if name == BASELINE else None
        self.dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
        self.model = _fast_model(plain, self.dtype) if name.startswith("fast") else plain
        policy: Policy = Window(0, context)
        if name == MEMORY:
            window = 3 * context // 8
            policy = WindowMemory(1, window, context - 1 - window, 2)
        if self.released is None:
            storage = TensorStorage if name == TORCH else self.model.backbone.storage
            self.cache = KVCache.allocate(
                plain.config,
                plain.config.grid(*size),
                policy=policy,
                dtype=self.dtype,
                storage=storage,
            )

    def step(self, pixels: Tensor) -> Prediction:
        """The next frame of the stream."""
        if self.released is not None:
            return self.released.step(pixels)
        return self.model.step(pixels, self.cache)

    def fill(self, images: list[Tensor]) -> None:
        """Bring the stream to context - 1 frames: with any numbers, where any numbers do."""
        config, frames = self.model.config, self.context - 1
        if self.released is not None:
            tokens = frames * (len(images[0][0, 0]) // 16 * (images[0].shape[-1] // 16) + 6)
            shape = 2, 1, config.heads, tokens, config.head_dim
            self.released.past = [tuple(torch.randn(shape)) for _ in range(config.depth)]
            self.released.frames_seen = frames
        elif self.name == MEMORY:
            patches = len(images[0][0, 0]) // 16 * (images[0].shape[-1] // 16)
            self.cache.storage.keys.normal_()
            self.cache.storage.values.normal_()
            for _ in range(frames):  # all that a step does but for the network
                self.cache.begin_frame()
                self.cache.end_frame(torch.randn(1, patches, config.width))
        else:
            self.cache.storage.keys.normal_()
            self.cache.storage.values.normal_()

    def seconds(self, pixels: Tensor) -> tuple[float, float]:
        """By the clock and of processors, of one step at full context; the stream stays there."""
        if self.released is None and self.name != MEMORY:
            self.cache.frames_seen = self.context - 1
        start = time.perf_counter(), time.process_time()
        if self.released is not None:
            self.released.step(pixels, keep=False)
        else:
            self.step(pixels)
        return time.perf_counter() - start[0], time.process_time() - start[1]


@lru_cache(maxsize=2)
def _fast_model(plain: OmniStream, dtype: torch.dtype) -> OmniStream:
    """Ways that differ in their caches alone share one."""
    return fast_model(plain, dtype)


def make_plain(name: str, *, heads: bool = False) -> OmniStream:
    """The float32 model; omnistream-l with random weights, on request those of a depth head too."""
    if name == "omnistream-nano":
        return load_model(name)[0]
    torch.manual_seed(0)
    config = build_model(name, device="meta").config
    model = build_model(replace(config, head_width=64) if heads else config).eval()
    for module in model.modules():
        if isinstance(module, LayerScale):
            torch.nn.init.ones_(module.gamma)
    return model


def smooth_frames(size: tuple[int, int], count: int) -> list[Tensor]:
    """A drifting pattern: neighbours are alike, as images of a camera are."""
    generator = torch.Generator().manual_seed(3)
    height, width = size
    coarse = torch.randn(1, 3, height // 8 + count, width // 8, generator=generator)
    images = []
    for i in range(count):
        part = coarse[:, :, i : i + height // 8]
        image = torch.nn.functional.interpolate(part, size, mode="bilinear")
        images.append(image + 0.05 * torch.randn(1, 3, height, width, generator=generator))
    return images


def agreement(
    plain: OmniStream, size: tuple[int, int], context: int, names: Sequence[str], against: str
) -> dict[str, dict[str, float]]:
    """Smallest feature cosine, largest relative difference of depth, over `context` frames."""
    images = smooth_frames(size, context)
    out: dict[str, dict[str, float]] = {BASELINE: {"largest_difference": check(plain, *size)}}
    reference = Way(against, plain, size, context)
    others = [Way(name, plain, size, context) for name in names if name not in (BASELINE, against)]
    worst = {way.name: (1.0, 0.0) for way in others}
    for image in images:
        want = reference.step(image)
        for way in others:
            got = way.step(image)
            cosine, depth = worst[way.name]
            a, b = got.features.patches.double(), want.features.patches.double()
            cosine = min(cosine, float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)))
            if want.depth is not None and got.depth is not None:
                depth = max(depth, float((got.depth / want.depth).log().abs().mean()))
            worst[way.name] = cosine, depth
    return out | {name: {"cosine": c, "depth": d} for name, (c, d) in worst.items()}


def peak_mib(args: argparse.Namespace, name: str) -> float:
    """Most memory that a process held which runs this way alone, the model's making included."""
    command = [sys.executable, __file__, "--child", name, "--model", args.model]
    command += ["--size", *map(str, args.size), "--context", str(args.context)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def child(args: argparse.Namespace) -> None:
    plain = make_plain(args.model)
    way = Way(args.child, plain, tuple(args.size), args.context)
    _fast_model.cache_clear()  # it would hold on to the float32 weights
    del plain
    images = smooth_frames(tuple(args.size), 4)
    way.fill(images)
    for image in images[:2]:
        way.seconds(image)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Time all ways in turns; numbers by way."""
    size = tuple(args.size)
    plain = make_plain(args.model)
    images = smooth_frames(size, 16)
    ways = [Way(name, plain, size, args.context) for name in args.ways]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in args.ways}
    peaks: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    with torch.inference_mode():
        for way in ways:
            way.fill(images)
            way.seconds(images[0])
        gflop = count_flop(lambda: ways[0].seconds(images[0])) / 1e9
        for number in range(args.rounds):
            for way in ways:
                times[way.name].append(way.seconds(images[number % len(images)]))
            for dtype, values in peaks.items():
                values.append(matrix_speed(torch.device("cpu"), dtype))
    rows = {}
    for way in ways:
        ratios, cpu_ratios = (
            statistics.median(
                a[kind] / b[kind] for a, b in zip(times[args.ways[0]], times[way.name], strict=True)
            )
            for kind in range(2)
        )
        clock, cpu = ([pair[kind] for pair in times[way.name]] for kind in range(2))
        seconds, peak = statistics.median(clock), statistics.median(peaks[way.dtype])
        rows[way.name] = {
            "median_ms": 1e3 * seconds,
            "best_ms": 1e3 * min(clock),
            "ratio": ratios,
            "cpu_ms": 1e3 * statistics.median(cpu),
            "cpu_ratio": cpu_ratios,
            "of_peak": None if way.name == MEMORY else gflop / seconds / peak,
            "peak_gflops": peak,
        }
    return {"gflop": gflop, "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--model", default="omnistream-l")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("H", "W"))
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--agreement", action="store_true", help="also compare what is computed")
    parser.add_argument("--reference", choices=WAYS, default=EAGER, help="to agree with")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    parser.add_argument("--out", type=Path, help="JSON file; what it has of other parts stays")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        child(args)
        return 0
    content: dict[str, Any] = {}
    if args.out and args.out.exists():
        content = json.loads(args.out.read_text())
    kernel = native.load()
    content |= surroundings(sys.argv) | {"kernel": kernel and kernel.instructions}
    if args.agreement:
        plain = make_plain(args.model, heads=True)
        content["agreement"] = agreement(
            plain, tuple(args.size), args.context, args.ways, args.reference
        )
    if args.memory:
        content["peak_mib"] = {name: peak_mib(args, name) for name in args.ways}
    if args.rounds:
        content |= compare(args)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(content, indent=1) + "\n")
    show(content)
    return 0


def show(content: dict[str, Any]) -> None:
    """The table in the terminal."""
    head = f"{'':<34}{'ms':>8}{'best':>8}{'ratio':>7}{'of cpu':>7}{'of peak':>9}{'MiB':>7}"
    print(head + "  agreement")
    for name in WAYS:
        row = content.get("rows", {}).get(name)
        line = f"{name:<34}"
        if row:
            share = "" if row["of_peak"] is None else f"{100 * row['of_peak']:.0f} %"
            line += f"{row['median_ms']:>8.1f}{row['best_ms']:>8.1f}{row['ratio']:>7.2f}"
            line += f"{row['cpu_ratio']:>7.2f}{share:>9}"
        peak = content.get("peak_mib", {}).get(name)
        line += f"{peak:>7.0f}  " if peak else f"{'':>9}"
        agrees = content.get("agreement", {}).get(name, {})
        print(line + ", ".join(f"{key} {value:.7g}" for key, value in agrees.items()))


if __name__ == "__main__":
    sys.exit(main())
