# SPDX-License-Identifier: Apache-2.0
"""Probes: metrics by hand, propagation where the answer is known, the command end to end."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_train import TINY
from tiny_clips import plane_clip, write_clip

from omnistream_ros import cli
from omnistream_ros.model import build_model, save_model
from omnistream_ros.model.checkpoint import ModelCard
from omnistream_ros.model.trunk import EfficientNetLite0Trunk
from omnistream_ros.training.clip_files import ClipError
from omnistream_ros.training.probes import attentive, linear, table
from omnistream_ros.training.probes.features import (
    probe_clips,
    single_frames,
    streamed,
    trunk_alone,
)
from omnistream_ros.training.probes.propagation import Protocol, propagate
from omnistream_ros.training.probes.region_boundary import boundary, region, score
from omnistream_ros.training.probes.video_sequences import (
    SequenceError,
    VideoSequence,
    davis_sequences,
    palette,
    read_mask,
    rendered_sequences,
)

ROOMS = ("office", "kitchen")
MOTIONS = ("walk", "orbit")


def _write_described(folder: Path, count: int, frames: int = 16) -> Path:
    """Clips of a plane in a room with two things in it."""
    folder.mkdir()
    for number in range(count):
        path = folder / f"clip_{number:06d}.npz"
        write_clip(path, plane_clip(seed=number, frames=frames))
        with np.load(path) as arrays:
            stored = dict(arrays)
        info = {
            "room": ROOMS[number % 2],
            "motion": MOTIONS[number % 2],
            "height": 50,
            "corners": [[-50, -50], [50, -50], [50, 50], [-50, 50]],
            "objects": ["Sofa", "Bar chair"],
            "boxes": [[-25, 0, -40, 0, 50, 90, 80], [25, 0, -40, 0, 50, 90, 80]],
        }
        stored["info"] = np.frombuffer(json.dumps(info).encode(), np.uint8)
        np.savez(path, **stored)
    return folder


def test_region_and_boundary_by_hand() -> None:
    one, other = np.zeros((100, 100), bool), np.zeros((100, 100), bool)
    one[20:60, 20:60] = True
    other[20:60, 40:80] = True
    assert region(one, other) == pytest.approx(800 / 2400)
    assert region(one, one) == boundary(one, one) == 1
    nothing = np.zeros_like(one)
    assert region(nothing, nothing) == boundary(nothing, nothing) == 1
    assert region(one, nothing) == boundary(one, nothing) == 0
    # The tolerance is 2 pixels here: an outline one pixel off is the same outline.
    near, far = np.zeros_like(one), np.zeros_like(one)
    near[21:61, 21:61] = True
    far[30:50, 30:50] = True
    assert boundary(near, one) == 1
    assert boundary(far, one) == 0
    # Half of the outlines coincide where two squares share a long side.
    half = boundary(one, other)
    assert 0.3 < half < 0.6


def test_boundary_against_brute_force() -> None:
    rng = np.random.default_rng(1)
    blobs = [cv2.GaussianBlur(rng.random((60, 80)), (0, 0), 6) for _ in range(2)]
    one, other = (b > np.median(b) for b in blobs)

    def outline(mask: np.ndarray) -> np.ndarray:
        points = []
        for y in range(60):
            for x in range(80):
                right = mask[y, min(x + 1, 79)]
                below = mask[min(y + 1, 59), x]
                both = mask[min(y + 1, 59), min(x + 1, 79)]
                last = (y == 59, x == 79)
                differs = {
                    (False, False): right != mask[y, x]
                    or below != mask[y, x]
                    or both != mask[y, x],
                    (True, False): right != mask[y, x],
                    (False, True): below != mask[y, x],
                    (True, True): False,
                }[last]
                if differs:
                    points.append((y, x))
        return np.array(points)

    a, b = outline(one), outline(other)
    distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
    reach = np.ceil(0.008 * np.hypot(60, 80))
    precision = (distance.min(axis=1) <= reach).mean()
    recall = (distance.min(axis=0) <= reach).mean()
    expected = 2 * precision * recall / (precision + recall)
    assert boundary(one, other) == pytest.approx(expected, abs=1e-9)


def test_score_leaves_out_first_and_last_and_counts_objects_alike() -> None:
    true = np.zeros((4, 20, 20), np.uint8)
    true[:, :5], true[:, 10:12] = 1, 2
    found = true.copy()
    found[0], found[3] = 0, 0  # given, and left out
    assert score([(found, true)]).j == 1
    found[1:3, 10:12] = 0  # the second object is lost
    result = score([(found, true)])
    assert (result.j, result.objects) == (0.5, 2)
    assert result.j_and_f == pytest.approx((result.j + result.f) / 2)


def _moving_square(frames: int = 6) -> VideoSequence:
    """A square of its own colour that moves by a patch each frame, over a coloured ground."""
    images = np.full((frames, 64, 128, 3), (20, 90, 160), np.uint8)
    masks = np.zeros((frames, 64, 128), np.uint8)
    for t in range(frames):
        images[t, 16:48, 16 * t : 16 * t + 32] = (220, 40, 30)
        masks[t, 16:48, 16 * t : 16 * t + 32] = 1
    return VideoSequence("square", images, masks)


def _colours(pixels: torch.Tensor) -> torch.Tensor:
    """Features that are the mean colour of a patch, in which nothing is ambiguous."""
    pooled = torch.nn.functional.avg_pool2d(pixels, 16)
    return pooled.flatten(2).transpose(1, 2)


def test_labels_follow_what_moves() -> None:
    video = _moving_square()
    found = propagate(video, _colours, 64 * 128)
    assert score([(found, video.masks)]).j > 0.8
    # With no reach a patch sees its own place alone, and the mask stays behind.
    stays = propagate(video, _colours, 64 * 128, Protocol(reach=0, neighbours=1))
    assert score([(stays, video.masks)]).j < 0.5
    assert np.array_equal(found[0], video.masks[0])


def _write_davis(root: Path, grey: bool = False) -> Path:
    video = _moving_square(4)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("square\n")
    colours = palette()
    for kind in ("JPEGImages", "Annotations"):
        folder = root / kind / "480p" / "square"
        folder.mkdir(parents=True)
        for t in range(4):
            if kind == "JPEGImages":
                cv2.imwrite(str(folder / f"{t:05d}.jpg"), video.images[t, ..., ::-1])
            else:
                mask = video.masks[t] if grey else colours[video.masks[t]][..., ::-1]
                cv2.imwrite(str(folder / f"{t:05d}.png"), mask)
    return root


@pytest.mark.parametrize("grey", [False, True])
def test_davis_layout(tmp_path: Path, grey: bool) -> None:
    (video,) = davis_sequences(_write_davis(tmp_path / "DAVIS", grey))
    assert video.name == "square"
    np.testing.assert_array_equal(video.masks, _moving_square(4).masks)
    assert np.abs(video.images.astype(int) - _moving_square(4).images).mean() < 5


def test_palette_is_that_of_voc() -> None:
    assert palette()[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette()[255].tolist() == [224, 224, 192]
    assert len({tuple(c) for c in palette().tolist()}) == 256


def test_wrong_davis_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(SequenceError, match=r"val\.txt"):
        next(davis_sequences(tmp_path))
    root = _write_davis(tmp_path / "DAVIS")
    mask = root / "Annotations" / "480p" / "square" / "00001.png"
    cv2.imwrite(str(mask), np.full((64, 128, 3), 77, np.uint8))
    with pytest.raises(SequenceError, match="#4d4d4d"):
        read_mask(mask)
    mask.unlink()
    with pytest.raises(SequenceError, match="4 images and 3 masks"):
        next(davis_sequences(root))


def test_linear_probe_separates_what_is_separable() -> None:
    torch.manual_seed(0)
    classes = torch.arange(300) % 3
    features = torch.randn(300, 8) + 4 * torch.eye(8)[classes]
    features[:, 5] *= 1000  # scale must not matter
    probe = linear.fit(features[:200], classes[:200], 3)
    assert linear.accuracy(probe(features[200:]), classes[200:]) > 0.95
    again = linear.fit(features[:200], classes[:200], 3)
    assert torch.equal(probe.weight, again.weight)
    found, true = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    assert linear.mean_iou(found, true, 5) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_attentive_probe_finds_the_one_token_that_matters() -> None:
    torch.manual_seed(0)
    tokens = 0.3 * torch.randn(120, 4, 6, 8)
    classes = torch.arange(120) % 2
    tokens[torch.arange(120), torch.randint(4, (120,)), torch.randint(6, (120,)), classes] += 5
    tokens = tokens.half()
    probe = attentive.fit(tokens[:80], classes[:80], 2, steps=120)
    assert linear.accuracy(attentive.classify(probe, tokens[80:]), classes[80:]) > 0.9


def test_attentive_probe_knows_the_order_of_frames() -> None:
    torch.manual_seed(1)
    tokens = torch.eye(8)[1] + 0.1 * torch.randn(120, 4, 3, 8)
    classes = torch.arange(120) % 2
    tokens[classes == 0, 0] += torch.eye(8)[0]  # the same token, early or late
    tokens[classes == 1, 3] += torch.eye(8)[0]
    probe = attentive.fit(tokens[:80], classes[:80], 2, steps=200)
    assert linear.accuracy(attentive.classify(probe, tokens[80:]), classes[80:]) > 0.9


def test_extractors_differ_by_what_they_remember() -> None:
    torch.manual_seed(0)
    model = build_model(TINY).eval()
    pixels = torch.randn(3, 3, 48, 64)
    with_past, alone = streamed(model)(pixels), single_frames(model)(pixels)
    assert with_past.shape == alone.shape == (3, 12, TINY.width)
    torch.testing.assert_close(with_past[0], alone[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(with_past[2], alone[2], atol=1e-3)
    assert trunk_alone(EfficientNetLite0Trunk())(pixels).shape == (3, 12, 112)


def test_rendered_masks_are_objects(tmp_path: Path) -> None:
    clips = list(probe_clips(_write_described(tmp_path / "clips", 10), 20))
    assert [clip.tested for clip in clips] == [False] * 4 + [True] + [False] * 4 + [True]
    videos = list(rendered_sequences(clips))
    assert len(videos) == 10
    assert all(set(np.unique(v.masks)) <= {0, 1, 2} for v in videos)
    assert all((v.masks[0] == 1).mean() > 0.015 for v in videos)
    bare = tmp_path / "bare"
    bare.mkdir()
    write_clip(bare / "clip_000001.npz", plane_clip(1, 16))
    with pytest.raises(ClipError, match="know their objects"):
        list(probe_clips(bare, 5))


def test_command_writes_the_table_into_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = _write_described(tmp_path / "clips", 10)
    weights = tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    save_model(weights, build_model(TINY), ModelCard("tiny", "none"))
    monkeypatch.setattr(table, "pretrained_trunk", EfficientNetLite0Trunk)
    quick = functools.partial(table.ProbeSettings, motion_steps=10, davis_pixels=64 * 128)
    monkeypatch.setattr(table, "ProbeSettings", quick)
    page = tmp_path / "page.md"
    marks = "<!-- probes: written by omnistream probe -->\n", "<!-- end -->\n"
    page.write_text(f"before\n{marks[0]}old table\n{marks[1]}after\n")
    words = ["probe", str(clips), "--model", str(weights), "--out", str(tmp_path / "out")]
    words += ["--davis", str(_write_davis(tmp_path / "DAVIS")), "--page", str(page)]
    assert cli.main(words) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old table" not in text
    for name in ("tiny", "tiny, no cache", "EfficientNet-lite0 trunk alone"):
        assert f"| {name} |" in text
    scores = json.loads((tmp_path / "out" / "probes.json").read_text())
    for row in scores:
        for name, value in row.items():
            if name != "model":
                assert 0 <= value <= 1, name
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        table.write([table.ProbeScores("m", 0, 0, 0, 0, 0)], tmp_path / "out", "", "", page)
