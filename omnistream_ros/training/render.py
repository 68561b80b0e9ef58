# SPDX-License-Identifier: Apache-2.0
"""Rendering of a scene without a screen: OpenGL 3.3 through EGL (Mesa's llvmpipe is enough).

Three passes per frame. The first draws the scene with four samples per pixel in linear light:
several point and window lights with inverse-square falloff, shadows of the brightest ones from maps
made once per scene and again when something in it moves, sun that falls through the windows,
varnish in which windows and lamps are mirrored, and a hemisphere for light that has been around.
The second averages the samples, turns the depth buffer into metric z-depth and estimates how far
crevices are closed to light (screen-space ambient occlusion), which the third smooths and applies.

Poses are camera-to-world in optical axes (x right, y down, z forward). Images come out with
row 0 at the top because the projection itself is turned over, so nothing is flipped afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from omnistream_ros.training.shaders import (
    AVERAGE_FRAGMENT,
    FULLSCREEN_VERTEX,
    SCENE_FRAGMENT,
    SCENE_VERTEX,
    SHADOW_FRAGMENT,
    SHADOW_VERTEX,
    SOFTEN_FRAGMENT,
)
from omnistream_ros.training.stage import Instance, Stage, Sun

NEAR, FAR = 0.05, 60.0
SAMPLES = 4  # per pixel for colour edges and depth; shading happens once (multisampling)
MAX_LIGHTS = 6  # the strongest of a scene
MAX_PANES = 8
LAMP_MAPS = 2
SHADOW_MAPS = LAMP_MAPS + 1  # the last is the sun's
SHADOW_SIZE = 1024
# How far what casts the sun's shadow is moved away from it, in slopes and in steps of depth: beside
# a room the map is so coarse that a face would shade itself. Lamps' maps have a bias in depth.
_SUN_OFFSET = (2.5, 2.0)
_FORMAT = "3f 3f 2f 3f 1f 1f"
_FIELDS = ("in_position", "in_normal", "in_uv", "in_colour", "in_emission", "in_layer")


class RenderError(RuntimeError):
    """OpenGL cannot be used here; the message says what to install."""


@dataclass(frozen=True)
class View:
    """What one frame sees: radiance (H, W, 3) float32 linear, depth (H, W) float32 z in metres."""

    radiance: np.ndarray
    depth: np.ndarray


def projection(fx: float, fy: float, cx: float, cy: float, width: int, height: int) -> np.ndarray:
    """OpenGL clip matrix (4, 4) for optical axes; integer pixel coordinates are pixel centres.

    Row 0 of the image is the bottom row of OpenGL's, hence no sign change in y.
    """
    matrix = np.zeros((4, 4))
    matrix[0, 0] = 2 * fx / width
    matrix[0, 2] = 2 * (cx + 0.5) / width - 1
    matrix[1, 1] = 2 * fy / height
    matrix[1, 2] = 2 * (cy + 0.5) / height - 1
    matrix[2, 2] = (FAR + NEAR) / (FAR - NEAR)
    matrix[2, 3] = -2 * FAR * NEAR / (FAR - NEAR)
    matrix[3, 2] = 1.0
    return matrix


def look_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Camera-to-world (4, 4) in optical axes, looking from `position` to `target`, upright."""
    forward = np.asarray(target, np.float64) - position
    forward /= np.linalg.norm(forward)
    up = np.array([0.0, 0.0, 1.0]) if abs(forward[2]) < 0.999 else np.array([0.0, 1.0, 0.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = position
    return pose


class Renderer:
    """One OpenGL context and image size, one stage at a time: `load`, `view` ..., `close`."""

    def __init__(self, width: int, height: int) -> None:
        """Create the context. Raises RenderError where moderngl or EGL is missing."""
        try:
            import moderngl
        except ImportError as error:
            raise RenderError(
                "rendering needs the Python package moderngl: pip install 'omnistream_ros[train]'"
            ) from error
        try:
            self._gl: Any = moderngl.create_context(standalone=True, backend="egl", require=330)
        except Exception as error:  # moderngl raises bare Exception for every driver failure
            raise RenderError(
                f"no OpenGL 3.3 context through EGL ({error}): "
                "install libegl1 and libgl1-mesa-dri (sudo apt-get install libegl1 libgl1-mesa-dri)"
            ) from error
        self.width, self.height = width, height
        gl = self._gl
        self._scenes = [
            gl.program(vertex_shader=SCENE_VERTEX, fragment_shader=start + SCENE_FRAGMENT)
            for start in ("#version 330\n", "#version 330\n#define CUTOUT\n")
        ]
        self._shadow = gl.program(vertex_shader=SHADOW_VERTEX, fragment_shader=SHADOW_FRAGMENT)
        self._average = gl.program(
            vertex_shader=FULLSCREEN_VERTEX, fragment_shader=AVERAGE_FRAGMENT
        )
        self._soften = gl.program(vertex_shader=FULLSCREEN_VERTEX, fragment_shader=SOFTEN_FRAGMENT)
        size = (width, height)
        self._fine_colour = gl.texture(size, 4, dtype="f2", samples=SAMPLES)
        self._fine_depth = gl.depth_texture(size, samples=SAMPLES)
        self._fine = gl.framebuffer([self._fine_colour], self._fine_depth)
        self._mean = gl.texture((width, height), 4, dtype="f4")
        self._openness = gl.texture((width, height), 1, dtype="f1")
        self._coarse = gl.framebuffer([self._mean, self._openness])
        self._result = gl.framebuffer([gl.texture((width, height), 4, dtype="f4")])
        self._maps = gl.depth_texture((SHADOW_SIZE * SHADOW_MAPS, SHADOW_SIZE))
        self._maps.compare_func = "<="
        self._maps.filter = (moderngl.LINEAR, moderngl.LINEAR)
        self._map_target = gl.framebuffer([], self._maps)
        self._corner = gl.buffer(np.array([-1, -1, 3, -1, -1, 3], np.float32).tobytes())
        self._screen = gl.vertex_array(self._average, [(self._corner, "2f", "in_corner")])
        self._soft_screen = gl.vertex_array(self._soften, [(self._corner, "2f", "in_corner")])
        for scene in self._scenes:
            scene["images"].value, scene["maps"].value = 0, 1
        self._average["fine_colour"].value, self._average["fine_depth"].value = 0, 1
        self._soften["averaged"].value, self._soften["openness"].value = 0, 1
        self._average["range"].value = (NEAR, FAR)
        self._images: Any = None
        self._drawn: list[_Drawn] = []
        self._map_clips: dict[int, np.ndarray] = {}  # by number of the map

    def load(self, stage: Stage) -> None:
        """Bring a stage onto the device and make its shadow maps. Replaces the one before."""
        self._release_stage()
        gl = self._gl
        meshes = {id(instance.mesh): instance.mesh for instance in stage.instances}
        images = [stage.grain[None]]
        first: dict[int, int] = {}  # layer, by images: units of a kitchen share theirs
        count = 1
        for mesh in meshes.values():
            if id(mesh.images) not in first:
                first[id(mesh.images)] = count
                images.append(mesh.images)
                count += len(mesh.images)
        stack = np.ascontiguousarray(np.concatenate(images))
        self._images = gl.texture_array((stack.shape[2], stack.shape[1], len(stack)), 4, stack)
        self._images.build_mipmaps()
        buffers = {
            key: (gl.buffer(mesh.vertices.tobytes()), gl.buffer(mesh.indices.tobytes()))
            for key, mesh in meshes.items()
        }
        cutout = {key: bool((mesh.images[..., 3] < 128).any()) for key, mesh in meshes.items()}
        self._drawn = []
        for instance in stage.instances:
            key = id(instance.mesh)
            vertices, indices = buffers[key]
            centre, radius = _sphere(instance)
            scale = np.linalg.norm(instance.transform[:3, :3], axis=0)
            scene = self._scenes[cutout[key]]
            self._drawn.append(
                _Drawn(
                    instance=instance,
                    centre=centre,
                    radius=radius,
                    scale=tuple(scale),
                    normals=np.linalg.inv(instance.transform[:3, :3]).T,
                    first_layer=first[id(instance.mesh.images)],
                    scene=scene,
                    lit=gl.vertex_array(
                        scene, [(vertices, _FORMAT, *_FIELDS)], index_buffer=indices
                    ),
                    dark=gl.vertex_array(
                        self._shadow, [(vertices, "3f 40x", "in_position")], index_buffer=indices
                    ),
                    buffers=(vertices, indices),
                )
            )
        self._set_lights(stage)

    def move(self, transforms: Mapping[int, np.ndarray]) -> None:
        """Put instances of the stage, told by their numbers in it, elsewhere with their shadows.

        Transforms (4, 4) that turn and shift, compared to those before.
        """
        for number, transform in transforms.items():
            drawn = self._drawn[number]
            instance = replace(drawn.instance, transform=transform)
            normals = np.linalg.inv(transform[:3, :3]).T
            centre, _ = _sphere(instance)
            self._drawn[number] = replace(drawn, instance=instance, centre=centre, normals=normals)
        self._draw_maps()

    def view(self, pose: np.ndarray, intrinsics: Sequence[float]) -> View:
        """Render one frame from a camera-to-world pose (4, 4) with (fx, fy, cx, cy) in pixels."""
        world_to_clip = projection(*intrinsics, self.width, self.height) @ np.linalg.inv(pose)
        self._fine.use()
        self._fine.clear(0.0, 0.0, 0.0, 1.0)
        self._gl.enable(self._gl.DEPTH_TEST)
        self._images.use(0)
        self._maps.use(1)
        for scene in self._scenes:
            scene["world_to_clip"].write(_columns(world_to_clip))
            scene["eye"].value = tuple(pose[:3, 3])
        for drawn in _in_view(self._drawn, pose, world_to_clip):
            instance, scene = drawn.instance, drawn.scene
            scene["model"].write(_columns(instance.transform))
            scene["normals"].write(_columns(drawn.normals))
            scene["scale"].value = drawn.scale
            scene["tint"].value = instance.tint
            scene["grain"].value = instance.grain
            scene["gloss"].value = instance.gloss
            scene["first_layer"].value = float(drawn.first_layer)
            drawn.lit.render()

        self._coarse.use()
        self._gl.disable(self._gl.DEPTH_TEST)
        self._fine_colour.use(0)
        self._fine_depth.use(1)
        self._average["intrinsics"].value = tuple(float(v) for v in intrinsics)
        self._screen.render()
        self._result.use()
        self._mean.use(0)
        self._openness.use(1)
        self._soft_screen.render()
        data = np.frombuffer(self._result.read(components=4, dtype="f4"), np.float32)
        data = data.reshape(self.height, self.width, 4)
        return View(data[..., :3].copy(), data[..., 3].copy())

    def close(self) -> None:
        """Free everything on the device."""
        self._release_stage()
        self._gl.release()

    def _set_lights(self, stage: Stage) -> None:
        """Write the lights, those that cast shadows first, and draw their shadow maps."""
        lights = sorted(stage.lights, key=lambda light: -sum(light.colour))[:MAX_LIGHTS]
        lights.sort(key=lambda light: light.view is None)
        casting = [light for light in lights if light.view is not None][:LAMP_MAPS]
        positions, colours, aims = (np.zeros((MAX_LIGHTS, n), np.float32) for n in (3, 3, 4))
        for i, light in enumerate(lights):
            positions[i], colours[i] = light.position, light.colour
            if light.aim is not None:
                aims[i] = (*light.aim, 1.0)
        clips = np.zeros((SHADOW_MAPS, 4, 4))
        for i, light in enumerate(casting):
            position = np.array(light.position)
            aim = np.array([0.0, 0.0, -1.0] if light.aim is None else light.aim)
            focal = SHADOW_SIZE / 2 / np.tan(np.radians(light.view or 0.0) / 2)
            middle = (SHADOW_SIZE - 1) / 2
            clip = projection(focal, focal, middle, middle, SHADOW_SIZE, SHADOW_SIZE)
            clips[i] = clip @ np.linalg.inv(look_at(position, position + aim))
        if stage.sun is not None:
            shading = [drawn for drawn in self._drawn if drawn.instance.shades_sun]
            clips[LAMP_MAPS] = _sun_clip(np.array(stage.sun.towards), shading)
        used = [*range(len(casting)), *([LAMP_MAPS] if stage.sun is not None else [])]
        self._map_clips = {i: clips[i] for i in used}
        self._draw_maps()
        sun = stage.sun or Sun((0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
        panes = sorted(stage.panes, key=lambda pane: not pane.clear)[:MAX_PANES]
        rows = np.zeros((4, MAX_PANES, 3), np.float32)
        for i, pane in enumerate(panes):
            rows[:, i] = pane.centre, pane.across, pane.along, pane.light
        for scene in self._scenes:
            scene["light_position"].write(positions.tobytes())
            scene["light_colour"].write(colours.tobytes())
            scene["light_aim"].write(aims.tobytes())
            scene["light_count"].value = len(lights)
            scene["shadow_count"].value = len(casting)
            scene["ambient_up"].value = stage.ambient_up
            scene["ambient_down"].value = stage.ambient_down
            scene["pane_count"].value = len(panes)
            scene["clear_count"].value = sum(pane.clear for pane in panes)
            for name, values in zip(("centre", "across", "along", "light"), rows, strict=True):
                scene[f"pane_{name}"].write(values.tobytes())
            scene["to_sun"].value, scene["sun_colour"].value = sun.towards, sun.colour
            scene["shadow_clip"].write(clips.transpose(0, 2, 1).astype(np.float32).tobytes())

    def _draw_maps(self) -> None:
        """Draw the shadow maps of all lights that cast any."""
        self._map_target.use()
        self._map_target.clear(depth=1.0)
        self._gl.enable(self._gl.DEPTH_TEST)
        for number, clip in self._map_clips.items():
            if number == LAMP_MAPS:
                self._gl.polygon_offset = _SUN_OFFSET
                self._draw_map(number, clip, [d for d in self._drawn if d.instance.shades_sun])
                self._gl.polygon_offset = (0.0, 0.0)
            else:
                self._draw_map(number, clip, self._drawn)

    def _draw_map(self, number: int, clip: np.ndarray, shading: list[_Drawn]) -> None:
        self._map_target.viewport = (number * SHADOW_SIZE, 0, SHADOW_SIZE, SHADOW_SIZE)
        for drawn in shading:
            self._shadow["model_to_clip"].write(_columns(clip @ drawn.instance.transform))
            drawn.dark.render()

    def _release_stage(self) -> None:
        for drawn in self._drawn:
            for thing in (drawn.lit, drawn.dark, *drawn.buffers):
                thing.release()
        self._drawn = []
        if self._images is not None:
            self._images.release()
            self._images = None


@dataclass(frozen=True)
class _Drawn:
    """An instance on the device, with the sphere around it."""

    instance: Instance
    centre: np.ndarray
    radius: float
    scale: tuple[float, ...]
    normals: np.ndarray
    first_layer: int
    scene: Any
    lit: Any
    dark: Any
    buffers: tuple[Any, Any]


def _sphere(instance: Instance) -> tuple[np.ndarray, float]:
    """Centre (3,) and radius of the sphere around an instance."""
    low, high = instance.mesh.bounds()
    turn, place = instance.transform[:3, :3], instance.transform[:3, 3]
    scale = np.linalg.norm(turn, axis=0)
    return turn @ ((low + high) / 2) + place, float(np.linalg.norm((high - low) * scale)) / 2


def _columns(matrix: np.ndarray) -> bytes:
    """OpenGL wants matrices column by column."""
    return np.ascontiguousarray(matrix.T, np.float32).tobytes()


def _sun_clip(towards: np.ndarray, shading: list[_Drawn]) -> np.ndarray:
    """Clip matrix (4, 4) of parallel light that falls on all of this."""
    centres = np.array([drawn.centre for drawn in shading]).reshape(-1, 3)
    radii = np.array([drawn.radius for drawn in shading])
    middle = centres.mean(axis=0) if len(centres) else np.zeros(3)
    reach = max(1.0, float((np.linalg.norm(centres - middle, axis=1) + radii).max(initial=0.0)))
    clip = np.diag([1 / reach, 1 / reach, 1 / reach, 1.0])
    clip[2, 3] = -1.0  # the eye stands where the things begin
    clip[:3] = clip[:3] @ np.linalg.inv(look_at(middle + reach * towards, middle))
    return clip


def _in_view(drawn: list[_Drawn], pose: np.ndarray, world_to_clip: np.ndarray) -> list[_Drawn]:
    """Those whose sphere touches the frustum, nearest first (hidden fragments are then cheap)."""
    planes = np.concatenate(
        [world_to_clip[3] + world_to_clip[:3], world_to_clip[3] - world_to_clip[:3]]
    ).reshape(6, 4)
    planes /= np.linalg.norm(planes[:, :3], axis=1, keepdims=True)
    centres = np.array([d.centre for d in drawn])  # (N, 3)
    radii = np.array([d.radius for d in drawn])
    inside = (centres @ planes[:, :3].T + planes[:, 3] > -radii[:, None]).all(axis=1)
    distance = np.linalg.norm(centres - pose[:3, 3], axis=1) - radii
    # Rooms surround the camera but lie behind everything: what contains it is drawn last.
    distance = np.where(radii > 2.5, np.inf, distance)
    return [drawn[i] for i in np.argsort(distance, kind="stable") if inside[i]]
