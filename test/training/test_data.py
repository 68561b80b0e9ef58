# SPDX-License-Identifier: Apache-2.0
"""Clips: broken files are refused by name; augmentation keeps the geometry; batches repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from tiny_clips import plane_clip, write_clip

from omnistream_ros.training import data
from omnistream_ros.training.augment import AugmentSettings, augment, mirror, roll, zoom
from omnistream_ros.training.clip_files import (
    Clip,
    ClipError,
    NoDepthError,
    TooShortError,
    find_clips,
    is_validation,
    read_clip,
    validation_clips,
)
from omnistream_ros.training.data import ClipSampler, choose_frames, collate, walk_to_and_fro


def test_clip_survives_the_file(tmp_path: Path) -> None:
    clip = plane_clip(seed=1, frames=5)
    write_clip(tmp_path / "clip_000001.npz", clip)
    found = read_clip(tmp_path / "clip_000001.npz")
    np.testing.assert_array_equal(found.rgb, clip.rgb)
    np.testing.assert_allclose(found.depth, clip.depth, rtol=1e-3)  # stored as float16
    np.testing.assert_allclose(found.poses, clip.poses, atol=1e-6)
    np.testing.assert_allclose(found.intrinsics, clip.intrinsics, rtol=1e-6)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return dict(stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("depth"), "array missing"),
        (lambda a: a.update(rgb=a["rgb"].astype(np.float32)), "rgb must be uint8"),
        (lambda a: a.update(rgb=a["rgb"][:0]), "rgb must be uint8"),
        (lambda a: a.update(rgb=np.zeros((), np.uint8)), "rgb must be uint8"),
        (lambda a: a.update(depth=a["depth"][:, 1:]), "depth must be floating"),
        (lambda a: a.update(depth=a["depth"] * np.nan), "not one pixel"),
        (lambda a: a.update(depth=-a["depth"]), "not one pixel"),
        (lambda a: a.update(poses=a["poses"][1:]), "poses must be finite"),
        (lambda a: a["poses"].__setitem__((0, 0), np.nan), "poses must be finite"),
        (lambda a: a["poses"].__setitem__((0, slice(3, 7)), 2.0), "unit length"),
        (lambda a: a["intrinsics"].__setitem__(0, 0.0), "intrinsics"),
        (lambda a: a["intrinsics"].__setitem__(2, np.inf), "intrinsics"),
        (lambda a: a.update(rgb=np.array([{"a": 1}], dtype=object)), "not a readable clip"),
    ],
)
def test_broken_clips_are_refused_by_name(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "clip_000007.npz"
    write_clip(path, plane_clip(seed=1, frames=3))
    arrays = _arrays(path)
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(ClipError, match=message) as caught:
        read_clip(path)
    assert "clip_000007.npz" in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6, 0.99])
def test_clip_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "clip_000007.npz"
    write_clip(path, plane_clip(seed=1, frames=3))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ClipError, match="clip_000007"):
        read_clip(path)


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    path = tmp_path / "clip_000007.npz"
    write_clip(path, plane_clip(seed=1, frames=3))
    data = bytearray(path.read_bytes())
    data[5000] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ClipError, match="clip_000007"):
        read_clip(path)


def test_missing_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="render"):
        find_clips(tmp_path / "nowhere")
    with pytest.raises(ClipError, match="clip_000001"):
        read_clip(tmp_path / "clip_000001.npz")


def _reprojection_error(clip: Clip) -> tuple[float, float]:
    """Frame 0's points as the last frame shows them: mean difference of colour, and of depth."""
    height, width = clip.rgb.shape[1:3]
    fx, fy, cx, cy = clip.intrinsics
    v, u = (a.ravel() for a in np.mgrid[0:height, 0:width])
    z = clip.depth[0, v, u].astype(np.float64)
    points = np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z, np.ones_like(z)], -1)
    seen = (points @ clip.poses[0].T @ np.linalg.inv(clip.poses[-1]).T)[:, :3]
    column, row = fx * seen[:, 0] / seen[:, 2] + cx, fy * seen[:, 1] / seen[:, 2] + cy
    inside = (column >= 0) & (row >= 0) & (column <= width - 1) & (row <= height - 1)
    assert inside.mean() > 0.2
    column, row = column[inside], row[inside]
    there = [map_coordinates(c, [row, column], order=1) for c in np.moveaxis(clip.rgb[-1], -1, 0)]
    depth = map_coordinates(clip.depth[-1], [row, column], order=1)
    here = clip.rgb[0, v[inside], u[inside]].astype(np.float64)
    colour = np.abs(np.stack(there, -1) - here).mean()
    return float(colour), float(np.abs(depth / seen[inside, 2] - 1).mean())


@pytest.mark.parametrize("rolled", [0.0, 1.0])
@pytest.mark.parametrize("size", [None, (40, 32)])
@pytest.mark.parametrize("seed", range(6))
def test_augmented_frames_still_show_the_same_points(
    seed: int, size: tuple[int, int] | None, rolled: float
) -> None:
    clip = plane_clip(seed=seed, frames=8)
    settings = AugmentSettings(zoom_probability=1, roll_probability=rolled, photometric=False)
    changed = augment(clip, np.random.default_rng(seed), settings, size)
    assert changed.rgb.shape[1:3] == (clip.rgb.shape[1:3] if size is None else size[::-1])
    colour, depth = _reprojection_error(changed)
    assert colour < 8
    assert depth < 0.005
    # The check notices poses that did not follow the image.
    unmoved = Clip(changed.rgb, changed.depth, changed.poses[[0] * 8], changed.intrinsics)
    assert _reprojection_error(unmoved)[0] > 2 * colour
    flip = np.diag([-1.0, 1, 1, 1])
    mirrored = Clip(changed.rgb, changed.depth, flip @ changed.poses @ flip, changed.intrinsics)
    assert _reprojection_error(mirrored)[0] > 2 * colour


def test_zoom_moves_the_rays_with_the_pixels() -> None:
    """The ray of a window's corner is the same before and after."""
    clip = plane_clip(seed=3, frames=1)
    x, y, width, height = 12, 9, 32, 24
    fx, fy, cx, cy = clip.intrinsics
    gx, gy, hx, hy = zoom(clip, (x, y, width, height), (64, 48)).intrinsics
    assert (-0.5 - hx) / gx == pytest.approx((x - 0.5 - cx) / fx)
    assert (clip.rgb.shape[1] - 0.5 - hy) / gy == pytest.approx((y + height - 0.5 - cy) / fy)


def test_whole_window_changes_nothing() -> None:
    clip = plane_clip(seed=3, frames=2)
    same = zoom(clip, (0, 0, 64, 48), (64, 48))
    np.testing.assert_array_equal(same.rgb, clip.rgb)
    np.testing.assert_array_equal(same.depth, clip.depth)
    np.testing.assert_allclose(same.intrinsics, clip.intrinsics)


@pytest.mark.parametrize("window", [(-1, 0, 4, 4), (0, 0, 65, 4), (0, 47, 4, 2), (0, 0, 0, 4)])
def test_window_outside_the_image_is_refused(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="does not lie"):
        zoom(plane_clip(seed=3, frames=1), window, (64, 48))


@pytest.mark.parametrize("degrees", [-25.0, 3.0, 20.0])
def test_roll_moves_pixels_along_with_their_rays(degrees: float) -> None:
    """The texture is a function of the world point: both clips must agree on it."""
    clip = plane_clip(seed=6, frames=2)
    rolled = roll(clip, degrees)
    fx, fy, cx, cy = rolled.intrinsics
    v, u = (a.ravel() for a in np.mgrid[0:48:3, 0:64:3])
    z = rolled.depth[1, v, u].astype(np.float64)
    points = np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z, np.ones_like(z)], -1)
    old = points @ rolled.poses[1].T @ np.linalg.inv(clip.poses[1]).T
    fx, fy, cx, cy = clip.intrinsics
    column, row = fx * old[:, 0] / old[:, 2] + cx, fy * old[:, 1] / old[:, 2] + cy
    assert -0.5 <= column.min() < column.max() <= 63.5
    assert -0.5 <= row.min() < row.max() <= 47.5
    for channel in range(3):
        before = map_coordinates(clip.rgb[1, ..., channel], [row, column], order=1, mode="nearest")
        after = rolled.rgb[1, v, u, channel].astype(np.float64)
        assert np.abs(before - after).mean() < 4
    np.testing.assert_allclose(rolled.poses[:, :3, 3], clip.poses[:, :3, 3])


def test_roll_refuses_oblong_pixels() -> None:
    clip = plane_clip(seed=6, frames=1)
    oblong = Clip(clip.rgb, clip.depth, clip.poses, clip.intrinsics * [1, 1.1, 1, 1])
    with pytest.raises(ValueError, match="square pixels"):
        roll(oblong, 5.0)


def test_augmentation_leaves_oblong_pixels_upright() -> None:
    """And draws the same numbers as for square ones."""
    clip = plane_clip(seed=6, frames=2)
    oblong = Clip(clip.rgb, clip.depth, clip.poses, clip.intrinsics * [1, 1.1, 1, 1])
    settings = AugmentSettings(roll_probability=1, mirror_probability=0, photometric=False)
    one, other = np.random.default_rng(1), np.random.default_rng(1)
    same = augment(oblong, one, settings)
    np.testing.assert_array_equal(same.rgb, clip.rgb)
    np.testing.assert_array_equal(same.intrinsics, oblong.intrinsics)
    assert (augment(clip, other, settings).rgb != clip.rgb).any()
    assert one.random() == other.random()


def test_mirror_twice_is_the_original() -> None:
    clip = plane_clip(seed=4, frames=3)
    twice = mirror(mirror(clip))
    np.testing.assert_array_equal(twice.rgb, clip.rgb)
    np.testing.assert_allclose(twice.poses, clip.poses)
    np.testing.assert_allclose(twice.intrinsics, clip.intrinsics)
    assert np.linalg.det(mirror(clip).poses[1, :3, :3]) == pytest.approx(1)


def test_photometric_changes_touch_the_image_only_and_repeat() -> None:
    clip = plane_clip(seed=5, frames=3)
    still = AugmentSettings(zoom_probability=0, roll_probability=0, mirror_probability=0)
    one, two = (augment(clip, np.random.default_rng(9), still) for _ in range(2))
    np.testing.assert_array_equal(one.rgb, two.rgb)
    np.testing.assert_array_equal(one.depth, clip.depth)
    np.testing.assert_array_equal(one.poses, clip.poses)
    assert (one.rgb != clip.rgb).any()
    other = augment(clip, np.random.default_rng(10), still)
    assert (one.rgb != other.rgb).any()


@pytest.mark.parametrize("seed", range(30))
def test_chosen_frames_are_evenly_spaced_and_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bounds = np.cumsum([0, *rng.integers(1, 25, size=rng.integers(1, 4))])
    length = int(rng.integers(1, np.diff(bounds).max() + 1))
    indices = choose_frames(rng, bounds, length)
    assert len(indices) == length
    assert len(set(np.diff(indices))) <= 1
    takes = np.searchsorted(bounds, indices, side="right")
    assert len(set(takes)) == 1, "frames of two takes are not one movement"
    assert 1 <= takes[0] < len(bounds)


def test_no_take_is_long_enough() -> None:
    with pytest.raises(TooShortError, match="4 frames at most where 5"):
        choose_frames(np.random.default_rng(0), np.array([0, 4, 8, 11]), 5)


@pytest.mark.parametrize("cuts", [[1], [0, 9], [0, 3, 3], [[0]], [0.0, 2.0]])
def test_cuts_that_cannot_be_are_refused(tmp_path: Path, cuts: list[float]) -> None:
    write_clip(tmp_path / "clip_000001.npz", plane_clip(seed=1, frames=6), cuts=np.array(cuts))
    with pytest.raises(ClipError, match=r"clip_000001\.npz: cuts must rise from 0"):
        read_clip(tmp_path / "clip_000001.npz")


def test_short_takes_are_not_refused_for_long_clips(tmp_path: Path) -> None:
    short, long = plane_clip(seed=1, frames=6), plane_clip(seed=2, frames=6)
    write_clip(tmp_path / "clip_000001.npz", short, cuts=np.array([0, 2, 4]))
    write_clip(tmp_path / "clip_000002.npz", long)
    sampler = _sampler(tmp_path)
    for step in range(20):
        sampler.batch(step)
    assert not sampler.refused
    (tmp_path / "clip_000002.npz").unlink()
    sampler.refresh()
    sampler.lengths, sampler.weights = np.array([4]), np.ones(1)
    with pytest.raises(ClipError, match="none with a take of 4 frames"):
        sampler.batch(0)


def _with_gap(folder: Path) -> Path:
    """A clip of 12 frames of which the first has depth, the others have none."""
    clip = plane_clip(seed=1, frames=12)
    clip.depth[1:] = np.nan
    write_clip(folder / "clip_000001.npz", clip)
    return folder / "clip_000001.npz"


def test_frames_without_depth_are_told_from_a_clip_without(tmp_path: Path) -> None:
    path = _with_gap(tmp_path)
    assert len(read_clip(path, lambda bounds: np.arange(3))) == 3
    with pytest.raises(NoDepthError, match=r"clip_000001\.npz: not one pixel of the frames chosen"):
        read_clip(path, lambda bounds: np.arange(1, 4))
    clip = plane_clip(seed=1, frames=4)
    clip.depth[:] = np.nan
    write_clip(path, clip)
    for choose in (None, lambda bounds: np.arange(3)):
        with pytest.raises(ClipError, match="not one pixel has") as caught:
            read_clip(path, choose)
        assert not isinstance(caught.value, NoDepthError)


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_frames_without_depth_are_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Of a recorded clip too, which must be readable otherwise."""
    path = _with_gap(tmp_path)
    sampler = ClipSampler(
        tmp_path,
        seed=0,
        frames_per_step=4,
        lengths={2: 1},
        settings=AugmentSettings(),
        recorded=tmp_path,
        recorded_share=share,
    )
    sampler.refresh()
    for step in range(5):
        known = torch.isfinite(sampler.batch(step).depth).flatten(2).any(dim=2)  # (B, T)
        assert known.any(dim=1).all()
    assert not sampler.refused
    monkeypatch.setattr(data, "_DRAWS", 20)
    sampler.lengths = np.array([13])
    with pytest.raises(ClipError, match=r"20 clips drawn, none with a take of 13 .*\(20 too short"):
        sampler.batch(0)
    clip = plane_clip(seed=1, frames=40)
    clip.depth[:39] = np.nan
    write_clip(path, clip)
    monkeypatch.setattr(data, "_DRAWS", 1)
    sampler.lengths = np.array([1])
    with pytest.raises(ClipError, match=r"none with a take of 1 frames and depth.* 1 without"):
        sampler.batch(0)


def test_recorded_clips_come_at_their_share(tmp_path: Path) -> None:
    rendered, recorded = tmp_path / "rendered", tmp_path / "recorded"
    # Recorded clips are larger: they come at the size of the others.
    for folder, level, size in ((rendered, 0, (48, 64)), (recorded, 255, (72, 96))):
        folder.mkdir()
        clip = plane_clip(seed=1, frames=4, size=size)
        clip.rgb[:] = level
        write_clip(folder / "clip_000000.npz", clip)  # recorded clips have no held-out numbers
        write_clip(folder / "clip_000001.npz", clip)
    (rendered / "clip_000000.npz").unlink()
    # The first one cannot be read: the next one says how large clips are.
    (rendered / "clip_000001.npz").rename(rendered / "clip_000002.npz")
    (rendered / "clip_000001.npz").write_bytes(b"not a zip")
    plain = AugmentSettings(photometric=False)
    sampler = ClipSampler(
        rendered,
        seed=3,
        frames_per_step=8,
        lengths={1: 1},
        settings=plain,
        recorded=recorded,
        recorded_share=0.25,
    )
    sampler.refresh()
    bright = torch.cat([(sampler.batch(s).pixels.mean(dim=(1, 2, 3, 4)) > 0) for s in range(50)])
    assert bright.float().mean().item() == pytest.approx(0.25, abs=0.07)
    with pytest.raises(ClipError, match="omnistream clips"):
        ClipSampler(
            rendered,
            seed=3,
            frames_per_step=8,
            lengths={1: 1},
            settings=plain,
            recorded=tmp_path,
        )


def test_batch_is_relative_to_its_first_frame() -> None:
    batch = collate([plane_clip(seed=s, frames=3) for s in (1, 2)])
    assert batch.pixels.shape == (2, 3, 3, 48, 64)
    torch.testing.assert_close(batch.poses[:, 0], torch.eye(4).repeat(2, 1, 1))
    grey = Clip(
        np.full((1, 4, 4, 3), 128, np.uint8),
        np.ones((1, 4, 4), np.float32),
        np.eye(4)[None],
        np.array([4.0, 4, 1.5, 1.5]),
    )
    expected = (128 / 255 - 0.485) / 0.229
    assert collate([grey]).pixels[0, 0, 0, 0, 0].item() == pytest.approx(expected, rel=1e-5)


def _sampler(folder: Path, seed: int = 0) -> ClipSampler:
    sampler = ClipSampler(
        folder, seed=seed, frames_per_step=4, lengths={1: 1, 2: 1, 4: 1}, settings=AugmentSettings()
    )
    sampler.refresh()
    return sampler


def test_batches_follow_from_seed_and_step(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_clip(tmp_path / f"clip_{number:06d}.npz", plane_clip(seed=number, frames=6))
    one, two, other = _sampler(tmp_path), _sampler(tmp_path), _sampler(tmp_path, seed=1)
    two.batch(0)
    for step in (5, 6):
        torch.testing.assert_close(one.batch(step).pixels, two.batch(step).pixels, rtol=0, atol=0)
    lengths = {one.batch(step).pixels.shape[1] for step in range(30)}
    assert lengths == {1, 2, 4}
    assert any(
        one.batch(s).pixels.shape != other.batch(s).pixels.shape
        or (one.batch(s).pixels != other.batch(s).pixels).any()
        for s in range(3)
    )


def test_a_step_has_one_of_the_sizes_for_all_its_shares(tmp_path: Path) -> None:
    for number in (1, 2):
        write_clip(tmp_path / f"clip_{number:06d}.npz", plane_clip(seed=number, frames=6))
    sampler = _sampler(tmp_path)
    sizes = ((32, 32), (64, 32), (48, 64))
    seen = set()
    for step in range(20):
        shares = [sampler.batch(step, sizes, (share, 2)) for share in range(2)]
        assert shares[0].pixels.shape == shares[1].pixels.shape
        height, width = shares[0].pixels.shape[-2:]
        seen.add((width, height))
        fx, fy = shares[0].intrinsics[..., 0], shares[0].intrinsics[..., 1]
        # Cut, not squeezed: pixels stay square, to the rounding of a window of a dozen of them.
        torch.testing.assert_close(fx, fy, rtol=0.06, atol=0)
    assert seen == set(sizes)


def test_sampler_leaves_out_held_out_and_broken_clips(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip_000050.npz", plane_clip(seed=50, frames=6))
    with pytest.raises(ClipError, match="no training clip"):
        _sampler(tmp_path)
    write_clip(tmp_path / "clip_000051.npz", plane_clip(seed=51, frames=6))
    (tmp_path / "clip_000052.npz").write_bytes(b"not a zip")
    (tmp_path / "clip_000053.npz.tmp").write_bytes(b"half written")
    sampler = _sampler(tmp_path)
    assert sampler.names == ["clip_000051.npz", "clip_000052.npz"]
    for step in range(8):
        sampler.batch(step)
    assert sampler.names == ["clip_000051.npz"]
    assert "clip_000052.npz" in sampler.refused["clip_000052.npz"]
    sampler.refresh()
    assert sampler.names == ["clip_000051.npz"], "a refused clip does not come back"
    assert is_validation("clip_000050.npz")
    (tmp_path / "clip_000000.npz").write_bytes(b"not a zip")
    held_out = validation_clips(tmp_path, limit=3, length=5)
    assert {name: len(clip) for name, clip in held_out.items()} == {"clip_000050.npz": 5}


def test_held_out_clips_are_spread_over_those_that_will_do(tmp_path: Path) -> None:
    """Old rooms and new in one folder: both judge, though some clips of each will not do."""
    sizes = {number: 3 for number in range(0, 1200, 50)}
    del sizes[150]
    (tmp_path / "clip_000150.npz").write_bytes(b"not a zip")
    sizes[1150] = sizes[1100] = 2  # too short
    for number, frames in sizes.items():
        write_clip(tmp_path / f"clip_{number:06d}.npz", plane_clip(number, frames, size=(8, 8)))
    write_clip(tmp_path / "clip_000001.npz", plane_clip(1, 3, size=(8, 8)))

    def numbers(limit: int) -> list[int]:
        chosen = validation_clips(tmp_path, limit=limit, length=3)
        assert all(len(clip) == 3 for clip in chosen.values())
        return [int(name[5:11]) for name in chosen]

    assert numbers(1) == [600]
    assert numbers(4) == [200, 450, 750, 1050]  # its neighbour where 150 is broken
    assert numbers(4) == numbers(4)
    assert max(numbers(6)) >= 1000
    whole = [n for n in range(0, 1100, 50) if n != 150]
    assert numbers(len(whole)) == numbers(99) == whole  # all, though parts of the folder have none
    assert numbers(0) == []


def test_no_readable_clip_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "clip_000052.npz").write_bytes(b"not a zip")
    with pytest.raises(ClipError, match="no readable clip"):
        _sampler(tmp_path).batch(0)


def test_senseless_lengths_are_refused(tmp_path: Path) -> None:
    for lengths in ({}, {0: 1.0}, {2: -1.0}, {2: 0.0}):
        with pytest.raises(ValueError, match="lengths"):
            ClipSampler(
                tmp_path, seed=0, frames_per_step=4, lengths=lengths, settings=AugmentSettings()
            )


def test_streams_walk_to_and_fro_within_one_take() -> None:
    bounds = np.array([0, 4, 5, 16])  # takes of 4, 1 and 11 frames
    takes = set()
    for seed in range(40):
        walked = walk_to_and_fro(np.random.default_rng(seed), bounds, 30)
        assert len(walked) == 30
        take = int(np.searchsorted(bounds, walked[0], side="right")) - 1
        takes.add(take)
        assert bounds[take] <= walked.min()
        assert walked.max() < bounds[take + 1]
        assert (np.abs(np.diff(walked)) == 1).all()
        assert len(set(walked.tolist())) == bounds[take + 1] - bounds[take]
    assert takes == {0, 2}
    with pytest.raises(TooShortError):
        walk_to_and_fro(np.random.default_rng(0), np.arange(5), 8)
