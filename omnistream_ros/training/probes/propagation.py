# SPDX-License-Identifier: Apache-2.0
"""Labels carried through a video by nearest neighbours of frozen features; nothing is trained.

The protocol of Jabri et al. (arXiv:2006.14613) in DINO's setting (arXiv:2104.14294): a patch looks
at the first frame and the 7 frames before, within 12 patches of its own place, and takes the mean
label of its 5 nearest neighbours, weighted by exp(cosine / 0.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from omnistream_ros.model import PIXEL_MEAN, PIXEL_STD
from omnistream_ros.stream.preprocess import model_size
from omnistream_ros.training.probes.features import PATCH, Extractor
from omnistream_ros.training.probes.video_sequences import VideoSequence


@dataclass(frozen=True)
class Protocol:
    """frames before, beside the first; neighbours; reach in patches; temperature."""

    before: int = 7
    neighbours: int = 5
    reach: int = 12
    temperature: float = 0.1


def propagate(
    sequence: VideoSequence, extract: Extractor, pixels: int, protocol: Protocol | None = None
) -> NDArray[np.uint8]:
    """Masks (T, H, W) of a sequence, the first one given; features of images of `pixels` pixels."""
    p = protocol or Protocol()
    frames, height, width = sequence.masks.shape
    rows, columns = (s // PATCH for s in model_size(height, width, pixels, PATCH))
    tokens = extract(_network_input(sequence.images, (rows * PATCH, columns * PATCH)))
    tokens = F.normalize(tokens.float(), dim=-1)  # (T, P, C)
    count = int(sequence.masks[0].max()) + 1
    small = cv2.resize(sequence.masks[0], (columns, rows), interpolation=cv2.INTER_NEAREST)
    labels = [F.one_hot(torch.from_numpy(small).long().flatten(), count).float()]  # each (P, n)
    near = _near(rows, columns, p.reach)
    found = [sequence.masks[0]]
    for t in range(1, frames):
        context = [0, *range(max(1, t - p.before), t)]
        carried = _carry(
            tokens[t], tokens[context], torch.cat([labels[c] for c in context]), near, p
        )
        labels.append(carried)
        maps = carried.T.unflatten(1, (rows, columns)).numpy()  # (n, rows, columns)
        large = [cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in maps]
        found.append(np.argmax([_stretched(m) for m in large], axis=0).astype(np.uint8))
    return np.stack(found)


def _stretched(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """From 0 to 1, as the protocol has it before the largest wins; nothing stays nothing."""
    if plane.max() <= 0:
        return plane
    low = plane - plane.min()
    return low / max(float(low.max()), 1e-12)


def _carry(query: Tensor, keys: Tensor, labels: Tensor, near: Tensor, p: Protocol) -> Tensor:
    """query (P, C), keys (F, P, C), labels (F*P, n), near (P, P) bool -> labels (P, n)."""
    likeness = torch.einsum("qc,fkc->qfk", query, keys)
    likeness = likeness.masked_fill(~near[:, None], -torch.inf).flatten(1)  # (P, F*P)
    best, where = likeness.topk(min(p.neighbours, likeness.shape[1]), dim=1)
    weight = ((best - best[:, :1]) / p.temperature).exp()
    weight = weight / weight.sum(dim=1, keepdim=True)
    return (weight[..., None] * labels[where]).sum(dim=1)


def _near(rows: int, columns: int, reach: int) -> Tensor:
    """(P, P) bool: which patches lie within `reach` rows and columns of each."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    close = (np.abs(y[:, None] - y) <= reach) & (np.abs(x[:, None] - x) <= reach)
    return torch.from_numpy(close)


def _network_input(images: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """(T, H, W, 3) to normalised (T, 3, h, w)."""
    if images.shape[1:3] != size:
        small = [cv2.resize(i, size[::-1], interpolation=cv2.INTER_AREA) for i in images]
        images = np.stack(small).astype(np.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
