# SPDX-License-Identifier: Apache-2.0
"""Matching: positions on shifted descriptors, the edges of image and window, and refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from omnistream_ros.model import NANO, build_model, matching
from omnistream_ros.model.matching import WINDOW, MatchingHead, cell_grid, flat_places

CONFIG = dataclasses.replace(NANO, matching_width=48)


@pytest.fixture(scope="module")
def head() -> MatchingHead:
    torch.manual_seed(0)
    head = MatchingHead(CONFIG).eval().requires_grad_(False)
    head.log_temperature.fill_(4.0)
    return head


def random_descriptors(height: int = 20, width: int = 30, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(1, 48, height, width, generator=generator))


def test_size_is_what_the_notes_promise() -> None:
    assert sum(p.numel() for p in MatchingHead(CONFIG).parameters()) == pytest.approx(
        47e3, rel=0.05
    )


def test_descriptors_are_unit_and_at_stride_four(head: MatchingHead) -> None:
    pyramid = {4: torch.randn(2, 24, 36, 48), 8: torch.randn(2, 40, 18, 24)}
    descriptors = head.describe(pyramid)
    assert descriptors.shape == (2, 48, 36, 48)
    assert torch.allclose(descriptors.norm(dim=1), torch.ones(2, 36, 48), atol=1e-5)


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-5, 5)])
def test_shifted_descriptors_are_found(head: MatchingHead, shift: tuple) -> None:
    key = random_descriptors()
    dx, dy = shift
    current = torch.roll(key, (dy, dx), dims=(2, 3))
    grid = cell_grid(20, 30)
    matches = head.match(flat_places(key), current, grid[None])
    target = grid + torch.tensor([dx, dy])
    inside = ((target >= 0) & (target < torch.tensor([30, 20]))).all(-1)
    assert torch.allclose(matches.position[0, inside], target[inside], atol=1e-3)
    assert matches.searched.all()
    # the same in another window, one that only just contains the place
    matches = head.match(flat_places(key), current, (target + WINDOW // 2)[None])
    assert torch.allclose(matches.position[0, inside], target[inside], atol=1e-3)


def test_probability_is_one_inside_and_zero_outside_of_the_image(head: MatchingHead) -> None:
    key = random_descriptors()
    matches = head.match(flat_places(key), key, cell_grid(20, 30)[None])
    probability = matches.log_probability.exp()
    assert torch.allclose(probability.sum(-1), torch.ones(1, 600), atol=1e-5)
    x = matches.corner[..., :1] + torch.arange(WINDOW * WINDOW) % WINDOW
    y = matches.corner[..., 1:] + torch.arange(WINDOW * WINDOW) // WINDOW
    outside = (x < 0) | (x >= 30) | (y < 0) | (y >= 20)
    assert outside.any()
    assert (probability[outside] == 0).all()


def test_places_that_nobody_can_look_for(head: MatchingHead) -> None:
    key = random_descriptors()
    expected = cell_grid(20, 30)[None].clone()
    expected[0, 0] = torch.nan
    expected[0, 1] = torch.inf
    expected[0, 2] = torch.tensor([-1e9, 3.0])
    expected[0, 3] = torch.tensor([29.0 + WINDOW, 0.0])
    expected[0, 4] = torch.tensor([30.0 + WINDOW // 2 - 1, 0.0])  # one column of it is inside
    matches = head.match(flat_places(key), key, expected)
    assert matches.searched[0, :6].tolist() == [False, False, False, False, True, True]
    assert matches.position.isfinite().all()
    assert matches.confidence.isfinite().all()
    # and they do not disturb the others
    plain = head.match(flat_places(key), key, cell_grid(20, 30)[None])
    assert torch.equal(matches.position[0, 6:], plain.position[0, 6:])


def test_a_choice_of_places_is_the_same_as_all_of_them(head: MatchingHead) -> None:
    key, current = random_descriptors(seed=1), random_descriptors(seed=2)
    grid = cell_grid(20, 30)[None]
    some = torch.tensor([5, 77, 300])
    everything = head.match(flat_places(key), current, grid)
    few = head.match(flat_places(key)[:, some], current, grid[:, some])
    assert torch.allclose(few.position, everything.position[:, some], atol=1e-5)
    assert torch.allclose(few.confidence, everything.confidence[:, some], atol=1e-5)


def test_gradients_are_finite_with_places_outside(head: MatchingHead) -> None:
    training = MatchingHead(CONFIG)
    pyramid = {4: torch.randn(1, 24, 12, 16), 8: torch.randn(1, 40, 6, 8)}
    descriptors = training.describe(pyramid)
    expected = cell_grid(12, 16)[None] + 12.0
    matches = training.match(flat_places(descriptors), descriptors, expected)
    assert not matches.searched.all()
    loss = matches.position.sum() + matches.confidence.sum()
    loss = loss + matches.log_probability.clamp_min(-50.0).mean()
    loss.backward()
    for parameter in training.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_it_needs_a_trunk() -> None:
    with pytest.raises(ValueError, match="needs the features of a trunk"):
        MatchingHead(dataclasses.replace(CONFIG, patch_embed="conv16"))


def test_the_network_carries_it() -> None:
    assert build_model(NANO, device="meta").matching_head is None
    model = build_model(CONFIG, device="meta")
    assert isinstance(model.matching_head, MatchingHead)


def test_matching_can_be_learned_after_it_was_used_in_inference_mode() -> None:
    matching._window.cache_clear()
    head = MatchingHead(CONFIG)
    descriptors = random_descriptors()
    for grad in (False, True):
        with torch.inference_mode(not grad):
            places, expected = flat_places(descriptors)[:, :9], cell_grid(3, 3)[None]
            matches = head.match(places, descriptors, expected)
    matches.position.sum().backward()
    assert head.log_temperature.grad is not None
