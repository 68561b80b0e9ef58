# SPDX-License-Identifier: Apache-2.0
"""How often the error of the pose lies within the uncertainty that the pose says it has.

    python benchmarks/pose_calibration.py RECORDING... --out FOLDER [--frames N] [--pose geometric]

Recordings need a true trajectory. The stream's world is its first camera, so errors are counted
from there, without any alignment. For every frame each axis of position and of rotation is divided
by its standard deviation; of a normal error 68 % lie inside one and 95 % inside two. Written as
pose_calibration.json and .md: the shares by recording, of all frames and of those that were
followed well, and the factor by which the standard deviations would have to grow to be exact at
two.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from omnistream_ros.evaluation.recordings import Recording, open_recording
from omnistream_ros.evaluation.summary import surroundings
from omnistream_ros.evaluation.trajectory import interpolate
from omnistream_ros.model import load_model
from omnistream_ros.model.fast_cpu import fast_model
from omnistream_ros.stream.geometry import matrix_to_quaternion, quaternion_to_matrix, rigid
from omnistream_ros.stream.result import Outputs, Tracking
from omnistream_ros.stream.session import StreamSession

_POSE = Outputs(depth=False, pose=True)
# The share of a normal variable within two standard deviations.
_TWO_SIGMA = 0.9545


def errors_in_sigmas(
    recording: Recording, session: StreamSession, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Errors over standard deviations (N, 6), translation then rotation, and what was followed
    well (N,)."""
    truth = recording.trajectory()
    if truth is None:
        raise SystemExit(f"{recording.name} has no true trajectory")
    stamps, poses = [], []
    for number, frame in enumerate(recording.frames()):
        if number == limit:
            break
        if not truth.stamps_ns[0] <= frame.stamp_ns <= truth.stamps_ns[-1]:
            continue  # before the first: the world would not be that of a known camera
        pose = session.step(frame, _POSE).pose
        assert pose is not None
        if pose.covariance is None:
            raise SystemExit("this source of the pose says nothing about its uncertainty")
        stamps.append(frame.stamp_ns)
        poses.append(pose)
    true = interpolate(truth, np.array(stamps)).matrices()  # (N, 4, 4)
    true = np.linalg.inv(true[0]) @ true
    rows = []
    for pose, matrix in zip(poses[1:], true[1:], strict=True):
        ours = rigid(quaternion_to_matrix(pose.quaternion), pose.translation)
        turn = matrix_to_quaternion(ours[:3, :3] @ matrix[:3, :3].T)  # in the axes of the world
        half = np.linalg.norm(turn[:3])
        rotation = 2.0 * np.arctan2(half, turn[3]) * turn[:3] / max(half, 1e-12)
        error = np.concatenate((ours[:3, 3] - matrix[:3, 3], rotation))
        assert pose.covariance is not None
        rows.append(error / np.sqrt(np.maximum(np.diag(pose.covariance), 1e-18)))
    good = np.array([pose.tracking is Tracking.GOOD for pose in poses[1:]])
    return np.array(rows), good


def shares(sigmas: np.ndarray) -> dict[str, float]:
    """Of errors (N, 6): the shares inside one and two, and what two should have been."""
    found = {}
    for name, columns in (("position", sigmas[:, :3]), ("rotation", sigmas[:, 3:])):
        size = np.abs(columns)
        found[f"{name} inside 1"] = float((size < 1).mean())
        found[f"{name} inside 2"] = float((size < 2).mean())
        found[f"{name} factor"] = float(np.quantile(size, _TWO_SIGMA) / 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--model", default="omnistream-nano")
    parser.add_argument("--pose", default="geometric", choices=("geometric", "fused"))
    parser.add_argument("--frames", type=int, default=200, help="of each recording")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    network, card = load_model(args.model)
    network = fast_model(network, torch.float32)
    rows = []
    lines = [
        "| recording | frames | followed well | position inside 1, 2 sigma | factor | "
        "rotation inside 1, 2 sigma | factor |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in args.recordings:
        recording = open_recording(path)
        sigmas, good = errors_in_sigmas(
            recording, StreamSession(network, pose=args.pose), args.frames
        )
        row = {
            "recording": recording.name,
            "frames": len(sigmas),
            "followed well": float(good.mean()),
            "all": shares(sigmas),
            "good": shares(sigmas[good]) if good.any() else None,
        }
        rows.append(row)
        s = row["all"]
        lines.append(
            f"| {recording.name} | {len(sigmas)} | {good.mean():.0%} | "
            f"{s['position inside 1']:.2f}, {s['position inside 2']:.2f} | "
            f"{s['position factor']:.2f} | "
            f"{s['rotation inside 1']:.2f}, {s['rotation inside 2']:.2f} | "
            f"{s['rotation factor']:.2f} |"
        )
        print(lines[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    content = {
        **surroundings(sys.argv),
        "model": card.name,
        "weights_sha256": card.sha256,
        "rows": rows,
    }
    (args.out / "pose_calibration.json").write_text(json.dumps(content, indent=1) + "\n")
    (args.out / "pose_calibration.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
