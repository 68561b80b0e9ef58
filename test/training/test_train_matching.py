# SPDX-License-Identifier: Apache-2.0
"""Training of the matching head: its targets are true, it learns, a kill costs nothing, the rest
stays as it was."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_clips import plane_clip, write_clip

from omnistream_ros.model import NANO, ModelCard, OmniStream, build_model, load_model, save_model
from omnistream_ros.model.matching import cell_grid
from omnistream_ros.training.clip_files import Clip
from omnistream_ros.training.matching_losses import match_pairs, matching_losses
from omnistream_ros.training.matching_pairs import ObservedClip, PairBatch, PairSampler, observe
from omnistream_ros.training.run_folder import RunFolderError, lock_run
from omnistream_ros.training.state import StateError
from omnistream_ros.training.train_matching import (
    MatchingSettings,
    MatchingTrainer,
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


def test_it_learns(model: OmniStream, observed: ObservedClip, tmp_path: Path) -> None:
    settings = MatchingSettings(clips=Path(), run=tmp_path, steps=40)
    trainer = MatchingTrainer(with_fresh_head(model, 0), settings)
    sampler = PairSampler([observed], seed=0, pairs=2)
    losses = [trainer.step(sampler.batch(number)) for number in range(40)]
    first, last = (
        {name: np.mean([step[name] for step in part]) for name in losses[0]}
        for part in (losses[:5], losses[-5:])
    )
    assert trainer.progress.step == 40
    assert not trainer.progress.refused  # steps left out
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
    settings = MatchingSettings(clips=tmp_path, run=tmp_path / "run", frames_per_clip=5)
    seen = observe_clips(model, settings, ["clip_000051.npz"])
    assert [len(one.true_depth) for one in seen] == [2, 2]  # one frame more would have no partner


def test_clips_without_a_usable_pair_are_an_error(observed: ObservedClip) -> None:
    alone = dataclasses.replace(observed, true_depth=observed.true_depth[:1])
    with pytest.raises(ValueError, match="too short"):
        PairSampler([alone], seed=0, pairs=1).batch(0)


@pytest.fixture
def settings(tmp_path: Path, clips: Path) -> MatchingSettings:
    return MatchingSettings(
        clips=clips, run=tmp_path / "run", steps=2, pairs_per_step=1, save_period=2
    )


def _quiet(line: str) -> None:
    """Where the progress lines of tests go."""


def test_from_weights_to_weights(tmp_path: Path, weights: Path, settings: MatchingSettings) -> None:
    said: list[str] = []
    first = tmp_path / "first.safetensors"
    assert train_matching(weights, first, settings, report=said.append)
    assert said[0].startswith("1 of 1 clips")  # never the held-out one
    before, _ = load_model(weights)
    after, card = load_model(first)
    assert before.matching_head is None
    assert after.matching_head is not None
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor)
    assert card.training["frames"] == 7
    assert card.training["matching head"]["steps"] == 2
    assert card.training["matching head"]["clips"] == 1
    # the same command gives the same weights, also when the source has a head already
    second = tmp_path / "second.safetensors"
    anew = dataclasses.replace(settings, run=tmp_path / "anew")
    train_matching(first, second, anew, report=said.append)
    again, _ = load_model(second)
    assert torch.equal(again.matching_head.out.weight, after.matching_head.out.weight)  # type: ignore[union-attr]
    # unless it is told to go on from there
    further_on = dataclasses.replace(settings, run=tmp_path / "further")
    train_matching(first, second, further_on, start_from=first, report=said.append)
    further, _ = load_model(second)
    assert not torch.equal(further.matching_head.out.weight, after.matching_head.out.weight)  # type: ignore[union-attr]


class KilledError(Exception):
    """Stands for a kill: nothing after it runs."""


def test_a_kill_and_a_stop_cost_nothing(
    tmp_path: Path, weights: Path, settings: MatchingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between saves, then stopped politely, with more clips than at the beginning."""
    settings = dataclasses.replace(settings, steps=9)
    whole = tmp_path / "whole.safetensors"
    train_matching(weights, whole, settings, report=_quiet)
    output = tmp_path / "pieces.safetensors"
    pieces = dataclasses.replace(settings, run=tmp_path / "pieces")
    step = MatchingTrainer.step

    def killed_at_3(self: MatchingTrainer, batch: PairBatch) -> dict[str, float]:
        if self.progress.step == 3:
            raise KilledError
        return step(self, batch)

    monkeypatch.setattr(MatchingTrainer, "step", killed_at_3)
    with pytest.raises(KilledError):
        train_matching(weights, output, pieces, report=_quiet)
    write_clip(settings.clips / "clip_000052.npz", plane_clip(seed=2, frames=6, size=(96, 128)))

    def stopped_at_5(self: MatchingTrainer, batch: PairBatch) -> dict[str, float]:
        if self.progress.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(MatchingTrainer, "step", stopped_at_5)
    said: list[str] = []
    assert not train_matching(weights, output, pieces, report=said.append)
    assert said[0].startswith("resuming at step 2 of")
    assert said[1].startswith("1 of 1 clips")
    assert not output.exists()
    monkeypatch.setattr(MatchingTrainer, "step", step)
    assert train_matching(weights, output, pieces, report=said.append)
    assert any(line.startswith("resuming at step 6 of") for line in said)

    one, other = (load_file(s.run / "state.safetensors") for s in (settings, pieces))
    assert one.keys() == other.keys()
    assert any(name.startswith("optimiser.exp_avg/") for name in one)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    (first, _), (second, card) = load_model(whole), load_model(output)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert card.training["matching head"]["steps"] == 9


def test_a_finished_run_trains_no_further_but_writes_what_is_missing(
    tmp_path: Path, weights: Path, settings: MatchingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the last save: the file is still to be written, over its own source."""
    output = tmp_path / "out.safetensors"
    train_matching(weights, output, settings, report=_quiet)
    monkeypatch.setattr(MatchingTrainer, "step", None)  # calling it would fail
    assert train_matching(weights, weights, settings, report=_quiet)
    (one, card), (other, _) = load_model(weights), load_model(output)
    for name, value in other.state_dict().items():
        assert torch.equal(value, one.state_dict()[name]), name
    assert card.training["matching head"]["clips"] == 1
    assert train_matching(weights, weights, settings, report=_quiet)  # now that it has a head, too


def test_broken_and_foreign_states_are_refused(
    tmp_path: Path, weights: Path, settings: MatchingSettings
) -> None:
    output = tmp_path / "out.safetensors"
    train_matching(weights, output, settings, report=_quiet)
    done = output.read_bytes()
    with pytest.raises(StateError, match=r"started with seed 0, not 1: .* another --run folder"):
        train_matching(weights, output, dataclasses.replace(settings, seed=1), report=_quiet)
    other = tmp_path / "other.safetensors"
    torch.manual_seed(1)
    save_model(other, build_model(TINY), ModelCard(name="other", licence="Apache-2.0"))
    with pytest.raises(StateError, match=r"another network.* or another --run folder"):
        train_matching(other, output, settings, report=_quiet)
    with lock_run(settings.run), pytest.raises(RunFolderError, match="in use by another trainer"):
        train_matching(weights, output, settings, report=_quiet)
    state = settings.run / "state.safetensors"
    state.write_bytes(state.read_bytes()[:5000])
    with pytest.raises(StateError, match=r"state\.safetensors: not a training state .* start anew"):
        train_matching(weights, output, settings, report=_quiet)
    assert output.read_bytes() == done


def test_what_is_missing_is_said(
    tmp_path: Path, clips: Path, weights: Path, settings: MatchingSettings
) -> None:
    with pytest.raises(ValueError, match="has no matching head to start from"):
        train_matching(weights, tmp_path / "out.safetensors", settings, start_from=weights)
    (clips / "clip_000051.npz").unlink()
    with pytest.raises(ValueError, match="no training clips in"):
        train_matching(weights, tmp_path / "out.safetensors", settings)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        dataclasses.replace(settings, steps=0)
