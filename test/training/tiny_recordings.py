# SPDX-License-Identifier: Apache-2.0
"""Small recordings and checkpoints on disk, in the layouts that users have."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

from omnistream_ros.evaluation.trajectory import Trajectory, write_tum
from omnistream_ros.model import ModelConfig, build_model
from omnistream_ros.training.clip_files import Clip


def write_tum_recording(folder: Path, clip: Clip, *, posed: bool = True, rate: int = 10) -> Path:
    """A clip as a TUM folder with camera.yaml, depth in steps of 0.2 mm."""
    stamps = (np.arange(len(clip)) * 1e9 / rate).astype(np.int64)
    for kind in ("rgb", "depth"):
        (folder / kind).mkdir(parents=True)
        names = [f"{kind}/{i:04d}.png" for i in range(len(clip))]
        lines = [f"{s / 1e9:.6f} {name}" for s, name in zip(stamps, names, strict=True)]
        (folder / f"{kind}.txt").write_text("\n".join(lines) + "\n")
        for i, name in enumerate(names):
            steps = np.nan_to_num(clip.depth[i] * 5000).round().astype(np.uint16)
            pixels = clip.rgb[i, ..., ::-1] if kind == "rgb" else steps
            assert cv2.imwrite(str(folder / name), pixels)
    height, width = clip.rgb.shape[1:3]
    fx, fy, cx, cy = (float(v) for v in clip.intrinsics)
    (folder / "camera.yaml").write_text(
        f"width: {width}\nheight: {height}\nfx: {fx}\nfy: {fy}\ncx: {cx}\ncy: {cy}\n"
        "depth_scale: 5000.0\n"
    )
    if posed:
        write_tum(folder / "groundtruth.txt", Trajectory.from_matrices(stamps, clip.poses))
    return folder


def write_released_backbone(
    folder: Path, *, width: int = 32, heads: int = 2, depth: int = 4
) -> Path:
    """A random backbone in the layout of the released checkpoint."""
    config = ModelConfig(
        name="random", width=width, depth=depth, heads=heads, taps=(0, 1, 2, 3), model_pixels=1
    )
    torch.manual_seed(0)
    backbone = build_model(config).backbone
    folder.mkdir(parents=True)
    tensors = {f"patch_embed.{k}": v.contiguous() for k, v in backbone.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    told = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "video_aggregator_layer": depth,
        "mlp_ratio": 4,
        "patch_size": 16,
    }
    (folder / "config.json").write_text(json.dumps(told))
    return folder
