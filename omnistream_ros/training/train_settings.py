# SPDX-License-Identifier: Apache-2.0
"""What one training of `omnistream train` is given, and how long it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omnistream_ros.training.augment import AugmentSettings
from omnistream_ros.training.losses import LossWeights
from omnistream_ros.training.objectives import ObjectiveWeights

#: Width and height of the images of the first, larger part of a run: half the cost or less, and of
#: all shapes that cameras have, so that no size and no shape goes with a certain scale.
COARSE_SIZES = ((128, 96), (144, 112), (160, 96), (160, 112), (160, 128))
#: Those of the last part: what omnistream-nano sees of most cameras, and of wide ones.
FULL_SIZES = ((192, 144), (192, 144), (192, 144), (224, 128))


@dataclass(frozen=True)
class TrainSettings:
    """One training run. Exactly one of `steps` and `minutes` says how long it is."""

    clips: Path
    run: Path
    output: Path | None = None  # where the best weights also go; always in the run folder
    steps: int | None = None
    minutes: float | None = None  # of training time, over all pieces of a resumed run
    seed: int = 0
    pretrained: bool = True
    start_from: Path | None = None  # weights that a new run begins with, instead of `pretrained`
    blocks: int | None = None  # more of them than those weights have, see `deepen`
    recorded: Path | None = None  # clips cut from recordings, drawn with this probability
    recorded_share: float = 0.35
    frames_per_step: int = 16  # of each process
    lengths: dict[int, float] = field(
        default_factory=lambda: {1: 0.15, 2: 0.35, 4: 0.35, 8: 0.05, 16: 0.1}
    )
    learning_rate: float = 8e-4
    trunk_learning_rate: float = 2e-4
    weight_decay: float = 0.02
    warmup_steps: int = 100
    gradient_norm: float = 1.0
    average_decay: float = 0.999
    # Stem and blocks up to stride 8 stay as they are: edges are edges, their large maps would be
    # most of the backward pass, and matching descriptors, which read them, stay valid.
    frozen_trunk_blocks: int = 5
    # Each step draws its size from the coarse ones in this first part of a run, then from the full
    # ones; none: that of the clips. Weights that a run starts from know the full size already.
    coarse_sizes: tuple[tuple[int, int], ...] = COARSE_SIZES
    full_sizes: tuple[tuple[int, int], ...] = FULL_SIZES
    coarse_fraction: float | None = None  # default: 0.75 from a trunk, 0 from weights
    bfloat16: bool = False
    ray_period: int = 4  # rays cost a second decoder; every n-th step pays for it
    save_period: int = 100
    judge_period: int = 300
    validation_count: int = 24  # of rendered clips, unless `held_out` says otherwise
    held_out: tuple[Path, ...] = ()  # recordings that judge the weights
    patience: int | None = None  # so many judgements in a row without a better one end the run
    # Fine-tuning for long streams: all clips of this many frames, walked to and fro, seen through
    # a cache of `context` (sink, window) as on a robot.
    stream_frames: int | None = None
    context: tuple[int, int] = (1, 16)
    weights: LossWeights = field(default_factory=LossWeights)
    objectives: ObjectiveWeights = field(default_factory=ObjectiveWeights)
    augmentation: AugmentSettings = field(default_factory=AugmentSettings)

    @property
    def coarse_part(self) -> float:
        """The first part of the run, from 0 to 1, that sees images of the coarse sizes."""
        if self.coarse_fraction is not None:
            return self.coarse_fraction
        return 0.75 if self.start_from is None else 0.0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give the length of the run either in steps or in minutes")
        if (self.steps or self.minutes or 0) <= 0:
            raise ValueError("the length of the run must be positive")
        if self.coarse_fraction is not None and not 0 <= self.coarse_fraction <= 1:
            raise ValueError(
                f"the part of the run with coarse images is from 0 to 1, got {self.coarse_fraction}"
            )
        for width, height in (*self.coarse_sizes, *self.full_sizes):
            if width < 16 or height < 16 or width % 16 or height % 16:
                raise ValueError(f"sizes of images are multiples of 16, got {width}x{height}")
        if self.blocks is not None and self.start_from is None:
            raise ValueError(
                "more blocks are added to weights that are there: give --start-from too"
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is a number of judgements from 1, got {self.patience}")
        if self.stream_frames is not None and self.stream_frames < 2:
            raise ValueError(f"a stream has two frames or more, got {self.stream_frames}")
