# SPDX-License-Identifier: Apache-2.0
"""3D-RoPE: against the equations, its invariances, and its precision after a long time."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_backbone import angles, turn

from omnistream_ros.model.rope import (
    TIME_CHANNELS,
    Rotation,
    frame_rotation,
    rotate,
    time_rotation,
)

CPU = torch.device("cpu")
head_dims = st.sampled_from([8, 16, 32, 64])
frame_indices = st.integers(0, 10**9)


def vector(seed: int, d: int) -> torch.Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def time_part(frame: int, d: int) -> Rotation:
    table = time_rotation(frame, 1, d, CPU, torch.float64)
    return Rotation(table.cos[0], table.sin[0])


@settings(deadline=None, max_examples=30)
@given(
    d=head_dims,
    h=st.integers(1, 5),
    w=st.integers(1, 5),
    first=st.integers(0, 1000),
    frames=st.integers(1, 3),
    prefix=st.integers(0, 6),
)
def test_follows_the_equations(d, h, w, first, frames, prefix):
    rotation = frame_rotation((h, w), prefix, first, frames, d, CPU, torch.float64)
    N = prefix + h * w
    v = torch.randn(frames * N, d, dtype=torch.float64)
    turned = rotate(v, rotation).numpy()
    for row, value in enumerate(v.numpy()):
        frame, token = divmod(row, N)
        if token < prefix:
            expected = value
        else:
            y, x = divmod(token - prefix, w)
            expected = turn(value, angles(y, x, h, w, first + frame, d))
        np.testing.assert_allclose(turned[row], expected, atol=1e-11)


@settings(deadline=None)
@given(d=head_dims, frame=frame_indices, seed=st.integers(0, 99))
def test_time_preserves_the_norm(d, frame, seed):
    v = vector(seed, d // 4)
    assert rotate(v, time_part(frame, d)).norm() == pytest.approx(v.norm(), rel=1e-12)


@settings(deadline=None)
@given(d=head_dims, a=frame_indices, b=frame_indices, shift=frame_indices, seed=st.integers(0, 99))
def test_attention_depends_on_time_differences_alone(d, a, b, shift, seed):
    q, k = vector(seed, d // 4), vector(seed + 100, d // 4)

    def product(m: int, n: int) -> float:
        return float(rotate(q, time_part(m, d)) @ rotate(k, time_part(n, d)))

    # 2 * 10^9 frames are two years at 30 Hz.
    assert product(a, b) == pytest.approx(product(a + shift, b + shift), abs=3e-6)


@settings(deadline=None)
@given(d=head_dims, a=st.integers(0, 10**6), b=st.integers(0, 10**6), seed=st.integers(0, 99))
def test_turning_further_moves_in_time(d, a, b, seed):
    v = vector(seed, d // 4)
    twice = rotate(rotate(v, time_part(a, d)), time_part(b, d))
    assert torch.allclose(twice, rotate(v, time_part(a + b, d)), atol=1e-8, rtol=0)


def test_time_touches_every_fourth_channel_and_nothing_else():
    now, later = (frame_rotation((2, 3), 5, f, 1, 16, CPU, torch.float32) for f in (0, 7))
    changed = (now.cos != later.cos) | (now.sin != later.sin)
    expected = torch.zeros_like(changed)
    expected[5:, TIME_CHANNELS] = True
    assert torch.equal(changed, expected)
    assert list(range(16))[TIME_CHANNELS] == [3, 7, 11, 15]


@pytest.mark.parametrize("frame", [15, 10**6 + 1, 10**9 + 7])
def test_angles_are_exact_after_a_long_time(frame):
    d = 64
    getcontext().prec = 50
    table = time_rotation(frame, 1, d, CPU, torch.float32)
    for i in range(d // 8):
        period = Decimal(100) ** (Decimal(2 * i) / Decimal(d // 2))
        turns = float(Decimal(frame) / 16 / period % 1)
        assert table.cos[0, i].item() == pytest.approx(math.cos(2 * math.pi * turns), abs=3e-7)
        assert -table.sin[0, i].item() == pytest.approx(math.sin(2 * math.pi * turns), abs=3e-7)
        assert table.sin[0, d // 8 + i].item() == -table.sin[0, i].item()


def test_low_precision_vectors_are_turned_in_float32():
    v = torch.randn(11, 16).bfloat16()
    rotation = frame_rotation((2, 3), 5, 3, 1, 16, CPU, torch.float32)
    assert torch.equal(rotate(v, rotation), rotate(v.float(), rotation).bfloat16())


def test_tables_survive_inference_mode_and_are_not_shared():
    with torch.inference_mode():
        first = frame_rotation((3, 7), 5, 0, 1, 24, CPU, torch.float32)
        first.cos.zero_()
    v = torch.randn(26, 24, requires_grad=True)
    second = frame_rotation((3, 7), 5, 0, 1, 24, CPU, torch.float32)
    rotate(v, second).sum().backward()  # fails on tensors made in inference mode
    assert second.cos.abs().sum() > 0
