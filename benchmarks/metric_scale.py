# SPDX-License-Identifier: Apache-2.0
"""How well other sensors make a stream metric, on recordings with ground truth.

    python benchmarks/metric_scale.py RECORDING...

The sensors are made from the ground truth: a laser scanner that looks along the middle row of the
image (a beam each 2 columns, 2 % noise, a tenth of them wrong by any amount), the height above the
floor in the true depth (the recording's world must have z up), and wheel odometry at 20 Hz (2 % too
long, 1 mm of noise). Besides the model as it is, one that says everything three times too large.
Printed are errors of depth, without any alignment, over the second half.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import torch

from omnistream_ros.evaluation.recordings import Recording, open_recording, with_depth
from omnistream_ros.evaluation.trajectory import interpolate
from omnistream_ros.model import load_model
from omnistream_ros.stream.metric_scale import NO_EVIDENCE, Evidence, MetricScale
from omnistream_ros.stream.result import StreamResult
from omnistream_ros.stream.scale_evidence import from_ground
from omnistream_ros.stream.session import StreamSession

SOURCES = ("model", "range", "height", "odometry")
UNITS = (1.0, 3.0)  # what a model says of one metre
ODOMETRY_HZ = 20.0


class Sensors:
    """What a robot would hear beside its camera."""

    def __init__(self, recording: Recording, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._odometry: list[tuple[int, np.ndarray]] = []
        self._path = path = recording.trajectory()
        if path is not None and len(path) > 1:
            step = round(1e9 / ODOMETRY_HZ)
            stamps = np.arange(path.stamps_ns[0], path.stamps_ns[-1], step)
            places = interpolate(path, stamps).translations * 1.02
            places = places + self._random.normal(0, 1e-3, places.shape)
            self._odometry = list(zip(stamps.tolist(), places, strict=True))

    def scan(self, truth: np.ndarray, result: StreamResult) -> Evidence:
        """A row of true depth (H, W) as points in the camera."""
        camera = result.intrinsics.resized(truth.shape[1], truth.shape[0])
        row = truth.shape[0] // 2
        columns = np.arange(0, truth.shape[1], 2)
        z = truth[row, columns] * self._random.normal(1.0, 0.02, columns.size)
        wrong = self._random.random(columns.size) < 0.1
        z[wrong] *= self._random.uniform(0.2, 5.0, int(wrong.sum()))
        x = (columns - camera.cx) / camera.fx * z
        y = (row - camera.cy) / camera.fy * z
        return Evidence(points=np.stack([x, y, z], 1))

    def height(self, truth: np.ndarray, result: StreamResult) -> Evidence:
        """How high the camera is above the true floor, and where up is."""
        if self._path is None:
            return NO_EVIDENCE
        nearest = int(np.argmin(np.abs(self._path.stamps_ns - result.stamp_ns)))
        up = self._path.rotations()[nearest].T @ np.array([0.0, 0.0, 1.0])
        camera = result.intrinsics.resized(truth.shape[1], truth.shape[0])
        per_metre = from_ground(torch.from_numpy(truth), camera, up, 1.0)
        return NO_EVIDENCE if per_metre is None else Evidence(up=up, height=1 / per_metre)

    def odometry(self, until_ns: int) -> Evidence:
        """What has come since the last call."""
        fresh = [sample for sample in self._odometry if sample[0] <= until_ns]
        del self._odometry[: len(fresh)]
        return Evidence(positions=tuple(fresh))


def _enlarged(result: StreamResult, unit: float) -> StreamResult:
    """The result of a model that says everything `unit` times too large."""
    assert result.depth is not None
    assert result.pose is not None
    pose = dataclasses.replace(result.pose, translation=unit * result.pose.translation)
    return dataclasses.replace(result, depth=unit * result.depth, pose=pose)


def _abs_rel(depth: np.ndarray, truth: np.ndarray) -> float:
    size = truth.shape[1], truth.shape[0]
    predicted = cv2.resize(depth, size, interpolation=cv2.INTER_LINEAR)
    good = np.isfinite(truth) & (truth > 0.1) & (truth < 20)
    return float(np.mean(np.abs(predicted[good] - truth[good]) / truth[good]))


def measure(path: Path) -> None:
    """Print a table for one recording."""
    recording = open_recording(path)
    model, _ = load_model("omnistream-nano")
    session = StreamSession(model)
    cases = [(unit, source) for unit in UNITS for source in SOURCES]
    scales = {case: MetricScale(case[1]) for case in cases}
    sensors = {case: Sensors(recording) for case in cases}
    errors: dict[tuple[float, str], list[float]] = {case: [] for case in cases}
    factors: dict[tuple[float, str], list[float]] = {case: [] for case in cases}
    for frame, truth in with_depth(recording.frames(), recording.depths()):
        result = session.step(frame)
        for case in cases:
            unit, source = case
            evidence = NO_EVIDENCE
            if source == "range" and truth is not None:
                evidence = sensors[case].scan(truth.depth, result)
            elif source == "height" and truth is not None:
                evidence = sensors[case].height(truth.depth, result)
            elif source == "odometry":
                evidence = sensors[case].odometry(frame.stamp_ns)
            metric = scales[case].apply(_enlarged(result, unit), evidence)
            if truth is not None:
                assert metric.depth is not None
                errors[case].append(_abs_rel(metric.depth.numpy(), truth.depth))
                factors[case].append(scales[case].factor)
    print(f"\n{recording.name}: {len(errors[cases[0]])} frames with depth\n")
    print("| model says | scale from | AbsRel | factor: median, first and last used | state |")
    print("|---|---|---|---|---|")
    for unit, source in cases:
        case = unit, source
        half = len(errors[case]) // 2
        used = [f for f in factors[case] if f != 1.0] or [1.0]
        state = scales[case].state(frame.stamp_ns)
        spread = "" if state.spread is None else f", spread {100 * state.spread:.0f} %"
        what = "as it is" if unit == 1 else f"{unit:g} times too large"
        print(
            f"| {what} | {source} | {np.mean(errors[case][half:]):.3f} | "
            f"{np.median(factors[case][half:]):.3f}, {used[0]:.3f}, {used[-1]:.3f} | "
            f"{state.observations} used, {state.refused} refused{spread} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recordings", nargs="+", type=Path)
    for path in parser.parse_args().recordings:
        measure(path)


if __name__ == "__main__":
    main()
