# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the evaluation tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from corridor import FRAMES, corridor_depth, corridor_path, write_tum_folder

from omnistream_ros.evaluation.trajectory import Trajectory, write_tum


@pytest.fixture(scope="session")
def corridor(tmp_path_factory) -> Path:
    """A TUM folder that no test writes into."""
    return write_tum_folder(tmp_path_factory.mktemp("recordings") / "corridor")


@pytest.fixture(scope="session")
def perfect_predictions(tmp_path_factory) -> Path:
    """Predictions for the corridor: half the true depth, and the true path at twice the size."""
    folder = tmp_path_factory.mktemp("predictions")
    (folder / "depth").mkdir()
    for index in range(FRAMES):
        np.save(folder / "depth" / f"{index:06d}.npy", 0.5 * corridor_depth(index))
    path = corridor_path()
    write_tum(
        folder / "trajectory.tum",
        Trajectory(path.stamps_ns, 2.0 * path.translations, path.quaternions),
    )
    return folder
