# SPDX-License-Identifier: Apache-2.0
"""From linear light to what a cheap camera delivers: exposure, motion blur, lens, noise, coding.

All effects are drawn once per clip (`Sensor.random`) and then vary smoothly, as in a real camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from omnistream_ros.training.render import View
from omnistream_ros.training.textures import Rng


@dataclass(frozen=True)
class Sensor:
    """One camera's character; the defaults are a clean, well-exposed one.

    brightness: mean of the linear image after exposure. adaptation: how fast exposure follows the
    scene, 0..1 per frame. shutter: fraction of the frame interval it is open. blur: Gaussian
    sigma in pixels. shot, read: noise at full scale. white: channel gains. curve: how far the tones
    bend into the S of photographs, 0..1. sharpening: of edges, as cameras do it. quality: JPEG or
    None.
    """

    brightness: float = 0.22
    adaptation: float = 0.15
    contrast: float = 1.0
    saturation: float = 1.0
    white: tuple[float, float, float] = (1.0, 1.0, 1.0)
    vignette: float = 0.0
    blur: float = 0.0
    shutter: float = 0.0
    shot: float = 0.0
    read: float = 0.0
    curve: float = 0.0
    sharpening: float = 0.0
    quality: int | None = None

    @classmethod
    def random(cls, rng: Rng) -> Sensor:
        """A camera as found in phones, webcams and robots.

        Most are better than the image is large: made as small as the network wants it, their
        noise is averaged away and their edges are sharp.
        """
        rough = rng.random() < 0.35
        return cls(
            brightness=float(np.exp(rng.normal(np.log(0.2), 0.4))),
            adaptation=float(rng.uniform(0.02, 0.4)),
            contrast=float(rng.uniform(0.85, 1.2)),
            saturation=float(rng.uniform(0.5, 1.4)),
            white=tuple(float(v) for v in np.exp(rng.normal(0, 0.07, 3))),
            vignette=float(rng.uniform(0, 0.35)) if rough else 0.0,
            blur=float(rng.uniform(0.0, 0.8)) if rough else 0.0,
            shutter=float(rng.uniform(0.0, 0.5)) if rng.random() < 0.6 else 0.0,
            shot=float(rng.uniform(0.0, 0.03)) if rough else 0.004,
            read=float(rng.uniform(0.0, 0.01)) if rough else 0.001,
            curve=float(rng.uniform(0.0, 1.0)),
            sharpening=0.0 if rough else float(rng.uniform(0.0, 0.8)),
            quality=int(rng.integers(50, 96)) if rng.random() < 0.35 else None,
        )


def expose(
    views: list[View],
    poses: np.ndarray,
    intrinsics: tuple[float, float, float, float],
    sensor: Sensor,
    rng: Rng,
) -> np.ndarray:
    """Turn rendered views (T of H x W) into pictures (T, H, W, 3) uint8 sRGB.

    Motion blur follows the image motion from each frame to the next, so poses (T, 4, 4) are
    camera-to-world at the middle of the exposure. It is that of a room in which only the camera
    moves: what moves besides is blurred as if it stood, which at its speeds is hardly seen.
    """
    height, width = views[0].depth.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    radius = ((x - width / 2) ** 2 + (y - height / 2) ** 2) / (width**2 + height**2) * 4
    falloff = (1 - sensor.vignette * radius)[..., None].astype(np.float32)
    pictures = np.empty((len(views), height, width, 3), np.uint8)
    gain = None
    for i, view in enumerate(views):
        light = np.minimum(view.radiance, 50.0)
        # Meter between mean and mean of the logarithm: neither a bright window nor a dark doorway
        # decides alone.
        grey = light.mean(axis=2)
        typical = float(np.exp(np.log(grey + 1e-3).mean()))
        level = np.sqrt(typical * float(np.minimum(grey, 8 * typical).mean()))
        wanted = sensor.brightness / level
        gain = wanted if gain is None else gain * (wanted / gain) ** sensor.adaptation
        if sensor.shutter > 0:
            other = i + 1 if i + 1 < len(views) else i - 1
            light = _smear(light, view.depth, poses[i], poses[other], intrinsics, sensor.shutter)
        if sensor.blur > 0.2:
            light = cv2.GaussianBlur(light, (0, 0), sensor.blur)
        light = light * (np.float32(gain) * np.array(sensor.white, np.float32)) * falloff
        grey = light.mean(axis=2, keepdims=True)
        light = np.maximum(grey + sensor.saturation * (light - grey), 0)
        noise = rng.standard_normal(light.shape, dtype=np.float32)
        light += noise * np.sqrt(sensor.shot**2 * light + sensor.read**2)
        # A soft shoulder: straight up to 0.6, then approaching 1.
        light = np.where(light < 0.6, light, 1 - 0.4 * np.exp(-(light - 0.6) / 0.4))
        tone = np.clip(light, 0, 1) ** np.float32(sensor.contrast / 2.2)
        tone += np.float32(sensor.curve) * (tone * tone * (3 - 2 * tone) - tone)
        if sensor.sharpening > 0:
            soft = cv2.GaussianBlur(tone, (0, 0), 1.0)
            tone = np.clip(tone + np.float32(sensor.sharpening) * (tone - soft), 0, 1)
        pictures[i] = (tone * 255 + 0.5).astype(np.uint8)
        if sensor.quality is not None:
            _, coded = cv2.imencode(".jpg", pictures[i], [cv2.IMWRITE_JPEG_QUALITY, sensor.quality])
            pictures[i] = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return pictures


def flow(
    depth: np.ndarray,
    pose: np.ndarray,
    other: np.ndarray,
    intrinsics: tuple[float, float, float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of a view lies in another view of the same static scene.

    depth (H, W) z in metres, poses (4, 4) camera-to-world. Returns pixels (H, W, 2) float32 and the
    z-depth (H, W) there; points behind the other camera have depth <= 0.
    """
    fx, fy, cx, cy = intrinsics
    height, width = depth.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    points = np.stack([(x - cx) / fx * depth, (y - cy) / fy * depth, depth], -1)  # (H, W, 3)
    relative = np.linalg.inv(other) @ pose
    points = points @ relative[:3, :3].T + relative[:3, 3]
    z = points[..., 2]
    safe = np.where(np.abs(z) < 1e-6, 1e-6, z)
    pixels = np.stack([fx * points[..., 0] / safe + cx, fy * points[..., 1] / safe + cy], -1)
    return pixels.astype(np.float32), z


def _smear(
    light: np.ndarray,
    depth: np.ndarray,
    pose: np.ndarray,
    other: np.ndarray,
    intrinsics: tuple[float, float, float, float],
    shutter: float,
) -> np.ndarray:
    """Average along the image motion during exposure (first order, at most 8 pixels long)."""
    height, width = depth.shape
    pixels, _ = flow(depth, pose, other, intrinsics)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    motion = (pixels - np.stack([x, y], -1)) * shutter
    length = np.linalg.norm(motion, axis=-1, keepdims=True)
    motion = motion * np.minimum(1.0, 8.0 / np.maximum(length, 1e-6))
    longest = float(np.percentile(np.minimum(length, 8.0), 90))
    if longest < 0.7:
        return light
    motion = cv2.blur(motion, (5, 5))
    steps = int(np.clip(longest, 3, 7))
    total = np.zeros_like(light)
    for t in np.linspace(-0.5, 0.5, steps, dtype=np.float32):
        total += cv2.remap(
            light,
            x + t * motion[..., 0],
            y + t * motion[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return total / steps
