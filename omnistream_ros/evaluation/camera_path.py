# SPDX-License-Identifier: Apache-2.0
"""Drawing camera paths: which way is up, and a path seen from there."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from omnistream_ros.evaluation.trajectory import Trajectory

TRUE_COLOUR = "#3a3f47"
ESTIMATE_COLOUR = "#e4572e"

#: A world axis this close to the camera's mean upward direction is taken to be the vertical.
_NEAR_VERTICAL_DEGREES = 35.0


def view_axes(trajectory: Trajectory) -> np.ndarray:
    """Axes (3, 3) to draw a path in: rows are right, forward and up in world coordinates.

    People hold cameras upright: the mean of the images' upward direction (-y of optical axes) is
    near the vertical. Where a world axis is close to it (REP-103 worlds have z up), that axis is
    taken instead. Forward is where the first camera looks.
    """
    rotations = trajectory.rotations()
    up = -rotations[:, :, 1].mean(axis=0)
    norm = np.linalg.norm(up)
    up = up / norm if norm > 1e-6 else np.array([0.0, 0.0, 1.0])
    axis = int(np.argmax(np.abs(up)))
    if np.abs(up[axis]) > np.cos(np.radians(_NEAR_VERTICAL_DEGREES)):
        up = np.sign(up[axis]) * np.eye(3)[axis]
    for direction in (rotations[0][:, 2], rotations[0][:, 0], np.eye(3)[(axis + 1) % 3]):
        forward = direction - (direction @ up) * up
        if np.linalg.norm(forward) > 1e-3:
            break
    forward /= np.linalg.norm(forward)
    return np.stack([np.cross(forward, up), forward, up])


def draw_path(
    axes: Axes,
    trajectory: Trajectory,
    view: np.ndarray,
    origin: np.ndarray,
    *,
    colour: str,
    label: str,
    side: bool = False,
    width: float = 2.0,
) -> None:
    """Draw a path from above (right, forward) or from the side (forward, up).

    Args:
        view: (3, 3) of `view_axes`.
        origin: (3,) world point drawn at zero.
    """
    points = (trajectory.translations - origin) @ view.T
    first, second = (1, 2) if side else (0, 1)
    x, y = points[:, first], points[:, second]
    axes.plot(x, y, color=colour, linewidth=width, label=label, solid_capstyle="round")
    axes.plot(x[0], y[0], "o", color=colour, markersize=3.2 * width)
    axes.plot(x[-1], y[-1], "s", color=colour, markersize=2.8 * width)


def draw_cameras(
    axes: Axes,
    trajectory: Trajectory,
    view: np.ndarray,
    origin: np.ndarray,
    *,
    colour: str,
    size: float,
) -> None:
    """Draw a few cameras of a path from above, as triangles open to where they look."""
    picks = np.unique(np.linspace(0, len(trajectory) - 1, 6).round().astype(int))
    for index in picks:
        rotation = trajectory.rotations()[index]
        corners = np.array([[-0.5, 0.0, 1.0], [0.0, 0.0, 0.0], [0.5, 0.0, 1.0]]) * size
        world = trajectory.translations[index] + corners @ rotation.T - origin
        x, y, _ = (world @ view.T).T
        axes.fill(x, y, color=colour, alpha=0.18, linewidth=0)
        axes.plot(x, y, color=colour, alpha=0.6, linewidth=0.8)
