# SPDX-License-Identifier: Apache-2.0
"""Training of the matching head: its targets are true, it learns, and the rest stays as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_clips import plane_clip, write_clip

from omnistream_ros.model import NANO, ModelCard, OmniStream, build_model, load_model, save_model
from omnistream_ros.model.matching import cell_grid
from omnistream_ros.training.data import Clip
from omnistream_ros.training.matching_pairs import ObservedClip, PairSampler, observe
from omnistream_ros.training.train_matching import (
    MatchingSettings,
    MatchingTrainer,
    match_pairs,
    matching_losses,
    observe_clips,
    train_matching,
    with_fresh_head,
)

TINY = dataclasses.replace(
    NANO, name="tiny", width=24, heads=3, head_width=8, depth=1, taps=(0,) * 4
)


@pytest.fixture(scope="module")
def model() -> OmniStream:
    torch.manual_seed(0)
    return build_model(TINY).eval()


@pytest.fixture(scope="module")
def clip() -> Clip:
    return plane_clip(seed=1, frames=6, size=(96, 128))


@pytest.fixture(scope="module")
def observed(model: OmniStream, clip: Clip) -> ObservedClip:
    seen = observe(model, clip)
    # an untrained depth head knows nothing: lend it the truth
    return dataclasses.replace(seen, predicted_depth=seen.true_depth)


def test_what_is_kept_of_a_clip(observed: ObservedClip, clip: Clip) -> None:
    assert observed.pyramid[4].shape == (6, 24, 24, 32)
    assert observed.pyramid[8].shape == (6, 40, 12, 16)
    assert observed.true_depth.shape == observed.predicted_depth.shape == (6, 24, 32)
    # cell (x, y) is pixel (4 x + 1.5, 4 y + 1.5): the ray through both is the same
    fx, fy, cx, cy = observed.camera.tolist()
    u, v = 4 * 7 + 1.5, 4 * 3 + 1.5
    assert (7 - cx) / fx == pytest.approx((u - clip.intrinsics[2]) / clip.intrinsics[0])
    assert (3 - cy) / fy == pytest.approx((v - clip.intrinsics[3]) / clip.intrinsics[1])


def test_targets_show_the_same_point_of_the_world(observed: ObservedClip, clip: Clip) -> None:
    """Back-projected in both frames, a place and its target are one point of the plane."""
    batch = PairSampler([observed], seed=0, pairs=4).batch(0)
    grid = cell_grid(24, 32)
    assert batch.visible.float().mean() > 0.5
    for i in range(4):
        moved = batch.predicted_points[i].double() @ batch.current_from_key[i, :3, :3].double().T
        moved = moved + batch.current_from_key[i, :3, 3].double()
        fx, fy, cx, cy = batch.camera[i].tolist()
        u = moved[:, 0] / moved[:, 2] * fx + cx
        v = moved[:, 1] / moved[:, 2] * fy + cy
        shown = torch.stack((u, v), -1)[batch.visible[i]]
        assert torch.allclose(shown, batch.target[i][batch.visible[i]].double(), atol=1e-3)
        # and the place itself is where its cell says
        start = batch.predicted_points[i]
        u0 = start[:, 0] / start[:, 2] * fx + cx
        assert torch.allclose(u0, grid[batch.chosen[i], 0], atol=1e-3)


def test_hidden_places_are_not_visible(observed: ObservedClip) -> None:
    depth = observed.true_depth.clone()
    depth[:, :, 20:] *= 0.5  # something stands there, in every frame, at half the distance
    hidden = PairSampler([dataclasses.replace(observed, true_depth=depth)], seed=0, pairs=4)
    open_ = PairSampler([observed], seed=0, pairs=4)
    assert hidden.batch(3).visible.float().mean() < open_.batch(3).visible.float().mean()


def test_batches_follow_from_seed_and_step(observed: ObservedClip) -> None:
    a, b = (PairSampler([observed], seed=4, pairs=2).batch(9) for _ in range(2))
    assert torch.equal(a.chosen, b.chosen)
    assert torch.equal(a.expected, b.expected)
    other = PairSampler([observed], seed=5, pairs=2).batch(9)
    assert not torch.equal(a.expected, other.expected)


def test_unknown_depth_never_reaches_the_losses(model: OmniStream, observed: ObservedClip) -> None:
    depth = observed.true_depth.clone()
    depth[:, 5:15] = torch.nan
    holes = dataclasses.replace(observed, true_depth=depth)
    head = with_fresh_head(model, 0).matching_head
    assert head is not None
    batch = PairSampler([holes], seed=0, pairs=2).batch(0)
    assert not batch.known.all()
    losses = matching_losses(match_pairs(head, batch), batch)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_it_learns(model: OmniStream, observed: ObservedClip) -> None:
    settings = MatchingSettings(clips=Path(), steps=40, pairs_per_step=2)
    head = with_fresh_head(model, 0).matching_head
    assert head is not None
    trainer = MatchingTrainer(head, [observed], settings)
    losses = [trainer.step(number) for number in range(40)]
    first, last = (
        {name: np.mean([step[name] for step in part]) for name in losses[0]}
        for part in (losses[:5], losses[-5:])
    )
    assert trainer.skipped == 0
    assert last["peak"] < first["peak"] - 0.3


@pytest.fixture
def clips(tmp_path: Path, clip: Clip) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in (50, 51):  # 50 belongs to the held-out set
        write_clip(folder / f"clip_{number:06d}.npz", clip)
    return folder


@pytest.fixture
def weights(tmp_path: Path, model: OmniStream) -> Path:
    path = tmp_path / "model.safetensors"
    card = ModelCard(name="tiny", licence="Apache-2.0", training={"frames": 7})
    save_model(path, model, card)
    return path


def test_takes_are_streams_of_their_own(model: OmniStream, clip: Clip, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip_000051.npz", clip, cuts=np.array([0, 2, 4]))
    settings = MatchingSettings(clips=tmp_path, frames_per_clip=5)
    seen = observe_clips(model, settings, lambda _: None)
    assert [len(one.true_depth) for one in seen] == [2, 2]  # one frame more would have no partner


def test_clips_without_a_usable_pair_are_an_error(observed: ObservedClip) -> None:
    alone = dataclasses.replace(observed, true_depth=observed.true_depth[:1])
    with pytest.raises(ValueError, match="too short"):
        PairSampler([alone], seed=0, pairs=1).batch(0)


def test_from_weights_to_weights(tmp_path: Path, clips: Path, weights: Path) -> None:
    settings = MatchingSettings(clips=clips, steps=2, pairs_per_step=1)
    said: list[str] = []
    first = tmp_path / "first.safetensors"
    train_matching(weights, first, settings, report=said.append)
    assert said[0].startswith("1 of 1 clips")  # never the held-out one
    before, _ = load_model(weights)
    after, card = load_model(first)
    assert before.matching_head is None
    assert after.matching_head is not None
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor)
    assert card.training["frames"] == 7
    assert card.training["matching head"]["steps"] == 2
    # the same command gives the same weights, also when the source has a head already
    second = tmp_path / "second.safetensors"
    train_matching(first, second, settings, report=said.append)
    again, _ = load_model(second)
    assert torch.equal(again.matching_head.out.weight, after.matching_head.out.weight)  # type: ignore[union-attr]
    # unless it is told to go on from there
    train_matching(first, second, settings, start_from=first, report=said.append)
    further, _ = load_model(second)
    assert not torch.equal(further.matching_head.out.weight, after.matching_head.out.weight)  # type: ignore[union-attr]


def test_what_is_missing_is_said(tmp_path: Path, clips: Path, weights: Path) -> None:
    settings = MatchingSettings(clips=clips, steps=1)
    with pytest.raises(ValueError, match="has no matching head to start from"):
        train_matching(weights, tmp_path / "out.safetensors", settings, start_from=weights)
    (clips / "clip_000051.npz").unlink()
    with pytest.raises(ValueError, match="no training clips in"):
        train_matching(weights, tmp_path / "out.safetensors", settings)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        MatchingSettings(clips=clips, steps=0)
