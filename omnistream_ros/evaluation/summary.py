# SPDX-License-Identifier: Apache-2.0
"""The numbers of an evaluation: averages of the protocol, the terminal's table, the files."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from omnistream_ros.evaluation.depth_metrics import DepthMetrics, weighted_mean
from omnistream_ros.evaluation.sequence_result import SequenceResult
from omnistream_ros.evaluation.trajectory import format_stamp, write_tum

FORMAT = 1

#: One line for every number, in reports and in docs/evaluation.md.
EXPLANATIONS = {
    "AbsRel": "mean of |predicted - true| / true depth over all valid pixels; lower is better",
    "SqRel": "mean of (predicted - true)^2 / true, in metres; large errors count more",
    "RMSE": "root mean square depth error in metres",
    "log RMSE": "root mean square difference of the logarithms of depth",
    "log MAE": "mean absolute difference of the logarithms of depth; too near costs like too far",
    "d < 1.25": "share of pixels whose depth is within a factor of 1.25 of the truth; also ^2, ^3",
    "metric": "depth as predicted, without any alignment",
    "scale": "one factor per sequence, by the protocol's ten reweighted rounds",
    "scale (exact)": "one factor per sequence that minimises the absolute error",
    "scale_shift": "one factor and one offset per sequence that minimise the absolute error",
    "median": "one factor per sequence: ratio of the medians",
    "constant": "baseline: the median true depth of the sequence in every pixel",
    "flicker": "mean change of log(predicted / true) at the same scene points one frame later",
    "ATE": "root mean square distance between estimated and true positions after alignment",
    "RPE": "root mean square error of the motion from one frame to the next",
    "sim3": "poses aligned by rotation, translation and scale (the protocol's way)",
    "se3": "poses aligned by rotation and translation only: metres as estimated",
    "static": "baseline: a camera that stands still",
    "scale drift": "change of the local scale from the first to the last quarter of the way",
    "tracked": "share of the frames in which the camera could be followed",
}


def averages(results: Sequence[SequenceResult]) -> dict[str, Any]:
    """Means over the sequences that were measured, and which those are.

    Depth is weighted by valid pixels and pose is not, as in the protocol. Failed and partial
    sequences are named, and are in no mean.
    """
    good = [result for result in results if result.status == "ok"]
    out: dict[str, Any] = {
        "sequences": len(results),
        "averaged": [result.name for result in good],
        "left_out": {r.name: r.error or r.status for r in results if r.status != "ok"},
        "depth": {},
        "pose": {},
    }
    for name in dict.fromkeys(name for result in good for name in result.depth):
        of = [result.depth[name].metrics for result in good if name in result.depth]
        out["depth"][name] = {**dataclasses.asdict(weighted_mean(of)), "sequences": len(of)}
    constants = [r.constant_depth for r in good if r.constant_depth is not None]
    if constants:
        out["depth"]["constant"] = {
            **dataclasses.asdict(weighted_mean(constants)),
            "sequences": len(constants),
        }
    for name in dict.fromkeys(name for result in good for name in result.pose):
        of_pose = [result.pose[name] for result in good if name in result.pose]
        out["pose"][name] = {
            key: float(np.mean([getattr(pose, key) for pose in of_pose]))
            for key in ("ate_m", "rpe_m", "rpe_deg", "tracked_percent")
        }
        out["pose"][name]["sequences"] = len(of_pose)
    return out


def sequence_numbers(result: SequenceResult) -> dict[str, Any]:
    """All numbers of one sequence, ready for JSON."""
    numbers: dict[str, Any] = {
        "name": result.name,
        "path": result.path,
        "status": result.status,
        "error": result.error,
        "notes": result.notes,
        "frames": len(result.rows),
        "epochs": len({row.epoch for row in result.rows}),
        "model": result.model,
        "weights_sha256": result.sha256,
        "metric": result.metric,
        "memory": result.memory,
        "depth": {
            name: {
                **dataclasses.asdict(depth.metrics),
                "coverage": depth.coverage,
                "alignment": None
                if depth.alignment is None
                else dataclasses.asdict(depth.alignment),
            }
            for name, depth in result.depth.items()
        },
        "pose": {name: dataclasses.asdict(pose) for name, pose in result.pose.items()},
        "flicker": result.temporal_change,
        "latency_ms": latency(result),
        "memory_mib": max((row.memory_mib for row in result.rows), default=math.nan),
    }
    if result.constant_depth is not None:
        numbers["depth"]["constant"] = dataclasses.asdict(result.constant_depth)
    if result.live is not None:
        numbers["live"] = dataclasses.asdict(result.live)
    return numbers


def memory_text(sequences: Sequence[dict[str, Any]]) -> str:
    """What the streams of these sequences remembered, in words; empty where nothing says so.

    Args:
        sequences: as `sequence_numbers` makes them; those of older files have no ``memory``.
    """
    said = []
    for memory in (one.get("memory") for one in sequences):
        if memory:
            numbers = (f"{key} {value}" for key, value in memory.items() if key != "name")
            said.append(f"{memory['name']} ({', '.join(numbers)})")
    return "; ".join(dict.fromkeys(said))


def latency(result: SequenceResult) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of the milliseconds of each stage and of their sum.

    The first frame is left out: it pays for memory and caches that later ones find ready.
    """
    rows = [row.timings_ms for row in result.rows[1:] if row.timings_ms]
    table: dict[str, list[float]] = {}
    for row in rows:
        for stage, value in row.items():
            table.setdefault(stage, []).append(value)
        table.setdefault("total", []).append(sum(row.values()))
    if "total" in table:
        table["total"] = table.pop("total")  # last
    return {
        stage: {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}
        for stage, values in table.items()
    }


def surroundings(command: Sequence[str]) -> dict[str, Any]:
    """The command, the versions and the machine, so that numbers can be made again."""
    versions = {"python": platform.python_version()}
    for package in ("omnistream_ros", "torch", "numpy", "opencv-python-headless", "rosbags"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": shlex.join(command),
        "versions": versions,
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# -- files ----------------------------------------------------------------------------------------


def summarise(results: Sequence[SequenceResult], about: dict[str, Any]) -> dict[str, Any]:
    """Everything that goes into ``metrics.json``."""
    return {
        "format": FORMAT,
        **about,
        "averages": averages(results),
        "sequences": [sequence_numbers(result) for result in results],
    }


def write_files(results: Sequence[SequenceResult], out: Path, content: dict[str, Any]) -> None:
    """Write ``metrics.json`` and, per sequence, ``trajectory.tum`` and ``frames.csv``.

    Args:
        content: from `summarise`.

    Raises:
        OSError: the folder cannot be written (the disk may be full).
    """
    for folder, result in zip(sequence_folders(results), results, strict=True):
        place = out / folder
        place.mkdir(exist_ok=True)
        if result.trajectory is not None:
            write_tum(place / "trajectory.tum", result.trajectory)
        if result.rows:
            write_frames(place / "frames.csv", result)
    text = json.dumps(_jsonable(content), indent=2, allow_nan=False)
    # Complete or not at all: a report must not read half a file.
    temporary = out / "metrics.json.part"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(out / "metrics.json")


def sequence_folders(results: Sequence[SequenceResult]) -> list[str]:
    """A folder name for each sequence; equal names get a number."""
    seen: dict[str, int] = {}
    names = []
    for result in results:
        count = seen[result.name] = seen.get(result.name, 0) + 1
        names.append(result.name if count == 1 else f"{result.name}_{count}")
    return names


def write_frames(path: Path, result: SequenceResult) -> None:
    """One line per frame: its place, its timings, its errors."""
    stages = list(dict.fromkeys(stage for row in result.rows for stage in row.timings_ms))
    by_stamp = {
        name: dict(zip(result.depth_stamps, depth.per_frame, strict=True))
        for name, depth in result.depth.items()
        if name in ("metric", "scale")
    }
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(
            ["frame", "stamp_s", "epoch", "frame_index", "epoch_reason", "context_frames",
             "tracked", "memory_mib", *(f"{stage}_ms" for stage in stages),
             *(f"{metric}_{name}" for name in by_stamp for metric in ("abs_rel", "delta1")),
             "flicker"]
        )  # fmt: skip
        for row in result.rows:
            depths: list[str] = []
            for values in by_stamp.values():
                depth: DepthMetrics | None = values.get(row.stamp_ns)
                depths += ["", ""] if depth is None else [_text(depth.abs_rel), _text(depth.delta1)]
            table.writerow(
                [row.number, format_stamp(row.stamp_ns), row.epoch, row.frame_index,
                 row.epoch_reason, row.context_frames, int(row.tracked), _text(row.memory_mib),
                 *(_text(row.timings_ms.get(stage, math.nan)) for stage in stages),
                 *depths, _text(row.temporal_change)]
            )  # fmt: skip


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _jsonable(value: Any) -> Any:
    """The same with null for what is not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def command_line() -> list[str]:
    """How this process was started, as one would type it."""
    return ["omnistream", *sys.argv[1:]]
