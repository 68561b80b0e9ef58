# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of a few keyframes: their poses and the depths of their places together.

Each keyframe predicts where its places are in the others; poses, the shape of each keyframe's depth
(scale and slopes) and the depth of every single place are changed until the sightings agree, held
by the network's depth as a prior (see `keyframes`). Robust Gauss-Newton; the depths of single
places are eliminated in closed form (Schur's complement; Triggs et al., Bundle Adjustment, 2000),
so that a step costs a few milliseconds.

F frames, E directed edges, N places in each frame, D = 6 + 3 parameters of a frame.
"""

from __future__ import annotations

import numpy as np

from omnistream_ros.stream import geometry
from omnistream_ros.stream.keyframes import SHAPE_DEVIATION, Keyframe
from omnistream_ros.stream.motion_solver import (
    CORRELATED,
    NEAREST,
    Sightings,
    cross,
    linearise,
    perturbed,
    robust_weights,
)

_SHAPE = len(SHAPE_DEVIATION)
_D = 6 + _SHAPE
_ROUNDS = 3
_DAMPING = 1e-5
_LONGEST_CORRECTION = 1.0  # of log depth, in all; beyond it is not a correction any more


def adjust(free: list[Keyframe], fixed: list[Keyframe]) -> bool:
    """Adjust the free keyframes to all sightings among them and between them and the fixed.

    Fixed ones keep pose and depth, though their depth is allowed to be wrong by its variance. One
    at least must hold the rest in place: of no fixed ones, the last free one keeps its pose.

    Returns:
        False, and nothing changed, when there is nothing to adjust or it does not work out.
    """
    frames = free + fixed
    index = {frame.number: i for i, frame in enumerate(frames)}
    edges = [
        (index[frame.number], index[other], sightings)
        for frame in frames
        for other, sightings in frame.seen_by.items()
        if other in index and min(index[frame.number], index[other]) < len(free)
    ]
    if not edges:
        return False
    problem = _Problem(frames, edges, len(free), poses=len(free) - (not fixed))
    for _ in range(_ROUNDS):
        if not problem.step():
            return False
    problem.write_back()
    return True


class _Problem:
    """State and sightings as arrays.

    The first `free` frames have depths to adjust, the first `poses` a pose as well.
    """

    def __init__(
        self, frames: list[Keyframe], edges: list[tuple[int, int, Sightings]], free: int, poses: int
    ) -> None:
        self._frames, self._free, self._poses = frames, free, poses
        self._source = [source for source, _, _ in edges]
        self._target = [target for _, target, _ in edges]
        self._position = np.stack([sightings.position for *_, sightings in edges])  # (E, N, 2)
        self._whitening = np.stack([sightings.whitening for *_, sightings in edges])  # (E, N, 3)
        self._seen = self._whitening[..., 0] > 0  # (E, N)
        self._camera = frames[0].camera
        self._motions = [frame.camera_from_world for frame in frames]
        self._rays = np.stack([frame.rays for frame in frames])  # (F, N, 3)
        self._basis = np.stack([frame.basis for frame in frames])  # (F, N, 3)
        self._predicted = np.stack([frame.predicted for frame in frames])  # (F, N)
        self._shape = np.stack([frame.shape for frame in frames])  # (F, 3)
        self._correction = np.stack([frame.correction for frame in frames])  # (F, N)
        self._prior = np.stack([frame.prior for frame in frames])  # (F, N)
        for i in range(free, len(frames)):
            # A fixed depth is what it is, give or take what is still unknown of it.
            self._predicted[i] += self._correction[i]
            self._correction[i] = 0.0
            self._prior[i] = frames[i].variance
        unknown = np.zeros((len(frames), _D), bool)
        unknown[:poses, :6] = True
        unknown[:free, 6:] = True
        self._unknown = np.flatnonzero(unknown)  # which of the F * D parameters
        # Scale and slopes are expected to be alike, not to vanish: what the network is wrong by in
        # this corner of the room must not change the size that the room has.
        self._expected = self._shape[:free].mean(axis=0) * [1.0, 0.0, 0.0]
        self._depth_information = 1 / self._prior

    def step(self) -> bool:
        """One step of Gauss-Newton on everything unknown; False when it leads nowhere."""
        F, N = self._correction.shape
        shape_of_depth = (self._basis @ self._shape[..., None])[..., 0]
        points = self._rays * np.exp(self._predicted + shape_of_depth + self._correction)[..., None]
        motions = np.stack(
            [
                self._motions[target] @ geometry.rigid_inverse(self._motions[source])
                for source, target in zip(self._source, self._target, strict=True)
            ]
        )  # (E, 4, 4)
        moving = points[self._source]  # also the ray along which depth moves them
        residual, jacobian, by_depth, depth = linearise(
            moving, moving, self._position, self._whitening, self._camera, motions
        )
        usable = self._seen & (depth > NEAREST)
        squared, weights = robust_weights((residual**2).sum(-1), usable)
        weights = weights / (squared[:, None] * CORRELATED)  # (E, N)

        # Everything that one edge says, in one product: pose of the target, shape, residual.
        basis = by_depth[..., None] * self._basis[self._source][:, :, None, :]
        columns = np.concatenate((jacobian, basis, residual[..., None]), axis=-1)  # (E, N, 2, 10)
        weighted = columns * weights[..., None, None]
        flat = columns.reshape(len(columns), 2 * N, -1)
        products = weighted.reshape(flat.shape).swapaxes(1, 2) @ flat  # (E, 10, 10)
        cross_depth = (weighted * by_depth[..., None]).sum(2)  # (E, N, 10)
        own_depth = (weights[..., None] * by_depth**2).sum(-1)  # (E, N)

        normal = np.zeros((F, _D, F, _D))
        gradient = np.zeros((F, _D))
        depth_information = 1 / self._prior
        depth_gradient = self._correction / self._prior
        coupling = np.zeros((F, N, F, _D))
        for e, (source, target) in enumerate(zip(self._source, self._target, strict=True)):
            # From what the edge is linear in to the parameters of its two frames. The source's
            # motion acts from the right of the edge's, hence through the adjoint.
            onto = np.zeros((_D + 1, 2 * _D))
            onto[:6, :6] = np.eye(6)
            onto[:6, _D : _D + 6] = -_adjoint(motions[e])
            onto[6:_D, _D + 6 :] = np.eye(_SHAPE)
            both = onto[:_D].T @ products[e][:_D, :_D] @ onto[:_D]
            right = onto[:_D].T @ products[e][:_D, _D]
            linked = cross_depth[e][:, :_D] @ onto[:_D]  # (N, 2 D)
            at = (target, source)
            for i in range(2):
                rows = slice(i * _D, (i + 1) * _D)
                gradient[at[i]] += right[rows]
                coupling[source, :, at[i]] += linked[:, rows]
                for j in range(2):
                    normal[at[i], :, at[j]] += both[rows, j * _D : (j + 1) * _D]
            depth_information[source] += own_depth[e]
            depth_gradient[source] += cross_depth[e][:, _D]
        for i in range(self._free):
            normal[i, range(6, _D), i, range(6, _D)] += SHAPE_DEVIATION**-2
            gradient[i, 6:] += (self._shape[i] - self._expected) / SHAPE_DEVIATION**2

        unknown = self._unknown
        matrix = normal.reshape(F * _D, F * _D)[np.ix_(unknown, unknown)]
        vector = gradient.reshape(-1)[unknown]
        coupled = coupling.reshape(F, N, F * _D)[:, :, unknown]
        for source in set(self._source):
            scaled = coupled[source] / depth_information[source][:, None]
            matrix = matrix - coupled[source].T @ scaled
            vector = vector - scaled.T @ depth_gradient[source]
        diagonal = np.diag(matrix)
        damping = np.diag(_DAMPING * (diagonal + max(diagonal.mean(), 1e-6)) + 1e-9)
        move = np.linalg.solve(matrix + damping, -vector)
        if not (np.isfinite(move).all() and np.isfinite(depth_gradient).all()):
            return False

        for source in set(self._source):
            pull = depth_gradient[source] + coupled[source] @ move
            self._correction[source] -= np.clip(pull / depth_information[source], -0.5, 0.5)
        self._depth_information = depth_information
        flat = np.zeros(F * _D)
        flat[unknown] = move
        every = flat.reshape(F, _D)
        for i in range(self._poses):
            self._motions[i] = perturbed(self._motions[i], every[i, :6])
        self._shape[: self._free] += every[: self._free, 6:]
        return True

    def write_back(self) -> None:
        """Put the outcome into the keyframes."""
        limit = _LONGEST_CORRECTION
        for i, frame in enumerate(self._frames[: self._free]):
            frame.camera_from_world = geometry.orthonormalised(self._motions[i])
            frame.shape = self._shape[i].copy()
            frame.correction = np.clip(self._correction[i], -limit, limit)
            frame.variance = 1 / self._depth_information[i]


def _adjoint(motion: np.ndarray) -> np.ndarray:
    """A (6, 6) so that motion exp(x) = exp(A x) motion."""
    rotation = motion[:3, :3]
    adjoint = np.zeros((6, 6))
    adjoint[:3, :3] = adjoint[3:, 3:] = rotation
    adjoint[:3, 3:] = cross(motion[:3, 3]) @ rotation
    return adjoint
