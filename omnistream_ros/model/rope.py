# SPDX-License-Identifier: Apache-2.0
"""3D rotary position embedding of OmniStream (arXiv:2603.12265), and its re-basing in time.

With d channels per head and periods p_i = 100^(2i / (d/2)), every channel of a patch token owns
one angle 2*pi*coordinate/period:

    channel     0 .. d/2-1                   d/2 .. d-1
    coordinate  y (d/4 periods, twice over)  x (d/4 periods, twice over)
    3, 7, 11 .. t instead, d/8 periods, once in each half

and turns as v * cos(angle) + rotate_half(v) * sin(angle), rotate_half(v) = [-v[d/2:], v[:d/2]].
Channel i is thereby paired with i + d/2. A t channel is paired with a t channel of the same angle:
a true rotation, so attention depends on time differences alone and a key can be moved in time by
turning it further. A y channel is paired with an x channel, which is no rotation; the weights were
trained with it and it stays.

Angles are reduced to one turn in float64 before anything is rounded: at frame 10^9 they are still
good to 1e-7 rad, where float32 would have lost the integer part of the frame index itself.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

BASE = 100.0
# Frames per unit of t. A constant of the checkpoint; it never follows the length of a clip.
FRAMES_PER_UNIT = 16
# The channels of a head, or of `time_channels`' view of it, that carry time.
TIME_CHANNELS = slice(3, None, 4)


class Rotation(NamedTuple):
    """What turns v: `v * cos + roll(v, d/2) * sin`. Signs of rotate_half are inside `sin`."""

    cos: Tensor
    sin: Tensor


def rotate(v: Tensor, rotation: Rotation) -> Tensor:
    """Turn the last dimension of v. Computed in the precision of the rotation, returned in v's."""
    half = v.shape[-1] // 2
    turned = v * rotation.cos + v.roll(half, dims=-1) * rotation.sin
    return turned.to(v.dtype)


def time_rotation(
    first_frame: int, frames: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> Rotation:
    """The turn of the time channels for consecutive frame indices: cos and sin (frames, d/4).

    The frame index reaches the device as a kernel argument: no copy from the host, no wait.
    """
    index = torch.arange(first_frame, first_frame + frames, dtype=torch.float64, device=device)
    return turn_by_frames(index, head_dim, dtype)


def turn_by_frames(frames: Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
    """The turn of the time channels by each of `frames`, float64 (n,): cos and sin (n, d/4)."""
    periods = _periods(head_dim, head_dim // 8, frames.device)
    turns = torch.remainder(frames[:, None] / FRAMES_PER_UNIT / periods, 1.0)  # (n, d/8)
    return _rotation(torch.cat((turns, turns), dim=-1), dtype)


def frame_rotation(
    grid: tuple[int, int],
    prefix: int,
    first_frame: int,
    frames: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Rotation:
    """The turn of all tokens of consecutive frames: cos and sin (frames * N, d), N = prefix + h*w.

    The `prefix` tokens before the patches have no position: their row is the identity.
    """
    spatial = _spatial_rotation(grid, prefix, head_dim, device, dtype)
    time = time_rotation(first_frame, frames, head_dim, device, dtype)
    tables = []
    for spatial_part, time_part in zip(spatial, time, strict=True):
        # One small table (N x d per frame) is made per step and shared by all layers.
        table = spatial_part.expand(frames, -1, -1).clone()  # (frames, N, d)
        table[:, prefix:, TIME_CHANNELS] = time_part[:, None]
        tables.append(table.flatten(0, 1))
    return Rotation(*tables)


def _rotation(turns: Tensor, dtype: torch.dtype) -> Rotation:
    """Angles in turns, float64 (..., d), to a Rotation in `dtype`."""
    angles = 2 * math.pi * turns
    sin = angles.sin()
    sin[..., : sin.shape[-1] // 2] *= -1  # the sign of rotate_half
    return Rotation(angles.cos().to(dtype), sin.to(dtype))


@lru_cache(maxsize=8)
def _periods(head_dim: int, count: int, device: torch.device) -> Tensor:
    # Kept tensors must outlive an inference_mode block in which they are first asked for.
    with torch.inference_mode(False):
        i = torch.arange(count, dtype=torch.float64, device=device)
        return BASE ** (2 * i / (head_dim / 2))


@lru_cache(maxsize=8)
def _spatial_rotation(
    grid: tuple[int, int], prefix: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> Rotation:
    """cos and sin (N, d) of the image plane alone: what does not change from frame to frame."""
    h, w = grid
    with torch.inference_mode(False):
        periods = _periods(head_dim, head_dim // 4, device)
        rows = torch.arange(h, dtype=torch.float64, device=device)
        columns = torch.arange(w, dtype=torch.float64, device=device)
        y = (2 * (rows + 0.5) / h - 1)[:, None, None] / periods  # (h, 1, d/4)
        x = (2 * (columns + 0.5) / w - 1)[None, :, None] / periods  # (1, w, d/4)
        y, x = y.expand(h, w, -1), x.expand(h, w, -1)
        patches = torch.cat((y, y, x, x), dim=-1).flatten(0, 1)  # (h*w, d)
        nowhere = patches.new_zeros(prefix, head_dim)
        return _rotation(torch.cat((nowhere, patches)), dtype)
