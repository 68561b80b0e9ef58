# SPDX-License-Identifier: Apache-2.0
"""From a camera image to what the model sees, and back from model pixels to camera pixels.

The whole image is resized, nothing is cropped or padded: each side is scaled by the same factor and
then rounded to a multiple of the patch size, so the aspect ratio changes by a few percent at most.
The intrinsics follow each axis exactly (``Intrinsics.resized``).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from omnistream_ros.model.config import PIXEL_MEAN, PIXEL_STD
from omnistream_ros.stream.transfer import Upload
from omnistream_ros.stream.undistort import Undistorter

# Wider or taller images would need a grid far larger than the model's nominal one to keep at least
# a row of patches, and no model has seen such a thing.
MAX_ASPECT = 8.0


def model_size(height: int, width: int, model_pixels: int, patch_size: int = 16) -> tuple[int, int]:
    """Size (H, W) at which the model sees an image: about ``model_pixels``, multiples of a patch.

    Raises:
        ValueError: an empty image, or sides that differ by more than ``MAX_ASPECT``.
    """
    if height < 1 or width < 1:
        raise ValueError(f"image size must be positive, got {width}x{height}")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"image of {width}x{height} is too elongated: the sides may differ by a factor of "
            f"{MAX_ASPECT:g}; crop it first"
        )
    scale = math.sqrt(model_pixels / (height * width))
    # Half rounds up, not to even as in Python's round, so that the rule is monotonic in the side.
    rows, columns = (
        max(1, math.floor(scale * side / patch_size + 0.5)) for side in (height, width)
    )
    return rows * patch_size, columns * patch_size


def model_to_source(model: tuple[int, int], source: tuple[int, int]) -> np.ndarray:
    """Affine from pixels (u, v) of the model image to pixels of the source, (2, 3) float64.

    Image borders map to image borders; integer coordinates are pixel centres. ``model`` and
    ``source`` are (H, W).
    """
    sy, sx = source[0] / model[0], source[1] / model[1]
    return np.array([[sx, 0.0, 0.5 * sx - 0.5], [0.0, sy, 0.5 * sy - 0.5]])


class Preprocessor:
    """Turns images of one size into normalised pixels on the device.

    Args:
        source_size: (H, W) of the images.
        size: (H, W) of the model input.
        device, dtype: of the result.
    """

    def __init__(
        self,
        source_size: tuple[int, int],
        size: tuple[int, int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.source_size = source_size
        self.size = size
        self._device = torch.device(device)
        self._upload = Upload(source_size, self._device)
        mean = torch.tensor(PIXEL_MEAN, device=self._device).view(1, 3, 1, 1)
        std = torch.tensor(PIXEL_STD, device=self._device).view(1, 3, 1, 1)
        # (x / 255 - mean) / std as one multiplication and one addition
        self._scale = 1.0 / (255.0 * std)
        self._shift = -mean / std
        self._dtype = dtype

    def __call__(self, image: np.ndarray, lens: Undistorter | None = None) -> torch.Tensor:
        """Undistort, resize with antialiasing and normalise.

        Args:
            image: (H, W, 3) uint8 RGB of ``source_size``.
            lens: takes the distortion out, where the model runs.

        Returns:
            (1, 3, h, w) on the device, in the model's dtype.

        Raises:
            ValueError: the image has another size or dtype.
        """
        if image.shape != (*self.source_size, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"expected a uint8 image of shape {(*self.source_size, 3)}, "
                f"got {image.dtype} {image.shape}"
            )
        if lens is not None and self._device.type == "cpu":
            return self.normalise(torch.from_numpy(lens.image(image)))
        uploaded = self._upload(image)
        return self.normalise(uploaded if lens is None else lens.image_on_device(uploaded))

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """What is left to do for an image (H, W, 3) uint8 on the device; nothing waits for it."""
        pixels = image.permute(2, 0, 1).unsqueeze(0)  # (1, 3, H, W)
        if self._device.type != "cpu":
            # Only the CPU has a kernel for uint8, there several times faster than the float one
            # and within one grey level of it.
            pixels = pixels.float()
        if self.size != self.source_size:
            pixels = functional.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        # Planes first: what follows is then several times as fast as on interleaved colours.
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.mul_(self._scale).add_(self._shift).to(self._dtype)
