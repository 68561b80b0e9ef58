# SPDX-License-Identifier: Apache-2.0
"""The whole network: backbone and heads, as a clip or step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from omnistream_ros.model.backbone import Backbone, BackboneOutput
from omnistream_ros.model.config import NAMED_CONFIGS, ModelConfig
from omnistream_ros.model.heads import CameraHead, CameraPrediction, DualDPT
from omnistream_ros.model.kv_cache import KVCache
from omnistream_ros.model.language import LanguageHead
from omnistream_ros.model.matching import MatchingHead


@dataclass
class Prediction:
    """What the network says about frames; `...` is (B, T) for a clip and (B,) for a step.

    Attributes:
        features: everything of the backbone.
        depth: (..., H, W) float32, along the optical axis, for a camera whose focal length is
            `config.canonical_fx` pixels: multiply by fx / canonical_fx, fx in pixels of the input.
        depth_confidence: (..., H, W), at least 1.
        rays: (..., 6, H, W) direction and origin in the world; ray_confidence (..., H, W) >= 1.
        camera: pose and field of view.

    What was not asked for, or what the model has no head for, is None.
    """

    features: BackboneOutput
    depth: Tensor | None = None
    depth_confidence: Tensor | None = None
    rays: Tensor | None = None
    ray_confidence: Tensor | None = None
    camera: CameraPrediction | None = None


class OmniStream(nn.Module):
    """Backbone, dense head and camera head; a config of head width 0 has the backbone alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.depth_head = DualDPT(config) if config.head_width else None
        self.camera_head = CameraHead(config) if config.head_width else None
        self.matching_head = MatchingHead(config) if config.matching_width else None
        self.language_head = LanguageHead(config) if config.language_width else None
        self.lay_out()

    @property
    def has_pose(self) -> bool:
        """Whether a stream can follow the camera: by the camera head, or by matching on depth."""
        matches = self.matching_head is not None and self.depth_head is not None
        return self.camera_head is not None or matches

    def lay_out(self) -> OmniStream:
        """Put the weights of convolutions in the order in which they run fastest."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                weight = module.weight.data
                module.weight.data = weight.contiguous(memory_format=torch.channels_last)
        return self

    def set_compute_dtype(self, dtype: torch.dtype) -> OmniStream:
        """Keep the weights of matrix products and convolutions in `dtype`, all others in float32.

        The residual stream, norms, layer scales, tokens and angles never go below float32.
        """
        self.to(torch.promote_types(dtype, torch.float32))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                module.to(dtype)
        self.backbone.ar_embedder.to(torch.promote_types(dtype, torch.float32))
        return self

    def forward_clip(
        self,
        pixels: Tensor,
        aspect_ratio: Tensor | float | None = None,
        *,
        depth: bool = True,
        rays: bool = True,
        camera: bool = True,
        context: tuple[int, int] | None = None,
    ) -> Prediction:
        """T frames from the start of a stream, (B, T, 3, H, W); see `Backbone.forward_clip`."""
        features = self.backbone.forward_clip(pixels, aspect_ratio, context=context)
        return self.predict(features, depth=depth, rays=rays, camera=camera)

    @torch.no_grad()
    def step(
        self,
        pixels: Tensor,
        cache: KVCache,
        aspect_ratio: Tensor | float | None = None,
        *,
        depth: bool = True,
        rays: bool = False,
        camera: bool = True,
    ) -> Prediction:
        """One frame of a stream, pixels (B, 3, H, W); see `Backbone.step`."""
        features = self.backbone.step(pixels, cache, aspect_ratio)
        return self.predict(features, depth=depth, rays=rays, camera=camera)

    def predict(
        self,
        features: BackboneOutput,
        *,
        depth: bool = True,
        rays: bool = True,
        camera: bool = True,
    ) -> Prediction:
        """The heads alone, on what the backbone made of a clip or a step."""
        result = Prediction(features)
        if camera and self.camera_head is not None and features.camera is not None:
            result.camera = self.camera_head(features.camera)
        if (depth or rays) and self.depth_head is not None:
            leading = features.cls.shape[:-1]  # (B, T) or (B,)
            dense = self.depth_head(_flatten(features, len(leading)), depth=depth, rays=rays)
            for name in ("depth", "depth_confidence", "rays", "ray_confidence"):
                value = getattr(dense, name)
                if value is not None:
                    setattr(result, name, value.unflatten(0, leading))
        return result


def _flatten(features: BackboneOutput, leading: int) -> BackboneOutput:
    """The parts that the dense head reads, with all leading dimensions in one."""
    if leading == 1:
        return features
    return replace(
        features,
        hidden=[h.flatten(0, leading - 1) for h in features.hidden],
        pyramid={s: f.flatten(0, leading - 1) for s, f in features.pyramid.items()},
    )


def build_model(config: ModelConfig | str, *, device: torch.device | str = "cpu") -> OmniStream:
    """A model with fresh weights; on the device "meta" with shapes alone.

    Args:
        config: a config, or the name of one ("omnistream-nano", "omnistream-l").

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(config, str):
        if config not in NAMED_CONFIGS:
            raise ValueError(f"unknown model {config!r}; known: {', '.join(NAMED_CONFIGS)}")
        config = NAMED_CONFIGS[config]
    with torch.device(device):
        return OmniStream(config)
