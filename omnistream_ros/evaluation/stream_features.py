# SPDX-License-Identifier: Apache-2.0
"""The features that a policy reads from a camera, frame by frame, as the node computes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from omnistream_ros.model import load_model
from omnistream_ros.model.cache_policy import Window
from omnistream_ros.stream.engines import EngineMaker, StepShape
from omnistream_ros.stream.frame import Frame, Intrinsics
from omnistream_ros.stream.preprocess import model_size
from omnistream_ros.stream.result import FeatureKey, Outputs
from omnistream_ros.stream.session import StreamSession


class StreamFeatures:
    """Images of one camera to feature tensors.

    Args:
        source: a model, as `load_model` takes it.
        keys: LAYER:KIND or LAYER:KIND:normed.
        size: (H, W) of the images.
        field_of_view: of the camera, radians.
        cached: false forgets everything before each frame: what the model sees in a single image.

    Raises:
        ModelError: the model cannot be read.
        ValueError: it has no such feature.
    """

    def __init__(
        self,
        source: str,
        keys: Sequence[str],
        size: tuple[int, int],
        field_of_view: tuple[float, float],
        *,
        cached: bool = True,
    ) -> None:
        model, card = load_model(source)
        self.sha256 = card.sha256
        self._cached = cached
        policy = Window()
        shape = StepShape(*model_size(*size, model.config.model_pixels), policy)
        engine = EngineMaker(model, card.sha256, shape).make("default")
        self._session = StreamSession(model, policy=policy, engine=engine)
        self._keys = {key: _feature_key(key) for key in keys}
        self._outputs = Outputs(depth=False, pose=False, features=tuple(self._keys.values()))
        height, width = size
        self._camera = Intrinsics.from_fov(*field_of_view, width, height)

    def reset(self) -> None:
        """The next frame is the first of a stream."""
        self._session.restart()

    def look(self, image: NDArray[np.uint8], time_s: float) -> dict[str, NDArray[np.float32]]:
        """Features of the next frame by key; patch tokens are (rows, columns, width)."""
        if not self._cached:
            self._session.restart()
        frame = Frame(image, round(time_s * 1e9), self._camera)
        features = self._session.step(frame, self._outputs).features
        return {key: features[wanted].float().cpu().numpy() for key, wanted in self._keys.items()}


def _feature_key(text: str) -> FeatureKey:
    layer, kind, *normed = text.split(":")
    (key,) = Outputs(features=((int(layer), kind, bool(normed)),)).features  # type: ignore[arg-type]
    return key
