# SPDX-License-Identifier: Apache-2.0
"""Heads on the frozen or trained backbone: dense depth and rays, and the camera.

The dense head is a dual DPT (Ranftl et al., arXiv:2103.13413) as Depth Anything 3 arranges it
(arXiv:2511.10647): four taps of the backbone share one LayerNorm and their projections, then two
refinement chains that share nothing: depth with its confidence, one ray per pixel with its own.
Where the backbone has a convolutional trunk, its features at strides 2, 4 and 8 join the depth
chain through 1x1 projections: tokens know what stands where, the trunk knows where it ends.

All maps are predicted coarsely and brought to full size inside the head, because convolutions at
full resolution cost more than everything else: depth from stride 2 by learned convex weights over
3x3 neighbours (Teed and Deng, arXiv:2003.12039), which keep an edge between two pixels an edge;
rays, which are smooth, bilinearly from stride 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnistream_ros.model.backbone import BackboneOutput
from omnistream_ros.model.config import ModelConfig
from omnistream_ros.model.layers import LayerNorm
from omnistream_ros.model.trunk import PYRAMID_CHANNELS

# Depth between 1 cm and 400 m: whatever the weights, depth and its logarithm stay finite.
LOG_DEPTH_RANGE = (math.log(0.01), math.log(400.0))
LOG_CONFIDENCE_RANGE = (-10.0, 10.0)
POSITION_WEIGHT = 0.1


@dataclass
class DepthPrediction:
    """(B, H, W) each, float32; rays (B, 6, H, W) are direction and origin in the world.

    Directions have length 1 along the optical axis, so that point = origin + depth * direction.
    """

    depth: Tensor | None
    depth_confidence: Tensor | None
    rays: Tensor | None
    ray_confidence: Tensor | None


@dataclass
class CameraPrediction:
    """Where the camera is, camera-to-world; world = first camera of the epoch (optical axes).

    Attributes:
        translation: (..., 3) metres, or up to scale where the model is not metric.
        quaternion: (..., 4) as x, y, z, w, of unit length.
        fov: (..., 2) radians, horizontal and vertical.
    """

    translation: Tensor
    quaternion: Tensor
    fov: Tensor


class Refine(nn.Module):
    """One level of a chain: add what comes from below, then a residual pair of 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, below: Tensor | None) -> Tensor:
        if below is not None:
            x = x + _resize(below, x.shape[-2:])
        return x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))


class Chain(nn.Module):
    """Refinement from stride 32 to stride 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Refine(width) for _ in range(4))

    def forward(self, features: list[Tensor]) -> Tensor:
        """features at strides 4, 8, 16, 32 -> (B, C, H/4, W/4)."""
        x = None
        for level, feature in zip(self.levels, reversed(features), strict=True):
            x = level(feature, x)
        assert x is not None
        return x


class DualDPT(nn.Module):
    """Depth and rays from four taps of the backbone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, C = config.width, config.head_width
        self.taps = config.taps
        self.norm = LayerNorm(D)
        self.project = nn.ModuleList(nn.Conv2d(D, C, 1) for _ in range(4))
        self.resize = nn.ModuleList(
            (
                nn.ConvTranspose2d(C, C, 4, stride=4),
                nn.ConvTranspose2d(C, C, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(C, C, 3, stride=2, padding=1),
            )
        )
        strides = (2, 4, 8) if config.patch_embed == "efficientnet_lite0" else ()
        self.lateral = nn.ModuleDict(
            {str(s): nn.Conv2d(PYRAMID_CHANNELS[s], C // 2 if s == 2 else C, 1) for s in strides}
        )
        self.depth_chain = Chain(C)
        self.depth_narrow = nn.Conv2d(C, C // 2, 3, padding=1)
        self.depth_conv = nn.Conv2d(C // 2, C // 2, 3, padding=1)
        # log depth, log confidence, and for each of the 2x2 pixels weights over 3x3 neighbours
        self.depth_out = nn.Conv2d(C // 2, 2 + 4 * 9, 1)
        self.ray_chain = Chain(C)
        self.ray_narrow = nn.Conv2d(C, C // 2, 3, padding=1)
        self.ray_out = nn.Conv2d(C // 2, 7, 1)  # direction, origin, log confidence
        self._init_weights()

    def _init_weights(self) -> None:
        # Not with normal_: on the meta device, where loading starts, it costs an import of seconds.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for level in (*self.depth_chain.levels, *self.ray_chain.levels):
            nn.init.zeros_(level.conv2.weight)  # chains begin as plain sums
        for out in (self.depth_out, self.ray_out):
            nn.init.trunc_normal_(out.weight, std=0.01)
        assert self.depth_out.bias is not None
        assert self.ray_out.bias is not None
        with torch.no_grad():
            self.depth_out.bias[0] = math.log(2.0)  # a room
            self.ray_out.bias[2] = 1.0  # straight ahead

    def forward(self, features: BackboneOutput, *, depth: bool, rays: bool) -> DepthPrediction:
        """Maps at full model resolution; `features` with leading dimensions flattened to (B,)."""
        shared = self._reassemble(features)
        result = DepthPrediction(None, None, None, None)
        if depth:
            result.depth, result.depth_confidence = self._depth(shared, features.pyramid)
        if rays:
            result.rays, result.ray_confidence = self._rays(shared)
        return result

    def _reassemble(self, features: BackboneOutput) -> list[Tensor]:
        """The taps as maps of C channels at strides 4, 8, 16 and 32."""
        h, w = features.grid
        dtype = self.project[0].weight.dtype
        maps = []
        for tap, project, resize in zip(self.taps, self.project, self.resize, strict=True):
            tokens = self.norm(features.hidden[tap][:, -h * w :])  # (B, P, D)
            x = tokens.transpose(1, 2).unflatten(2, (h, w)).to(dtype)  # (B, D, h, w)
            x = project(x)
            x = x + _image_position(h, w, x.shape[1], x.device, x.dtype)
            maps.append(resize(x))
        return maps

    def _depth(self, maps: list[Tensor], pyramid: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        maps = list(maps)
        for i, stride in enumerate((4, 8)):
            if str(stride) in self.lateral:
                maps[i] = maps[i] + self.lateral[str(stride)](pyramid[stride])
        x = F.relu(self.depth_narrow(self.depth_chain(maps)))  # (B, C/2, H/4, W/4)
        x = _resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))  # (B, C/2, H/2, W/2)
        if "2" in self.lateral:
            x = x + self.lateral["2"](pyramid[2])
        x = self.depth_out(F.relu(self.depth_conv(F.relu(x)))).float()
        log_depth = x[:, 0].clamp(*LOG_DEPTH_RANGE)
        log_confidence = x[:, 1:2].clamp(*LOG_CONFIDENCE_RANGE)
        depth = convex_upsample(log_depth, x[:, 2:]).exp()
        H, W = depth.shape[-2:]
        return depth, 1 + _resize(log_confidence, (H, W))[:, 0].exp()

    def _rays(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = F.relu(self.ray_narrow(self.ray_chain(maps)))
        x = self.ray_out(x).float()  # (B, 7, H/4, W/4)
        x = _resize(x, (4 * x.shape[-2], 4 * x.shape[-1]))
        return x[:, :6], 1 + x[:, 6].clamp(*LOG_CONFIDENCE_RANGE).exp()


class CameraHead(nn.Module):
    """An MLP of two hidden layers on the camera token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.fc1 = nn.Linear(D, D)
        self.fc2 = nn.Linear(D, D)
        self.out = nn.Linear(D, 9)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.out.weight, std=0.01)
        with torch.no_grad():
            # Nowhere, unturned, with a lens of about 60 degrees.
            self.out.bias.copy_(torch.tensor([0.0, 0, 0, 0, 0, 0, 1, -0.7, -0.7]))

    def forward(self, token: Tensor) -> CameraPrediction:
        """token (..., D), after the final norm."""
        x = F.gelu(self.fc1(token.to(self.fc1.weight.dtype)))
        x = self.out(F.gelu(self.fc2(x))).float()
        return CameraPrediction(
            translation=x[..., :3],
            quaternion=_unit(x[..., 3:7]),
            fov=math.pi * x[..., 7:].sigmoid(),
        )


def convex_upsample(coarse: Tensor, weights: Tensor) -> Tensor:
    """(B, h, w) to (B, 2h, 2w): each pixel a convex combination of its 3x3 coarse neighbours.

    weights (B, 4 * 9, h, w): logits, for each of the 2x2 fine pixels over the 9 neighbours.
    """
    h, w = coarse.shape[-2:]
    padded = F.pad(coarse[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    neighbours = torch.stack(
        [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], dim=1
    )  # (B, 9, h, w)
    share = weights.unflatten(1, (4, 9)).softmax(dim=2)  # (B, 4, 9, h, w)
    fine = (share * neighbours[:, None]).sum(dim=2)  # (B, 4, h, w)
    return F.pixel_shuffle(fine, 2)[:, 0]


def _resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _unit(quaternion: Tensor) -> Tensor:
    """Normalised; the rotation that turns nothing where the length is zero."""
    length = quaternion.norm(dim=-1, keepdim=True)
    identity = torch.zeros_like(quaternion)
    identity[..., 3] = 1
    return torch.where(length > 1e-6, quaternion / length.clamp(min=1e-6), identity)


@lru_cache(maxsize=8)
def _image_position(
    h: int, w: int, channels: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Sines and cosines of a token's place in the image, (channels, h, w), small.

    A quarter of the channels each: sin x, cos x, sin y, cos y, with x, y in [-1, 1] along the
    longer side, so that a place looks the same whatever the resolution.
    """
    with torch.inference_mode(False):
        scale = max(h, w)
        y = (2 * (torch.arange(h, device=device) + 0.5) - h) / scale
        x = (2 * (torch.arange(w, device=device) + 0.5) - w) / scale
        n = channels // 4
        frequency = 100.0 ** (torch.arange(n, device=device) / n)  # (n,)
        x = (frequency[:, None, None] * x[None, None, :]).expand(n, h, w)
        y = (frequency[:, None, None] * y[None, :, None]).expand(n, h, w)
        return POSITION_WEIGHT * torch.cat((x.sin(), x.cos(), y.sin(), y.cos())).to(dtype)
