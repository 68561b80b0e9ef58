# SPDX-License-Identifier: Apache-2.0
"""The motion of a camera from points with uncertain depth and the places where it sees them.

Robust Gauss-Newton on the reprojection error over the six parameters of a rigid motion. Depth from
a network is wrong by ten or twenty percent, places are measured to a tenth of a pixel: so what
counts is mostly how far a place is off the line on which its unknown depth moves it. Each point's
depth is therefore an unknown with a prior, eliminated in closed form.

Numpy in float64: a few hundred points and six parameters are gone before a device would have begun.
N points. A perturbation of a motion is (translation, rotation vector), applied on the left. In
residuals and their derivatives the points stand last: numpy is fast on long rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnistream_ros.stream import geometry

# Points nearer than this (in the unit of depth) or behind the camera have no usable projection.
NEAREST = 0.02
# Residuals are in standard deviations. Points within this many medians are taken seriously, and the
# median is never taken to be smaller than this: the places are not measured any better.
_TOLERANCE = 2.0
_SMALLEST_MEDIAN = 0.7
# The median length of a two-dimensional standard normal vector.
_MEDIAN_OF_NORMAL = 1.18
# Neighbours share light, blur and errors of depth: about this many count as one measurement.
CORRELATED = 6.0
_DAMPING = 1e-5  # pulls directions that no point speaks about towards the starting motion
_ROUNDS = 6
# A step of less than this (metres, radians) is the last but one; or ends the beginning.
_SETTLED, _NEARLY = 1e-5, 1e-3
_FEWEST = 6  # points; with fewer nothing is tried
_UNKNOWN = 1e9  # variance of a motion about which nothing is known


@dataclass(frozen=True)
class Sightings:
    """Where a camera sees N points.

    Attributes:
        position: (N, 2) cells.
        whitening: (N, 3) entries a, b, c of [[a, b], [0, c]], which turns a difference of position
            into standard deviations; zeros for a point that is not seen.
    """

    position: np.ndarray
    whitening: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """(N,) bool."""
        return self.whitening[:, 0] > 0


@dataclass(frozen=True)
class Motion:
    """The estimate and what is known about its quality.

    Attributes:
        matrix: (4, 4) camera_from_points.
        covariance: (6, 6) of a perturbation of `matrix`.
        support: how many points agree, as a sum of weights.
    """

    matrix: np.ndarray
    covariance: np.ndarray
    support: float


def solve_motion(
    points: np.ndarray,
    rays: np.ndarray,
    variance: np.ndarray,
    sightings: Sightings,
    camera: np.ndarray,
    start: np.ndarray,
) -> Motion:
    """Find the motion that takes points to where they are seen.

    Args:
        points: (N, 3).
        rays: (N, 3) how each moves when the logarithm of its depth grows by one.
        variance: (N,) of the logarithm of depth, independent for each point.
        sightings: of the points; only those seen are used.
        camera: (4,) fx, fy, cx, cy in cells.
        start: (4, 4) where to start.

    Returns:
        What was found; where the numbers lead nowhere (points without end), the start with no
        support.
    """
    seen = sightings.seen
    points, rays, variance = points[seen], rays[seen], variance[seen]
    position, whitening = sightings.position[seen], sightings.whitening[seen]
    if len(points) < _FEWEST:
        return Motion(start, _UNKNOWN * np.eye(6), 0.0)
    matrix = start
    early, last = True, False
    for number in range(_ROUNDS + 1):
        residual, jacobian, by_depth, depth = linearise(
            points, rays, position, whitening, camera, matrix
        )
        # Before it is known who agrees with whom, somebody walking close by would win: near points
        # pull with the inverse square of their depth, and depths that give way make room for the
        # wrong motion. So first one point has one vote, and its depth stands.
        early = early and number < _ROUNDS // 2
        loose = np.zeros_like(variance) if early else variance
        squared, robust = _agreement(residual, by_depth, loose, depth > NEAREST)
        votes = robust * np.minimum((depth / _median(depth)) ** 2, 1.0) if early else robust
        information, gradient = _normal_equations(
            residual, jacobian, by_depth, loose / squared, votes
        )
        information /= squared * CORRELATED
        gradient /= squared * CORRELATED
        if last or number == _ROUNDS:
            break
        diagonal = np.diag(information)
        floor = np.diag(_DAMPING * (diagonal + max(diagonal.mean(), 1e-6)) + 1e-9)
        step = np.linalg.solve(information + floor, -gradient)
        if not np.isfinite(step).all():
            return Motion(start, _UNKNOWN * np.eye(6), 0.0)
        matrix = perturbed(matrix, step)
        settled = bool(np.abs(step).max() < (_NEARLY if early else _SETTLED))
        early, last = early and not settled, settled and not early
    floor = 1e-9 * max(np.trace(information), 1.0)  # no information at all: a huge covariance
    covariance = np.linalg.inv(information + floor * np.eye(6))
    return Motion(geometry.orthonormalised(matrix), covariance, float(robust.sum()))


def linearise(
    points: np.ndarray,
    rays: np.ndarray,
    position: np.ndarray,
    whitening: np.ndarray,
    camera: np.ndarray,
    matrix: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Whitened residuals of points (..., N, 3) seen through motions (..., 4, 4).

    Returns:
        residual (..., 2, N), its derivatives by the perturbation (..., 2, 6, N) and by the log of
        depth (..., 2, N), and the depth of the points (..., N) in the camera.
    """
    fx, fy, cx, cy = camera
    rotation = matrix[..., :3, :3]
    moved = rotation @ np.swapaxes(points, -1, -2) + matrix[..., :3, 3:]  # (..., 3, N)
    depth = moved[..., 2, :]
    inverse = 1.0 / np.maximum(depth, NEAREST)
    x, y = moved[..., 0, :] * inverse, moved[..., 1, :] * inverse
    a, b, c = np.moveaxis(whitening, -1, 0)
    u, v = fx * x + cx - position[..., 0], fy * y + cy - position[..., 1]
    residual = np.stack((a * u + b * v, c * v), axis=-2)
    # By the point's x and y at depth 1, and from there by translation and rotation.
    by_x = np.stack((fx * a, np.zeros_like(a)), axis=-2)  # (..., 2, N)
    by_y = np.stack((fy * b, fy * c), axis=-2)
    inverse, x, y = inverse[..., None, :], x[..., None, :], y[..., None, :]
    outward = by_x * x + by_y * y
    by_translation = (by_x * inverse, by_y * inverse, -outward * inverse)
    by_rotation = (-by_y - outward * y, by_x + outward * x, by_y * x - by_x * y)
    jacobian = np.stack((*by_translation, *by_rotation), axis=-2)  # (..., 2, 6, N)
    along = rotation @ np.swapaxes(rays, -1, -2)  # (..., 3, N)
    by_depth = (jacobian[..., :3, :] * along[..., None, :, :]).sum(-2)
    return residual, jacobian, by_depth, depth


def robust_weights(error_squared: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance factor (...) and weights (..., N) from squared errors (..., N).

    Cauchy's influence, squared: points that disagree lose all say, not just most of it.
    """
    # The lower median by hand: numpy's of values with holes costs more than all the rest.
    known = np.sort(np.where(usable, error_squared, np.inf), axis=-1)
    middle = (np.maximum(usable.sum(-1), 1) - 1) // 2
    medians = np.take_along_axis(known, middle[..., None], axis=-1)[..., 0]
    squared = np.clip(medians, _SMALLEST_MEDIAN**2, 1e12)
    weights = usable / (1 + error_squared / (_TOLERANCE**2 * squared[..., None])) ** 2
    return squared / _MEDIAN_OF_NORMAL**2, weights


def perturbed(matrix: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Motions (..., 4, 4) after steps (..., 6), cut to where the linearisation can be trusted."""
    longest = np.abs(step).max(axis=-1, keepdims=True)
    return exponential(step * (0.5 / np.maximum(0.5, longest))) @ matrix


def exponential(twist: np.ndarray) -> np.ndarray:
    """Motions (..., 4, 4) of translation and rotation vector (..., 6), each taken as it stands."""
    return geometry.rigid(geometry.rotation_from_vector(twist[..., 3:]), twist[..., :3])


def logarithm(motion: np.ndarray) -> np.ndarray:
    """The inverse of `exponential`."""
    return np.append(motion[:3, 3], geometry.rotation_vector(motion[:3, :3]))


def _agreement(
    residual: np.ndarray, by_depth: np.ndarray, variance: np.ndarray, usable: np.ndarray
) -> tuple[float, np.ndarray]:
    """Variance factor and robust weights (N,); what an unknown depth explains is no error."""
    along = (by_depth * residual).sum(0)
    explained = variance / (1 + variance * (by_depth**2).sum(0)) * along**2
    error_squared = np.maximum((residual**2).sum(0) - explained, 0.0)
    squared, weights = robust_weights(error_squared, usable)
    return float(squared), weights


def _normal_equations(
    residual: np.ndarray,
    jacobian: np.ndarray,
    by_depth: np.ndarray,
    variance: np.ndarray,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Information (6, 6) and gradient (6,) with the depths eliminated (Schur's complement)."""
    share = weights * variance
    share = share / (1 + share * (by_depth**2).sum(0))  # what a depth can explain, (N,)
    weighted = jacobian * weights  # (2, 6, N)
    along = (jacobian * by_depth[:, None]).sum(0)  # (6, N)
    taken = along * (weights * share)
    information = (weighted @ np.swapaxes(jacobian, 1, 2)).sum(0) - taken @ along.T
    gradient = (weighted @ residual[..., None]).sum(0)[:, 0] - taken @ (by_depth * residual).sum(0)
    return information, gradient


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else 1.0
