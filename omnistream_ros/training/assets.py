# SPDX-License-Identifier: Apache-2.0
"""Furniture models of Debian's `sweethome3d-furniture`: catalogue, conversion, cache.

The package holds five libraries (`*.sh3f`, zip files), each with a properties catalogue (sizes in
centimetres) and OBJ models. Licences: BlendSwap-CC-0 is CC0, the others CC BY 3.0; `attribution`
writes what must accompany pictures of them. An asset's frame: origin at the middle of its foot,
x to its right, y to its back (the side that goes to the wall), z up, metres.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omnistream_ros.training.mesh import Mesh
from omnistream_ros.training.wavefront import read_materials, read_obj, simplify

FURNITURE_FOLDER = Path("/usr/share/sweethome3d/furniture")
PACKAGE = "sweethome3d-furniture"
LEVELS = (12_000, 3_000, 800, 250)  # triangles (about) of the levels of detail kept of each model
CACHE_VERSION = 3

LICENCES = {
    "BlendSwap-CC-0": "CC0 1.0",
    "BlendSwap-CC-BY": "CC BY 3.0",
    "KatorLegaz": "CC BY 3.0 US",
    "Reallusion": "CC BY 3.0 US",
    "Scopia": "CC BY 3.0",
}


class AssetError(RuntimeError):
    """Models or pictures are missing or broken; the message says which package to install."""


@dataclass(frozen=True)
class Asset:
    """One catalogue entry; size is (width, depth, height) in metres."""

    key: str  # library/model, unique
    name: str
    category: str
    library: str
    creator: str
    size: tuple[float, float, float]
    elevation: float  # usual height of its foot above the floor
    top: float | None  # height of the surface that can carry things, None if there is none
    model: str
    rotation: tuple[float, ...] | None

    @property
    def licence(self) -> str:
        return LICENCES[self.library]


def _catalogue(archive: zipfile.ZipFile, library: str) -> list[Asset]:
    text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    entries: dict[int, dict[str, str]] = defaultdict(dict)
    for field, number, value in re.findall(r"^(\w+)#(\d+)=(.*?)\s*$", text, re.MULTILINE):
        entries[int(number)][field] = value
    assets = []
    for entry in entries.values():
        if not entry["model"].lower().endswith(".obj"):
            continue
        width, depth, height = (float(entry[k]) / 100 for k in ("width", "depth", "height"))
        # dropOnTopElevation: -1 means nothing may stand on it, absent means on its highest point.
        top = float(entry.get("dropOnTopElevation", height * 100)) / 100
        rotation = entry.get("modelRotation")
        assets.append(
            Asset(
                key=f"{library}/{Path(entry['model']).stem}",
                name=re.sub(r"\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), entry["name"]),
                category=entry["category"],
                library=library,
                creator=entry.get("creator", library),
                size=(width, depth, height),
                elevation=float(entry.get("elevation", 0)) / 100,
                top=top if top > 0 else None,
                model=entry["model"].lstrip("/"),
                rotation=tuple(float(v) for v in rotation.split()) if rotation else None,
            )
        )
    return assets


class FurnitureLibrary:
    """The catalogue, and meshes converted on first use and kept in a cache folder."""

    def __init__(self, folder: Path = FURNITURE_FOLDER, cache: Path | None = None) -> None:
        """Read the catalogues.

        Raises AssetError where the furniture is not installed or a library file is broken.
        """
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        self.cache = (cache or home / "omnistream_ros" / "furniture") / f"v{CACHE_VERSION}"
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._meshes: dict[str, tuple[Mesh, ...]] = {}
        self.assets: dict[str, Asset] = {}
        for library in LICENCES:
            path = folder / f"{library}.sh3f"
            if not path.is_file():
                raise AssetError(
                    f"no furniture library {path}: install the Debian package {PACKAGE} "
                    f"(sudo apt-get install {PACKAGE})"
                )
            try:
                self._archives[library] = zipfile.ZipFile(path)
                found = _catalogue(self._archives[library], library)
            except (zipfile.BadZipFile, KeyError, ValueError) as error:
                raise AssetError(
                    f"{path} is not a readable furniture library ({error}): reinstall the package "
                    f"{PACKAGE} (sudo apt-get install --reinstall {PACKAGE})"
                ) from error
            self.assets.update({asset.key: asset for asset in found})

    def mesh(self, key: str, triangles: float = LEVELS[0]) -> Mesh:
        """The mesh of an asset in its own frame and true size, in enough detail.

        The coarsest level is taken that may have at least `triangles` triangles. Raises AssetError
        when the model cannot be read.
        """
        if key not in self._meshes:
            self._meshes[key] = self._load(key)
        levels = self._meshes[key]
        enough = [number for number, most in enumerate(LEVELS) if most >= triangles]
        return levels[enough[-1] if enough else 0]

    def _load(self, key: str) -> tuple[Mesh, ...]:
        path = self.cache / f"{key}.npz"
        if not path.is_file():
            levels = self._convert(self.assets[key])
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            with part.open("wb") as file:
                np.savez(
                    file,
                    images=levels[0].images,
                    **{f"vertices{n}": mesh.vertices for n, mesh in enumerate(levels)},
                    **{f"indices{n}": mesh.indices for n, mesh in enumerate(levels)},
                )
            part.rename(path)  # atomic: several processes may fill the same cache
            return levels
        with np.load(path) as stored:
            images = stored["images"]
            return tuple(
                Mesh(stored[f"vertices{n}"], stored[f"indices{n}"], images)
                for n in range(len(LEVELS))
            )

    def usable(self, key: str) -> bool:
        """Whether the model can be read, is not too heavy and is not all glass."""
        try:
            self.mesh(key)
        except AssetError:
            return False
        return True

    def _convert(self, asset: Asset) -> tuple[Mesh, ...]:
        archive = self._archives[asset.library]
        try:
            text = archive.read(asset.model).decode("latin-1")
            materials = read_materials(archive, asset.model, text)
            mesh = read_obj(text, materials)
        except (KeyError, ValueError, IndexError) as error:
            raise AssetError(
                f"model {asset.model} in {asset.library}.sh3f cannot be read: {error}"
            ) from error
        mesh = Mesh(_to_asset_frame(mesh.vertices, asset), mesh.indices, mesh.images)
        levels = [mesh]
        for most in LEVELS:
            levels.append(simplify(levels[-1], most))
        return tuple(levels[1:])


def _to_asset_frame(vertices: np.ndarray, asset: Asset) -> np.ndarray:
    """Turn (y up, front to +z, any unit) into the asset's frame and catalogue size."""
    turn = np.eye(3) if asset.rotation is None else np.array(asset.rotation).reshape(3, 3)
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ turn  # y up to z up, front to -y
    result = vertices.copy()
    positions = vertices[:, :3] @ turn.T
    low, high = positions.min(axis=0), positions.max(axis=0)
    scale = np.array(asset.size) / np.maximum(high - low, 1e-9)
    scale = np.where(high - low < 1e-9, 1.0, scale)
    middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    result[:, :3] = (positions - middle) * scale
    normals = (vertices[:, 3:6] @ turn.T) / scale
    result[:, 3:6] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return result


def attribution(assets: Iterable[Asset]) -> str:
    """The attribution text for the given assets: name, author, source and licence of each."""
    lines = [
        "Furniture models from the Debian package sweethome3d-furniture, converted and rendered.",
        "Source: https://www.sweethome3d.com/importModels.jsp",
        "CC BY 3.0: https://creativecommons.org/licenses/by/3.0/",
        "CC BY 3.0 US: https://creativecommons.org/licenses/by/3.0/us/",
        "CC0 1.0: https://creativecommons.org/publicdomain/zero/1.0/",
        "",
    ]
    for asset in sorted(set(assets), key=lambda a: a.key):
        lines.append(f"{asset.key}: {asset.name}, by {asset.creator}, {asset.licence}")
    return "\n".join(lines) + "\n"
