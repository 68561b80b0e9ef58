# SPDX-License-Identifier: Apache-2.0
"""What a renderer draws: meshes where they stand, and what lights them.

The world has z up, in metres; colours are linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omnistream_ros.training.mesh import Mesh


@dataclass(frozen=True)
class Light:
    """A lamp, or a window seen as a lamp.

    position (3,) m; colour (3,) linear radiant intensity (m^2 x surface radiance); `aim` (3,) unit
    vector: emission falls off with the cosine to it, None: the same in all directions; `view` is
    the full opening angle of its shadow map in degrees, None: it casts no shadow.
    """

    position: tuple[float, float, float]
    colour: tuple[float, float, float]
    aim: tuple[float, float, float] | None = None
    view: float | None = None


@dataclass(frozen=True)
class Pane:
    """A shining rectangle, as floors and tables mirror it: a window, or the panel of a lamp.

    centre (3,) m; across, along (3,) from the centre to the middles of two sides; light (3,) linear
    radiance; clear: a window that the sun comes in by.
    """

    centre: tuple[float, float, float]
    across: tuple[float, float, float]
    along: tuple[float, float, float]
    light: tuple[float, float, float]
    clear: bool


@dataclass(frozen=True)
class Sun:
    """`towards` (3,) unit vector from the room; colour (3,) linear irradiance over pi."""

    towards: tuple[float, float, float]
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Instance:
    """A mesh in the world: transform (4, 4), tint of its colours, strength of grain and gloss.

    What does not shade from the sun is the building, through whose windows it comes.
    """

    mesh: Mesh
    transform: np.ndarray
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    grain: float = 0.0
    gloss: float = 0.0
    shades_sun: bool = True


@dataclass(frozen=True)
class Stage:
    """All that is drawn: instances, lights, ambient light from above and below (linear, (3,))."""

    instances: Sequence[Instance]
    lights: Sequence[Light]
    ambient_up: tuple[float, float, float]
    ambient_down: tuple[float, float, float]
    grain: np.ndarray  # (256, 256, 4) uint8 texture whose red channel modulates plain surfaces
    panes: Sequence[Pane] = ()
    sun: Sun | None = None
