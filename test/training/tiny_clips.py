# SPDX-License-Identifier: Apache-2.0
"""Small clips with exact geometry: a textured plane seen by a moving camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from omnistream_ros.training.clip_files import Clip


def plane_clip(seed: int, frames: int, size: tuple[int, int] = (48, 64)) -> Clip:
    """A camera that drifts and turns in front of the slanted plane n . X = d."""
    rng = np.random.default_rng(seed)
    height, width = size
    normal = np.array([rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4), 1.0])
    distance = rng.uniform(1.5, 4)
    focal = width * rng.uniform(0.7, 1.1)
    intrinsics = np.array([focal, focal, (width - 1) / 2 + 1.25, (height - 1) / 2 - 0.75])
    ray_y, ray_x = np.mgrid[0:height, 0:width].astype(np.float64)
    rays = np.stack(
        [(ray_x - intrinsics[2]) / focal, (ray_y - intrinsics[3]) / focal, np.ones(size)], -1
    )
    velocity, spin = rng.uniform(-0.04, 0.04, 3), rng.uniform(-0.03, 0.03, 3)
    frequency = rng.uniform(3, 9, (3, 3))
    poses = np.tile(np.eye(4), (frames, 1, 1))
    rgb = np.empty((frames, height, width, 3), np.uint8)
    depth = np.empty((frames, height, width), np.float32)
    for t in range(frames):
        poses[t, :3, :3] = Rotation.from_rotvec(spin * t).as_matrix()
        poses[t, :3, 3] = velocity * t + [0.1, -0.2, 0.05]
        world_rays = rays @ poses[t, :3, :3].T
        depth[t] = (distance - normal @ poses[t, :3, 3]) / (world_rays @ normal)
        points = poses[t, :3, 3] + world_rays * depth[t][..., None]
        rgb[t] = 127.5 + 120 * np.sin(points @ frequency)
    return Clip(rgb, depth, poses, intrinsics)


def write_clip(path: Path, clip: Clip, **more: np.ndarray) -> None:
    """Writes a clip in the format of the renderer, with more arrays such as `cuts`."""
    quaternions = Rotation.from_matrix(clip.poses[:, :3, :3]).as_quat()
    np.savez(
        path,
        rgb=clip.rgb,
        depth=clip.depth.astype(np.float16),
        poses=np.concatenate([clip.poses[:, :3, 3], quaternions], 1).astype(np.float32),
        intrinsics=clip.intrinsics.astype(np.float32),
        stamps=np.arange(len(clip)) / 10,
        info=np.frombuffer(b"{}", np.uint8),
        **more,
    )
