# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes as the renderer takes them: one interleaved vertex array, indices, and images.

Lengths are metres, z is up. A vertex carries everything its material needs (colour, emission, image
layer), so that any mesh is one draw call whatever its number of materials.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

IMAGE_SIZE = 256  # side of every texture, so that all textures of a scene fit in one array

# position 3, normal 3, uv 2, colour 3 (sRGB 0..1), emission 1 (0: lit, else radiance), layer 1
VERTEX_FLOATS = 13
NO_IMAGE = -1.0


@dataclass(frozen=True)
class Mesh:
    """vertices (N, 13) float32, indices (M, 3) uint32, images (K, 256, 256, 4) uint8 RGBA.

    The layer of a vertex is an index into `images`, or NO_IMAGE.
    """

    vertices: np.ndarray
    indices: np.ndarray
    images: np.ndarray

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest corner, (3,) each."""
        positions = self.vertices[:, :3]
        return positions.min(axis=0), positions.max(axis=0)


def pack(
    positions: np.ndarray,
    normals: np.ndarray,
    uv: np.ndarray,
    colour: tuple[float, float, float] | np.ndarray = (1.0, 1.0, 1.0),
    emission: float = 0.0,
    layer: float | np.ndarray = NO_IMAGE,
) -> np.ndarray:
    """Interleave (N, 3) positions, (N, 3) normals, (N, 2) uv and materials to (N, 13) float32."""
    vertices = np.empty((len(positions), VERTEX_FLOATS), np.float32)
    vertices[:, 0:3] = positions
    vertices[:, 3:6] = normals
    vertices[:, 6:8] = uv
    vertices[:, 8:11] = colour
    vertices[:, 11] = emission
    vertices[:, 12] = layer
    return vertices


@dataclass(frozen=True)
class Paint:
    """How a surface looks: colour, index of an image or -1, its period in metres, emission."""

    colour: tuple[float, float, float] = (0.8, 0.8, 0.8)
    layer: int = -1
    period: float = 1.0
    emission: float = 0.0


@dataclass
class MeshBuilder:
    """Collects quads, polygons and boxes into one mesh."""

    _vertices: list[np.ndarray] = field(default_factory=list)
    _indices: list[np.ndarray] = field(default_factory=list)
    _count: int = 0

    def polygon(self, points: np.ndarray, paint: Paint, uv: np.ndarray | None = None) -> None:
        """Add a planar polygon (N, 3) that is star-shaped from its first vertex.

        Without `uv` the texture is laid out in metres along the plane's own axes, so that
        neighbouring coplanar polygons continue each other.
        """
        points = np.asarray(points, np.float64)
        normal = np.cross(points[1] - points[0], points[2] - points[0])
        normal /= np.linalg.norm(normal)
        if uv is None:
            up = np.array([0.0, 0.0, 1.0]) if abs(normal[2]) < 0.9 else np.array([0.0, 1.0, 0.0])
            along = np.cross(up, normal)
            along /= np.linalg.norm(along)
            uv = np.stack([points @ along, -(points @ np.cross(normal, along))], 1) / paint.period
        n = len(points)
        self._add(
            pack(
                points,
                np.tile(normal, (n, 1)),
                uv,
                paint.colour,
                paint.emission,
                float(paint.layer),
            ),
            np.array([[0, i, i + 1] for i in range(1, n - 1)], np.uint32),
        )

    def picture(self, corners: np.ndarray, paint: Paint) -> None:
        """Add a quad (4, 3), from top left clockwise as seen, that shows its image once."""
        self.polygon(corners, paint, np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64))

    def box(self, low: np.ndarray, high: np.ndarray, axes: np.ndarray, paint: Paint) -> None:
        """Add a box from `low` to `high` in the frame `axes` (4, 4), which maps it to the world."""
        corner = np.array(
            [
                [x, y, z]
                for z in (low[2], high[2])
                for y in (low[1], high[1])
                for x in (low[0], high[0])
            ]
        )
        corner = corner @ axes[:3, :3].T + axes[:3, 3]
        for face in (
            (0, 2, 3, 1),
            (4, 5, 7, 6),
            (0, 1, 5, 4),
            (2, 6, 7, 3),
            (0, 4, 6, 2),
            (1, 3, 7, 5),
        ):
            self.polygon(corner[list(face)], paint)

    def _add(self, vertices: np.ndarray, indices: np.ndarray) -> None:
        self._vertices.append(vertices)
        self._indices.append(indices + np.uint32(self._count))
        self._count += len(vertices)

    def mesh(self, images: np.ndarray) -> Mesh:
        """The mesh collected so far, with the images its paints refer to."""
        return Mesh(np.concatenate(self._vertices), np.concatenate(self._indices), images)


def cylinder(sides: int = 20) -> Mesh:
    """A cylinder of diameter and height 1 standing on the origin, with image layer 0 around it."""
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], 1)  # (sides+1, 3)
    rows = [
        pack(ring * 0.5 + [0, 0, z], ring, np.stack([angle / np.pi, np.full_like(angle, 1 - z)], 1))
        for z in (0.0, 1.0)
    ]
    cap = pack(ring * 0.5 + [0, 0, 1.0], np.tile([0.0, 0.0, 1.0], (sides + 1, 1)), ring[:, :2])
    n = sides + 1
    i = np.arange(sides)
    side = np.concatenate([np.stack([i, i + 1, i + n + 1], 1), np.stack([i, i + n + 1, i + n], 1)])
    top = np.stack([np.full(sides - 1, 2 * n), 2 * n + i[1:], 2 * n + i[1:] + 1], 1)
    vertices = np.concatenate([*rows, cap])
    vertices[:, 12] = 0.0
    images = np.full((1, IMAGE_SIZE, IMAGE_SIZE, 4), 255, np.uint8)
    return Mesh(vertices, np.concatenate([side, top]).astype(np.uint32), images)


def unit_box() -> Mesh:
    """A box of side 1 standing on the origin, with image layer 0 on every face."""
    builder = MeshBuilder()
    builder.box(np.array([-0.5, -0.5, 0.0]), np.array([0.5, 0.5, 1.0]), np.eye(4), Paint(layer=0))
    mesh = builder.mesh(np.full((1, IMAGE_SIZE, IMAGE_SIZE, 4), 255, np.uint8))
    mesh.vertices[:, 8:11] = 1.0
    return mesh
