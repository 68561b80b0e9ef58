# SPDX-License-Identifier: Apache-2.0
"""What one training of `omnistream train` is given, and how long it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omnistream_ros.training.augment import AugmentSettings
from omnistream_ros.training.losses import LossWeights
from omnistream_ros.training.objectives import ObjectiveWeights


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
    # The first part of a run sees smaller images; not one that starts from weights, which know the
    # full size already and would unlearn it.
    coarse_size: tuple[int, int] | None = (128, 96)
    coarse_fraction: float = 0.75
    bfloat16: bool = False
    ray_period: int = 4  # rays cost a second decoder; every n-th step pays for it
    save_period: int = 100
    judge_period: int = 300
    validation_count: int = 10  # of rendered clips, unless `held_out` says otherwise
    held_out: tuple[Path, ...] = ()  # recordings that judge the weights
    patience: int | None = None  # so many judgements in a row without a better one end the run
    # Fine-tuning for long streams: all clips of this many frames, walked to and fro, seen through
    # a cache of `context` (sink, window) as on a robot.
    stream_frames: int | None = None
    context: tuple[int, int] = (1, 16)
    weights: LossWeights = field(default_factory=LossWeights)
    objectives: ObjectiveWeights = field(default_factory=ObjectiveWeights)
    augmentation: AugmentSettings = field(default_factory=AugmentSettings)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give the length of the run either in steps or in minutes")
        if (self.steps or self.minutes or 0) <= 0:
            raise ValueError("the length of the run must be positive")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is a number of judgements from 1, got {self.patience}")
        if self.stream_frames is not None and self.stream_frames < 2:
            raise ValueError(f"a stream has two frames or more, got {self.stream_frames}")
