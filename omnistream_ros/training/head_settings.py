# SPDX-License-Identifier: Apache-2.0
"""What one training of heads is given, and how long it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omnistream_ros.training.licences import NOT_STATED
from omnistream_ros.training.losses import LossWeights


class HeadTrainingError(ValueError):
    """Heads that cannot be trained on what was given; the message says what is missing."""


@dataclass(frozen=True)
class HeadSettings:
    """One training of heads.

    Attributes:
        recordings: bags, TUM folders, ...: whatever `open_recording` opens, with depth.
        licences: of the recordings, in their order, or one of all; without any, not stated.
        clips: folder of rendered clips, besides or instead.
        held_out: recordings for judging alone, none of `recordings`; without any, the last part of
            everything is.
        head_width: channels of the dense head; 0: that of the model, or a quarter of its width.
        pixels: of the image the model sees; 0: the model's own.
        clip_frames, stride: how recordings are cut.
        copies: features of each clip; all but the first from an augmented copy of it.
        sink, window: of the cache that features are streamed through.
        clips_per_step, frames_per_clip: what a step reads.
        storage: type of the tensors in the file; "" for that of the source.
    """

    backbone: str | Path
    run: Path
    output: Path
    recordings: tuple[Path, ...] = ()
    licences: tuple[str, ...] = ()
    clips: Path | None = None
    held_out: tuple[Path, ...] = ()
    steps: int = 3000
    head_width: int = 0
    pixels: int = 0
    clip_frames: int = 64
    stride: int = 1
    copies: int = 1
    sink: int = 1
    window: int = 16
    clips_per_step: int = 3
    frames_per_clip: int = 4
    learning_rate: float = 5e-4
    weight_decay: float = 0.02
    warmup_steps: int = 100
    gradient_norm: float = 1.0
    average_decay: float = 0.999
    held_out_share: float = 0.15
    save_period: int = 200
    judge_period: int = 1000
    seed: int = 0
    device: str = "cpu"
    bfloat16: bool = False
    storage: str = ""
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        if not self.recordings and self.clips is None:
            raise HeadTrainingError("nothing to train on: give recordings or a folder of clips")
        trained_on = {path.resolve() for path in self.recordings}
        if both := [str(path) for path in self.held_out if path.resolve() in trained_on]:
            raise HeadTrainingError(
                f"{', '.join(both)}: held out and trained on; what was trained on judges nothing"
            )
        if len(self.licences) not in (0, 1, len(self.recordings)):
            raise HeadTrainingError(
                f"{len(self.licences)} licences of {len(self.recordings)} recordings: give one of "
                "all, or one of each in their order"
            )
        for name in ("steps", "copies", "clips_per_step", "save_period", "judge_period"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.frames_per_clip < 2:
            raise ValueError(
                "frames_per_clip: the first frame says where the others are; 2 or more"
            )

    def licences_of_recordings(self) -> dict[str, str]:
        """The licence of each recording, by its path as it was given."""
        licences = self.licences or (NOT_STATED,)
        if len(licences) == 1:
            licences *= len(self.recordings)
        return {str(p): text for p, text in zip(self.recordings, licences, strict=True)}
