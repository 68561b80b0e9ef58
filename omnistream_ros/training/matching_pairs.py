# SPDX-License-Identifier: Apache-2.0
"""Pairs of frames for the matching head, from rendered clips seen through the frozen network.

The trunk and the depth head are frozen while matching is trained, so each clip goes through them
once and only what matching reads is kept: trunk features at strides 4 and 8, true and predicted
depth at the cells, poses. Of each keyframe N places are drawn, which is as good as all of them and
several times cheaper. B pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from omnistream_ros.model import OmniStream
from omnistream_ros.model.matching import STRIDE, cell_grid
from omnistream_ros.stream.keyframes import depth_at_cells
from omnistream_ros.training.annotations import back_project, inside
from omnistream_ros.training.clip_files import Clip
from omnistream_ros.training.data import collate
from omnistream_ros.training.differentiable_motion import exponential, project
from omnistream_ros.training.movement import Mover

# Pairs further apart than this are of no use to a tracker that changes its keyframe at 2 cells.
_MAX_FLOW = 5.0  # cells, median
_DRAWS = 1000  # tries for one pair
_MIN_VISIBLE = 0.4
_SPAN = 6  # frames between the two, at most
# A place of the keyframe is visible when what is seen there has its depth, within this share.
_OCCLUSION = 0.05
_AROUND = 0.03  # metres around the boxes of movers that are theirs
# How wrong the expected motion is while tracking, at most (standard deviation): radians, and
# translation as a share of the median depth.
_ROTATION_JITTER = 0.05
_TRANSLATION_JITTER = 0.04


@dataclass(frozen=True)
class ObservedClip:
    """A clip as the frozen network sees it; T frames.

    Attributes:
        pyramid: trunk features (T, C, H/s, W/s) float16 for the strides 4 and 8.
        true_depth, predicted_depth: (T, h, w) metres; true depth is NaN where unknown.
        world_from_camera: (T, 4, 4).
        camera: (4,) fx, fy, cx, cy in cells.
    """

    pyramid: dict[int, Tensor]
    true_depth: Tensor
    predicted_depth: Tensor
    world_from_camera: Tensor
    camera: Tensor


@dataclass(frozen=True)
class PairBatch:
    """What is needed to train on B pairs of a keyframe and a current frame.

    Attributes:
        key, current: trunk features by stride, float32.
        chosen: (B, N) which cells of the keyframe are used, counted row by row.
        points: (B, N, 3) of the keyframe; NaN where unknown.
        predicted_points: (B, N, 3) the same as the depth head sees them.
        current_from_key: (B, 4, 4) the true motion.
        expected: (B, 4, 4) the motion that a tracker would expect.
        target: (B, N, 2) cells where the places truly are now, 0 where unknown.
        known: (B, N) whether target says anything.
        visible: (B, N) whether the place can be seen in the current frame.
        camera: (B, 4) in cells.
    """

    key: dict[int, Tensor]
    current: dict[int, Tensor]
    chosen: Tensor
    points: Tensor
    predicted_points: Tensor
    current_from_key: Tensor
    expected: Tensor
    target: Tensor
    known: Tensor
    visible: Tensor
    camera: Tensor


def hide_movers(clip: Clip, movers: Sequence[Mover]) -> Clip:
    """A whole take, with depth unknown where its movers are: they are not where the camera's motion
    takes them."""
    if not movers:
        return clip
    depth = clip.depth.copy()
    rows, columns = (np.arange(side) for side in depth.shape[1:])
    for t, (plane, pose) in enumerate(zip(depth, clip.poses, strict=True)):
        points = back_project(plane, pose, clip.intrinsics, rows, columns)
        for mover in movers:
            # Down to the floor they stand on: better some of that than feet that move.
            held = inside(points, mover.boxes[t], _AROUND, -_AROUND)
            plane[held.reshape(plane.shape)] = np.nan
    return replace(clip, depth=depth)


@torch.no_grad()
def observe(model: OmniStream, clip: Clip) -> ObservedClip:
    """Run a clip through the frozen network; its size must be a multiple of 16."""
    batch = collate([clip])
    prediction = model.forward_clip(batch.pixels, rays=False, camera=False)
    assert prediction.depth is not None
    camera = batch.intrinsics[0, 0]
    to_real = camera[0] / model.config.canonical_fx
    pyramid = prediction.features.pyramid
    fx, fy, cx, cy = (camera / STRIDE).tolist()
    half = 0.5 / STRIDE - 0.5
    return ObservedClip(
        pyramid={stride: pyramid[stride][0].half() for stride in (4, 8)},
        true_depth=depth_at_cells(batch.depth[0]),
        predicted_depth=depth_at_cells(prediction.depth[0] * to_real),
        world_from_camera=batch.poses[0],
        camera=torch.tensor([fx, fy, cx + half, cy + half]),
    )


class PairSampler:
    """Draws batches of pairs; a pure function of the seed and the step.

    Raises:
        ValueError: no clips, or none with two frames that show the same.
    """

    def __init__(
        self, clips: list[ObservedClip], *, seed: int, pairs: int, places: int = 500
    ) -> None:
        if not clips:
            raise ValueError("no clips to draw pairs from")
        self.clips = clips
        self._seed = seed
        self._pairs = pairs
        self._places = places

    def batch(self, step: int) -> PairBatch:
        """The batch of one step."""
        rng = np.random.default_rng((self._seed, step))
        drawn = [self._draw(rng) for _ in range(self._pairs)]
        return PairBatch(
            key=_stack([clip.pyramid for clip, *_ in drawn], [key for _, key, *_ in drawn]),
            current=_stack([clip.pyramid for clip, *_ in drawn], [now for _, _, now, _ in drawn]),
            **{
                name: torch.stack([rest[name] for *_, rest in drawn])
                for name in drawn[0][3]
            },
        )  # fmt: skip

    def _draw(self, rng: np.random.Generator) -> tuple[ObservedClip, int, int, dict[str, Tensor]]:
        for _ in range(_DRAWS):
            clip = self.clips[int(rng.integers(len(self.clips)))]
            frames, height, width = clip.true_depth.shape
            key = int(rng.integers(frames))
            now = key + int(rng.integers(1, _SPAN + 1)) * int(rng.choice([-1, 1]))
            if not 0 <= now < frames:
                continue
            chosen = torch.from_numpy(rng.permutation(height * width)[: self._places])
            truth = _pair_truth(clip, key, now, chosen)
            known, visible = truth["known"], truth["visible"]
            if float(visible.sum()) < _MIN_VISIBLE * max(1.0, float(known.sum())):
                continue
            flow = truth["target"] - cell_grid(height, width)[chosen]
            if float(flow[visible].norm(dim=-1).median()) > _MAX_FLOW:
                continue
            truth["expected"] = _expectation(rng, clip, key, truth["current_from_key"])
            return clip, key, now, truth
        raise ValueError(
            f"{_DRAWS} pairs of frames drawn and none that show enough of the same: the clips are "
            "too short, or their camera moves too fast"
        )


def _pair_truth(clip: ObservedClip, key: int, now: int, chosen: Tensor) -> dict[str, Tensor]:
    """Everything of a `PairBatch` that follows from depth and poses, for one pair."""
    height, width = clip.true_depth.shape[1:]
    grid = cell_grid(height, width)[chosen]  # (N, 2)
    rays = torch.cat(((grid - clip.camera[2:]) / clip.camera[:2], torch.ones(len(grid), 1)), dim=1)
    points = rays * clip.true_depth[key].flatten()[chosen].unsqueeze(1)  # (N, 3)
    poses = clip.world_from_camera.double()
    current_from_key = (torch.linalg.inv(poses[now]) @ poses[key]).float()
    target = project(points[None], clip.camera[None], current_from_key[None])[0]
    seen_from_here = (points @ current_from_key[:3, :3].T + current_from_key[:3, 3])[:, 2]

    inside = ((target >= 0) & (target <= torch.tensor([width - 1.0, height - 1.0]))).all(-1)
    known = points.isfinite().all(-1)
    target = target.nan_to_num(0.0)
    x, y = target.round().long().unbind(-1)
    surface = clip.true_depth[now][y.clamp(0, height - 1), x.clamp(0, width - 1)]
    same = (seen_from_here / surface - 1).abs() < _OCCLUSION  # False where unknown
    return {
        "chosen": chosen,
        "points": points,
        "predicted_points": rays * clip.predicted_depth[key].flatten()[chosen].unsqueeze(1),
        "current_from_key": current_from_key,
        "target": target,
        "known": known,
        "visible": known & inside & same,
        "camera": clip.camera,
    }


def _expectation(rng: np.random.Generator, clip: ObservedClip, key: int, truth: Tensor) -> Tensor:
    """The motion (4, 4) that a tracker expects: near the truth, or none at all."""
    if rng.random() < 0.2:
        return torch.eye(4)
    depth = float(clip.true_depth[key].nanmedian())
    spread = np.repeat([_TRANSLATION_JITTER * depth, _ROTATION_JITTER], 3)
    error = rng.normal(size=6) * spread * rng.random()
    return exponential(torch.from_numpy(error).float()[None])[0] @ truth


def _stack(pyramids: list[dict[int, Tensor]], frames: list[int]) -> dict[int, Tensor]:
    return {
        stride: torch.stack([p[stride][f] for p, f in zip(pyramids, frames, strict=True)]).float()
        for stride in pyramids[0]
    }
