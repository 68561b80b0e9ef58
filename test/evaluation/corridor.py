# SPDX-License-Identifier: Apache-2.0
"""A small recording with exact truth, for tests of everything that reads whole recordings."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from omnistream_ros.evaluation.trajectory import Trajectory, write_tum

FRAMES = 12
SIZE = (48, 64)  # rows, columns
RATE = 10


def corridor_depth(index: int) -> np.ndarray:
    """Depth (H, W) float32 metres of a slanted wall that comes closer."""
    columns = np.linspace(0.0, 1.0, SIZE[1], dtype=np.float32)
    rows = np.linspace(0.0, 0.5, SIZE[0], dtype=np.float32)
    return 3.0 + columns[None] + rows[:, None] - np.float32(0.05 * index)


def corridor_path(count: int = FRAMES) -> Trajectory:
    """The camera walks forward and to the side."""
    steps = np.arange(count, dtype=np.float64)
    translations = np.stack([0.02 * steps**1.5, np.zeros(count), 0.05 * steps], axis=1)
    stamps = (steps * 1e9 / RATE).astype(np.int64)
    return Trajectory(stamps, translations, np.tile([0.0, 0.0, 0.0, 1.0], (count, 1)))


def write_tum_folder(folder: Path, count: int = FRAMES) -> Path:
    """The corridor as a TUM folder."""
    (folder / "rgb").mkdir(parents=True)
    (folder / "depth").mkdir()
    rng = np.random.default_rng(0)
    lists = {"rgb": [], "depth": []}
    for index in range(count):
        image = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), SIZE[::-1])
        millimetres = np.rint(corridor_depth(index) * 1000).astype(np.uint16)
        for kind, pixels in (("rgb", image), ("depth", millimetres)):
            cv2.imwrite(str(folder / kind / f"{index:04d}.png"), pixels)
            lists[kind].append(f"{index / RATE:.6f} {kind}/{index:04d}.png")
    for kind, lines in lists.items():
        (folder / f"{kind}.txt").write_text("# a comment\n" + "\n".join(lines) + "\n")
    (folder / "camera.yaml").write_text(
        f"width: {SIZE[1]}\nheight: {SIZE[0]}\nfx: 60.0\nfy: 60.0\ncx: 31.5\ncy: 23.5\n"
        "depth_scale: 1000.0\n"
    )
    write_tum(folder / "groundtruth.txt", corridor_path(count))
    return folder
