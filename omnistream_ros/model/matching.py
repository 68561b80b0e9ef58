# SPDX-License-Identifier: Apache-2.0
"""Matching between two images of a stream: descriptors on the trunk, and where each one went.

The trunk's features at strides 4 and 8 are already computed for every frame; two small convolutions
turn them into descriptors of unit length at stride 4. Each place of a keyframe is then looked for
in the current frame, in a window around the place where motion is expected to have taken it. A
softmax over the window gives the position (by its mean around the peak, finer than a cell), and a
small network says from the shape of the softmax how far that can be trusted.

Positions are in cells of the stride-4 grid (x, y), integer at cell centres: cell x is pixel
4 x + 1.5. B batch, C channels, N places, K = WINDOW * WINDOW candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnistream_ros.model.config import ModelConfig
from omnistream_ros.model.trunk import PYRAMID_CHANNELS

STRIDE = 4
WINDOW = 11  # cells; reaches 22 pixels to each side
_PEAK = 2  # cells around the best one that take part in the position
_HIDDEN = 48
_COARSE = 32
# What the softmax tells of itself: mass of the peak, entropy, similarity, distance from the middle
_CUES = 4


@dataclass
class Matches:
    """Where the places of a keyframe are in the current frame.

    Attributes:
        position: (B, N, 2) cells.
        confidence: (B, N) log-odds that the position is right to within half a cell.
        log_probability: (B, N, K) over the candidates, -inf outside of the image.
        corner: (B, N, 2) int64, the first candidate; candidates are numbered row by row.
        searched: (B, N) whether the window touched the image; nothing else means anything if not.
    """

    position: Tensor
    confidence: Tensor
    log_probability: Tensor
    corner: Tensor
    searched: Tensor


class MatchingHead(nn.Module):
    """Descriptors and matching; `config.matching_width` channels, about 47 thousand weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.patch_embed != "efficientnet_lite0":
            raise ValueError(f"model {config.name!r}: matching needs the features of a trunk")
        C = config.matching_width
        self.coarse = nn.Conv2d(PYRAMID_CHANNELS[8], _COARSE, 1)
        self.mix = nn.Conv2d(PYRAMID_CHANNELS[4] + _COARSE, _HIDDEN, 3, padding=1)
        self.out = nn.Conv2d(_HIDDEN, C, 3, padding=1)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(10.0)))
        self.trust = nn.Sequential(nn.Linear(C + _CUES, 32), nn.ReLU(), nn.Linear(32, 1))

    def describe(self, pyramid: dict[int, Tensor]) -> Tensor:
        """Unit descriptors (B, C, h, w) from trunk features by stride (B, ., H/s, W/s)."""
        fine = pyramid[4]
        coarse = F.interpolate(
            self.coarse(pyramid[8]), fine.shape[-2:], mode="bilinear", align_corners=False
        )
        x = F.relu(self.mix(torch.cat((fine, coarse), dim=1)), inplace=True)
        return F.normalize(self.out(x).float(), dim=1)

    def match(self, places: Tensor, current: Tensor, expected: Tensor) -> Matches:
        """Look for places of a keyframe in the current frame.

        Args:
            places: (B, N, C) descriptors, all of a keyframe's (`flat_places`) or any choice.
            current: (B, C, h, w) descriptors.
            expected: (B, N, 2) cells, where to look; non-finite or far outside: not searched.
        """
        height, width = current.shape[-2:]
        limit = float(WINDOW + max(height, width))
        expected = torch.nan_to_num(expected, nan=-limit).clamp(-limit, limit)
        corner = expected.round().long() - WINDOW // 2  # (B, N, 2)
        x = corner[..., :1] + torch.arange(WINDOW, device=places.device)  # (B, N, WINDOW)
        y = corner[..., 1:] + torch.arange(WINDOW, device=places.device)
        rows, columns = (y >= 0) & (y < height), (x >= 0) & (x < width)
        inside = (rows.unsqueeze(-1) & columns.unsqueeze(-2)).flatten(2)  # (B, N, K)
        searched = rows.any(-1) & columns.any(-1)
        row = y.clamp(0, height - 1).unsqueeze(-1) * width
        index = (row + x.clamp(0, width - 1).unsqueeze(-2)).flatten(2)  # (B, N, K) into h*w

        # All pairs in one product, then the K of each row that matter: a product of this size is
        # much cheaper than collecting N*K descriptors.
        similarity = torch.bmm(places, current.flatten(2))  # (B, N, h*w)
        similarity = similarity.gather(2, index)  # (B, N, K)
        # A row without candidates would be 0/0 and poison its neighbours' gradients.
        outside = torch.where(searched, -torch.inf, 0.0).unsqueeze(-1)
        score = torch.where(inside, similarity * self.log_temperature.exp(), outside)
        log_probability = score.log_softmax(-1)

        probability = log_probability.exp()
        best = probability.detach().argmax(-1, keepdim=True)  # (B, N, 1)
        offsets, near_peak = _window(places.device)
        mass = (probability * near_peak[best.squeeze(-1)]).clamp_min(1e-12)
        total = mass.sum(-1, keepdim=True)  # (B, N, 1)
        middle = (mass @ offsets) / total  # (B, N, 2)

        entropy = -(probability * log_probability.clamp_min(-50.0)).sum(-1, keepdim=True)
        best_similarity = similarity.gather(2, best)
        off_centre = (middle - WINDOW // 2).norm(dim=-1, keepdim=True) / (WINDOW // 2)
        cues = torch.cat((places, total, entropy / 5.0, best_similarity, off_centre), dim=-1)
        return Matches(
            position=corner + middle,
            confidence=self.trust(cues.detach().to(self.out.weight.dtype)).squeeze(-1).float(),
            log_probability=log_probability,
            corner=corner,
            searched=searched,
        )


def flat_places(descriptors: Tensor) -> Tensor:
    """Descriptors (B, C, h, w) of a keyframe as places (B, N, C), row by row."""
    return descriptors.flatten(2).transpose(1, 2)


def cell_grid(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """The cells themselves, (N, 2) float32 as (x, y), row by row."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack((x, y), dim=-1).flatten(0, 1).float()


@lru_cache(maxsize=4)
def _window(device: torch.device) -> tuple[Tensor, Tensor]:
    """Candidates from the first, (K, 2); and for each the ones around it, (K, K), 0 and 1."""
    # Kept for training as well, also when first asked for in an inference_mode block.
    with torch.inference_mode(False):
        offsets = cell_grid(WINDOW, WINDOW, device)
        distance = (offsets.unsqueeze(1) - offsets).abs().amax(-1)
        return offsets, (distance <= _PEAK).float()
