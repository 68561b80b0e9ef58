# SPDX-License-Identifier: Apache-2.0
"""Images of a MuJoCo model without a screen, fast enough for a closed loop on one core.

Shadows, reflections and multisampling are what costs most in software rendering, and are off:
192x144 pixels of Meta-World's arm take 11 ms of a core, and twelve times as long with them.
"""

from __future__ import annotations

import atexit
import ctypes.util
import importlib
import os
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from omnistream_ros.simulation.environment import SimulationError

INSTALL = "pip install 'omnistream_ros[simulation]' (metaworld, mujoco)"


class View(NamedTuple):
    """Where a camera stands: `distance` m from the point it looks at, angles in degrees."""

    look_at: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float


class Ball(NamedTuple):
    """A sphere that is only drawn: nothing touches it."""

    place: NDArray[np.float64]
    radius: float
    colour: tuple[float, float, float, float]


def load_mujoco() -> Any:
    """The module mujoco, set up to render without a screen where no other way was asked for.

    Raises:
        SimulationError: it is not installed, or the machine has nothing to render with.
    """
    if "MUJOCO_GL" not in os.environ:
        ways = [way for way in ("EGL", "OSMesa") if ctypes.util.find_library(way)]
        if not ways:
            raise SimulationError(
                "the simulator needs EGL or OSMesa to render without a screen; Debian, Ubuntu: "
                "sudo apt install libegl1 libgl1-mesa-dri"
            )
        os.environ["MUJOCO_GL"] = ways[0].lower()
    try:
        return importlib.import_module("mujoco")
    except ImportError as error:
        raise SimulationError(f"the simulator cannot be loaded ({error}): {INSTALL}") from error


class Picture:
    """Renders one model at one size; belongs to the thread that made it."""

    def __init__(
        self, model: Any, width: int, height: int, view: View, *, beautiful: bool = False
    ) -> None:
        """`beautiful`: with shadows and smooth edges, for people.

        Raises:
            SimulationError: the machine's OpenGL does not do it.
        """
        mujoco = load_mujoco()
        self._mujoco = mujoco
        model.vis.quality.offsamples = 4 if beautiful else 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:  # OpenGL, EGL and ctypes have no exception in common
            raise SimulationError(
                f"no image can be rendered ({type(error).__name__}: {error}) with MUJOCO_GL="
                f"{os.environ.get('MUJOCO_GL')}; try MUJOCO_GL=osmesa or MUJOCO_GL=egl"
            ) from error
        self.close = weakref.finalize(self, self._renderer.close)
        # At the end of the program before MuJoCo takes leave of OpenGL: last come, first served.
        self.close.atexit = False
        atexit.register(self.close)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = beautiful
        self._camera = mujoco.MjvCamera()
        self._camera.lookat[:] = view.look_at
        self._camera.distance = view.distance
        self._camera.azimuth, self._camera.elevation = view.azimuth, view.elevation

    def render(self, data: Any, balls: Sequence[Ball] = ()) -> NDArray[np.uint8]:
        """The image now, (H, W, 3) RGB."""
        mujoco, scene = self._mujoco, self._renderer.scene
        self._renderer.update_scene(data, self._camera)
        for ball in balls:
            mujoco.mjv_initGeom(
                scene.geoms[scene.ngeom],
                mujoco.mjtGeom.mjGEOM_SPHERE,
                np.full(3, ball.radius),
                np.asarray(ball.place, float),
                np.eye(3).reshape(-1),
                np.array(ball.colour, np.float32),
            )
            scene.ngeom += 1
        image: NDArray[np.uint8] = self._renderer.render().copy()
        return image
