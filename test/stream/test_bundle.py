# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of keyframes whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from box_room import CAMERA, CELLS, look, render

from omnistream_ros.stream import geometry
from omnistream_ros.stream.bundle import adjust
from omnistream_ros.stream.keyframes import Keyframe, View, make_keyframe, project
from omnistream_ros.stream.motion_solver import Sightings, logarithm

PATH = [
    look(),
    look(0.3, 0.05, 0.1, (0, -4, 2)),
    look(0.5, -0.1, 0.2, (2, -8, 0)),
    look(0.2, -0.2, 0.3, (4, 2, -3)),
]


def keyframe(number: int, pose: np.ndarray, scale: float = 1.0, reach: float = np.inf) -> Keyframe:
    """With exact depth times a scale, as far as it reaches."""
    seen = render(pose)
    view = View(
        torch.zeros(1, 2, CELLS.height, CELLS.width), torch.zeros(CAMERA.height, CAMERA.width)
    )
    depth = torch.from_numpy(scale * np.where(seen.depth < reach, seen.depth, np.nan)).float()
    world_to_camera = geometry.rigid_inverse(pose)
    return make_keyframe(number, view, depth, CELLS, world_to_camera, np.zeros((6, 6)))


def see(key: Keyframe, from_pose: np.ndarray, other: np.ndarray) -> Sightings:
    """Where another camera truly sees the places of an undisturbed keyframe."""
    position, _ = project(key.points(), key.camera, geometry.rigid_inverse(other) @ from_pose)
    inside = ((position > 0) & (position < key.size - 1)).all(1)
    whitening = np.where(inside[:, None], [30.0, 0.0, 30.0], 0.0)
    return Sightings(np.where(inside[:, None], position, 0.0), whitening)


def link(keys: list[Keyframe], poses: list[np.ndarray]) -> None:
    """Let each keyframe be seen by all others, from where they truly are."""
    for key, pose in zip(keys, poses, strict=True):
        for other in keys:
            if other is not key:
                key.seen_by[other.number] = see(key, pose, poses[other.number])


def linked() -> list[Keyframe]:
    """Keyframes with exact depth, poses and sightings."""
    keys = [keyframe(i, pose) for i, pose in enumerate(PATH)]
    link(keys, PATH)
    return keys


def gap(key: Keyframe, pose: np.ndarray) -> tuple[float, float]:
    d = logarithm(key.camera_from_world @ pose)
    return float(np.linalg.norm(d[:3])), float(np.degrees(np.linalg.norm(d[3:])))


def test_the_truth_stays() -> None:
    keys = linked()
    assert adjust(keys[1:], keys[:1])
    for key, pose in zip(keys, PATH, strict=True):
        assert gap(key, pose) < (1e-3, 0.05)
        assert np.abs(key.correction).max() < 0.02


def test_wrong_poses_come_right() -> None:
    keys = linked()
    rng = np.random.default_rng(0)
    for key in keys[1:]:
        off = look(*rng.normal(0, 0.05, 3), rng.normal(0, 1.5, 3))
        key.camera_from_world = off @ key.camera_from_world
    for _ in range(3):
        assert adjust(keys[1:], keys[:1])
    for key, pose in zip(keys, PATH, strict=True):
        assert gap(key, pose) < (0.01, 0.2)


def test_depth_that_flickers_and_leans_fits_into_one_room() -> None:
    keys = linked()
    truth = [key.predicted.copy() for key in keys]
    rng = np.random.default_rng(1)
    for key in keys[1:]:
        shape = np.array([0.15, 0.08, 0.08]) * rng.normal(size=3)
        key.predicted = key.predicted + key.basis @ shape + rng.normal(0, 0.1, len(key.cells))

    def error() -> float:
        outcome = [k.predicted + k.basis @ k.shape + k.correction for k in keys[1:]]
        return float(
            np.mean([np.abs(a - b).mean() for a, b in zip(outcome, truth[1:], strict=True)])
        )

    before = error()
    for _ in range(4):
        assert adjust(keys[1:], keys[:1])
    assert error() < 0.4 * before
    for key, pose in zip(keys, PATH, strict=True):
        assert gap(key, pose) < (0.02, 0.2)


def test_depth_images_from_one_spot_become_of_one_size() -> None:
    """Without parallax the sightings are right for every size; only the depth images can tell."""
    turns = [look(0.2, 0.1, 0.2, (0, 12 * i, 0)) for i in range(4)]
    sizes = np.log([1.0, 1.3, 0.8, 1.15])
    keys = [
        keyframe(i, pose, np.exp(size))
        for i, (pose, size) in enumerate(zip(turns, sizes, strict=True))
    ]
    link(keys, turns)
    for _ in range(3):
        assert adjust(keys[1:], keys[:1])
    left = sizes + [key.shape[0] for key in keys]
    assert np.ptp(left) < 0.25 * np.ptp(sizes)


def test_somebody_who_walks_by_does_not_change_the_size() -> None:
    """A third of the places is seen at half of their depth: no more than the other two say."""
    turns = [look(0.2, 0.1, 0.2, (0, 5 * i, 0)) for i in range(3)]
    keys = [keyframe(i, pose) for i, pose in enumerate(turns)]
    passer = keys[1].cells[:, 0] < keys[1].size[0] / 3
    keys[1].predicted = keys[1].predicted - np.where(passer, np.log(2), 0.0)
    link(keys, turns)
    for _ in range(3):
        assert adjust(keys[1:], keys[:1])
    assert abs(keys[1].shape[0]) < 0.1


def test_places_without_depth_say_nothing_of_the_size() -> None:
    turns = [look(0.2, 0.1, 0.2, (0, 5 * i, 0)) for i in range(3)]
    reach = float(np.median(render(turns[1]).depth))
    keys = [keyframe(i, pose, reach=reach if i == 1 else np.inf) for i, pose in enumerate(turns)]
    assert keys[0].known.all()
    assert 0.4 < keys[1].known.mean() < 0.6
    link(keys, turns)
    for _ in range(3):
        assert adjust(keys[1:], keys[:1])
    assert abs(keys[1].shape[0]) < 0.03


def test_fixed_keyframes_do_not_change() -> None:
    keys = linked()
    keys[2].camera_from_world = look(0.05) @ keys[2].camera_from_world
    before = [(k.camera_from_world.copy(), k.shape.copy(), k.correction.copy()) for k in keys[:2]]
    assert adjust(keys[2:], keys[:2])
    for key, (pose, shape, correction) in zip(keys, before, strict=False):
        assert np.array_equal(key.camera_from_world, pose)
        assert np.array_equal(key.shape, shape)
        assert np.array_equal(key.correction, correction)


def test_without_fixed_keyframes_the_last_one_holds_the_rest() -> None:
    keys = linked()[::-1]
    last = keys[-1].camera_from_world.copy()
    keys[0].camera_from_world = look(0.05) @ keys[0].camera_from_world
    assert adjust(keys, [])
    assert np.array_equal(keys[-1].camera_from_world, last)
    assert gap(keys[0], PATH[-1])[0] < 0.01


def test_what_is_known_better_has_less_variance() -> None:
    keys = linked()
    assert adjust(keys, [])
    seen = np.sum([s.seen for s in keys[1].seen_by.values()], axis=0)
    assert (keys[1].variance <= keys[1].prior + 1e-12).all()
    assert keys[1].variance[seen >= 2].mean() < 0.2 * keys[1].prior.mean()
    assert np.allclose(keys[1].variance[seen == 0], keys[1].prior[seen == 0])


@pytest.mark.parametrize("kind", ["no links", "links to strangers"])
def test_nothing_to_adjust(kind: str) -> None:
    keys = [keyframe(i, pose) for i, pose in enumerate(PATH[:2])]
    if kind == "links to strangers":
        keys[0].seen_by[17] = see(keys[0], PATH[0], PATH[1])
    before = keys[1].camera_from_world.copy()
    assert not adjust(keys, [])
    assert np.array_equal(keys[1].camera_from_world, before)


def test_sightings_of_nothing_do_no_harm() -> None:
    keys = linked()
    for key in keys:
        for number, s in key.seen_by.items():
            key.seen_by[number] = Sightings(np.zeros_like(s.position), np.zeros_like(s.whitening))
    adjust(keys[1:], keys[:1])
    for key, pose in zip(keys, PATH, strict=True):
        assert np.isfinite(key.points()).all()
        assert gap(key, pose) < (1e-6, 1e-6)


def test_numbers_that_lead_nowhere_change_nothing() -> None:
    keys = linked()
    number, sightings = next(iter(keys[2].seen_by.items()))
    keys[2].seen_by[number] = Sightings(
        np.full_like(sightings.position, np.nan), sightings.whitening
    )
    before = [(key.camera_from_world.copy(), key.correction.copy()) for key in keys]
    with np.errstate(all="ignore"):
        assert not adjust(keys[1:], keys[:1])
    for key, (pose, correction) in zip(keys, before, strict=True):
        assert np.array_equal(key.camera_from_world, pose)
        assert np.array_equal(key.correction, correction)
