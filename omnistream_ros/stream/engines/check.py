# SPDX-License-Identifier: Apache-2.0
"""Does an engine compute what the model says? Asked of every engine before it may run.

Four stored images go through a stream: the first frame of an epoch, later ones, and, after a jump
past the size of the cache, frames that overwrite and that move the sink in time. The reference is
the model itself, eager and in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from omnistream_ros.model import OmniStream, Prediction
from omnistream_ros.stream.engines.engine import Engine, EngineError, StepShape, TorchEngine
from omnistream_ros.stream.preprocess import Preprocessor

FRAMES = Path(__file__).resolve().parents[2] / "data" / "engine_check" / "frames.png"
_COUNT = 4


@dataclass(frozen=True)
class Limits:
    """What counts as the same; `cosine` at least, `depth` at most."""

    cosine: float
    depth: float


EXACT = Limits(cosine=0.99999, depth=1e-3)  # float32, in whatever order it is added up
ROUNDED = Limits(cosine=0.999, depth=0.01)  # 16 bits and fewer in the matrix products


@dataclass(frozen=True)
class Agreement:
    """How far an engine is from the reference, over all frames of the check.

    Attributes:
        cosine: smallest cosine of the tokens' features (all of a frame as one vector).
        depth: largest mean relative difference of a depth image; 0 without a depth head.
    """

    cosine: float
    depth: float

    def __str__(self) -> str:
        return f"feature cosine {self.cosine:.6f}, depth off by {100 * self.depth:.3f} %"

    def within(self, limits: Limits) -> bool:
        """Good enough; a NaN is not."""
        return self.cosine >= limits.cosine and self.depth <= limits.depth


class Reference:
    """What a model computes for the stored images, eager and in float32, kept on the host.

    Args:
        model: in float32.
        shape: of the stream.

    Raises:
        EngineError: the images are missing from the installation.
    """

    def __init__(self, model: OmniStream, shape: StepShape) -> None:
        assert model.backbone.compute_dtype == torch.float32
        self._shape = shape
        self._expected = _run(TorchEngine(model), shape)

    def compare(self, engine: Engine) -> Agreement:
        """Run an engine of the same model, in whatever precision, on the same images."""
        cosine, depth = 1.0, 0.0
        for got, expected in zip(_run(engine, self._shape), self._expected, strict=True):
            cosine = _worse(min, cosine, float(_cosine(got[0], expected[0])))
            if expected[1] is not None:
                assert got[1] is not None
                off = (got[1] / expected[1]).log().abs().mean()
                depth = _worse(max, depth, float(off))
        return Agreement(cosine, depth)

    def verify(self, engine: Engine, limits: Limits | None = None) -> Agreement:
        """Compare, and refuse an engine that is off.

        Raises:
            EngineError: with the numbers and the limits.
        """
        if limits is None:
            backbone = engine.model.backbone
            exact = {backbone.compute_dtype, backbone.cache_dtype} == {torch.float32}
            limits = EXACT if exact else ROUNDED
        agreement = self.compare(engine)
        if not agreement.within(limits):
            raise EngineError(
                f"engine {engine.name!r} does not compute what the model says: {agreement} from "
                f"eager float32 (at least {limits.cosine:g} and at most {100 * limits.depth:g} % "
                "are asked for); choose another engine or precision"
            )
        return agreement


def check_images() -> list[np.ndarray]:
    """The stored images, (H, W, 3) uint8 RGB each."""
    strip = cv2.imread(str(FRAMES))
    if strip is None:
        raise EngineError(f"{FRAMES}: the images for checking engines are missing; install again")
    return np.split(np.ascontiguousarray(strip[..., ::-1]), _COUNT)


@torch.no_grad()
def _run(engine: Engine, shape: StepShape) -> list[tuple[Tensor, Tensor | None]]:
    """(tokens, depth) of each frame, on the host in float64."""
    images = check_images()
    preprocess = Preprocessor(
        images[0].shape[:2],
        (shape.height, shape.width),
        device=engine.model.backbone.device,
        dtype=engine.model.backbone.compute_dtype,
    )
    cache = engine.allocate_cache(shape.height, shape.width, shape.policy)
    results = []
    for i, image in enumerate(images):
        if i == _COUNT // 2 and math.isinf(shape.policy.limit):
            cache.frames_seen = 3 * shape.policy.slots  # the slots between are as good as seen
        if cache.frames_seen >= shape.policy.limit:
            cache.reset()  # a memory of everything that holds fewer frames than there are images
        prediction = engine.step(preprocess(image), cache, depth=True, camera=False)
        results.append(_on_host(prediction))
    return results


def _on_host(prediction: Prediction) -> tuple[Tensor, Tensor | None]:
    features = prediction.features
    assert features.camera is not None
    prefix = torch.stack((features.cls, features.camera), dim=1)
    tokens = torch.cat((prefix, features.registers, features.patches), dim=1).double().cpu()
    depth = prediction.depth
    return tokens, None if depth is None else depth.double().cpu()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)


def _worse(choose: Callable[[float, float], float], a: float, b: float) -> float:
    """min or max, to which a NaN is the worst of all."""
    return math.nan if math.isnan(a) or math.isnan(b) else choose(a, b)
