# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnistream_ros.evaluation.recordings import (
    DepthFrame,
    RecordingError,
    with_depth,
)
from omnistream_ros.stream.frame import Frame

PIXEL = np.zeros((1, 1, 3), np.uint8)
STAMPS = st.lists(st.integers(0, 500), unique=True, max_size=40).map(sorted)


def frames(stamps):
    return (Frame(PIXEL, stamp) for stamp in stamps)


def depths(stamps):
    return (DepthFrame(stamp, np.ones((1, 1), np.float32)) for stamp in stamps)


@settings(deadline=None)
@given(STAMPS, STAMPS, st.integers(0, 50))
def test_every_frame_gets_the_nearest_depth_or_none(images, truths, tolerance) -> None:
    pairs = list(with_depth(frames(images), depths(truths), tolerance))
    assert [frame.stamp_ns for frame, _ in pairs] == images
    for frame, depth in pairs:
        distances = [abs(truth - frame.stamp_ns) for truth in truths]
        nearest = min(distances, default=None)
        if nearest is None or nearest > tolerance:
            assert depth is None
        else:
            assert depth is not None
            assert abs(depth.stamp_ns - frame.stamp_ns) == nearest


def test_pairing_reads_only_as_far_as_it_must() -> None:
    """Depth of long before the first frame is let go, depth of long after it is not read."""
    read: list[int] = []

    def watched():
        for depth in depths(range(0, 10_000, 10)):
            read.append(depth.stamp_ns)
            yield depth

    pairs = with_depth(frames([5000, 5010]), watched(), 4)
    assert next(pairs)[1] is not None
    assert read[-1] == 5010
    next(pairs)
    assert read[-1] == 5020


@pytest.mark.parametrize("stamps", [[0, 5, 5], [0, 5, 3]])
@pytest.mark.parametrize("which", ["images", "depth"])
def test_stamps_that_do_not_increase_are_refused(stamps, which) -> None:
    good = [0, 1, 2, 3, 4, 5, 6]
    images, truths = (stamps, good) if which == "images" else (good, stamps)
    with pytest.raises(RecordingError, match=rf"{which}: stamps must increase, but number 2"):
        list(with_depth(frames(images), depths(truths), 10))
