# SPDX-License-Identifier: Apache-2.0
"""By what weights are judged: fair to too near and too far, and steady on few clips."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from omnistream_ros.training.held_out import HeldOutScore, score_depths

Depth = NDArray[np.float32]


def _truths(rng: np.random.Generator, clips: int, shape: tuple[int, ...] = (1, 12, 16)) -> Depth:
    return rng.uniform(0.5, 6, (clips, *shape)).astype(np.float32)


def test_too_near_and_too_far_cost_alike() -> None:
    truth = _truths(np.random.default_rng(0), clips=3)
    near, far = (
        score_depths((depth * factor, depth) for depth in truth) for factor in (1 / 1.3, 1.3)
    )
    assert near.log_mae == pytest.approx(far.log_mae) == pytest.approx(np.log(1.3), rel=1e-5)
    assert near.abs_rel < 0.8 * far.abs_rel, "which is why AbsRel does not decide"


def test_the_error_decides_and_not_a_border_that_few_pixels_cross() -> None:
    """What a run once kept, and its last weights, on thirteen clips."""
    kept = HeldOutScore(0.2001, 0.1715, 0.7216, 0.72, log_mae=0.1961)
    last = HeldOutScore(0.1968, 0.1702, 0.7212, 0.72, log_mae=0.1939)
    assert last.better_than(kept.as_dict())
    assert not kept.better_than(last.as_dict())
    assert not kept.better_than(kept.as_dict())


def test_scores_of_before_can_be_read_and_are_beaten() -> None:
    score = HeldOutScore(0.5, 0.5, 0.4, 0.4, log_mae=0.6)
    assert score.better_than({})
    assert score.better_than({"abs_rel": 0.1, "delta_1": 0.9, "step": 300})


def test_depth_that_is_not_finite_is_worst() -> None:
    truth = _truths(np.random.default_rng(0), clips=1)
    broken = score_depths([(np.full_like(truth[0], np.nan), truth[0])])
    assert score_depths([(9 * truth[0], truth[0])]).better_than(broken.as_dict())
    assert not broken.better_than(broken.as_dict())


def test_one_clip_at_the_border_of_delta_does_not_decide() -> None:
    """Nine of ten clips get better by a tenth, and one goes from 1.24 times too far to 1.26."""
    truths = _truths(np.random.default_rng(0), clips=10)
    before, after = np.r_[np.full(9, 1.5), 1.24], np.r_[np.full(9, 1.35), 1.26]
    old, new = (
        score_depths((truth * factor, truth) for truth, factor in zip(truths, factors, strict=True))
        for factors in (before, after)
    )
    assert new.delta_1 < old.delta_1 - 0.05, "which is why delta does not decide"
    assert new.better_than(old.as_dict())
    assert not old.better_than(new.as_dict())
