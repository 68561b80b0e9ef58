# SPDX-License-Identifier: Apache-2.0
"""Keyframes: past frames that stay, with places whose depth is known better and better.

A keyframe has N places on a slanted lattice of the stride-4 cells. Their depth is that of the
network, bent by what other frames have seen: log depth = predicted + shape + own correction, where
the shape is a scale and a slope in x and y for the whole image, since a network is wrong about
whole walls rather than about single pixels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnistream_ros.model.matching import STRIDE, MatchingHead, cell_grid, flat_places
from omnistream_ros.stream import geometry
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.motion_solver import NEAREST, Sightings
from omnistream_ros.stream.patches import Patches

# Standard deviations of the logarithm of predicted depth: scale and slopes, and single places.
SHAPE_DEVIATION = np.array([0.15, 0.1, 0.1])
_PLACE_DEVIATION = 0.15
_UNKNOWN_DEVIATION = 1.0  # where the network predicted nothing usable
_MIN_CONFIDENCE = 0.4


@dataclass(frozen=True)
class View:
    """What one frame is matched by: descriptors (1, C, h, w) and grey levels (H, W)."""

    descriptors: Tensor
    image: Tensor


@dataclass(eq=False)
class Keyframe:
    """A past frame; N places.

    Attributes:
        number: counts the keyframes of the stream.
        view: the frame itself.
        cells: (N, 2) where its places are.
        camera: (4,) fx, fy, cx, cy in cells.
        predicted: (N,) log depth by the network.
        camera_from_world: (4, 4).
        covariance: (6, 6) of world_from_camera, world axes.
        shape: (3,) log scale and slopes.
        correction: (N,) of log depth, for each place.
        variance: (N,) of the correction.
        prior: (N,) variance of the correction before anything was seen.
        seen_by: sightings of its places, by the number of the keyframe that saw them.
    """

    number: int
    view: View
    cells: np.ndarray
    camera: np.ndarray
    predicted: np.ndarray
    camera_from_world: np.ndarray
    covariance: np.ndarray
    shape: np.ndarray
    correction: np.ndarray
    variance: np.ndarray
    prior: np.ndarray
    seen_by: dict[int, Sightings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        height, width = self.view.descriptors.shape[-2:]
        self.size = np.array([width, height])
        self.rays = np.hstack(
            ((self.cells - self.camera[2:]) / self.camera[:2], np.ones((len(self.cells), 1)))
        )
        self.basis = np.hstack(  # (N, 3): what scale and slopes do to log depth
            (np.ones((len(self.cells), 1)), (2 * self.cells + 1) / self.size - 1)
        )
        centres = torch.from_numpy(self.cells).to(self.view.image)
        self._patches = Patches(self.view.image, STRIDE * centres + 0.5 * (STRIDE - 1))
        column, row = self.cells.astype(np.int64).T
        chosen = torch.from_numpy(row * width + column).to(self.view.descriptors.device)
        self._places = flat_places(self.view.descriptors)[:, chosen]  # (1, N, C)

    @property
    def known(self) -> np.ndarray:
        """Of which places the network predicted a depth, (N,) bool."""
        return self.prior < _UNKNOWN_DEVIATION**2

    def points(self) -> np.ndarray:
        """(N, 3) in the axes of the keyframe."""
        log_depth = self.predicted + self.basis @ self.shape + self.correction
        return self.rays * np.exp(log_depth)[:, None]

    def world_from_camera(self) -> np.ndarray:
        """(4, 4)."""
        return geometry.rigid_inverse(self.camera_from_world)

    def sight(self, head: MatchingHead, view: View, camera_from_key: np.ndarray) -> Sightings:
        """Look for the places in another view, around where a motion (4, 4) takes them."""
        points = self.points()
        expected, depth = project(points, self.camera, camera_from_key)
        device = view.descriptors.device
        matches = head.match(
            self._places, view.descriptors, torch.from_numpy(expected).float().to(device)[None]
        )
        confidence = matches.confidence[0].sigmoid() * matches.searched[0]  # (N,)
        grown = np.clip(points[:, 2] / np.maximum(depth, NEAREST), 0.5, 2.0)
        warp = grown[:, None, None] * camera_from_key[:2, :2]
        found = self._patches.find(
            view.image,
            STRIDE * matches.position[0] + 0.5 * (STRIDE - 1),
            torch.from_numpy(warp).float().to(device),
        )
        position, covariance, trust = (
            t.double().cpu().numpy() for t in (found.position, found.covariance, confidence)
        )
        known = (trust > _MIN_CONFIDENCE) & np.isfinite(position).all(1)
        return Sightings(
            position=np.where(known[:, None], (position - 0.5 * (STRIDE - 1)) / STRIDE, 0.0),
            whitening=np.where(known[:, None], _whitening(covariance / STRIDE**2, trust), 0.0),
        )

    def nearest(self, position: np.ndarray) -> np.ndarray:
        """Which of the places is nearest to the cell of each position (..., 2), (...).

        Some place, for a position that is not finite.
        """
        width, height = self.size
        inside = np.clip(np.nan_to_num(position), 0, self.size - 1)
        column, row = np.rint(inside).astype(np.int64).T
        return _nearest_place(height, width)[row, column].T

    def state_dict(self) -> dict[str, Any]:
        """A copy; tensors, arrays and plain numbers."""
        return {
            "number": self.number,
            "descriptors": self.view.descriptors.clone(),
            "image": self.view.image.clone(),
            **{name: getattr(self, name).copy() for name in _ARRAYS},
            "seen_by": {
                number: (s.position.copy(), s.whitening.copy())
                for number, s in self.seen_by.items()
            },
        }

    @staticmethod
    def from_state_dict(state: dict[str, Any], device: torch.device) -> Keyframe:
        """The keyframe that gave the state."""
        return Keyframe(
            number=int(state["number"]),
            view=View(
                state["descriptors"].to(device, copy=True), state["image"].to(device, copy=True)
            ),
            seen_by={
                int(number): Sightings(np.array(position), np.array(whitening))
                for number, (position, whitening) in state["seen_by"].items()
            },
            **{name: np.array(state[name]) for name in _ARRAYS},
        )


_ARRAYS = (
    "cells", "camera", "predicted", "camera_from_world", "covariance",
    "shape", "correction", "variance", "prior",
)  # fmt: skip


def make_keyframe(
    number: int,
    view: View,
    depth: Tensor,
    cells: Intrinsics,
    camera_from_world: np.ndarray,
    covariance: np.ndarray,
) -> Keyframe:
    """A keyframe of a view with predicted depth (H, W); `cells` is the camera at stride 4."""
    height, width = cells.height, cells.width
    places = _lattice(height, width)  # (N, 2)
    column, row = places.astype(np.int64).T
    at_places = depth_at_cells(depth)[row, column].double().cpu().numpy()  # (N,)
    known = np.isfinite(at_places) & (at_places > NEAREST)
    typical = np.median(at_places[known]) if known.any() else 1.0
    prior = np.where(known, _PLACE_DEVIATION, _UNKNOWN_DEVIATION) ** 2
    return Keyframe(
        number=number,
        view=view,
        cells=places,
        camera=np.array([cells.fx, cells.fy, cells.cx, cells.cy]),
        predicted=np.log(np.where(known, at_places, typical)),
        camera_from_world=camera_from_world,
        covariance=covariance,
        shape=np.zeros(len(SHAPE_DEVIATION)),
        correction=np.zeros(len(places)),
        variance=prior.copy(),
        prior=prior,
    )


def depth_at_cells(depth: Tensor) -> Tensor:
    """Depth (..., H/4, W/4) at the centres of the cells from (..., H, W).

    The centre lies between four pixels; the mean of their inverse depths is exact on planes.
    """
    inverse = depth.reciprocal()
    rows = inverse[..., 1::STRIDE, :] + inverse[..., 2::STRIDE, :]
    return 4.0 / (rows[..., 1::STRIDE] + rows[..., 2::STRIDE])


def near(
    keys: list[Keyframe], camera_from_world: np.ndarray, overlap: float, flow: float
) -> list[Keyframe]:
    """Those of K keyframes that saw much of what a camera sees now, and from about the same place.

    Args:
        overlap: of their places more than this share is in the image,
        flow: and their median has moved by less than this many pixels.
    """
    if not keys:
        return []
    key_from_world = np.stack([key.camera_from_world for key in keys])
    points = np.stack([key.points() for key in keys])
    motions = camera_from_world @ geometry.rigid_inverse(key_from_world)
    places, _ = project(points, np.stack([key.camera for key in keys]), motions)  # (K, N, 2)
    with np.errstate(invalid="ignore"):
        visible = ((places > -0.5) & (places < keys[0].size - 0.5)).all(-1)
    moved = np.linalg.norm(places - keys[0].cells, axis=-1)  # (K, N)
    # The medians by hand: numpy's of values with holes costs more than all the rest.
    known = np.isfinite(moved)
    moved = np.sort(np.where(known, moved, np.inf))
    count, every = np.maximum(known.sum(-1), 1), np.arange(len(keys))
    medians = 0.5 * (moved[every, (count - 1) // 2] + moved[every, count // 2])
    chosen = (visible.mean(-1) > overlap) & (STRIDE * medians < flow)
    return [keys[i] for i in np.flatnonzero(chosen)]


def project(
    points: np.ndarray, camera: np.ndarray, motion: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Places (..., N, 2) and depths (..., N) of points (..., N, 3) after motions (..., 4, 4).

    Cameras are (..., 4), or one for all. The place of a point that is not in front of one is NaN.
    """
    moved = points @ np.swapaxes(motion[..., :3, :3], -1, -2) + motion[..., None, :3, 3]
    depth = moved[..., 2]
    ahead = np.where(depth > NEAREST, depth, np.nan)
    camera = camera[..., None, :]
    return moved[..., :2] / ahead[..., None] * camera[..., :2] + camera[..., 2:], depth


def _whitening(covariance: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """Whitening (N, 3), as of `Sightings`, from covariances (N, 2, 2) and trust in them (N,)."""
    x, xy, y = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
    a = np.sqrt(trust * y / (x * y - xy * xy))
    return np.stack((a, -a * xy / y, np.sqrt(trust / y)), axis=1)


@functools.lru_cache(maxsize=8)  # the sizes of cameras' images, in cells, are few
def _nearest_place(height: int, width: int) -> np.ndarray:
    """Which place of the lattice is nearest to every cell, (height, width)."""
    cells = cell_grid(height, width).double().numpy().reshape(height, width, 2)
    places = _lattice(height, width)
    # Row by row: all distances at once would take a gigabyte for the image of a large model.
    return np.stack([((row[:, None] - places) ** 2).sum(-1).argmin(1) for row in cells])


def _lattice(height: int, width: int) -> np.ndarray:
    """Cells (N, 2) that serve as places: every fifth, on a square lattice that is slanted.

    Their patches of 8 pixels, 9 pixels apart, cover the image once.
    """
    cells = cell_grid(height, width).double().numpy()
    return cells[(cells[:, 0] + 2 * cells[:, 1]) % 5 == 0]
