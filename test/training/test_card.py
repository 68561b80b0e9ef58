# SPDX-License-Identifier: Apache-2.0
"""The card of a weights file tells what was measured on recordings, and nothing else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tiny_clips import plane_clip

from omnistream_ros.model import ModelConfig, build_model, load_model
from omnistream_ros.training.card import measure_into_card
from omnistream_ros.training.export import export_weights

TINY = ModelConfig(
    name="tiny",
    width=32,
    depth=1,
    heads=1,
    taps=(0, 0, 0, 0),
    head_width=16,
    model_pixels=64 * 48,
    metric=True,
)


def _tum_folder(folder: Path, seed: int, frames: int) -> Path:
    """A recording in the layout of ../shared/data: TUM lists, a camera.yaml, millimetre depth."""
    clip = plane_clip(seed=seed, frames=frames)
    for kind in ("rgb", "depth"):
        (folder / kind).mkdir(parents=True)
    lists = {"rgb": "# timestamp filename\n", "depth": "# timestamp filename\n"}
    poses = "# timestamp tx ty tz qx qy qz qw\n"
    for t in range(frames):
        stamp = f"{t / 10:.6f}"
        cv2.imwrite(str(folder / "rgb" / f"{t:06d}.png"), clip.rgb[t, :, :, ::-1])
        millimetres = np.round(clip.depth[t] * 1000).astype(np.uint16)
        cv2.imwrite(str(folder / "depth" / f"{t:06d}.png"), millimetres)
        for kind in lists:
            lists[kind] += f"{stamp} {kind}/{t:06d}.png\n"
        quaternion = Rotation.from_matrix(clip.poses[t, :3, :3]).as_quat()
        numbers = [*clip.poses[t, :3, 3], *quaternion]
        poses += f"{stamp} " + " ".join(f"{number:.9f}" for number in numbers) + "\n"
    for kind, text in lists.items():
        (folder / f"{kind}.txt").write_text(text)
    (folder / "groundtruth.txt").write_text(poses)
    names = ("fx", "fy", "cx", "cy")
    camera = "".join(f"{n}: {v}\n" for n, v in zip(names, clip.intrinsics, strict=True))
    (folder / "camera.yaml").write_text(f"width: 64\nheight: 48\n{camera}depth_scale: 1000.0\n")
    return folder


def test_card_tells_the_figures_of_each_recording(tmp_path: Path) -> None:
    weights = tmp_path / "tiny.safetensors"
    export_weights(weights, build_model(TINY), {"steps": 1, "held_out": {"abs_rel": 0.5}})
    before, _ = load_model(weights)
    one, two = (_tum_folder(tmp_path / n, s, f) for n, s, f in (("one", 1, 5), ("two", 2, 12)))
    measure_into_card(weights, [one], report=lambda line: None)
    measure_into_card(weights, [two], report=lambda line: None)
    after, card = load_model(weights)
    assert set(card.accuracy) == {"held-out rendered clips", "one", "two"}
    assert card.accuracy["one"]["frames"] == 5
    for key in ("AbsRel (no alignment)", "AbsRel (one scale)", "AbsRel of a constant depth"):
        assert 0 < card.accuracy["one"][key] < 10
    assert card.accuracy["one"] != card.accuracy["two"]
    # Ten frames further on there is a pose in the second alone.
    rpe = ("RPE m (10 frames)", "RPE deg (10 frames)")
    assert not set(rpe) & set(card.accuracy["one"])
    assert all(card.accuracy["two"][key] > 0 for key in rpe)
    assert card.accuracy["two"]["ms a frame (one thread, median)"] > 0
    assert card.training["steps"] == 1
    for (name, a), (_, b) in zip(
        before.state_dict().items(), after.state_dict().items(), strict=True
    ):
        assert (a == b).all(), name


def test_what_cannot_be_measured_changes_nothing(tmp_path: Path) -> None:
    weights = tmp_path / "tiny.safetensors"
    export_weights(weights, build_model(TINY), {})
    content = weights.read_bytes()
    good = _tum_folder(tmp_path / "good", 1, 3)
    with pytest.raises(RuntimeError, match="nowhere"):
        measure_into_card(weights, [good, tmp_path / "nowhere"], report=lambda line: None)
    assert weights.read_bytes() == content
