# SPDX-License-Identifier: Apache-2.0
"""The estimate of scale: robust, equivariant, bounded, frozen when nothing comes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnistream_ros.stream.scale_estimate import (
    ENOUGH,
    FROZEN_AFTER_S,
    LARGEST_RATIO,
    WINDOW,
    ScaleEstimate,
    ScaleStatus,
)

SECOND = 10**9
near_one = st.floats(0.9, 1.1)
scales = st.floats(0.1, 10.0)
nonsense = st.one_of(
    st.floats(1e-6, 1e6),
    st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf]),
)


def fed(ratios: list[float]) -> ScaleEstimate:
    estimate = ScaleEstimate()
    for i, ratio in enumerate(ratios):
        estimate.observe(ratio, i * SECOND)
    return estimate


def test_nothing_is_known_before_enough_agree() -> None:
    estimate = ScaleEstimate()
    assert estimate.scale is None
    assert estimate.status(0) is ScaleStatus.NONE
    for i in range(ENOUGH - 1):
        estimate.observe(2.0, i)
        assert estimate.scale is None
        assert estimate.status(i) is ScaleStatus.SETTLING
    estimate.observe(2.0, ENOUGH)
    assert estimate.scale == pytest.approx(2.0)
    assert estimate.status(ENOUGH) is ScaleStatus.KNOWN


@given(st.data(), scales, st.integers(ENOUGH, WINDOW))
def test_nonsense_of_less_than_half_does_no_harm(data: st.DataObject, true: float, n: int) -> None:
    good = data.draw(st.lists(near_one, min_size=n, max_size=n))
    bad = data.draw(st.lists(nonsense, max_size=max(0, min(n - 1, WINDOW - n))))
    estimate = fed(bad + [true * ratio for ratio in good])
    assert estimate.scale is not None
    assert 0.9 * true * (1 - 1e-9) <= estimate.scale <= 1.1 * true * (1 + 1e-9)


@given(st.lists(near_one, min_size=ENOUGH, max_size=2 * WINDOW), scales)
def test_in_other_units_everything_is_the_same(ratios: list[float], unit: float) -> None:
    plain, scaled = fed(ratios), fed([unit * ratio for ratio in ratios])
    assert plain.scale is not None
    assert scaled.scale == pytest.approx(unit * plain.scale)
    assert scaled.spread == pytest.approx(plain.spread, abs=1e-9)


@given(st.lists(near_one, min_size=ENOUGH, max_size=WINDOW))
def test_the_inverse_question_has_the_inverse_answer(ratios: list[float]) -> None:
    scale, inverse = fed(ratios).scale, fed([1 / r for r in ratios]).scale
    assert scale is not None
    assert inverse == pytest.approx(1 / scale)


@given(scales, scales)
def test_a_lasting_change_is_followed(before: float, after: float) -> None:
    estimate = fed([before] * WINDOW + [after] * WINDOW)
    assert estimate.scale == pytest.approx(after)


@given(st.lists(nonsense, max_size=3 * WINDOW))
def test_whatever_comes_it_stays_finite_and_small(ratios: list[float]) -> None:
    estimate = fed(ratios)
    assert estimate.scale is None or 1 / LARGEST_RATIO <= estimate.scale <= LARGEST_RATIO
    assert len(estimate.state_dict()["logs"]) <= WINDOW
    assert estimate.observations + estimate.refused == len(ratios)
    json.dumps(estimate.state_dict(), allow_nan=False)


def test_contradictions_teach_nothing_and_are_told() -> None:
    estimate = fed([2.0] * WINDOW)
    for i in range(WINDOW):
        estimate.observe(0.2 if i % 2 else 20.0, (WINDOW + i) * SECOND)
    assert estimate.status(2 * WINDOW * SECOND) is ScaleStatus.DISAGREEING
    assert estimate.scale is not None
    assert 1.5 < estimate.scale < 2.5 or estimate.scale == pytest.approx(2.0)


def test_without_observations_it_is_frozen_and_unchanged() -> None:
    estimate = fed([3.0] * ENOUGH)
    last = (ENOUGH - 1) * SECOND
    soon, late = last + SECOND, last + int((FROZEN_AFTER_S + 1) * SECOND)
    assert estimate.status(soon) is ScaleStatus.KNOWN
    assert estimate.status(late) is ScaleStatus.FROZEN
    assert estimate.scale == pytest.approx(3.0)
    estimate.observe(3.0, late)
    assert estimate.status(late) is ScaleStatus.KNOWN
    assert estimate.status(0) is ScaleStatus.KNOWN  # a clock that jumped back


@given(
    st.lists(nonsense, max_size=WINDOW),
    st.lists(st.one_of(near_one, nonsense), max_size=WINDOW),
)
def test_a_saved_estimate_goes_on_to_the_last_bit(first: list[float], second: list[float]) -> None:
    whole, begun = fed(first + second), fed(first)
    restored = ScaleEstimate()
    restored.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    for i, ratio in enumerate(second, start=len(first)):
        restored.observe(ratio, i * SECOND)
    assert restored.state_dict() == whole.state_dict()
