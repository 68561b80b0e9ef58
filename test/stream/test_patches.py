# SPDX-License-Identifier: Apache-2.0
"""Patches on painted images that move by a known part of a pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnistream_ros.model import PIXEL_MEAN, PIXEL_STD
from omnistream_ros.stream.patches import Found, Patches, luminance

HEIGHT, WIDTH = 96, 128
CENTRES = torch.stack(
    torch.meshgrid(torch.arange(13.5, 115, 9), torch.arange(13.5, 83, 9), indexing="xy"), -1
).reshape(-1, 2)
UNMOVED = torch.eye(2).expand(len(CENTRES), 2, 2)


def paint(matrix: np.ndarray, shift: np.ndarray) -> torch.Tensor:
    """Waves of 6 to 30 pixels, at (matrix x + shift) of each pixel."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    where = np.stack([x, y], -1) @ matrix.T + shift
    angle = rng.uniform(0, np.pi, 20)
    waves = 2 * np.pi / rng.uniform(6, 30, 20) * np.stack([np.cos(angle), np.sin(angle)])
    values = np.sin(where @ waves + rng.uniform(0, 6, 20)).sum(-1)
    return torch.from_numpy(128 + 15 * values).float()


FIRST = paint(np.eye(2), np.zeros(2))


def find(second: torch.Tensor, start: torch.Tensor, warp: torch.Tensor = UNMOVED) -> Found:
    return Patches(FIRST, CENTRES).find(second, start, warp)


@settings(max_examples=25, deadline=None)
@given(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5))
def test_parts_of_a_pixel(dx: float, dy: float) -> None:
    second = paint(np.eye(2), -np.array([dx, dy]))
    error = find(second, CENTRES).position - CENTRES - torch.tensor([dx, dy])
    assert error.norm(dim=1).median() < 0.05
    # Nothing that all share: a mean error would be motion that is not there.
    assert error.median(0).values.abs().max() < 0.015


def test_light_may_change() -> None:
    second = 0.7 * paint(np.eye(2), np.array([-0.4, 0.3])) + 60
    error = find(second, CENTRES).position - CENTRES - torch.tensor([0.4, -0.3])
    assert error.norm(dim=1).median() < 0.05


def test_the_warp_is_that_of_the_surroundings() -> None:
    angle, growth = np.radians(12), 1.15
    turn = growth * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([64.0, 48.0])
    # The point x of the first image is at middle + turn (x - middle) of the second.
    back = np.linalg.inv(turn)
    second = paint(back, middle - back @ middle)
    truth = torch.from_numpy(middle + (CENTRES.numpy() - middle) @ turn.T).float()
    inside = ((truth > 8) & (truth < torch.tensor([WIDTH - 9.0, HEIGHT - 9.0]))).all(1)
    start = truth + 0.6
    warp = torch.from_numpy(turn).float().expand(len(CENTRES), 2, 2)
    told, untold = (find(second, start, w) for w in (warp, UNMOVED))
    errors = [(f.position - truth)[inside].norm(dim=1).median() for f in (told, untold)]
    assert errors[0] < 0.05
    assert errors[0] < 0.5 * errors[1]


def test_a_blank_image_leaves_places_where_they_were_and_says_so() -> None:
    blank = torch.full((HEIGHT, WIDTH), 90.0)
    found = find(blank, CENTRES + 0.3)
    assert torch.equal(found.position, CENTRES + 0.3)
    assert (torch.linalg.eigvalsh(found.covariance)[:, 0] > 0.9).all()
    of_nothing = Patches(blank, CENTRES).find(FIRST, CENTRES + 0.3, UNMOVED)
    assert torch.equal(of_nothing.position, CENTRES + 0.3)


def test_along_an_edge_nothing_is_known() -> None:
    x = np.mgrid[:HEIGHT, :WIDTH][1]
    edges = torch.from_numpy(128 + 60 * np.sin(x / 3.0)).float()
    found = Patches(edges, CENTRES).find(edges, CENTRES, UNMOVED)
    variance = found.covariance.diagonal(dim1=1, dim2=2).median(0).values
    assert variance[0] < 0.02
    assert variance[1] > 0.15


def test_another_picture_is_not_found() -> None:
    noise = 128 + 50 * torch.randn(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    found = find(noise, CENTRES)
    wide = torch.linalg.eigvalsh(found.covariance)[:, 0] > 0.9
    assert wide.float().mean() > 0.8


def test_covariance_covers_noise() -> None:
    generator = torch.Generator().manual_seed(1)
    noisy = paint(np.eye(2), np.array([0.3, 0.2]))
    noisy = noisy + 6 * torch.randn(noisy.shape, generator=generator)
    found = find(noisy, CENTRES)
    error = found.position - CENTRES - torch.tensor([-0.3, -0.2])
    squared = torch.einsum("ni,nij,nj->n", error, torch.linalg.inv(found.covariance), error)
    assert 0.1 < float(squared.median()) < 2.0  # 1.39 for exact two-dimensional covariances


def test_luminance_undoes_the_normalisation() -> None:
    rgb = torch.rand(3, 5, 7)
    mean, std = (torch.tensor(v)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
    grey = luminance(((rgb - mean) / std)[None])
    expected = 255 * (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2])
    assert torch.allclose(grey, expected, atol=1e-3)


@pytest.mark.parametrize("start", [torch.inf, -1e6, 1e6])
def test_starts_outside_are_finite(start: float) -> None:
    found = find(FIRST, torch.full_like(CENTRES, start).nan_to_num(posinf=1e9))
    assert found.position.isfinite().all()
    assert found.covariance.isfinite().all()
