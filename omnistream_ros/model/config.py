# SPDX-License-Identifier: Apache-2.0
"""The numbers that define a model, and the two models that have a name."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

PATCH_EMBEDDINGS = ("conv16", "efficientnet_lite0")
REGISTER_TOKENS = 4

# Pixels enter every model as (rgb / 255 - mean) / std, the statistics of ImageNet.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one model; everything that is needed to build it, nothing about how it is run.

    Raises:
        ValueError: a number that no model can have, with the reason.
    """

    name: str
    width: int  # D, channels of a token
    depth: int  # number of blocks
    heads: int
    taps: tuple[int, int, int, int]  # blocks, counted from 0, whose output the heads read
    model_pixels: int  # nominal H * W of the input; the aspect ratio follows the camera
    mlp_ratio: float = 4.0
    patch_size: int = 16
    patch_embed: str = "conv16"  # one of PATCH_EMBEDDINGS
    head_width: int = 0  # channels of the dense head; 0: a backbone without heads
    matching_width: int = 0  # channels of matching descriptors; 0: no matching head
    language_width: int = 0  # channels of the sentence encoder; 0: no language head
    canonical_focal: float = 0.9  # see canonical_fx
    metric: bool = False  # depth and translation are in metres, not up to scale

    def __post_init__(self) -> None:
        def check(ok: bool, what: str) -> None:
            if not ok:
                raise ValueError(f"model config {self.name!r}: {what}")

        for name in ("width", "depth", "heads", "model_pixels", "patch_size"):
            value = getattr(self, name)
            check(type(value) is int and value > 0, f"{name} must be a positive int, got {value!r}")
        check(
            self.width % self.heads == 0, f"width {self.width} not divisible by {self.heads} heads"
        )
        check(self.head_dim % 8 == 0, f"head_dim {self.head_dim} must be a multiple of 8 (3D-RoPE)")
        check(self.mlp_ratio > 0, f"mlp_ratio must be positive, got {self.mlp_ratio}")
        check(
            self.patch_embed in PATCH_EMBEDDINGS,
            f"patch_embed must be one of {PATCH_EMBEDDINGS}, got {self.patch_embed!r}",
        )
        check(
            self.patch_embed != "efficientnet_lite0" or self.patch_size == 16,
            f"the trunk ends at stride 16, so patch_size must be 16, got {self.patch_size}",
        )
        check(
            len(self.taps) == 4 and all(0 <= tap < self.depth for tap in self.taps),
            f"taps must be four block indices below {self.depth}, got {self.taps}",
        )
        for name in ("head_width", "matching_width", "language_width"):
            value = getattr(self, name)
            check(type(value) is int and value >= 0, f"{name} must be an int >= 0, got {value!r}")
        check(
            self.head_width % 4 == 0, f"head_width must be a multiple of 4, got {self.head_width}"
        )
        check(self.canonical_focal > 0, f"canonical_focal must be > 0, got {self.canonical_focal}")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def canonical_fx(self) -> float:
        """Focal length in pixels that depth is predicted for: `canonical_focal` times the width of
        a 4:3 image of `model_pixels`. The same for images of every size and shape, so that what
        spans so many pixels is always at the same depth.
        """
        return self.canonical_focal * math.sqrt(self.model_pixels * 4 / 3)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patch grid (rows, columns) of an image; ValueError unless it divides evenly."""
        size = self.patch_size
        if height < size or width < size or height % size or width % size:
            raise ValueError(
                f"image of {height}x{width} (HxW): both sides must be multiples of {size} above 0; "
                "resize the frame first"
            )
        return height // size, width // size

    def prefix_tokens(self, camera_token: bool = True) -> int:
        """Tokens that stand before the patches of a frame: CLS, CAMERA if on, REGISTERs."""
        return 1 + int(camera_token) + REGISTER_TOKENS

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        return {**asdict(self), "taps": list(self.taps)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; ValueError names fields that are unknown or missing."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"model config: unknown fields {unknown}")
        try:
            return cls(**{**values, "taps": tuple(values["taps"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"model config: missing or malformed field: {error}") from error


NANO = ModelConfig(
    name="omnistream-nano",
    width=192,
    depth=8,
    heads=3,
    patch_embed="efficientnet_lite0",
    taps=(1, 3, 5, 7),
    head_width=64,
    model_pixels=192 * 144,
    metric=True,
)

# The released ViT-L/16 (arXiv:2603.12265), a backbone without public heads.
LARGE = ModelConfig(
    name="omnistream-l",
    width=1024,
    depth=24,
    heads=16,
    taps=(11, 15, 19, 23),
    model_pixels=512 * 384,
)

NAMED_CONFIGS = {config.name: config for config in (NANO, LARGE)}
