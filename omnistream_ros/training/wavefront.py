# SPDX-License-Identifier: Apache-2.0
"""Wavefront OBJ and MTL files out of a zip archive, and simplification of what they hold."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass

import cv2
import numpy as np

from omnistream_ros.training.mesh import IMAGE_SIZE, NO_IMAGE, Mesh, pack

MIN_OPACITY = 0.4  # below it a material is glass, and left out of colour and depth
COARSEST = 6.0  # cells along the longest side, below which nothing would be left to recognise
TOO_HEAVY = 120_000  # triangles of models not worth simplifying (mostly trees)


@dataclass
class Material:
    """Diffuse sRGB colour 0..1, opacity, and picture (256, 256, 4) uint8 RGBA or None."""

    colour: tuple[float, float, float] = (0.7, 0.7, 0.7)
    opacity: float = 1.0
    image: np.ndarray | None = None


def read_materials(archive: zipfile.ZipFile, model: str, text: str) -> dict[str, Material]:
    """Materials by name, from the mtl files an OBJ text refers to."""
    folder = model.rpartition("/")[0]
    inside = {name.lower(): name for name in archive.namelist()}
    materials: dict[str, Material] = {}
    for mtl in re.findall(r"^mtllib\s+(.+?)\s*$", text, re.MULTILINE):
        name = inside.get(f"{folder}/{mtl}".lower())
        if name is None:
            continue
        current = Material()
        for line in archive.read(name).decode("latin-1").splitlines():
            field, _, value = line.strip().partition(" ")
            value = value.strip()
            if field == "newmtl":
                current = materials.setdefault(value, Material())
            elif field == "Kd":
                red, green, blue = (min(max(float(v), 0.0), 1.0) for v in value.split()[:3])
                current.colour = (red, green, blue)
            elif field == "d":
                current.opacity = float(value.split()[-1])
            elif field == "map_Kd":
                picture = inside.get(f"{folder}/{value}".lower())
                if picture is not None:
                    current.image = _decode(archive.read(picture))
    return materials


def _decode(data: bytes) -> np.ndarray | None:
    """Decode a picture to (256, 256, 4) RGBA, or None when it is in no format OpenCV reads."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint8:
        return None
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGBA)
    else:
        code = cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGBA
        image = cv2.cvtColor(image, code)
    return cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)


def read_obj(text: str, materials: dict[str, Material]) -> Mesh:
    """Triangulate an OBJ text. Faces of glass are left out; missing normals become face normals."""
    v: list[list[str]] = []
    vt: list[list[str]] = []
    vn: list[list[str]] = []
    corners: list[
        tuple[int, int, int, int]
    ] = []  # vertex, texture, normal, material; 3 per triangle
    names: list[str] = []
    material = -1
    transparent = False
    for line in text.splitlines():
        field, _, rest = line.partition(" ")
        if field == "v":
            v.append(rest.split()[:3])
        elif field == "vt":
            vt.append(rest.split()[:2])
        elif field == "vn":
            vn.append(rest.split()[:3])
        elif field == "usemtl":
            name = rest.strip()
            names.append(name)
            material = len(names) - 1
            transparent = name in materials and materials[name].opacity < MIN_OPACITY
        elif field == "f" and not transparent:
            face = []
            for corner in rest.split():
                index = [*corner.split("/"), "", ""]
                face.append(
                    (
                        _obj_index(index[0], len(v)),
                        _obj_index(index[1], len(vt)),
                        _obj_index(index[2], len(vn)),
                        material,
                    )
                )
            for i in range(1, len(face) - 1):
                corners += [face[0], face[i], face[i + 1]]
    if not corners:
        raise ValueError("it has no opaque faces")
    if len(corners) > 3 * TOO_HEAVY:
        raise ValueError(f"it has {len(corners) // 3} triangles, more than {TOO_HEAVY}")
    index = np.array(corners, np.int64)  # (3M, 4)
    positions = np.array(v, np.float64)[index[:, 0]]
    triangle = positions.reshape(-1, 3, 3)
    flat = np.cross(triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0])
    normals = np.repeat(flat, 3, axis=0)
    if vn:
        given = np.array(vn, np.float64)[index[:, 2]]
        normals = np.where(
            (index[:, 2:3] >= 0) & (np.abs(given).sum(1, keepdims=True) > 0), given, normals
        )
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    uv = np.zeros((len(index), 2))
    if vt:
        uv = np.where(index[:, 1:2] >= 0, np.array(vt, np.float64)[index[:, 1]], 0.0)
    uv[:, 1] = 1 - uv[:, 1]  # OBJ counts v from the bottom, images are stored from the top

    used = [materials.get(name, Material()) for name in names]
    images = [m.image for m in used if m.image is not None]
    distinct = {id(image): image for image in images}
    layer_of = {key: number for number, key in enumerate(distinct)}
    # A picture's material colour is often near black by accident of export: keep half of it.
    colours = np.array(
        [m.colour if m.image is None else tuple(0.5 + 0.5 * c for c in m.colour) for m in used]
        + [Material().colour]
    )
    layers = np.array(
        [NO_IMAGE if m.image is None else layer_of[id(m.image)] for m in used] + [NO_IMAGE]
    )
    vertices = pack(positions, normals, uv, colours[index[:, 3]], 0.0, layers[index[:, 3]])
    unique, inverse = np.unique(vertices, axis=0, return_inverse=True)
    stacked = np.zeros((len(distinct), IMAGE_SIZE, IMAGE_SIZE, 4), np.uint8)
    for number, image in enumerate(distinct.values()):
        stacked[number] = image
    return Mesh(unique, inverse.reshape(-1, 3).astype(np.uint32), stacked)


def _obj_index(text: str, count: int) -> int:
    """OBJ counts from 1, or backwards from -1; -1 here stands for absent."""
    if not text:
        return -1
    value = int(text)
    return value - 1 if value > 0 else count + value


def simplify(mesh: Mesh, most: int) -> Mesh:
    """Merge vertices that share a cell of a grid until about `most` triangles are left.

    Vertices of different materials are never merged. (Rossignac and Borrel, Multi-resolution 3D
    approximations for rendering complex scenes, 1993.)
    """
    low, high = mesh.bounds()
    cells = 160.0
    material = _distinct(np.round(mesh.vertices[:, 8:] * 255).astype(np.int64))[1]
    side = np.sign(np.round(mesh.vertices[:, 3:6])).astype(np.int64)  # keeps creases apart
    while len(mesh.indices) > most:
        cell = float((high - low).max()) / cells
        place = np.floor((mesh.vertices[:, :3] - low) / cell).astype(np.int64)
        first, group = _distinct(np.column_stack([place, material, side]))
        indices = group[mesh.indices.astype(np.int64)]
        a, b, c = indices.T
        indices = indices[(a != b) & (b != c) & (a != c)]
        indices = indices[_distinct(np.sort(indices, axis=1))[0]]
        if len(indices) <= most or cells < COARSEST:
            count = np.bincount(group)
            vertices = mesh.vertices[first].copy()
            for column in range(8):  # position, normal, uv: the mean of what was merged
                vertices[:, column] = np.bincount(group, mesh.vertices[:, column]) / count
            return Mesh(vertices, indices.astype(np.uint32), mesh.images)
        cells *= 0.7
    return mesh


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First occurrence of each distinct row of small integers, and each row's kind."""
    low = rows.min(axis=0)
    key = np.zeros(len(rows), np.int64)
    for column, width in zip((rows - low).T, np.ptp(rows, axis=0) + 1, strict=True):
        key = key * width + column
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    return first, group.reshape(-1)
