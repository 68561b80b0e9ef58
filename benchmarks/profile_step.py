# SPDX-License-Identifier: Apache-2.0
"""Where the time of a fast step goes: `python benchmarks/profile_step.py [MODEL] --out FILE.json`.

Times the parts of `fast_model` from outside, in the medians of several steps at full context, in
processor time of all threads: that is what other programs disturb least. Parts are disjoint; "the
rest" is additions, casts, and what Python itself costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import torch

from omnistream_ros.evaluation.summary import surroundings
from omnistream_ros.model import build_model, load_model, native
from omnistream_ros.model.cache_policy import Full
from omnistream_ros.model.fast_cpu import PackedLinear, fast_model
from omnistream_ros.model.heads import CameraHead, DualDPT
from omnistream_ros.model.layers import LayerNorm
from omnistream_ros.model.matching import MatchingHead
from omnistream_ros.model.patch_embed import ConvPatchEmbed, TrunkPatchEmbed

PARTS: tuple[tuple[str, type, str], ...] = (
    ("embedding or trunk", ConvPatchEmbed, "forward"),
    ("embedding or trunk", TrunkPatchEmbed, "forward"),
    ("linear layers", PackedLinear, "forward"),
    ("attention", native.Kernel, "attend"),
    ("rotation and cache", native.Kernel, "rotate_"),
    ("rotation and cache", native.Kernel, "write"),
    ("rotation and cache", native.Kernel, "turn"),
    ("norms", LayerNorm, "forward"),
    ("depth head", DualDPT, "forward"),
    ("camera head", CameraHead, "forward"),
    ("descriptors", MatchingHead, "describe"),
)
SIZES = {"omnistream-nano": ((144, 192), 17), "omnistream-l": ((224, 224), 64)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="omnistream-nano", choices=SIZES)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size, context = SIZES[args.model]
    nano = args.model == "omnistream-nano"
    plain = load_model(args.model)[0] if nano else build_model(args.model).eval()
    model = fast_model(plain)
    cache = model.backbone.allocate_cache(*size, policy=Full(context))
    pixels = torch.randn(1, 3, *size)
    spent: dict[str, float] = defaultdict(float)
    inside = False

    def watch(name: str, kind: type, method: str) -> None:
        original = getattr(kind, method)

        def timed(*given: Any, **wanted: Any) -> Any:
            nonlocal inside
            if inside:  # a part of a part
                return original(*given, **wanted)
            inside, start = True, time.process_time()
            try:
                return original(*given, **wanted)
            finally:
                spent[name] += time.process_time() - start
                inside = False

        setattr(kind, method, timed)

    for part in PARTS:
        watch(*part)
    rows: list[dict[str, float]] = []
    with torch.inference_mode():
        for _ in range(args.steps + 3):
            cache.frames_seen = context - 1
            spent.clear()
            start = time.process_time()
            features = model.step(pixels, cache).features
            if model.matching_head is not None:
                model.matching_head.describe(features.pyramid)
            total = time.process_time() - start
            rows.append({**spent, "the rest": total - sum(spent.values()), "all": total})
    rows = rows[3:]
    medians = {name: 1e3 * statistics.median(row[name] for row in rows) for name in rows[0]}
    for name, milliseconds in medians.items():
        print(f"{name:<20}{milliseconds:>9.2f} ms{100 * milliseconds / medians['all']:>6.0f} %")
    if args.out:
        content = {**surroundings(sys.argv), "model": args.model, "milliseconds": medians}
        args.out.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
