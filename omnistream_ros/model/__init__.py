# SPDX-License-Identifier: Apache-2.0
"""The network: configuration, rotary positions, cache, backbone, heads, checkpoints; torch only."""

from omnistream_ros.model.backbone import Backbone, BackboneOutput
from omnistream_ros.model.checkpoint import ModelCard, ModelError, load_model, save_model
from omnistream_ros.model.config import LARGE, NANO, PIXEL_MEAN, PIXEL_STD, ModelConfig
from omnistream_ros.model.heads import CameraPrediction
from omnistream_ros.model.kv_cache import KVCache
from omnistream_ros.model.network import OmniStream, Prediction, build_model

__all__ = [
    "LARGE",
    "NANO",
    "PIXEL_MEAN",
    "PIXEL_STD",
    "Backbone",
    "BackboneOutput",
    "CameraPrediction",
    "KVCache",
    "ModelCard",
    "ModelConfig",
    "ModelError",
    "OmniStream",
    "Prediction",
    "build_model",
    "load_model",
    "save_model",
]
