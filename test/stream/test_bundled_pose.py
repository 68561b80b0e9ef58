# SPDX-License-Identifier: Apache-2.0
"""The model and the recording that the package ships: does the path look right?"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import omnistream_ros
from omnistream_ros.evaluation.pose_metrics import pose_metrics, static_trajectory
from omnistream_ros.evaluation.recordings import open_recording
from omnistream_ros.evaluation.trajectory import Trajectory
from omnistream_ros.model import load_model
from omnistream_ros.stream.result import Outputs
from omnistream_ros.stream.session import StreamSession

CLIP = Path(omnistream_ros.__file__).parent / "data" / "furnished_room"


def test_the_bundled_clip_is_followed() -> None:
    if not CLIP.is_dir():
        pytest.skip(f"no recording {CLIP}")
    model, _ = load_model("omnistream-nano")
    if model.matching_head is None:
        pytest.skip("the bundled weights have no matching head (omnistream train-matching)")
    session = StreamSession(model, pose="geometric")
    recording = open_recording(CLIP)
    truth = recording.trajectory()
    assert truth is not None
    results = [session.step(f, Outputs(depth=False)) for f in islice(recording.frames(), 45)]
    poses = [result.pose for result in results if result.pose is not None]
    assert all(pose.tracked for pose in poses)
    estimate = Trajectory(
        np.array([result.stamp_ns for result in results]),
        np.array([pose.translation for pose in poses]),
        np.array([pose.quaternion for pose in poses]),
    )
    ours = pose_metrics(estimate, truth, delta=10)  # up to one scale
    still = pose_metrics(static_trajectory(estimate.stamps_ns), truth, delta=10)
    assert ours.ate_m < 0.25 * still.ate_m
    assert ours.rpe_deg < 0.25 * still.rpe_deg
