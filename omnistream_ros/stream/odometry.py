# SPDX-License-Identifier: Apache-2.0
"""The pose of a stream by geometry: visual odometry on the network's own features and depth.

One past frame is the keyframe. Its places have depth from the network, hence are points in space;
each new frame says where they are now (`model/matching.py`), and the motion that explains this is
solved for (`motion_solver`). When the view has changed enough, the frame becomes the keyframe.
Errors add up only from keyframe to keyframe; a camera that stands still does not drift.

When a frame cannot be followed - no texture, blur, somebody in front of the lens - the pose goes on
with the last velocity, which fades, the covariance grows, and the result says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnistream_ros.model.matching import STRIDE, MatchingHead, cell_grid, flat_places
from omnistream_ros.stream import geometry
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.head_pose import to_pose
from omnistream_ros.stream.motion_solver import Motion, solve_motion
from omnistream_ros.stream.result import Pose

# A new keyframe when the places have moved by this many pixels of the model image (median) ...
_KEYFRAME_FLOW = 8.0
# ... or when fewer than this share of them is still in the image.
_KEYFRAME_OVERLAP = 0.7
# Lost when fewer places than this share agree on the motion,
_MIN_SUPPORT = 0.03
# or when they agree but leave it open: standard deviations of translation (share of the median
# depth) and of rotation (radians).
_MAX_TRANSLATION_STD = 0.1
_MAX_ROTATION_STD = 0.05
# Frames without tracking after which the old keyframe is given up.
_PATIENCE = 3
# Neighbouring places share their receptive field: about this many count as one measurement.
_CORRELATED = 6.0
# Depth of a keyframe is wrong as a whole by about this share, and translation with it.
_DEPTH_ERROR = 0.1
# While lost: metres and radians of uncertainty gained in one second; fading of velocity per frame.
_LOST_GROWTH = np.array([0.5, 0.5, 0.5, 1.0, 1.0, 1.0])
_VELOCITY_FADE = 0.7
_MIN_CONFIDENCE = 0.4


@dataclass
class _Keyframe:
    cells: Tensor  # (N, 2) where its places are
    places: Tensor  # (1, N, C) descriptors
    points: Tensor  # (1, N, 3), optical axes of the keyframe
    world_from_key: np.ndarray  # (4, 4)
    covariance: np.ndarray  # (6, 6), world axes


class Odometry:
    """Poses of one stream from one matching head; feed it every frame whose pose is wanted."""

    def __init__(self, head: MatchingHead) -> None:
        self._head = head
        self._keyframe: _Keyframe | None = None
        self._pose = np.eye(4)  # world_from_camera of the last frame
        self._covariance: np.ndarray = np.zeros((6, 6))
        self._current_from_key = np.eye(4)  # of the last frame
        # translation and rotation vector per second, camera axes
        self._velocity: np.ndarray = np.zeros(6)
        self._stamp_ns = 0
        self._lost_in_a_row = 0
        self.lost_frames = 0  # since the beginning of the stream

    def begin_epoch(self) -> None:
        """Forget the images; the pose goes on from where it was."""
        self._keyframe = None
        self._velocity = np.zeros(6)
        self._lost_in_a_row = 0

    def update(
        self,
        pyramid: dict[int, Tensor],
        depth: Callable[[], Tensor],
        camera: Intrinsics,
        stamp_ns: int,
    ) -> Pose:
        """The pose of the next frame.

        Args:
            pyramid: trunk features by stride, (1, C, H/s, W/s).
            depth: gives (H, W) at model resolution, in the unit that translation shall have;
                called when the frame becomes a keyframe.
            camera: of the depth image.
            stamp_ns: of the frame; only differences matter.
        """
        descriptors = self._head.describe(pyramid)
        cells = camera.resized(camera.width // STRIDE, camera.height // STRIDE)
        seconds = max(0.0, (stamp_ns - self._stamp_ns) * 1e-9)
        self._stamp_ns = stamp_ns
        if self._keyframe is None:
            self._make_keyframe(descriptors, depth(), cells)
            return to_pose(self._pose, self._covariance)

        tracked = self._track(self._keyframe, descriptors, cells, seconds)
        if not tracked:
            self._hold(self._keyframe, seconds)
        renew = (
            self._view_has_changed(self._keyframe, cells)
            if tracked
            else (self._lost_in_a_row >= _PATIENCE)
        )
        if renew:
            self._make_keyframe(descriptors, depth(), cells)
        return to_pose(self._pose, self._covariance.copy(), tracked=tracked)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next frame depends on."""
        key = self._keyframe
        return {
            "keyframe": None
            if key is None
            else {
                "cells": key.cells.clone(),
                "places": key.places.clone(),
                "points": key.points.clone(),
                "world_from_key": key.world_from_key.copy(),
                "covariance": key.covariance.copy(),
            },
            "pose": self._pose.copy(),
            "covariance": self._covariance.copy(),
            "current_from_key": self._current_from_key.copy(),
            "velocity": self._velocity.copy(),
            "stamp_ns": self._stamp_ns,
            "lost_in_a_row": self._lost_in_a_row,
            "lost_frames": self.lost_frames,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        key = state["keyframe"]
        device = self._head.log_temperature.device
        self._keyframe = key and _Keyframe(
            cells=key["cells"].to(device, copy=True),
            places=key["places"].to(device, copy=True),
            points=key["points"].to(device, copy=True),
            world_from_key=np.array(key["world_from_key"]),
            covariance=np.array(key["covariance"]),
        )
        self._pose = np.array(state["pose"])
        self._covariance = np.array(state["covariance"])
        self._current_from_key = np.array(state["current_from_key"])
        self._velocity = np.array(state["velocity"])
        self._stamp_ns = int(state["stamp_ns"])
        self._lost_in_a_row = int(state["lost_in_a_row"])
        self.lost_frames = int(state["lost_frames"])

    def _track(
        self, key: _Keyframe, descriptors: Tensor, cells: Intrinsics, seconds: float
    ) -> bool:
        """Follow the keyframe into this frame; False, and nothing changed, when that fails."""
        expected = _exponential(self._velocity * seconds) @ self._current_from_key
        motion = self._solve(key, descriptors, cells, expected)
        if not self._good(motion, key):
            # A jerk: look again around where the camera was.
            motion = self._solve(key, descriptors, cells, self._current_from_key)
            if not self._good(motion, key):
                return False
        current_from_key = geometry.orthonormalised(motion.matrix[0].double().cpu().numpy())
        if seconds > 1e-3:
            step = current_from_key @ geometry.rigid_inverse(self._current_from_key)
            self._velocity = _logarithm(step) / seconds
        self._current_from_key = current_from_key
        self._pose = key.world_from_key @ geometry.rigid_inverse(current_from_key)
        self._covariance = _world_covariance(key, current_from_key, _covariance(motion))
        self._lost_in_a_row = 0
        return True

    def _hold(self, key: _Keyframe, seconds: float) -> None:
        """Go on with the fading velocity, knowing less with time."""
        self._velocity *= _VELOCITY_FADE
        self._current_from_key = geometry.orthonormalised(
            _exponential(self._velocity * seconds) @ self._current_from_key
        )
        self._pose = key.world_from_key @ geometry.rigid_inverse(self._current_from_key)
        self._covariance = self._covariance + np.diag((_LOST_GROWTH * seconds) ** 2)
        self._lost_in_a_row += 1
        self.lost_frames += 1

    def _solve(
        self, key: _Keyframe, descriptors: Tensor, cells: Intrinsics, expected: np.ndarray
    ) -> Motion:
        """Match where `expected` (current_from_key) says, then solve from there."""
        start = torch.from_numpy(expected).to(key.points)[None]  # (1, 4, 4)
        camera = _camera_vector(cells, key.points)
        matches = self._head.match(key.places, descriptors, project(key.points, camera, start))
        weights = matches.confidence.sigmoid() * matches.searched
        weights = torch.where(weights > _MIN_CONFIDENCE, weights, 0.0)
        return solve_motion(key.points, matches.position, weights, camera, start)

    def _good(self, motion: Motion, key: _Keyframe) -> bool:
        """Whether enough places agree and pin the motion down in every direction."""
        if not bool(motion.matrix.isfinite().all()):
            return False
        if float(motion.support[0]) < _MIN_SUPPORT * key.points.shape[1]:
            return False
        spread = np.sqrt(np.diag(_covariance(motion)))
        depth = float(key.points[0, :, 2].median())
        return bool(
            (spread[:3] < _MAX_TRANSLATION_STD * depth).all()
            and (spread[3:] < _MAX_ROTATION_STD).all()
        )

    def _view_has_changed(self, key: _Keyframe, cells: Intrinsics) -> bool:
        """Whether the last tracked frame is too far from the keyframe to go on with it."""
        camera = _camera_vector(cells, key.points)
        now = torch.from_numpy(self._current_from_key).to(key.points)[None]
        places = project(key.points, camera, now)[0]  # (N, 2)
        size = places.new_tensor([cells.width, cells.height])
        visible = ((places > -0.5) & (places < size - 0.5)).all(-1)
        flow = (places - key.cells).norm(dim=-1).nanmedian() * STRIDE
        return bool(visible.float().mean() < _KEYFRAME_OVERLAP) or bool(flow > _KEYFRAME_FLOW)

    def _make_keyframe(self, descriptors: Tensor, depth: Tensor, cells: Intrinsics) -> None:
        points = geometry.back_project(depth_at_cells(depth), cells).flatten(1).T  # (h*w, 3)
        chosen = _lattice(cells.height, cells.width, points.device)
        self._keyframe = _Keyframe(
            cells=cell_grid(cells.height, cells.width, points.device)[chosen],
            places=flat_places(descriptors)[:, chosen],
            points=points[chosen].unsqueeze(0),
            world_from_key=geometry.orthonormalised(self._pose),
            covariance=self._covariance,
        )
        self._current_from_key = np.eye(4)


def _lattice(height: int, width: int, device: torch.device) -> Tensor:
    """Indices (N,) of the cells that serve as places: every third, in a slanted lattice.

    Neighbours see nearly the same pixels; three times as many cost three times as much for little.
    """
    x, y = cell_grid(height, width, device).unbind(-1)
    return ((x + 2 * y) % 3 == 0).nonzero().squeeze(1)


def depth_at_cells(depth: Tensor) -> Tensor:
    """Depth (..., H/4, W/4) at the centres of the cells from (..., H, W).

    The centre lies between four pixels; the mean of their inverse depths is exact on planes.
    """
    inverse = depth.reciprocal()
    rows = inverse[..., 1::STRIDE, :] + inverse[..., 2::STRIDE, :]
    return 4.0 / (rows[..., 1::STRIDE] + rows[..., 2::STRIDE])


def project(points: Tensor, camera: Tensor, matrix: Tensor) -> Tensor:
    """Pixels (B, N, 2) of points (B, N, 3) moved by (B, 4, 4); NaN for points behind the camera."""
    moved = points @ matrix[:, :3, :3].transpose(1, 2) + matrix[:, None, :3, 3]
    depth = torch.where(moved[..., 2:] > 0, moved[..., 2:], torch.nan)
    return moved[..., :2] / depth * camera[:, None, :2] + camera[:, None, 2:]


def _camera_vector(camera: Intrinsics, like: Tensor) -> Tensor:
    """fx, fy, cx, cy as (1, 4)."""
    return like.new_tensor([[camera.fx, camera.fy, camera.cx, camera.cy]])


def _covariance(motion: Motion) -> np.ndarray:
    """Covariance (6, 6) of the estimated motion, current camera's axes, in its units."""
    information = motion.information[0].double().cpu().numpy()
    # The median of a two-dimensional Gaussian error is 1.18 standard deviations.
    variance = (max(float(motion.error[0]), 0.05) / 1.18) ** 2 * _CORRELATED
    floor = 1e-9 * max(np.trace(information), 1.0)  # no information at all: a huge covariance
    return variance * np.linalg.inv(information + floor * np.eye(6))


def _world_covariance(
    key: _Keyframe, current_from_key: np.ndarray, covariance: np.ndarray
) -> np.ndarray:
    """Covariance of world_from_current from that of the keyframe and that of the motion.

    A motion perturbed on the left by (v, w) moves the camera's centre by -R^T v and turns it by
    -R^T w, with R the rotation current_from_world; an error of the keyframe's rotation also swings
    the current position around the keyframe.
    """
    world_from_current = key.world_from_key @ geometry.rigid_inverse(current_from_key)
    rotation = np.kron(np.eye(2), world_from_current[:3, :3])  # (6, 6) block diagonal
    arm = world_from_current[:3, 3] - key.world_from_key[:3, 3]
    swing = np.eye(6)
    swing[:3, 3:] = -_cross(arm)
    scale = np.zeros((6, 6))
    scale[:3, :3] = _DEPTH_ERROR**2 * np.outer(arm, arm)
    total = swing @ key.covariance @ swing.T + rotation @ covariance @ rotation.T + scale
    return 0.5 * (total + total.T)


def _cross(v: np.ndarray) -> np.ndarray:
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])


def _exponential(twist: np.ndarray) -> np.ndarray:
    """A motion (4, 4) of translation and rotation vector (6,), each taken as it stands."""
    return geometry.rigid(geometry.rotation_from_vector(twist[3:]), twist[:3])


def _logarithm(motion: np.ndarray) -> np.ndarray:
    """The inverse of `_exponential`."""
    return np.append(motion[:3, 3], geometry.rotation_vector(motion[:3, :3]))
