# SPDX-License-Identifier: Apache-2.0
"""Depth of a frame that agrees with the frames before it.

In a room that the network never saw, its depth images are each too near or too far by a factor of
their own: a camera that turns sees the walls breathe. The keyframes of the odometry know better,
for they were adjusted together and are of one size, the one that the network gives on average. So
the depth of a frame is bent until it agrees with where the keyframes have the same places:

    log depth = predicted + scale and slopes of the whole image + what is left, smoothed

The first part is a robust fit; the second is carried from place to place over a few cells. It fades
to nothing where no keyframe has a place, and where frame and keyframes see different things:
somebody who has come or gone is not a wall that is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnistream_ros.stream.keyframes import Keyframe, depth_at_cells, project
from omnistream_ros.stream.motion_solver import NEAREST

# A keyframe is asked when it has this share of its places in the image; fewer lie behind things.
_OVERLAP = 0.5
_ENOUGH = 20  # places; fewer do not say how large a room is
# Standard deviations of log scale (left open) and of slopes before anything is seen; a place is an
# eighth of a measurement, because its neighbours are wrong with it.
_PRIOR = np.array([10.0, 0.1, 0.1])
_CORRELATED = 8.0
_ROUNDS = 6
_SMALLEST_SPREAD = 0.05
# Larger than any error of scale that was seen; beyond it keyframes are wrong, not the network.
_LONGEST_SCALE = 0.7
_SMOOTHING = 1.5  # cells, standard deviation
_VOTES_OF_NOTHING = 2.0  # what "no correction" counts for, in places at the very cell


def correction(
    predicted: Tensor, keyframes: Iterable[Keyframe], camera_from_world: np.ndarray
) -> np.ndarray | None:
    """What to add to log depth so that it agrees with keyframes.

    Args:
        predicted: (H, W) depth by the network, in the unit of the keyframes' own predictions.
        keyframes: those that may have seen the same places.
        camera_from_world: (4, 4) pose of the frame.

    Returns:
        (H/4, W/4) float64, or None where they share too few places to say.
    """
    log_depth = depth_at_cells(predicted).double().cpu().numpy()  # (h, w); the way is host work
    np.log(np.maximum(log_depth, NEAREST), out=log_depth)
    cells, residual = _residuals(log_depth, keyframes, camera_from_world)
    if len(residual) < _ENOUGH:
        return None
    h, w = log_depth.shape
    column, row = cells.T  # (n,)
    x, y = (2 * np.arange(w) + 1) / w - 1, (2 * np.arange(h) + 1) / h - 1
    basis = np.stack((np.ones(len(residual)), x[column], y[row]), axis=1)  # (n, 3)
    shape, spread = _robust_fit(basis, residual)
    shape[0] = np.clip(shape[0], -_LONGEST_SCALE, _LONGEST_SCALE)
    rest = residual - basis @ shape
    vote = _cauchy(rest, spread) ** 2
    votes, total = np.zeros((h, w)), np.zeros((h, w))
    np.add.at(votes, (row, column), vote)
    np.add.at(total, (row, column), vote * rest)
    down, across = _gaussian(h), _gaussian(w)
    smooth = (down @ total @ across) / (down @ votes @ across + _VOTES_OF_NOTHING)
    bent: np.ndarray = shape[0] + shape[1] * x + shape[2] * y[:, None] + smooth
    return bent


def corrected(predicted: Tensor, log_correction: np.ndarray) -> Tensor:
    """Depth (H, W) with a `correction` (H/4, W/4) applied, on its own device."""
    bend = torch.from_numpy(log_correction).to(predicted)[None, None]
    bend = F.interpolate(bend, predicted.shape, mode="bilinear", align_corners=False)
    return predicted * bend[0, 0].exp()


def _residuals(
    log_depth: np.ndarray, keyframes: Iterable[Keyframe], camera_from_world: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cells (n, 2) of places that keyframes have in the image, and log depth by them over ours."""
    size = np.array(log_depth.shape[::-1])
    cells, residuals = [np.empty((0, 2), np.int64)], [np.empty(0)]
    for key in keyframes:
        motion = camera_from_world @ key.world_from_camera()
        places, depth = project(key.points(), key.camera, motion)
        with np.errstate(invalid="ignore"):
            seen = ((places > -0.5) & (places < size - 0.5)).all(1)
        if seen.mean() < _OVERLAP:
            continue
        cell = np.rint(places[seen]).astype(np.int64)
        residual = np.log(depth[seen]) - log_depth[cell[:, 1], cell[:, 0]]
        known = np.isfinite(residual)  # the network may have said nothing usable there
        cells.append(cell[known])
        residuals.append(residual[known])
    return np.concatenate(cells), np.concatenate(residuals)


def _robust_fit(basis: np.ndarray, residual: np.ndarray) -> tuple[np.ndarray, float]:
    """Iteratively reweighted least squares from the median on: (3,), and the spread about it."""
    shape = np.array([np.median(residual), 0.0, 0.0])
    for _ in range(_ROUNDS):
        error = residual - basis @ shape
        spread = max(_SMALLEST_SPREAD, 1.4826 * float(np.median(np.abs(error))))
        weighted = basis * (_cauchy(error, spread) / (spread**2 * _CORRELATED))[:, None]
        shape = np.linalg.solve(weighted.T @ basis + np.diag(_PRIOR**-2), weighted.T @ residual)
    return shape, spread


def _cauchy(error: np.ndarray, spread: float) -> np.ndarray:
    weight: np.ndarray = 1 / (1 + (error / (2 * spread)) ** 2)
    return weight


@functools.cache  # the sides of cameras' images, in cells, are few
def _gaussian(n: int) -> np.ndarray:
    """(n, n): blurs a row or column; what lies outside counts for nothing."""
    distance = np.arange(n)[:, None] - np.arange(n)
    return np.exp(-0.5 * (distance / _SMOOTHING) ** 2)
