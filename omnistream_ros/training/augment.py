# SPDX-License-Identifier: Apache-2.0
"""Changes to a clip that keep its geometry true.

Two kinds. Geometric: zooming into a window, rolling and mirroring; images, depth, intrinsics and
poses change together, so that every pixel still back-projects to the point it shows. Photometric:
what real cameras do and the renderer does not: exposure, white balance, gamma, vignetting, blur,
sharpening, low resolution, noise, JPEG. The network learns to ignore all of it. What it will see is
mostly better, made smaller from a sharp and quiet image: so about half of the clips keep their
detail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from omnistream_ros.training.clip_files import Clip

Image = NDArray[np.float32]  # (H, W, 3) in [0, 1]
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_SQUARE = 1e-2  # how far the sides of a pixel may differ in a clip that is rolled


@dataclass(frozen=True)
class AugmentSettings:
    """Strength of each change; the defaults are the strong setting that training uses."""

    largest_zoom: float = 1.7
    zoom_probability: float = 0.6
    roll_probability: float = 0.25
    largest_roll: float = 25.0  # degrees
    mirror_probability: float = 0.5
    photometric: bool = True


def zoom(clip: Clip, window: tuple[int, int, int, int], size: tuple[int, int]) -> Clip:
    """Cuts the window (x, y, width, height in pixels) and resizes it to `size` (width, height).

    Pixel centres lie at integers, so a coordinate u becomes `(u + 0.5 - x) * scale - 0.5`. Depth is
    taken from the nearest pixel: a mean across an edge is a place where nothing is.
    """
    x, y, width, height = window
    full_height, full_width = clip.rgb.shape[1:3]
    if (
        x < 0
        or y < 0
        or x + width > full_width
        or y + height > full_height
        or min(width, height) < 1
    ):
        raise ValueError(f"window {window} does not lie in an image of {full_width}x{full_height}")
    scale_x, scale_y = size[0] / width, size[1] / height
    fx, fy, cx, cy = clip.intrinsics
    smoothly = cv2.INTER_AREA if scale_x < 1 else cv2.INTER_LINEAR
    rgb = [
        cv2.resize(i[y : y + height, x : x + width], size, interpolation=smoothly) for i in clip.rgb
    ]
    depth = [
        cv2.resize(d[y : y + height, x : x + width], size, interpolation=cv2.INTER_NEAREST_EXACT)
        for d in clip.depth
    ]
    intrinsics = np.array(
        [
            fx * scale_x,
            fy * scale_y,
            (cx + 0.5 - x) * scale_x - 0.5,
            (cy + 0.5 - y) * scale_y - 0.5,
        ]
    )
    return type(clip)(np.stack(rgb), np.stack(depth), clip.poses, intrinsics)


def mirror(clip: Clip) -> Clip:
    """Left becomes right, in the image and in the world: x changes sign on both sides of a pose."""
    fx, fy, cx, cy = clip.intrinsics
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    return type(clip)(
        np.ascontiguousarray(clip.rgb[:, :, ::-1]),
        np.ascontiguousarray(clip.depth[:, :, ::-1]),
        flip @ clip.poses @ flip,
        np.array([fx, fy, clip.rgb.shape[2] - 1 - cx, cy]),
    )


def roll(clip: Clip, degrees: float) -> Clip:
    """Turns the camera about its optical axis; the image is enlarged until no corner is empty.

    Exact for square pixels (fx = fy): rays turn with the image, depth stays. A calibration that
    finds them square to one per cent is good enough for training.
    """
    height, width = clip.rgb.shape[1:3]
    fx, fy, cx, cy = clip.intrinsics
    if abs(fx / fy - 1) > _SQUARE:
        raise ValueError(f"roll needs square pixels, the clip has fx {fx:.2f} and fy {fy:.2f}")
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    scale = cos + abs(sin) * max(width / height, height / width)
    turn = np.array([[cos, -sin], [sin, cos]])
    centre = np.array([width - 1, height - 1]) / 2
    # new = scale * turn * (old - centre) + centre
    matrix = np.column_stack([scale * turn, centre - scale * turn @ centre])
    size = (width, height)
    rgb = [cv2.warpAffine(i, matrix, size, borderMode=cv2.BORDER_REPLICATE) for i in clip.rgb]
    depth = [
        cv2.warpAffine(d, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        for d in clip.depth
    ]
    new_cx, new_cy = matrix @ [cx, cy, 1]
    old_from_new = np.eye(4)
    old_from_new[:2, :2] = turn.T
    intrinsics = np.array([scale * fx, scale * fy, new_cx, new_cy])
    return type(clip)(np.stack(rgb), np.stack(depth), clip.poses @ old_from_new, intrinsics)


def augment(
    clip: Clip,
    rng: np.random.Generator,
    settings: AugmentSettings,
    size: tuple[int, int] | None = None,
) -> Clip:
    """A changed copy of the clip, brought to `size` (width, height) if one is given.

    Where that is of another shape, the image is cut to it. The same generator state gives the same
    result.
    """
    height, width = clip.rgb.shape[1:3]
    size = size or (width, height)
    window = _middle(width, height, size)
    # Rolling enlarges already; zooming as well would leave a keyhole.
    if rng.random() < settings.roll_probability:
        degrees = float(rng.uniform(-1, 1)) * settings.largest_roll
        fx, fy = clip.intrinsics[:2]
        if abs(fx / fy - 1) <= _SQUARE:  # others stay upright
            clip = roll(clip, degrees)
    elif rng.random() < settings.zoom_probability:
        window = _random_window(rng, (width, height), window[2:], settings)
    if window != (0, 0, width, height) or size != (width, height):
        clip = zoom(clip, window, size)
    if rng.random() < settings.mirror_probability:
        clip = mirror(clip)
    if settings.photometric:
        rgb = _photometric(clip.rgb, rng)
        clip = type(clip)(rgb, clip.depth, clip.poses, clip.intrinsics)
    return clip


def _middle(width: int, height: int, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest window (x, y, width, height) of this shape in the middle of an image."""
    w = min(width, max(1, round(height * shape[0] / shape[1])))
    h = min(height, max(1, round(width * shape[1] / shape[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def _random_window(
    rng: np.random.Generator,
    image: tuple[int, int],
    largest: tuple[int, int],
    settings: AugmentSettings,
) -> tuple[int, int, int, int]:
    """A window of the shape of the largest; its centre prefers the image's, as real lenses do."""
    width, height = image
    factor = np.exp(rng.uniform(0, np.log(settings.largest_zoom)))
    w, h = (max(1, round(side / factor)) for side in largest)
    offset = 0.5 + 0.5 * rng.uniform(-1, 1, 2) * rng.random()
    return round((width - w) * offset[0]), round((height - h) * offset[1]), w, h


def _photometric(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(T, H, W, 3) through one imaginary camera: constant traits, slow drift, fresh noise."""
    frames = len(rgb)
    steps = _camera_traits(rng, rgb.shape[1], rgb.shape[2])
    # Auto-exposure and auto-white-balance wander: a smooth path between two random ends.
    ends = rng.normal(0, 0.08, (2, 3)) + rng.normal(0, 0.1, (2, 1))
    path = np.linspace(0, 1, frames)[:, None]
    gains = np.exp((ends[0] * (1 - path) + ends[1] * path) * (rng.random() < 0.5))
    noise = rng.choice([0.0, 0.0, rng.uniform(0, 0.02), rng.uniform(0, 0.06)])
    jpeg = int(rng.integers(25, 95)) if rng.random() < 0.25 else None
    out = np.empty_like(rgb)
    for index in range(frames):
        image = rgb[index].astype(np.float32) / 255 * gains[index].astype(np.float32)
        for change in steps:
            image = change(image)
        if noise:
            grain = rng.standard_normal(image.shape, dtype=np.float32)
            image = image + noise * grain * np.sqrt(np.clip(image, 0.1, 1))
        quantised = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
        if jpeg is not None:
            quantised = _through_jpeg(quantised, jpeg)
        out[index] = quantised
    return out


def _through_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)


def _camera_traits(
    rng: np.random.Generator, height: int, width: int
) -> list[Callable[[Image], Image]]:
    """The changes that stay the same throughout a clip, in the order in which light meets them."""
    steps: list[Callable[[Image], Image]] = []
    if rng.random() < 0.4:
        steps.append(_vignette(rng, height, width))
    if rng.random() < 0.2:
        steps.append(_blur(rng))
    elif rng.random() < 0.3:
        steps.append(_sharpened(rng))
    if rng.random() < 0.15:
        steps.append(_low_resolution(rng, height, width))
    steps.append(_colour(rng))
    return steps


def _vignette(rng: np.random.Generator, height: int, width: int) -> Callable[[Image], Image]:
    """Darkening towards the corners, or a light that falls in from one side."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    centre_x, centre_y = rng.uniform(-0.3, 1.3, 2) if rng.random() < 0.5 else (0.5, 0.5)
    radius = (x / width - centre_x) ** 2 + (y / height - centre_y) ** 2
    mask = (1 - rng.uniform(0.1, 0.6) * np.minimum(radius / 0.5, 1))[..., None].astype(np.float32)
    return lambda image: image * mask


def _blur(rng: np.random.Generator) -> Callable[[Image], Image]:
    """Defocus (Gaussian) or motion blur (a short line at a random angle)."""
    if rng.random() < 0.5:
        sigma = float(rng.uniform(0.4, 1.4))
        return lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)
    size = int(rng.choice([3, 5, 7]))
    kernel = np.zeros((size, size), np.float32)
    kernel[size // 2] = 1
    turn = cv2.getRotationMatrix2D((size // 2, size // 2), float(rng.uniform(0, 180)), 1)
    kernel = np.asarray(cv2.warpAffine(kernel, turn, (size, size)), np.float32)
    kernel /= kernel.sum()
    return lambda image: np.asarray(cv2.filter2D(image, -1, kernel), np.float32)


def _sharpened(rng: np.random.Generator) -> Callable[[Image], Image]:
    """Unsharp masking, as cameras do it."""
    sigma, amount = float(rng.uniform(0.6, 1.2)), float(rng.uniform(0.2, 1.0))
    return lambda image: np.asarray(
        image + amount * (image - cv2.GaussianBlur(image, (0, 0), sigma)), np.float32
    )


def _low_resolution(rng: np.random.Generator, height: int, width: int) -> Callable[[Image], Image]:
    factor = rng.uniform(1.2, 2.5)
    small = (max(1, round(width / factor)), max(1, round(height / factor)))

    def through_small(image: Image) -> Image:
        reduced = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(reduced, (width, height)), np.float32)

    return through_small


def _colour(rng: np.random.Generator) -> Callable[[Image], Image]:
    """White balance, saturation (down to grey), gamma, contrast, brightness and haze."""
    balance = np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
    saturation = 0.0 if rng.random() < 0.08 else rng.uniform(0.3, 1.6)
    gamma = np.exp(rng.normal(0, 0.2))
    contrast, brightness = np.exp(rng.normal(0, 0.2)), np.exp(rng.normal(0, 0.2))
    haze = rng.uniform(0, 0.25) if rng.random() < 0.25 else 0.0

    def change(image: Image) -> Image:
        image = image * balance
        grey = (image @ _LUMA)[..., None]
        image = np.clip(grey + saturation * (image - grey), 0, None) ** gamma
        image = brightness * (0.45 + contrast * (image - 0.45))
        return np.asarray(haze + (1 - haze) * image, np.float32)

    return change
