# SPDX-License-Identifier: Apache-2.0
"""Keyframes: which of them a camera is near, and which place is nearest to a position."""

from __future__ import annotations

import numpy as np
from box_room import CELLS, look
from test_bundle import keyframe

from omnistream_ros.model.matching import STRIDE, cell_grid
from omnistream_ros.stream import geometry
from omnistream_ros.stream.keyframes import near, project


def test_the_nearest_place_is_found_wherever_it_is_asked_for() -> None:
    key = keyframe(0, look())
    cells = cell_grid(CELLS.height, CELLS.width).double().numpy()
    chosen = key.cells[key.nearest(cells[None])[0]]
    least = np.linalg.norm(cells[:, None] - key.cells, axis=-1).min(1)
    assert np.allclose(np.linalg.norm(chosen - cells, axis=1), least)
    # Shapes, and what lies beside the image or nowhere.
    beside = np.array([[[-9.0, 3.2], [99.0, 3.2], [np.nan, 1.0], [np.inf, -np.inf]]] * 3)
    found = key.nearest(beside)
    assert found.shape == (3, 4)
    assert (key.cells[found[:, 0], 0] < 2).all()
    assert (key.cells[found[:, 1], 0] > CELLS.width - 3).all()
    assert key.nearest(key.cells[7]) == 7


def test_near_are_those_that_saw_the_same_from_about_here() -> None:
    """One by one, and by numpy's median; what lies behind a camera has not moved anywhere."""
    turns = [(0, 180, 0), (0, 0, 0), (0, 6, 0), (0, 15, 0), (3, -9, 20), (0, 70, 0)]
    keys = [keyframe(i, look(0.1 * i, 0, 0.05 * i, turn)) for i, turn in enumerate(turns)]
    now = geometry.rigid_inverse(look(0.1, 0.02, 0.0, (0, 1, 0)))
    shares, flows = [], []
    for key in keys:
        places, depth = project(key.points(), key.camera, now @ key.world_from_camera())
        assert np.array_equal(np.isnan(places).any(1), depth <= 0.02)
        places = np.where(np.isnan(places), 1e9, places)
        shares.append(np.mean(((places > -0.5) & (places < key.size - 0.5)).all(1)))
        ahead = depth > 0.02
        moved = STRIDE * np.linalg.norm(places - key.cells, axis=1)[ahead]
        flows.append(np.median(moved) if len(moved) else np.inf)
    counts = set()
    for overlap in (0.0, 0.5, 0.7, 0.9):
        for flow in (5.0, 20.0, 40.0, 1e6):
            expected = [
                k for k, s, f in zip(keys, shares, flows, strict=True) if s > overlap and f < flow
            ]
            assert near(keys, now, overlap, flow) == expected
            counts.add(len(expected))
    assert len(counts) > 2
    assert near([], now, 0.5, 40.0) == []
    assert near(keys[:1], now, 0.0, 1e9) == []
