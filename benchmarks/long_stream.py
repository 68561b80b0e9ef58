# SPDX-License-Identifier: Apache-2.0
"""Whether a stream gets worse with time, and the pose over the lengths that a robot asks about.

    python benchmarks/long_stream.py RECORDING... [--frames 1000] [--pose geometric head fused]

A recording shorter than `--frames` is walked to and fro until it is that long. Prints, for each
source of the pose: AbsRel in metres and after one scale for all, of each fifth of the stream; ATE
without scale over the whole, and over every 200 frames (median and worst, a window every 20); RPE
over 10 frames; all after a rigid alignment (SE(3)).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from omnistream_ros.evaluation.depth_metrics import evaluate_depth
from omnistream_ros.evaluation.depth_pairs import DepthPairs
from omnistream_ros.evaluation.pose_metrics import (
    absolute_errors,
    align,
    match,
    relative_errors,
    rms,
)
from omnistream_ros.evaluation.recordings import DepthFrame, open_recording, with_depth
from omnistream_ros.evaluation.trajectory import Trajectory, interpolate
from omnistream_ros.model import OmniStream, load_model
from omnistream_ros.model.fast_cpu import fast_model
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.session import StreamSession

PARTS = 5
WINDOW, EVERY, STEP = 200, 20, 10  # frames


@dataclasses.dataclass
class Stretched:
    """A recording walked to and fro: frames with their truth, on a clock of its own."""

    frames: list[Frame]
    depths: list[DepthFrame | None]
    poses: np.ndarray  # (N, 4, 4)
    length: int

    def __iter__(self) -> Iterator[tuple[Frame, DepthFrame | None, np.ndarray]]:
        last = len(self.frames) - 1
        period = (self.frames[-1].stamp_ns - self.frames[0].stamp_ns) // last
        for number in range(self.length):
            index = last - abs(number % (2 * last) - last)
            frame = dataclasses.replace(self.frames[index], stamp_ns=number * period)
            yield frame, self.depths[index], self.poses[index]


def stretched(path: Path, length: int) -> Stretched:
    """The recording as a stream of `length` frames, or of all that it has if those are more."""
    recording = open_recording(path)
    truth = recording.trajectory()
    if truth is None:
        raise SystemExit(f"{path}: no true trajectory")
    pairs = [
        (frame, depth)
        for frame, depth in with_depth(recording.frames(), recording.depths())
        if truth.stamps_ns[0] <= frame.stamp_ns <= truth.stamps_ns[-1]
    ]
    stamps = np.array([frame.stamp_ns for frame, _ in pairs])
    return Stretched(
        [frame for frame, _ in pairs],
        [depth for _, depth in pairs],
        interpolate(truth, stamps).matrices(),
        max(length, len(pairs)),
    )


def measure(model: OmniStream, name: str, stream: Stretched, pose: str) -> str:
    """A line of the table."""
    session = StreamSession(model, pose=pose)
    whole, parts = DepthPairs(), [DepthPairs() for _ in range(PARTS)]
    stamps, ours, true = [], [], []
    for number, (frame, truth, matrix) in enumerate(stream):
        result = session.step(frame)
        assert result.pose is not None
        if truth is not None and result.depth is not None:
            depth = result.depth.float().numpy()
            for pairs in (whole, parts[number * PARTS // stream.length]):
                pairs.add(frame.stamp_ns, depth, truth.depth)
        stamps.append(frame.stamp_ns)
        ours.append(np.concatenate((result.pose.translation, result.pose.quaternion)))
        true.append(matrix)
    scale = evaluate_depth(whole, "scale").alignment.scale
    metric = [evaluate_depth(pairs, "metric").metrics.abs_rel for pairs in parts]
    rows = np.array(ours)
    estimate = Trajectory(np.array(stamps), rows[:, :3], rows[:, 3:])
    reference = Trajectory.from_matrices(np.array(stamps), np.array(true))
    windows = [
        _ate(estimate[at : at + WINDOW], reference[at : at + WINDOW])
        for at in range(0, max(1, len(stamps) - WINDOW + 1), EVERY)
    ]
    metres, degrees = relative_errors(estimate, reference, STEP)
    return (
        f"| {name} | {pose} | {stream.length} | {' '.join(f'{m:.3f}' for m in metric)} "
        f"| {evaluate_depth(whole, 'scale').metrics.abs_rel:.3f} (x {scale:.2f}) "
        f"| {_ate(estimate, reference):.3f} | {np.median(windows):.3f}, {max(windows):.3f} "
        f"| {rms(metres):.3f} m, {rms(degrees):.2f} deg |"
    )


def _ate(estimate: Trajectory, truth: Trajectory) -> float:
    matched, true = match(estimate, truth)
    return rms(absolute_errors(align(matched, true, "se3").apply(matched), true))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--model", default="omnistream-nano")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--pose", nargs="+", default=["geometric"])
    args = parser.parse_args()
    network, _ = load_model(args.model)
    network = fast_model(network, torch.float32)
    print(
        "| recording | pose | frames | AbsRel, metres, by fifths | one scale | ATE m "
        f"| ATE over {WINDOW} frames, median, worst | RPE over {STEP} frames |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for path in args.recordings:
        stream = stretched(path, args.frames)
        for pose in args.pose:
            print(measure(network, path.resolve().name, stream, pose), flush=True)


if __name__ == "__main__":
    main()
