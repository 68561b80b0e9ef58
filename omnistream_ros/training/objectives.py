# SPDX-License-Identifier: Apache-2.0
"""What else than geometry a model may be trained on; all of it off unless asked for.

One more pass of the student through its backbone, with patches withheld, serves self-distillation,
temporal prediction and the frozen teacher together; language reads the tokens of the ordinary pass.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from omnistream_ros.model import ModelConfig, OmniStream
from omnistream_ros.model.sentence_encoder import installed_encoder
from omnistream_ros.model.trunk import EfficientNetLite0Trunk
from omnistream_ros.training.data import Batch
from omnistream_ros.training.language_alignment import Encoder, language_losses
from omnistream_ros.training.prediction import FeatureTeacher, TemporalPredictor
from omnistream_ros.training.pretrained import pretrained_trunk
from omnistream_ros.training.self_distillation import SelfDistillation
from omnistream_ros.training.withheld import choose_withheld, disturb
from omnistream_ros.training.words import PATCH

_STREAM = 7  # tells these random draws from those of the clips

TERMS = ("dino", "ibot", "temporal", "teacher", "caption", "class", "name")


@dataclass(frozen=True)
class ObjectiveWeights:
    """How much each objective counts beside the geometric losses; zero switches it off.

    Attributes:
        distillation: DINO on CLS and iBOT on withheld patches, by the moving average as teacher.
        temporal: the teacher's tokens of withheld patches and future frames.
        teacher: features of the pretrained trunk, which does not change.
        language: captions, classes and names of objects; needs clips that know their boxes.
        period: every how many steps the further pass is paid for.
    """

    distillation: float = 0.0
    temporal: float = 0.0
    teacher: float = 0.0
    language: float = 0.0
    period: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"objective {field.name} must not be negative")
        if self.period < 1:
            raise ValueError(f"period must be at least 1, got {self.period}")

    @property
    def withholds(self) -> bool:
        """Whether the further pass is needed."""
        return bool(self.distillation or self.temporal or self.teacher)

    def __bool__(self) -> bool:
        return self.withholds or bool(self.language)


class Objectives(nn.Module):
    """Heads of the objectives that are on; their parameters are trained with the model's."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ObjectiveWeights,
        seed: int,
        *,
        rank: int = 0,
        trunk: EfficientNetLite0Trunk | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        """`trunk`, `encoder`: the frozen networks; None: those of the installed packages. `rank` of
        the process in its team: each withholds other patches.

        Raises:
            PretrainedWeightsError, SentenceEncoderError: a package is missing; says which.
            ValueError: a patch size other than the teacher's 16.
        """
        super().__init__()
        self.weights = weights
        self.seed = seed
        self.rank = rank
        D = config.width
        self.distillation = SelfDistillation(D) if weights.distillation else None
        self.temporal = TemporalPredictor(D) if weights.temporal else None
        self.teacher: FeatureTeacher | None = None
        if weights.teacher:
            if config.patch_size != 16:
                raise ValueError(f"the feature teacher has patches of 16, not {config.patch_size}")
            self.teacher = FeatureTeacher(D, trunk or pretrained_trunk())
        self.encoder: Encoder | None = None
        if weights.language and config.patch_size != PATCH:
            raise ValueError(f"labels are of patches of {PATCH}, not {config.patch_size}")
        if weights.language:
            self.encoder = encoder or installed_encoder()

    def losses(
        self,
        model: OmniStream,
        average: OmniStream,
        batch: Batch,
        patches: Tensor,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum, and each term by itself (detached), of one step.

        patches (B, T, P, D) are the student's tokens of the ordinary pass, with gradients.
        """
        parts: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        w = self.weights
        if w.withholds and step % w.period == 0:
            found = self._withheld_losses(model, average, batch, step)
            parts |= found
            weights |= dict.fromkeys(("dino", "ibot"), w.distillation)
            weights |= {"temporal": w.temporal, "teacher": w.teacher}
        if w.language and self.encoder is not None and batch.words is not None:
            assert model.language_head is not None
            said = language_losses(model.language_head, patches, batch.words, self.encoder)
            parts |= said
            weights |= dict.fromkeys(said, w.language)
        # In a team every process must have the same gradients, whatever clips it has drawn.
        total = patches.sum() * 0
        if w.language and model.language_head is not None:
            total = total + 0 * sum(p.sum() for p in model.language_head.parameters())
        if self.temporal is not None:  # asked of nothing where no patch was withheld
            total = total + 0 * sum(p.sum() for p in self.temporal.parameters())
        for name, value in parts.items():
            total = total + weights[name] * value
        return total, {name: value.detach() for name, value in parts.items()}

    def _withheld_losses(
        self, model: OmniStream, average: OmniStream, batch: Batch, step: int
    ) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step, _STREAM, self.rank))
        B, T = batch.pixels.shape[:2]
        grid = model.config.grid(*batch.pixels.shape[-2:])
        withheld = choose_withheld(rng, B, T, grid, future=self.temporal is not None)
        look = disturb(batch.pixels, rng)
        student = model.backbone.forward_clip(look, hidden_patches=withheld.patches)
        parts: dict[str, Tensor] = {}
        if self.distillation is not None or self.temporal is not None:
            with torch.no_grad():
                teacher = average.backbone.forward_clip(batch.pixels)
            if self.distillation is not None:
                shown = ~withheld.frames
                blocks = withheld.blocks
                parts |= self.distillation.losses(
                    student.cls[shown],
                    teacher.cls[shown],
                    student.patches[blocks],
                    teacher.patches[blocks],
                )
            if self.temporal is not None and withheld.patches.any():
                parts["temporal"] = self.temporal.loss(
                    student.patches, teacher.patches, withheld.patches
                )
        if self.teacher is not None:
            parts["teacher"] = self.teacher.loss(student.patches, batch.pixels)
        return parts

    def follow(self, step: int, decay: float) -> None:
        """What follows the student's weights by a moving average."""
        if self.distillation is not None:
            self.distillation.follow(step, decay)
