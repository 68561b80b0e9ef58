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


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> str:
    """Weights of a small network that sees something."""
    torch = pytest.importorskip("torch")
    from omnistream_ros.model import ModelCard, ModelConfig, build_model, save_model

    torch.manual_seed(0)
    config = ModelConfig(
        name="tiny", width=64, depth=4, heads=1, patch_embed="conv16", taps=(0, 1, 2, 3),
        head_width=16, model_pixels=48 * 64, metric=True,
    )  # fmt: skip
    network = build_model(config)
    with torch.no_grad():  # an untrained head may be constant, which would test nothing
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, network, ModelCard("tiny", "Apache-2.0"))
    return str(path)
