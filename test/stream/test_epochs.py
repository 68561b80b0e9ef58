# SPDX-License-Identifier: Apache-2.0
"""Every rule that begins an epoch, and everything that must not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from omnistream_ros.stream.epochs import EpochReason, EpochRules
from omnistream_ros.stream.frame import Frame, Intrinsics

CAMERA = Intrinsics(50.0, 50.0, 19.5, 14.5, 40, 30)


def frame(seconds: float, camera: Intrinsics | None = CAMERA, size: tuple = (30, 40)) -> Frame:
    if size != (30, 40):
        camera = None
    return Frame(np.zeros((*size, 3), np.uint8), round(seconds * 1e9), camera)


@pytest.fixture
def rules() -> EpochRules:
    rules = EpochRules(max_gap_s=1.0)
    assert rules.check(frame(5.0)) is EpochReason.START
    rules.accept(frame(5.0), begins=True)
    return rules


def test_an_ordinary_frame_continues(rules: EpochRules) -> None:
    assert rules.check(frame(5.033)) is None


def test_the_gap_limit_itself_is_allowed_and_one_nanosecond_more_is_not(rules: EpochRules) -> None:
    assert rules.check(frame(6.0)) is None
    late = Frame(frame(0.0).image, 6_000_000_001, CAMERA)
    assert rules.check(late) is EpochReason.GAP


def test_equal_stamps_are_not_a_jump_back_but_a_nanosecond_is(rules: EpochRules) -> None:
    assert rules.check(frame(5.0)) is None
    early = Frame(frame(0.0).image, 4_999_999_999, CAMERA)
    assert rules.check(early) is EpochReason.TIME_JUMP_BACK


def test_extreme_stamps_do_not_overflow(rules: EpochRules) -> None:
    rules.accept(Frame(frame(0.0).image, -(2**63), CAMERA), begins=True)
    assert rules.check(Frame(frame(0.0).image, 2**63 - 1, CAMERA)) is EpochReason.GAP


def test_image_size(rules: EpochRules) -> None:
    assert rules.check(frame(5.1, size=(40, 30))) is EpochReason.IMAGE_SIZE


@pytest.mark.parametrize("camera", [None, Intrinsics(51.0, 50.0, 19.5, 14.5, 40, 30)])
def test_another_camera_or_none(rules: EpochRules, camera: Intrinsics | None) -> None:
    assert rules.check(frame(5.1, camera)) is EpochReason.CAMERA_CHANGE


def test_learning_the_camera_is_a_change() -> None:
    rules = EpochRules(max_gap_s=1.0)
    rules.accept(frame(5.0, None), begins=True)
    assert rules.check(frame(5.1, None)) is None
    assert rules.check(frame(5.1)) is EpochReason.CAMERA_CHANGE


def test_a_slow_drift_of_the_camera_is_noticed_once() -> None:
    rules = EpochRules(max_gap_s=1.0)
    reasons = []
    for i in range(60):
        drifting = Intrinsics(50.0 + 0.001 * i, 50.0, 19.5, 14.5, 40, 30)
        reasons.append(rules.check(frame(0.1 * i, drifting)))
        rules.accept(frame(0.1 * i, drifting), begins=reasons[-1] is not None)
    assert reasons.count(EpochReason.CAMERA_CHANGE) == 1
    assert reasons.count(None) == 58


def test_request_counts_once_and_only_after_a_start(rules: EpochRules) -> None:
    rules.request()
    rules.request()
    assert rules.check(frame(5.1)) is EpochReason.REQUEST
    rules.accept(frame(5.1), begins=True)
    assert rules.check(frame(5.2)) is None

    fresh = EpochRules(max_gap_s=1.0)
    fresh.request()
    assert fresh.check(frame(0.0)) is EpochReason.START


def test_checking_leaves_no_trace(rules: EpochRules) -> None:
    before = rules.state_dict()
    rules.check(frame(100.0))
    rules.check(frame(5.1, size=(8, 8)))
    assert rules.state_dict() == before


def test_state_survives_json(rules: EpochRules) -> None:
    other = EpochRules(max_gap_s=1.0)
    other.load_state_dict(json.loads(json.dumps(rules.state_dict())))
    for probe in (frame(5.5), frame(6.5), frame(4.0), frame(5.5, None), frame(5.5, size=(8, 8))):
        assert other.check(probe) is rules.check(probe)


@pytest.mark.parametrize("gap", [0.0, -1.0, float("nan")])
def test_impossible_limits_are_refused(gap: float) -> None:
    with pytest.raises(ValueError, match="max_gap_s"):
        EpochRules(max_gap_s=gap)


def test_infinite_gap_switches_the_rule_off() -> None:
    rules = EpochRules(max_gap_s=float("inf"))
    rules.accept(frame(0.0), begins=True)
    assert rules.check(frame(1e6)) is None
