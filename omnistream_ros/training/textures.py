# SPDX-License-Identifier: Apache-2.0
"""Textures of rooms: tileable procedural materials, and pictures found on the machine for posters.

A procedural texture is (256, 256, 4) uint8 RGBA in sRGB and repeats seamlessly; its period in
metres comes with it, so that planks and tiles have the size they have in houses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from omnistream_ros.training.mesh import IMAGE_SIZE

# Debian packages whose pictures hang on the walls of training rooms where they are installed, and
# the licences that their copyright files name for pictures (Debian 12).
PICTURE_LICENCES = {
    "gnome-backgrounds": "CC BY 2.0, CC BY-SA 2.0, CC BY-SA 3.0, GPL-2+",
    "lomiri-wallpapers": "CC0 1.0, CC BY 4.0, CC BY-SA 3.0, CC BY-SA 4.0",
    "mate-backgrounds": "GPL-2+, CC BY-SA 4.0",
    "plasma-workspace-wallpapers": "GPL-2+",
    "ukui-wallpapers": "CC BY-SA 3.0",
}
PICTURE_FOLDERS = (Path("/usr/share/backgrounds"), Path("/usr/share/wallpapers"))
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

Texture = tuple[np.ndarray, float]  # image (256, 256, 4) uint8, period in metres
Rng = np.random.Generator

_N = IMAGE_SIZE
_Y, _X = np.mgrid[0:_N, 0:_N] / _N  # 0..1, top to bottom and left to right


def noise(rng: Rng, slope: float = 1.5, stretch: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Tileable noise (256, 256), mean 0 and deviation 1, with amplitude 1/f^slope.

    `stretch` lengthens the grain along y and x.
    """
    fy = np.fft.fftfreq(_N)[:, None] * _N * stretch[0]
    fx = np.fft.fftfreq(_N)[None, :] * _N * stretch[1]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf
    phase = np.exp(2j * np.pi * rng.random((_N, _N)))
    field = np.real(np.fft.ifft2(frequency**-slope * phase))
    return (field - field.mean()) / field.std()


def hue(rng: Rng, low: float, high: float, saturation: float) -> np.ndarray:
    """A random colour (3,) in 0..1, its value between low and high, its saturation limited."""
    hsv = np.array([[[rng.random() * 360, saturation * rng.random(), rng.uniform(low, high)]]])
    return cv2.cvtColor(hsv.astype(np.float32), cv2.COLOR_HSV2RGB)[0, 0].astype(np.float64)


def _rgba(colour: np.ndarray) -> np.ndarray:
    image = np.full((_N, _N, 4), 255, np.uint8)
    image[..., :3] = np.clip(colour * 255, 0, 255)
    return image


def _shade(base: np.ndarray, field: np.ndarray, strength: float) -> np.ndarray:
    return base * (1 + strength * field)[..., None]


_WOODS = np.array(
    [
        [0.55, 0.38, 0.22],
        [0.40, 0.25, 0.15],
        [0.72, 0.56, 0.38],
        [0.30, 0.19, 0.13],
        [0.62, 0.50, 0.40],
    ]
)


def _wood_colour(rng: Rng) -> np.ndarray:
    return rng.choice(_WOODS) * rng.uniform(0.8, 1.25)


def plaster(rng: Rng) -> Texture:
    """Painted wall: nearly plain, with a trace of unevenness."""
    base = hue(rng, 0.45, 0.97, 0.4 if rng.random() < 0.35 else 0.08)
    field = 0.6 * noise(rng, 1.8) + 0.4 * noise(rng, 0.6)
    return _rgba(_shade(base, field, rng.uniform(0.01, 0.05))), rng.uniform(1.0, 2.5)


def concrete(rng: Rng) -> Texture:
    base = hue(rng, 0.35, 0.7, 0.1)
    field = noise(rng, 1.4) + 0.3 * noise(rng, 0.3)
    return _rgba(_shade(base, field, rng.uniform(0.02, 0.1))), rng.uniform(1.5, 3.0)


def carpet(rng: Rng) -> Texture:
    base = hue(rng, 0.15, 0.7, 0.6)
    other = hue(rng, 0.15, 0.7, 0.6)
    field = noise(rng, 0.1)
    mix = (rng.random((_N, _N)) < rng.uniform(0.0, 0.35))[..., None]
    return _rgba(_shade(np.where(mix, other, base), field, 0.2)), rng.uniform(0.6, 1.2)


def grain(rng: Rng) -> Texture:
    """Plain wood, the grain along x."""
    base = _wood_colour(rng)
    field = noise(rng, 1.3, (1.0, 8.0)) + 0.4 * np.sin(14 * noise(rng, 2.5, (1.0, 5.0)))
    return _rgba(_shade(base, field, rng.uniform(0.08, 0.16))), rng.uniform(0.8, 1.4)


def planks(rng: Rng) -> Texture:
    """Floor boards with joints, staggered."""
    rows = int(rng.integers(5, 11))
    image = np.empty((_N, _N, 3))
    base = _wood_colour(rng)
    field = noise(rng, 1.2, (1.0, 8.0))
    image[:] = _shade(base, field, 0.1)
    row = np.floor(_Y * rows).astype(int)
    offset = rng.random(rows)[row]
    along = (_X + offset) * rng.integers(1, 4)
    board = row * 7 + np.floor(along).astype(int) % 7
    image *= (1 + 0.14 * rng.standard_normal(rows * 7 + 7))[board][..., None]
    edge = ((_Y * rows) % 1 < 0.05 * rows / 8) | (along % 1 < 0.012)
    image[edge] *= 0.45
    return _rgba(image), rows * rng.uniform(0.09, 0.16)


def parquet(rng: Rng) -> Texture:
    """Squares of strips, turned by a quarter from one to the next."""
    cells = int(rng.choice([4, 6]))
    strips = int(rng.integers(4, 7))
    cy, cx = (_Y * cells).astype(int), (_X * cells).astype(int)
    turned = (cy + cx) % 2 == 0
    across = np.where(turned, _Y * cells % 1, _X * cells % 1)
    strip = (across * strips).astype(int)
    number = (cy * cells + cx) * strips + strip
    tone = 1 + 0.12 * rng.standard_normal(cells * cells * strips)
    base = _wood_colour(rng)
    grain_field = np.where(turned, noise(rng, 1.2, (1, 6)), noise(rng, 1.2, (6, 1)))
    image = _shade(base * tone[number][..., None], grain_field, 0.08)
    image[(across * strips % 1) < 0.08] *= 0.6
    return _rgba(image), cells * rng.uniform(0.2, 0.35)


def tiles(rng: Rng) -> Texture:
    """Square tiles with grout, plain, marbled or in two colours."""
    count = int(rng.choice([2, 4, 6, 8]))
    cy, cx = (_Y * count).astype(int), (_X * count).astype(int)
    colourful = 0.4 if rng.random() < 0.3 else 0.12
    first = hue(rng, 0.2, 0.95, colourful)
    second = hue(rng, 0.15, 0.9, colourful) if rng.random() < 0.35 else first
    image = np.where((((cy + cx) % 2) == 0)[..., None], first, second)
    image = _shade(image, noise(rng, rng.uniform(1.0, 2.0)), rng.uniform(0.01, 0.1))
    image *= (1 + 0.04 * rng.standard_normal((count, count)))[cy, cx][..., None]
    joint = (np.minimum(_Y * count % 1, _X * count % 1)) < rng.uniform(0.02, 0.06)
    image[joint] = hue(rng, 0.3, 0.85, 0.1)
    return _rgba(image), count * rng.uniform(0.12, 0.45)


def bricks(rng: Rng) -> Texture:
    rows = 12
    row = (_Y * rows).astype(int)
    along = _X * 4 + 0.5 * (row % 2)
    column = along.astype(int) % 4
    base = np.array([0.55, 0.28, 0.2]) if rng.random() < 0.6 else hue(rng, 0.5, 0.95, 0.15)
    image = base * (1 + 0.13 * rng.standard_normal((rows, 4)))[row, column][..., None]
    image = _shade(image, noise(rng, 0.8), 0.1)
    joint = (_Y * rows % 1 < 0.14) | (along % 1 < 0.05)
    image[joint] = hue(rng, 0.55, 0.85, 0.1)
    return _rgba(image), rng.uniform(0.9, 1.1)


def wallpaper(rng: Rng) -> Texture:
    """Printed paper: stripes, or ornaments on a lattice."""
    first, second = hue(rng, 0.4, 0.95, 0.5), hue(rng, 0.3, 0.95, 0.5)
    count = int(rng.integers(3, 10))
    if rng.random() < 0.4:
        duty = rng.uniform(0.2, 0.6)
        mask = (_X * count % 1 < duty) | (_X * count % 1 > 1 - duty * rng.random() * 0.5)
        mask = mask.astype(float)
    else:
        u = (_X * count + 0.5 * ((_Y * count).astype(int) % 2)) % 1 - 0.5
        v = _Y * count % 1 - 0.5
        radius, angle = np.hypot(u, v), np.arctan2(v, u)
        petals = rng.integers(2, 8)
        mask = (radius < 0.28 + 0.15 * np.cos(petals * angle + rng.random() * 6)).astype(float)
        mask = np.abs(mask - (radius < rng.uniform(0.0, 0.2)))
    mix = (mask * rng.uniform(0.3, 1.0))[..., None]
    return _rgba(_shade(first * (1 - mix) + second * mix, noise(rng, 0.8), 0.02)), rng.uniform(
        0.5, 1.5
    )


def fabric(rng: Rng) -> Texture:
    """Woven cloth: checks, stripes or plain."""
    first, second = hue(rng, 0.2, 0.9, 0.8), hue(rng, 0.2, 0.95, 0.8)
    count = int(rng.integers(2, 9))
    across = (_X * count % 1 < rng.uniform(0.2, 0.7)).astype(float)
    along = (_Y * count % 1 < rng.uniform(0.2, 0.7)).astype(float)
    mix = (across + along)[..., None] / 2 if rng.random() < 0.5 else across[..., None]
    mix = mix * rng.choice([0.0, 0.5, 1.0])
    weave = np.sin(_X * _N * np.pi / 2) * np.sin(_Y * _N * np.pi / 2)
    return _rgba(_shade(first * (1 - mix) + second * mix, weave + 0.5 * noise(rng, 0.5), 0.05)), 0.5


def stone(rng: Rng) -> Texture:
    """Marble or granite."""
    base = hue(rng, 0.2, 0.95, 0.25)
    if rng.random() < 0.5:
        field = -np.exp(-np.abs(noise(rng, 2.2)) * 8) * 3 + 0.4 * noise(rng, 1.5)
    else:
        field = noise(rng, 0.2) + noise(rng, 1.0)
    return _rgba(_shade(base, field, rng.uniform(0.05, 0.15))), rng.uniform(0.8, 2.0)


def print_page(rng: Rng) -> Texture:
    """A printed page, label or cover: blocks, rules and lines of text-like marks. Not tileable."""
    image = np.ones((_N, _N, 3)) * hue(rng, 0.3, 1.0, 0.9 if rng.random() < 0.5 else 0.05)
    for _ in range(rng.integers(1, 5)):
        y0, x0 = rng.integers(0, 200, 2)
        y1, x1 = y0 + rng.integers(10, 120), x0 + rng.integers(10, 150)
        image[y0:y1, x0:x1] = hue(rng, 0.1, 1.0, 0.9)
    ink = hue(rng, 0.0, 0.25, 0.5) if image.mean() > 0.4 else hue(rng, 0.8, 1.0, 0.3)
    height = int(rng.integers(4, 14))
    for y in range(int(rng.integers(10, 150)), _N - 20, int(height * 1.8)):
        words = np.repeat(rng.random(_N // 4) < 0.78, 4)
        words[: int(rng.integers(10, 30))] = False
        words[int(rng.integers(150, 246)) :] = False
        image[y : y + height, words[:_N]] = ink
    return _rgba(image), 1.0


def screen(rng: Rng) -> Texture:
    """What a monitor shows: windows with bars and text. Not tileable."""
    image = np.ones((_N, _N, 3)) * hue(rng, 0.1, 0.8, 0.8)
    for _ in range(rng.integers(1, 4)):
        y0, x0 = rng.integers(5, 110, 2)
        y1, x1 = min(y0 + rng.integers(60, 200), 250), min(x0 + rng.integers(80, 200), 250)
        dark = rng.random() < 0.5
        image[y0:y1, x0:x1] = 0.12 if dark else 0.95
        image[y0 : y0 + 8, x0:x1] = hue(rng, 0.3, 0.8, 0.7)
        for y in range(y0 + 14, y1 - 6, 7):
            length = int((x1 - x0 - 10) * rng.random())
            image[y : y + 3, x0 + 5 : x0 + 5 + length] = hue(rng, 0.5, 1.0, 0.8) if dark else 0.2
    return _rgba(image), 1.0


FLOORS: tuple[Callable[[Rng], Texture], ...] = (
    planks,
    parquet,
    tiles,
    carpet,
    concrete,
    stone,
    planks,
)
WALLS: tuple[Callable[[Rng], Texture], ...] = (
    plaster,
    plaster,
    plaster,
    plaster,
    plaster,
    plaster,
    wallpaper,
    concrete,
    bricks,
)
WET_WALLS: tuple[Callable[[Rng], Texture], ...] = (tiles, tiles, plaster, stone)
COVERINGS: tuple[Callable[[Rng], Texture], ...] = (
    grain,
    fabric,
    print_page,
    plaster,
    stone,
    print_page,
)


@lru_cache(maxsize=1)
def picture_files() -> tuple[Path, ...]:
    """Pictures installed for desktop backgrounds; empty where none are installed."""
    found = []
    for folder in PICTURE_FOLDERS:
        if folder.is_dir():
            found += [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in PICTURE_SUFFIXES]
    # One resolution of each plasma wallpaper is enough.
    largest = {(p.parent if p.parent.name.startswith("images") else p): p for p in found}
    return tuple(p for p in largest.values() if p.stat().st_size > 30_000)


@lru_cache(maxsize=512)
def load_picture(path: Path) -> np.ndarray | None:
    """A picture scaled to at most 512 on its short side, RGB; None when it cannot be decoded."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_REDUCED_COLOR_2)
    if image is None:
        return None
    scale = 2 * _N / min(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image[..., ::-1])


def picture(rng: Rng, aspect: float) -> np.ndarray | None:
    """A random cut-out (256, 256, 4) of an installed picture to be shown at width/height `aspect`.

    None where no pictures are installed.
    """
    files = picture_files()
    image = load_picture(files[rng.integers(len(files))]) if files else None
    if image is None:
        return None
    rows, columns = image.shape[:2]
    fit = min(columns / aspect, rows) * rng.uniform(0.4, 1.0)
    height, width = max(int(fit), 8), max(int(fit * aspect), 8)
    y, x = rng.integers(0, max(rows - height, 1)), rng.integers(0, max(columns - width, 1))
    cut = cv2.resize(image[y : y + height, x : x + width], (_N, _N), interpolation=cv2.INTER_AREA)
    return _rgba(cut / 255.0)
