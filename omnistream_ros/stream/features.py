# SPDX-License-Identifier: Apache-2.0
"""Feature tensors of one frame, by name."""

from __future__ import annotations

import torch

from omnistream_ros.model import BackboneOutput, ModelConfig
from omnistream_ros.stream.result import FeatureKey, FeatureKind


def check_feature(key: FeatureKey, config: ModelConfig) -> None:
    """Raise ValueError when a model has no such feature."""
    depth = config.depth
    if not -depth <= key.layer < depth:
        raise ValueError(f"feature layer {key.layer}: {config.name!r} has blocks 0 to {depth - 1}")
    if key.normed and key.layer % depth != depth - 1:
        raise ValueError(
            f"feature layer {key.layer} cannot be normed: the final LayerNorm belongs to block "
            f"{depth - 1}"
        )


def feature_tensor(features: BackboneOutput, key: FeatureKey, config: ModelConfig) -> torch.Tensor:
    """One feature tensor of what a step computed, shape by `FeatureKind`; a view but for means."""
    if key.kind is FeatureKind.POOLED:
        return feature_tensor(features, key._replace(kind=FeatureKind.PATCH), config).mean((0, 1))
    if key.normed:
        camera = features.camera
        assert camera is not None  # sessions allocate their caches with the camera token
        tokens = {
            FeatureKind.PATCH: features.patches,
            FeatureKind.CLS: features.cls,
            FeatureKind.REGISTER: features.registers,
            FeatureKind.CAMERA: camera,
        }[key.kind][0]
    else:
        hidden = features.hidden[key.layer][0]  # (N, D): CLS, CAMERA, REGISTERs, patches
        prefix = config.prefix_tokens()
        tokens = {
            FeatureKind.PATCH: hidden[prefix:],
            FeatureKind.CLS: hidden[0],
            FeatureKind.REGISTER: hidden[2:prefix],
            FeatureKind.CAMERA: hidden[1],
        }[key.kind]
    if key.kind is FeatureKind.PATCH:
        return tokens.unflatten(0, features.grid)  # (h, w, D)
    return tokens
