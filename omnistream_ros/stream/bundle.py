# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of a few keyframes: their poses and the depths of their places together.

Each keyframe predicts where its places are in the others; poses, the shape of each keyframe's
depth (scale and slopes) and the depth of every single place are changed until the sightings agree,
held by the network's depth as a prior (see `keyframes`). To a camera that turns on the spot a place
looks the same at any depth, so sightings alone would leave the scale of each depth image to the
prior: each edge also compares what its two depth images say of the places that they share.

Robust Gauss-Newton; the depths of single places are eliminated in closed form (Schur's complement;
Triggs et al., Bundle Adjustment, 2000), so that a step costs a few milliseconds.

F frames, E directed edges, N places in each frame, D = 6 + 3 parameters of a frame, U of all of
them unknown. As in `motion_solver`, places stand last.
"""

from __future__ import annotations

import numpy as np

from omnistream_ros.stream import geometry
from omnistream_ros.stream.keyframes import SHAPE_DEVIATION, Keyframe
from omnistream_ros.stream.motion_solver import (
    CORRELATED,
    NEAREST,
    Sightings,
    linearise,
    perturbed,
    robust_weights,
)

_SHAPE = len(SHAPE_DEVIATION)
_D = 6 + _SHAPE
# Standard deviation of how much larger one depth image is than another by the places that they
# share, in log: on held-out clips the factor of 50 to 70 % of an image differs from that of all of
# it by 0.04 to 0.07. Twice that, for two images are compared, and the edges of a link, one from
# either side, make the same comparison, which shall count once.
_RATIO_DEVIATION = 0.1
_FEWEST_SHARED = 20  # places; fewer do not say
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
        self._source = np.array([source for source, _, _ in edges])
        self._target = np.array([target for _, target, _ in edges])
        self._edges_of = {i: np.flatnonzero(self._source == i) for i in np.unique(self._source)}
        self._position = np.stack([sightings.position for *_, sightings in edges])  # (E, N, 2)
        self._whitening = np.stack([sightings.whitening for *_, sightings in edges])  # (E, N, 3)
        self._seen = self._whitening[..., 0] > 0  # (E, N)
        # The target's places that are nearest to where the source's are seen.
        self._there = frames[0].nearest(self._position)  # (E, N)
        known = np.stack([frame.known for frame in frames])  # (F, N)
        self._comparable = known[self._source] & known[self._target[:, None], self._there]
        self._camera = frames[0].camera
        self._motions = np.stack([frame.camera_from_world for frame in frames])  # (F, 4, 4)
        self._rays = np.stack([frame.rays for frame in frames])  # (F, N, 3)
        self._basis = np.stack([frame.basis.T for frame in frames])  # (F, 3, N)
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
        self._unknown = unknown  # (F, D), U of them
        prior = np.zeros((len(frames), _D))
        prior[:free, 6:] = SHAPE_DEVIATION**-2
        self._shape_information = prior[unknown]  # (U,)
        # From the unknowns to the log scale of each edge's source less its target's.
        edge, ratio = np.arange(len(edges)), np.zeros((len(edges), *unknown.shape))
        ratio[edge, self._source, 6] = 1.0
        ratio[edge, self._target, 6] = -1.0
        self._onto_ratio = ratio[:, unknown]  # (E, U)
        # Scale and slopes are expected to be alike, not to vanish: what the network is wrong by in
        # this corner of the room must not change the size that the room has.
        self._expected = self._shape[:free].mean(axis=0) * [1.0, 0.0, 0.0]
        self._depth_information = 1 / self._prior

    def step(self) -> bool:
        """One step of Gauss-Newton on everything unknown; False when it leads nowhere."""
        shape_of_depth = (self._shape[:, None] @ self._basis)[:, 0]  # (F, N)
        log_depth = self._predicted + shape_of_depth + self._correction
        points = self._rays * np.exp(log_depth)[..., None]
        motions = self._motions[self._target] @ geometry.rigid_inverse(self._motions[self._source])
        moving = points[self._source]  # also the ray along which depth moves them
        residual, jacobian, by_depth, depth = linearise(
            moving, moving, self._position, self._whitening, self._camera, motions
        )
        usable = self._seen & (depth > NEAREST)
        squared, weights = robust_weights((residual**2).sum(1), usable)
        weights = weights / (squared[:, None] * CORRELATED)  # (E, N)

        # What each edge says of the motion along it, and of the depth of each place ...
        weighted = jacobian * weights[:, None, None]  # (E, 2, 6, N)
        by_motion = (weighted * by_depth[:, :, None]).sum(1)  # (E, 6, N)
        own = weights * (by_depth**2).sum(1)  # (E, N)
        pull = weights * (by_depth * residual).sum(1)  # (E, N)
        # ... and through depth of the shape, which moves depths by its basis.
        basis = self._basis[self._source]  # (E, 3, N)
        linked = np.concatenate((by_motion, own[:, None] * basis), axis=1)  # (E, D, N)
        normal = np.empty((len(linked), _D, _D))
        normal[:, :6, :6] = (weighted @ jacobian.swapaxes(2, 3)).sum(1)
        normal[:, :, 6:] = linked @ basis.swapaxes(1, 2)
        normal[:, 6:, :6] = normal[:, :6, 6:].swapaxes(1, 2)
        gradient = np.concatenate(
            ((weighted @ residual[..., None]).sum(1), basis @ pull[..., None]), axis=1
        )  # (E, D, 1)

        onto = self._onto(motions)  # (E, D, U)
        matrix = _flat(onto).T @ _flat(normal @ onto)
        vector = _flat(onto).T @ _flat(gradient)[:, 0]
        unlike = np.zeros(self._unknown.shape)
        unlike[:, 6:] = self._shape - self._expected
        matrix += np.diag(self._shape_information)
        vector += self._shape_information * unlike[self._unknown]

        ratio, information = self._ratio(depth, log_depth, usable & self._comparable)  # (E,)
        matrix += self._onto_ratio.T @ (information[:, None] * self._onto_ratio)
        vector += self._onto_ratio.T @ (information * ratio)

        depth_information, depth_gradient = 1 / self._prior, self._correction / self._prior
        np.add.at(depth_information, self._source, own)
        np.add.at(depth_gradient, self._source, pull)
        for source, edges in self._edges_of.items():
            coupled, its_onto = _flat(linked[edges]), _flat(onto[edges])  # (k D, N), (k D, U)
            explained = coupled / depth_information[source]
            matrix -= its_onto.T @ (explained @ coupled.T) @ its_onto
            vector -= its_onto.T @ (explained @ depth_gradient[source])
        diagonal = np.diag(matrix)
        damping = np.diag(_DAMPING * (diagonal + max(diagonal.mean(), 1e-6)) + 1e-9)
        move = np.linalg.solve(matrix + damping, -vector)
        if not (np.isfinite(move).all() and np.isfinite(depth_gradient).all()):
            return False

        np.add.at(depth_gradient, self._source, ((onto @ move)[:, None] @ linked)[:, 0])
        sources = list(self._edges_of)
        change = depth_gradient[sources] / depth_information[sources]
        self._correction[sources] -= np.clip(change, -0.5, 0.5)
        self._depth_information = depth_information
        every = np.zeros(self._unknown.shape)
        every[self._unknown] = move
        poses, free = slice(self._poses), slice(self._free)
        self._motions[poses] = perturbed(self._motions[poses], every[poses, :6])
        self._shape[free] += every[free, 6:]
        return True

    def _onto(self, motions: np.ndarray) -> np.ndarray:
        """From the unknowns to what each edge is linear in, its motion and shape (E, D, U).

        The source's motion acts from the right of the edge's, hence through the adjoint.
        """
        edge = np.arange(len(motions))
        onto = np.zeros((len(motions), _D, *self._unknown.shape))
        onto[edge, :6, self._target, :6] = np.eye(6)
        onto[edge, :6, self._source, :6] = -_adjoint(motions)
        onto[edge, 6:, self._source, 6:] = np.eye(_SHAPE)
        return onto[:, :, self._unknown]

    def _ratio(
        self, depth: np.ndarray, log_depth: np.ndarray, usable: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log of how much larger each edge's source is than its target, and the information (E,).

        The median over the places: what moves is at another depth in each.

        Args:
            depth: (E, N) of the source's places in the target's camera.
            log_depth: (F, N) of the places of every frame in its own.
            usable: (E, N) places that are seen, with a depth in both images.
        """
        there = log_depth[self._target[:, None], self._there]
        larger = np.log(np.maximum(depth, NEAREST)) - there
        enough = usable.sum(1) >= _FEWEST_SHARED
        ratio = np.zeros(len(larger))
        for e in np.flatnonzero(enough):
            ratio[e] = np.median(larger[e, usable[e]])
        return ratio, enough / _RATIO_DEVIATION**2

    def write_back(self) -> None:
        """Put the outcome into the keyframes."""
        limit = _LONGEST_CORRECTION
        for i, frame in enumerate(self._frames[: self._free]):
            frame.camera_from_world = geometry.orthonormalised(self._motions[i])
            frame.shape = self._shape[i].copy()
            frame.correction = np.clip(self._correction[i], -limit, limit)
            frame.variance = 1 / self._depth_information[i]


def _adjoint(motion: np.ndarray) -> np.ndarray:
    """A (..., 6, 6) so that motion exp(x) = exp(A x) motion."""
    rotation = motion[..., :3, :3]
    adjoint = np.zeros((*motion.shape[:-2], 6, 6))
    adjoint[..., :3, :3] = adjoint[..., 3:, 3:] = rotation
    adjoint[..., :3, 3:] = geometry.cross(motion[..., :3, 3]) @ rotation
    return adjoint


def _flat(matrices: np.ndarray) -> np.ndarray:
    """Matrices (E, D, ...) below each other."""
    return matrices.reshape(-1, matrices.shape[-1])
