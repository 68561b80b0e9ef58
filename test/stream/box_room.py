# SPDX-License-Identifier: Apache-2.0
"""A room of six exact planes, seen from any pose, and a matching head that needs no training.

What the head gets instead of trunk features is the point of the room that each cell shows; its
descriptors are random Fourier features of that point, so that their similarity is a Gaussian of the
distance (Rahimi and Recht, 2007). That takes the quality of learned features out of the tests.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from omnistream_ros.model import NANO
from omnistream_ros.model.matching import MatchingHead
from omnistream_ros.stream import geometry
from omnistream_ros.stream.frame import Intrinsics

CAMERA = Intrinsics(90.0, 90.0, 63.5, 47.5, 128, 96)
CELLS = CAMERA.resized(32, 24)
# Optical axes of the first camera; the room is not centred, so no direction is special.
_LOW, _HIGH = np.array([-2.0, -1.3, -1.5]), np.array([1.7, 1.1, 3.0])
_FEATURES = 128
_LENGTH = 0.22  # metres over which descriptors change


def look(x: float = 0, y: float = 0, z: float = 0, turn: tuple = (0, 0, 0)) -> np.ndarray:
    """world_from_camera (4, 4); `turn` is a rotation vector in degrees."""
    return geometry.rigid(Rotation.from_rotvec(turn, degrees=True).as_matrix(), np.array([x, y, z]))


def cast(world_from_camera: np.ndarray, camera: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Points of the room (3, H, W) and depth (H, W) seen by a camera, float64."""
    rays = geometry.pixel_rays(camera, dtype=torch.float64).numpy()
    directions = np.einsum("ij,jhw->ihw", world_from_camera[:3, :3], rays)
    position = world_from_camera[:3, 3, None, None]
    with np.errstate(divide="ignore"):
        walls = np.where(directions > 0, _HIGH[:, None, None], _LOW[:, None, None])
        depth = ((walls - position) / directions).min(0)  # the wall that is met first
    return position + depth * directions, depth


class Seen(NamedTuple):
    """What `PointHead` sees (3, 24, 32), grey levels (96, 128), and depth (96, 128)."""

    points: np.ndarray
    grey: np.ndarray
    depth: np.ndarray


def render(world_from_camera: np.ndarray) -> Seen:
    """The room from somewhere."""
    points, depth = cast(world_from_camera, CAMERA)
    return Seen(cast(world_from_camera, CELLS)[0], shade(points), depth)


def shade(points: np.ndarray) -> np.ndarray:
    """The paint of the room, grey levels (H, W) of points (3, H, W): waves of 0.2 to 0.9 m."""
    rng = np.random.default_rng(5)
    directions = rng.normal(size=(24, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    frequencies = 2 * np.pi / rng.uniform(0.2, 0.9, 24)
    phase = np.einsum("fc,chw->fhw", directions * frequencies[:, None], points)
    waves = np.sin(phase + rng.uniform(0, 2 * np.pi, 24)[:, None, None])
    return 128 + 22 * waves.sum(0)


class PointHead(MatchingHead):
    """A matching head on points instead of features; a NaN point looks like nothing at all."""

    def __init__(self) -> None:
        super().__init__(dataclasses.replace(NANO, matching_width=_FEATURES))
        generator = torch.Generator().manual_seed(3)
        self.directions = torch.randn(_FEATURES // 2, 3, generator=generator) / _LENGTH
        self.log_temperature.data = torch.tensor(np.log(12.0))
        self.trust = _TrustSimilarity()  # type: ignore[assignment]

    def describe(self, pyramid: dict[int, torch.Tensor]) -> torch.Tensor:
        phase = torch.einsum("fc,bchw->bfhw", self.directions, pyramid[4])
        features = torch.cat((phase.cos(), phase.sin()), dim=1) / (_FEATURES // 2) ** 0.5
        return features.nan_to_num(0.0)


class _TrustSimilarity(nn.Module):
    """Log-odds from the similarity and the mass of the peak."""

    def forward(self, cues: torch.Tensor) -> torch.Tensor:
        mass, similarity = cues[..., -4:-3], cues[..., -2:-1]
        return 20.0 * (similarity - 0.7) + 20.0 * (mass - 0.8)
