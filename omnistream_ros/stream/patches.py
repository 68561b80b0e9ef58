# SPDX-License-Identifier: Apache-2.0
"""Where small pieces of one image are in another, to a fiftieth of a pixel's neighbourhood.

Descriptors on strided convolutions say which cell a place has gone to, but inside of the cell they
pull towards its middle: slow motion is measured too small, for all places alike. The image itself
knows better. From the place found by its descriptor, a patch of 8x8 pixels is aligned with the
current image by Gauss-Newton (Lucas and Kanade, 1981, in the inverse compositional form of Baker
and Matthews, 2004), indifferent to brightness and contrast. The structure of the patch says how far
each direction can be trusted: along an edge it cannot.

Positions are in pixels of the model image, integer at pixel centres. N patches of K pixels; inside,
their pixels are (N, 2, K), x before y, for it is long rows that are added and multiplied fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from omnistream_ros.model import PIXEL_MEAN, PIXEL_STD

_SIDE = 8  # even: cell centres lie between pixels, so the patch of a keyframe needs no resampling
_ROUNDS = 3
_LONGEST_STEP = 1.0  # pixels; further than that the linearisation says nothing
# Keeps a patch without structure where its descriptor has put it (grey levels squared per pixel^2).
_STIFFNESS = 30.0
# A patch has been found when it moved by less than this (pixels), and correlates by more.
_FARTHEST = 2.5
_CORRELATION = 0.6
# Grey levels that differ without meaning anything; and how much surer the model of independent
# pixel noise is of itself than it should be.
_NOISE = 3.0
_CAUTION = 1.5
# No position is better than this, and one from the descriptor alone is this good (pixels).
_FLOOR = 0.08
_DESCRIPTOR_ERROR = 0.5


@dataclass(frozen=True)
class Found:
    """Where the patches are.

    Attributes:
        position: (N, 2) pixels.
        covariance: (N, 2, 2) pixels squared, of the position.
    """

    position: Tensor
    covariance: Tensor


class Patches:
    """Pieces of one image.

    Args:
        image: (H, W) float32 grey levels, 0 to 255.
        centres: (N, 2) pixels, between four pixel centres.
    """

    def __init__(self, image: Tensor, centres: Tensor) -> None:
        steps = torch.arange(_SIDE, device=image.device) - 0.5 * (_SIDE - 1)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        self._offsets = torch.stack((x, y)).flatten(1)  # (2, K)
        pixels = centres.unsqueeze(-1) + self._offsets  # (N, 2, K)
        down, right = torch.gradient(image)
        values = _sample(torch.stack((image, right, down)), pixels)  # (3, N, K)
        # What a change of brightness could do as well is taken out of the image and its slope ...
        values = values - values.mean(-1, keepdim=True)
        self._pattern, slope = values[0], values[1:]  # (N, K), (2, N, K)
        self._contrast = self._pattern.norm(dim=-1, keepdim=True).clamp_min(1e-3)  # (N, 1)
        # ... and what a change of contrast could do.
        unit = self._pattern / self._contrast
        slope = slope - unit * (unit * slope).sum(-1, keepdim=True)
        self._slope = slope.movedim(0, 1).contiguous()  # (N, 2, K)
        self._structure = self._slope @ self._slope.transpose(1, 2)  # (N, 2, 2)
        self._identity = torch.eye(2, device=image.device)
        stiff = self._structure + _STIFFNESS * self._identity
        self._gain = _inverse(stiff) @ self._slope  # (N, 2, K): from difference to step

    def find(self, image: Tensor, start: Tensor, warp: Tensor) -> Found:
        """Align the patches with another image.

        Args:
            image: (H, W) float32 grey levels.
            start: (N, 2) pixels, right to within about two.
            warp: (N, 2, 2) how the surroundings of each have turned and grown.
        """
        offsets = warp @ self._offsets  # (N, 2, K)
        position = start.unsqueeze(-1)
        for _ in range(_ROUNDS):
            difference, _ = self._compare(image, position + offsets)
            step = warp @ (self._gain @ difference.unsqueeze(-1))  # (N, 2, 1)
            step = step * (_LONGEST_STEP / step.norm(dim=1, keepdim=True).clamp_min(_LONGEST_STEP))
            position = position - step
        difference, correlation = self._compare(image, position + offsets)
        position = position.squeeze(-1)  # (N, 2)
        found = (correlation > _CORRELATION) & ((position - start).norm(dim=1) < _FARTHEST)

        noise = _CAUTION * difference.square().mean(-1).sqrt().clamp_min(_NOISE)  # (N,)
        variance = noise.square()[:, None, None]
        # The descriptor's own position is the prior: the other end of an edge is not unbounded.
        prior = self._identity / _DESCRIPTOR_ERROR**2
        covariance = _inverse(self._structure / variance + prior) + _FLOOR**2 * self._identity
        alone = (2 * _DESCRIPTOR_ERROR) ** 2 * self._identity
        return Found(
            torch.where(found[:, None], position, start),
            torch.where(found[:, None, None], covariance, alone),
        )

    def _compare(self, image: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Difference to the pattern (N, K) at equal contrast, and correlation (N,)."""
        values = _sample(image.unsqueeze(0), pixels)[0]  # (N, K)
        values = values - values.mean(-1, keepdim=True)
        contrast = values.norm(dim=-1, keepdim=True).clamp_min(1e-3)
        difference = values * (self._contrast / contrast).clamp(0.5, 2.0) - self._pattern
        correlation = (values * self._pattern).sum(-1) / (contrast * self._contrast).squeeze(-1)
        return difference, correlation


def luminance(pixels: Tensor) -> Tensor:
    """Grey levels (H, W) float32, 0 to 255, of normalised pixels (1, 3, H, W) (Rec. 601)."""
    weights = (0.299, 0.587, 0.114)
    scale = [255 * w * std for w, std in zip(weights, PIXEL_STD, strict=True)]
    offset = sum(255 * w * mean for w, mean in zip(weights, PIXEL_MEAN, strict=True))
    return torch.einsum("chw,c->hw", pixels[0].float(), pixels.new_tensor(scale).float()) + offset


def _sample(images: Tensor, pixels: Tensor) -> Tensor:
    """Bilinear values (C, N, K) of images (C, H, W) at pixels (N, 2, K)."""
    size = pixels.new_tensor([[images.shape[2]], [images.shape[1]]])
    where = (pixels * (2 / size) + (1 / size - 1)).transpose(1, 2)  # (N, K, 2)
    return F.grid_sample(
        images[None], where[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0]


def _inverse(matrices: Tensor) -> Tensor:
    """Of symmetric matrices (N, 2, 2); the general one takes several times as long."""
    a, b, d = matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 1]
    adjugate = torch.stack((d, -b, -b, a), dim=-1).unflatten(-1, (2, 2))
    return adjugate / (a * d - b * b)[:, None, None]
