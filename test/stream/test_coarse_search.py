# SPDX-License-Identifier: Apache-2.0
"""Finding how far the camera has turned, without any expectation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from box_room import CELLS, PointHead, look, render

from omnistream_ros.stream import geometry
from omnistream_ros.stream.coarse_search import turned

CAMERA = np.array([CELLS.fx, CELLS.fy, CELLS.cx, CELLS.cy])


@pytest.fixture(scope="module")
def head() -> PointHead:
    return PointHead().requires_grad_(False)


@pytest.mark.parametrize("turn", [(0, 0, 0), (0, 14, 0), (0, -25, 0), (12, 0, 0), (-8, 20, 0)])
def test_turns_up_to_half_of_the_image(head: PointHead, turn: tuple) -> None:
    key, now = (
        head.describe({4: torch.from_numpy(render(pose).points).float()[None]})
        for pose in (look(), look(turn=turn))
    )
    found = turned(key, now, CAMERA)
    truth = np.linalg.inv(look(turn=turn))
    gap = geometry.rotation_vector(found[:3, :3] @ truth[:3, :3].T)
    # two cells are five degrees; the window of matching reaches 13 degrees
    assert np.degrees(np.linalg.norm(gap)) < 6.0
    assert np.array_equal(found[:3, 3], np.zeros(3))


def test_nothing_to_see_is_no_error() -> None:
    blank = torch.zeros(1, 8, CELLS.height, CELLS.width)
    assert np.isfinite(turned(blank, blank, CAMERA)).all()
