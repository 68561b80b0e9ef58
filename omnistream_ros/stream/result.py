# SPDX-License-Identifier: Apache-2.0
"""What comes out of a stream: the outputs one may ask for, and the result of one frame."""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

import numpy as np
import torch

from omnistream_ros.stream.epochs import EpochReason
from omnistream_ros.stream.frame import Intrinsics
from omnistream_ros.stream.stopwatch import Stopwatch
from omnistream_ros.stream.transfer import to_host


class FeatureKind(str, enum.Enum):
    """The kinds of tokens of one frame, with the shape in which they are handed out.

    D is the width of the model, (h, w) its patch grid.
    """

    PATCH = "patch"  # (h, w, D)
    CLS = "cls"  # (D,)
    REGISTER = "register"  # (4, D)
    CAMERA = "camera"  # (D,)
    POOLED = "pooled"  # (D,), the mean of the patches


class FeatureKey(NamedTuple):
    """Names one feature tensor of a frame.

    Attributes:
        layer: transformer block, from 0; negative counts from the last block, as in a list.
        kind: which tokens.
        normed: after the final LayerNorm (last block only) instead of the raw residual stream.
    """

    layer: int
    kind: FeatureKind
    normed: bool = False


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What somebody wants from a frame; nothing else is computed.

    ``depth`` includes its confidence. The stream itself (the context) advances in any case.
    Features may be given as plain tuples: ``features=[(3, "patch"), (-1, "cls", True)]``.

    Raises:
        ValueError: an unknown kind of feature.
    """

    depth: bool = True
    pose: bool = True
    features: tuple[FeatureKey, ...] = ()

    def __post_init__(self) -> None:
        keys = []
        for layer, kind, *normed in self.features:
            try:
                keys.append(FeatureKey(int(layer), FeatureKind(kind), *normed))
            except ValueError:
                known = ", ".join(kind.value for kind in FeatureKind)
                raise ValueError(f"outputs: unknown feature {kind!r}; known: {known}") from None
        object.__setattr__(self, "features", tuple(keys))


class Tracking(str, enum.Enum):
    """How well a camera is followed."""

    GOOD = "good"
    WEAK = "weak"  # few places agree, or they leave a direction open
    LOST = "lost"  # the pose is a guess


@dataclasses.dataclass(frozen=True, eq=False)
class Pose:
    """Camera-to-world, optical axes (REP-103: x right, y down, z forward).

    Attributes:
        translation: (3,) float64, position of the camera in the world.
        quaternion: (4,) float64, x y z w, unit length, w >= 0.
        covariance: (6, 6) float64 of (translation, rotation vector), both along the axes of the
            world as in ``geometry_msgs/PoseWithCovariance``; None when nothing is known about it.
        scale_error: by which share (one sigma) the way as a whole may be too long or too short;
            contained in ``covariance``.
        tracking: how well the camera could be followed in this frame.
    """

    translation: np.ndarray
    quaternion: np.ndarray
    covariance: np.ndarray | None = None
    tracking: Tracking = Tracking.GOOD
    scale_error: float = 0.0

    @property
    def tracked(self) -> bool:
        """False when the pose is only a guess from the last known one."""
        return self.tracking is not Tracking.LOST


@dataclasses.dataclass(frozen=True, eq=False)
class StreamResult:
    """The result of one frame. Tensors stay on the model's device.

    Attributes:
        stamp_ns: stamp of the frame.
        epoch: counts from 0 over the life of the stream.
        frame_index: index of the frame inside its epoch, from 0.
        epoch_reason: why the epoch began; set on its first frame only.
        context_frames: frames that attention could see, this one included.
        metric: True when depth and translation are metres, False when known up to one scale.
        intrinsics: camera of the ``depth`` image (known, or estimated by the model).
        depth: (H, W) float32 distance along the optical axis, at model or source resolution.
        confidence: (H, W) float32, at least 1, larger is surer.
        pose: pose of the camera, world = first camera of the stream, continuous across epochs.
        features: the tensors asked for, by the keys that asked; views, valid for ever.
        grid: rows and columns of patches.
        model_size: (H, W) of the image that the model saw.
        source_size: (H, W) of the frame.
        model_to_source: (2, 3) float64 affine from model pixels to source pixels.
        watch: when the stages of the step were done, see `timings`.
    """

    stamp_ns: int
    epoch: int
    frame_index: int
    epoch_reason: EpochReason | None
    context_frames: int
    metric: bool
    intrinsics: Intrinsics
    depth: torch.Tensor | None
    confidence: torch.Tensor | None
    pose: Pose | None
    features: dict[FeatureKey, torch.Tensor]
    grid: tuple[int, int]
    model_size: tuple[int, int]
    source_size: tuple[int, int]
    model_to_source: np.ndarray
    watch: Stopwatch

    @property
    def timings(self) -> dict[str, float]:
        """Seconds by stage: preprocess, backbone, heads, pose, postprocess.

        An engine that runs the network as a whole has one stage, model, for the second and third.
        On a GPU this waits for the step to be done.
        """
        return self.watch.seconds()

    def to_host(self, *, confidence: bool = True) -> StreamResult:
        """The same with its tensors in host memory: one asynchronous copy each, then one wait.

        Args:
            confidence: somebody wants it; otherwise it stays where it is.
        """
        wanted = (self.depth, self.confidence if confidence else None, *self.features.values())
        depth, sure, *tensors = to_host(wanted)
        return dataclasses.replace(
            self,
            depth=depth,
            confidence=sure if confidence else self.confidence,
            features={k: t for k, t in zip(self.features, tensors, strict=True) if t is not None},
        )
