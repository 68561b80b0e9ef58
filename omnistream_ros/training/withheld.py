# SPDX-License-Identifier: Apache-2.0
"""What the student is not shown: blocks of patches, and the last frames of a clip altogether."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Withheld:
    """patches (B, T, P) bool, withheld in all; frames (B, T) bool, of which nothing is shown."""

    patches: Tensor
    frames: Tensor

    @property
    def blocks(self) -> Tensor:
        """Withheld patches of frames that are shown in part, (B, T, P) bool."""
        return self.patches & ~self.frames[..., None]


def choose_withheld(
    rng: np.random.Generator,
    batch: int,
    frames: int,
    grid: tuple[int, int],
    *,
    share: float = 0.4,
    future: bool = True,
) -> Withheld:
    """Rectangles covering about `share` of every second frame, and in half of the clips of two
    frames or more the last quarter of the frames (one at least): the future."""
    rows, columns = grid
    hide = np.zeros((batch, frames, rows, columns), bool)
    whole = np.zeros((batch, frames), bool)
    for b in range(batch):
        if future and frames > 1 and rng.random() < 0.5:
            whole[b, frames - max(1, frames // 4) :] = True
        for t in range(frames):
            if rng.random() < 0.5:
                continue
            for _ in range(20):
                if hide[b, t].mean() >= share:
                    break
                h = int(rng.integers(1, max(2, rows // 2 + 1)))
                w = int(rng.integers(1, max(2, columns // 2 + 1)))
                y, x = int(rng.integers(rows - h + 1)), int(rng.integers(columns - w + 1))
                hide[b, t, y : y + h, x : x + w] = True
    patches = torch.from_numpy(hide.reshape(batch, frames, -1)) | torch.from_numpy(whole)[..., None]
    return Withheld(patches, torch.from_numpy(whole))


def disturb(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Another look of the same clip: gain, offset and noise of normalised pixels (B, T, 3, H, W).

    The same for all frames of a clip but for the noise; geometry stays, so tokens correspond.
    """
    shape = (pixels.shape[0], 1, 3, 1, 1)
    gain = torch.from_numpy(np.exp(rng.normal(0, 0.2, shape)).astype(np.float32))
    offset = torch.from_numpy(rng.normal(0, 0.2, shape).astype(np.float32))
    noise = rng.standard_normal(tuple(pixels.shape), dtype=np.float32)
    strength = float(rng.uniform(0, 0.2))
    return pixels * gain + offset + strength * torch.from_numpy(noise)
