# SPDX-License-Identifier: Apache-2.0
"""Static self-distillation: the student, who sees less, agrees with its own moving average.

DINO (Caron et al., arXiv:2104.14294) on the CLS token of each frame and iBOT (Zhou et al.,
arXiv:2111.07832) on withheld patches. Tokens are assigned to prototypes; the teacher's assignments
are the targets. Two forces keep them from collapsing: centering (no prototype may be everybody's)
and sharpening (a target may not be everything).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnistream_ros.training.optimise import follow

STUDENT_TEMPERATURE = 0.1
TEACHER_TEMPERATURE = 0.04
CENTER_MOMENTUM = 0.9


class PrototypeHead(nn.Module):
    """Tokens (..., D) to similarities with K prototypes (..., K), each in [-1, 1]."""

    def __init__(self, width: int, hidden: int = 256, bottleneck: int = 64, prototypes: int = 256):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, bottleneck)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.normalize(self.fc2(F.gelu(self.fc1(tokens.float()))), dim=-1)
        return F.linear(x, F.normalize(self.prototypes, dim=-1))


class Running(nn.Module):
    """Running means of what the teacher says of one kind of token; part of the resumable state."""

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.token: Tensor
        self.center: Tensor
        self.register_buffer("token", torch.zeros(width))
        self.register_buffer("center", torch.zeros(prototypes))

    @torch.no_grad()
    def update(self, name: str, values: Tensor) -> None:
        """Moves a mean towards that of values (N, ...); the first time, all the way."""
        mean = getattr(self, name)
        mean.lerp_(values.float().mean(dim=0), 1 - CENTER_MOMENTUM if mean.any() else 1.0)


class SelfDistillation(nn.Module):
    """Heads of student and teacher, and the running means that center the teacher.

    What all tokens have in common (nearly everything, in a fresh network) is taken away before the
    heads as well, else they would have nothing to tell them apart by.
    """

    def __init__(self, width: int, prototypes: int = 256) -> None:
        super().__init__()
        self.head = PrototypeHead(width, prototypes=prototypes)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.cls = Running(width, prototypes)
        self.patches = Running(width, prototypes)

    @torch.no_grad()
    def targets(self, tokens: Tensor, running: Running) -> Tensor:
        """Assignments (N, K) of the teacher's tokens (N, D)."""
        scores = self.teacher_head(tokens - running.token)
        return ((scores - running.center) / TEACHER_TEMPERATURE).softmax(dim=-1)

    def losses(
        self,
        student_cls: Tensor,
        teacher_cls: Tensor,
        student_patches: Tensor,
        teacher_patches: Tensor,
    ) -> dict[str, Tensor]:
        """Cross-entropies `dino` of CLS tokens (N, D) and `ibot` of withheld patches (M, D).

        Moves the running means towards what the teacher said.
        """
        parts = {}
        for name, student, teacher, running in (
            ("dino", student_cls, teacher_cls, self.cls),
            ("ibot", student_patches, teacher_patches, self.patches),
        ):
            if len(student) == 0:
                continue
            running.update("token", teacher)
            running.update("center", self.teacher_head(teacher - running.token))
            said = self.head(student - running.token) / STUDENT_TEMPERATURE
            target = self.targets(teacher, running)
            parts[name] = -(target * said.log_softmax(dim=-1)).sum(dim=-1).mean()
        return parts

    def follow(self, step: int, decay: float) -> None:
        """The teacher's head follows the student's."""
        follow(self.teacher_head, self.head, step, decay)
