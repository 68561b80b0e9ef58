# SPDX-License-Identifier: Apache-2.0
"""What it brings to bend depth images until they agree with the frames before them.

    python benchmarks/consistent_depth.py RECORDING... [--model omnistream-nano] [--every N]

Two sessions of one model see the same frames; one has `consistent_depth`. Prints AbsRel and delta <
1.25 against true depth, as metres and after one scale for the whole recording, how much the scale
differs from frame to frame (standard deviation of the median log ratio), and processor time per
frame.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import numpy as np

from omnistream_ros.evaluation.depth_metrics import evaluate_depth
from omnistream_ros.evaluation.depth_pairs import DepthPairs
from omnistream_ros.evaluation.recordings import open_recording, with_depth
from omnistream_ros.model import OmniStream, load_model
from omnistream_ros.stream.depth_resize import resize_depth
from omnistream_ros.stream.session import StreamSession

WAYS = {"as predicted": False, "consistent": True}


def measure(model: OmniStream, path: Path, every: int) -> list[str]:
    """Lines of the table for one recording."""
    recording = open_recording(path)
    sessions = {way: StreamSession(model, consistent_depth=on) for way, on in WAYS.items()}
    pairs = {way: DepthPairs() for way in WAYS}
    scales: dict[str, list[float]] = {way: [] for way in WAYS}
    seconds = dict.fromkeys(WAYS, 0.0)
    steps = 0
    matched = with_depth(recording.frames(), recording.depths())
    for frame, truth in islice(matched, 0, None, every):
        steps += 1
        for way, session in sessions.items():
            began = time.thread_time()
            depth = session.step(frame).depth
            seconds[way] += time.thread_time() - began
            if truth is None or depth is None:
                continue
            pairs[way].add(frame.stamp_ns, depth.float().numpy(), truth.depth)
            ours = resize_depth(depth, truth.depth.shape[:2]).numpy()
            ratio = np.log(truth.depth / ours)
            scales[way].append(float(np.median(ratio[np.isfinite(ratio)])))
    lines = []
    for way in WAYS:
        metric, scaled = (
            evaluate_depth(pairs[way], alignment).metrics for alignment in ("metric", "scale")
        )
        lines.append(
            f"| {recording.name} | {steps} | {way} | {metric.abs_rel:.3f}, {metric.delta1:.3f} "
            f"| {scaled.abs_rel:.3f}, {scaled.delta1:.3f} | {np.nanstd(scales[way]):.3f} "
            f"| {1000 * seconds[way] / steps:.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--model", default="omnistream-nano")
    parser.add_argument("--every", type=int, default=1, help="take every n-th frame")
    args = parser.parse_args()
    model, _ = load_model(args.model)
    print("| recording | frames | depth | as metres | one scale | spread of scale | ms |")
    print("|---|---|---|---|---|---|---|")
    for path in args.recordings:
        print("\n".join(measure(model, path, args.every)), flush=True)


if __name__ == "__main__":
    main()
