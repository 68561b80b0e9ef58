# SPDX-License-Identifier: Apache-2.0
"""Objectives beside geometry: gradients go where they should, nothing collapses, losses fall."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_train import STILL, TINY, _settings, _state
from tiny_clips import plane_clip, write_clip

from omnistream_ros.model import CameraPrediction, OmniStream, build_model, load_model
from omnistream_ros.model.trunk import EfficientNetLite0Trunk
from omnistream_ros.training import objectives as objectives_module
from omnistream_ros.training import self_distillation
from omnistream_ros.training.annotations import CLASSES, UNKNOWN, middle_pixels
from omnistream_ros.training.augment import AugmentSettings, mirror
from omnistream_ros.training.clip_files import read_clip
from omnistream_ros.training.data import Batch, ClipSampler, collate
from omnistream_ros.training.language_alignment import language_losses, patch_labels
from omnistream_ros.training.losses import quaternion_from_matrix, step_losses
from omnistream_ros.training.objectives import Objectives, ObjectiveWeights
from omnistream_ros.training.prediction import FeatureTeacher, TemporalPredictor, standardised
from omnistream_ros.training.self_distillation import SelfDistillation
from omnistream_ros.training.train import Trainer
from omnistream_ros.training.withheld import choose_withheld, disturb
from omnistream_ros.training.words import Words, describe

WIDTH = 384


class FakeEncoder:
    """Sentences to unit vectors, the same for the same sentence; stands in for 90 MB of weights."""

    def __call__(self, sentences: list[str]) -> torch.Tensor:
        def vector(sentence: str) -> torch.Tensor:
            seed = sum(ord(c) * 31**i for i, c in enumerate(sentence)) % 2**31
            return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))

        return torch.nn.functional.normalize(torch.stack([vector(s) for s in sentences]), dim=-1)


def _words(clip_seed: int, frames: int) -> Words:
    classes = np.full((frames, 6, 8), CLASSES.index("wall"), np.uint8)
    classes[:, 2:] = CLASSES.index("floor")
    objects = np.full((frames, 6, 8), -1, np.int16)
    objects[:, :2, :4] = 1
    classes[:, :2, :4] = CLASSES.index("chair")
    return Words(f"a kitchen number {clip_seed}", ("Oak table", "Bar chair"), classes, objects)


def _batch(frames: int = 4, clips: int = 2) -> Batch:
    batch = collate([plane_clip(seed, frames) for seed in range(clips)])
    return replace(batch, words=[_words(seed, frames) for seed in range(clips)])


def _model() -> OmniStream:
    torch.manual_seed(0)
    return build_model(replace(TINY, language_width=WIDTH))


def _objectives(model: OmniStream, **weights: float) -> Objectives:
    torch.manual_seed(1)
    trunk = EfficientNetLite0Trunk()
    settings = ObjectiveWeights(**{"period": 1, **weights})  # type: ignore[arg-type]
    return Objectives(model.config, settings, 0, trunk=trunk, encoder=FakeEncoder())


ALL = {"distillation": 1.0, "temporal": 1.0, "teacher": 1.0, "language": 1.0}
TERMS = {
    "distillation": {"dino", "ibot"},
    "temporal": {"temporal"},
    "teacher": {"teacher"},
    "language": {"caption", "class", "name"},
}


@pytest.mark.parametrize("name", ALL)
def test_each_computes_under_autocast_to_bfloat16(name: str) -> None:
    model, batch = _model(), _batch()
    objectives = _objectives(model, **{name: 1.0})
    with torch.autocast("cpu", torch.bfloat16):
        patches = model.backbone.forward_clip(batch.pixels).patches
        loss, parts = objectives.losses(model, copy.deepcopy(model), batch, patches, 0)
    loss.backward()
    assert set(parts) == TERMS[name]
    assert all(torch.isfinite(value) for value in parts.values())


@pytest.mark.parametrize("name", ALL)
def test_each_falls_on_an_overfit_batch_and_reaches_the_backbone(name: str) -> None:
    model, batch = _model(), _batch()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():  # a teacher whose tokens differ from place to place
        average.backbone.patch_embed.proj.weight.mul_(20)
        for block in average.backbone.blocks:
            block.ls1.gamma.fill_(1.0)
            block.attn.qkv.weight.mul_(5)
    objectives = _objectives(model, **{name: 1.0})
    parameters = [*model.parameters(), *objectives.parameters()]
    optimiser = torch.optim.AdamW([p for p in parameters if p.requires_grad], 3e-3)
    history: dict[str, list[float]] = {}
    for step in range(30):
        patches = model.backbone.forward_clip(batch.pixels).patches
        loss, parts = objectives.losses(model, average, batch, patches, 2)
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            for where in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"):
                gradient = model.backbone.get_parameter(where).grad
                assert gradient is not None, where
                assert gradient.abs().max() > 0, where
            if name != "language":
                mask = model.backbone.mask_token.grad
                assert mask is not None
                assert mask.abs().max() > 0
        optimiser.step()
        for term, value in parts.items():
            history.setdefault(term, []).append(value.item())
    assert history.keys() == TERMS[name]
    for term, values in history.items():
        # A sharp target has an entropy that no student goes below; most of the way is enough.
        assert np.mean(values[-3:]) < 0.87 * values[0], (term, values[0], values[-1])
    assert all(p.grad is None for p in average.parameters())


def test_what_is_off_costs_nothing_and_says_nothing() -> None:
    model, batch = _model(), _batch(frames=1)
    assert not ObjectiveWeights()
    objectives = _objectives(model, language=1.0)
    assert objectives.distillation is objectives.temporal is objectives.teacher is None
    patches = model.backbone.forward_clip(batch.pixels).patches
    unknown = replace(batch, words=[None, None])
    loss, parts = objectives.losses(model, model, unknown, patches, 0)
    assert loss.item() == 0
    assert parts == {}
    odd = _objectives(model, distillation=1.0, period=2)
    assert odd.losses(model, model, batch, patches, 1)[1] == {}
    with pytest.raises(ValueError, match="negative"):
        ObjectiveWeights(temporal=-1)


def test_teachers_get_no_gradient_and_follow() -> None:
    model, batch = _model(), _batch()
    average = copy.deepcopy(model).eval()  # gradients allowed: none must arrive
    objectives = _objectives(model, **ALL)
    patches = model.backbone.forward_clip(batch.pixels).patches
    objectives.losses(model, average, batch, patches, 2)[0].backward()
    assert all(p.grad is None for p in average.parameters())
    assert objectives.distillation is not None
    assert all(p.grad is None for p in objectives.distillation.teacher_head.parameters())
    assert all("_trunk" not in name for name, _ in objectives.named_parameters())
    with torch.no_grad():
        objectives.distillation.head.fc1.weight.add_(1.0)
    before = objectives.distillation.teacher_head.fc1.weight.clone()
    objectives.follow(100000, 0.9)
    moved = objectives.distillation.teacher_head.fc1.weight - before
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1))


def _told_apart(centering: bool, sharpening: bool = True, steps: int = 120) -> float:
    """What an assignment tells about its token, in nats: 0 when all are the same or all vague.

    The tokens have most in common, as those of a fresh network do.
    """
    torch.manual_seed(3)
    tokens = 3 * torch.randn(32) + 0.5 * torch.randn(64, 32)
    distillation = SelfDistillation(32, prototypes=32)
    optimiser = torch.optim.Adam(distillation.head.parameters(), 1e-3)
    nothing = torch.zeros(0, 32)
    with pytest.MonkeyPatch.context() as patch:
        if not sharpening:
            patch.setattr(self_distillation, "TEACHER_TEMPERATURE", 10.0)
        for step in range(steps):
            teacher, student = (tokens + 0.1 * torch.randn(64, 32) for _ in range(2))
            if not centering:
                patch.setattr(self_distillation.Running, "update", lambda *words: None)
            loss = distillation.losses(student, teacher, nothing, nothing)["dino"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            distillation.follow(step, 0.9)
        target = distillation.targets(tokens, distillation.cls)

    def entropy(p: torch.Tensor) -> float:
        return float(-(p * p.clamp(min=1e-12).log()).sum(-1).mean())

    return entropy(target.mean(dim=0)) - entropy(target)


def test_centering_and_sharpening_prevent_collapse() -> None:
    """Both together tell tokens apart; without either, all become one or all become vague."""
    assert _told_apart(centering=True) > 2
    assert _told_apart(centering=False) < 0.1
    assert _told_apart(centering=True, sharpening=False) < 0.1


def test_a_collapsed_teacher_is_no_easy_target() -> None:
    """What is the same everywhere standardises to nothing; what differs keeps its differences."""
    assert standardised(torch.full((2, 3, 5, 8), 7.0)).abs().max() < 1e-2
    scaled = standardised(1e-3 * torch.randn(4, 6, 50, 8))
    torch.testing.assert_close(scaled.flatten(0, 2).std(0), torch.ones(8), rtol=0.15, atol=0.1)
    predictor = TemporalPredictor(8)
    withheld = torch.zeros(4, 6, 50, dtype=torch.bool)
    withheld[:, 5] = True
    student = torch.zeros(4, 6, 50, 8)
    teacher = torch.randn(4, 6, 50, 8)
    assert predictor.loss(student, 1e-3 * teacher, withheld) > 0.2


def test_the_future_is_withheld_whole_and_only_at_the_end() -> None:
    rng = np.random.default_rng(0)
    futures = 0
    for _ in range(30):
        withheld = choose_withheld(rng, 2, 8, (6, 8))
        for b in range(2):
            whole = withheld.frames[b].tolist()
            assert whole in ([False] * 8, [False] * 6 + [True] * 2)
            futures += whole[-1]
            assert withheld.patches[b][withheld.frames[b]].all()
        share = withheld.blocks[~withheld.frames].float().mean(dim=-1)
        assert (share < 0.85).all()
    assert 15 < futures < 45
    assert not choose_withheld(rng, 2, 1, (6, 8)).frames.any()
    pixels = torch.randn(2, 3, 3, 16, 16)
    assert not torch.allclose(disturb(pixels, np.random.default_rng(1)), pixels)
    same = [disturb(pixels, np.random.default_rng(1)) for _ in range(2)]
    assert torch.equal(*same)


def test_feature_teacher_sees_the_picture_not_the_withheld() -> None:
    torch.manual_seed(0)
    teacher = FeatureTeacher(32, EfficientNetLite0Trunk())
    pixels = torch.randn(1, 2, 3, 32, 48)
    features = teacher.features(pixels)
    assert features.shape == (1, 2, 6, 112)
    with torch.no_grad():  # a student that says just that, up to scale
        teacher.project = torch.nn.Linear(112, 112)
        teacher.project.weight.copy_(3 * torch.eye(112))
        teacher.project.bias.zero_()
    assert teacher.loss(features, pixels).item() == pytest.approx(0, abs=1e-5)


def test_patches_are_labelled_where_their_middle_agrees() -> None:
    middle = np.array([[[4, 4, 9, 9], [4, 4, 9, 9], [4, 2, 2, 2], [2, 2, 2, 2]]])
    assert patch_labels(middle, UNKNOWN).tolist() == [[4, 9, UNKNOWN, 2]]
    assert middle_pixels(48, 16).tolist() == [7, 8, 23, 24, 39, 40]


def test_language_reaches_only_what_is_described() -> None:
    model = _model()
    assert model.language_head is not None
    patches = torch.randn(2, 3, 12, TINY.width, requires_grad=True)
    words = [None, _words(1, 3)]
    parts = language_losses(model.language_head, patches, words, FakeEncoder())
    sum(parts.values()).backward()  # type: ignore[union-attr]
    assert patches.grad is not None
    assert patches.grad[0].abs().max() == 0
    assert patches.grad[1].abs().max() > 0


def test_steps_between_frames_agree_with_scipy() -> None:
    rng = np.random.default_rng(2)
    poses = np.tile(np.eye(4), (1, 5, 1, 1))
    poses[0, :, :3, :3] = Rotation.random(5, random_state=4).as_matrix()
    poses[0, :, :3, 3] = rng.normal(size=(5, 3))
    true = torch.from_numpy(poses)
    quaternion = quaternion_from_matrix(true[..., :3, :3])
    camera = CameraPrediction(true[..., :3, 3], -quaternion, torch.zeros(1, 5, 2))
    for value in step_losses(camera, true).values():
        assert value.item() == pytest.approx(0, abs=1e-9)
    # The whole path elsewhere and turned: no step is any different.
    turn = Rotation.random(random_state=9)
    moved = turn.apply(poses[0, :, :3, 3]) + np.array([1.0, 2, 3])
    turned = (turn * Rotation.from_matrix(poses[0, :, :3, :3])).as_quat()
    camera = CameraPrediction(
        torch.from_numpy(moved)[None], torch.from_numpy(turned)[None], torch.zeros(1, 5, 2)
    )
    for value in step_losses(camera, true).values():
        assert value.item() == pytest.approx(0, abs=1e-9)
    camera.translation[0, 2] += 0.5
    assert step_losses(camera, true)["step_translation"].item() > 0.05


def _described_clips(folder: Path) -> Path:
    """Clips of a plane that fills a room, so that labels can be told."""
    import json

    folder.mkdir()
    for number in range(3):
        clip = plane_clip(seed=number, frames=16)
        path = folder / f"clip_{number:06d}.npz"
        write_clip(path, clip)
        with np.load(path) as arrays:
            stored = dict(arrays)
        info = {
            "room": "office",
            "motion": "walk",
            "height": 50,
            "corners": [[-50, -50], [50, -50], [50, 50], [-50, 50]],
            "objects": ["Sofa", "Bar chair"],
            # Everything with x < 0 is a sofa, the rest a chair; z is up and the floor far below.
            "boxes": [[-25, 0, -40, 0, 50, 90, 80], [25, 0, -40, 0, 50, 90, 80]],
        }
        stored["info"] = np.frombuffer(json.dumps(info).encode(), np.uint8)
        np.savez(path, **stored)
    return folder


def test_words_go_through_the_same_augmentation(tmp_path: Path) -> None:
    """Mirrored, rolled or zoomed: a labelled pixel back-projects to where its box is."""
    folder = _described_clips(tmp_path / "clips")
    sampler = ClipSampler(
        folder,
        seed=1,
        frames_per_step=8,
        lengths={2: 1.0},
        settings=replace(AugmentSettings(), roll_probability=0.4, zoom_probability=1.0),
        described=True,
    )
    sampler.refresh()
    plain = ClipSampler(
        folder, seed=1, frames_per_step=8, lengths={2: 1.0}, settings=sampler.settings
    )
    plain.refresh()
    seen = set()
    for step in range(4):
        batch = sampler.batch(step)
        assert torch.equal(batch.pixels, plain.batch(step).pixels), "words change the pictures"
        assert batch.words is not None
        for b, words in enumerate(batch.words):
            assert words is not None
            assert words.caption.startswith("the camera walks through an office with")
            fx, fy, cx, cy = batch.intrinsics[b, 0].tolist()
            rows, columns = middle_pixels(48, 16), middle_pixels(64, 16)
            depth = batch.depth[b, 0].numpy()[rows][:, columns]
            left = words.objects[0] == 0
            seen |= set(np.unique(words.objects[0]).tolist())
            # One vertical plane divides sofa and chair: their points can be told by a line.
            v, u = np.meshgrid(rows, columns, indexing="ij")
            points = np.stack(
                [(u - cx) / fx * depth, (v - cy) / fy * depth, depth, np.ones_like(depth)], -1
            )[~np.isnan(depth)]
            side = np.where(left[~np.isnan(depth)], 1.0, -1.0)
            if abs(side.mean()) > 0.8:
                continue
            solved, *_ = np.linalg.lstsq(points, side, rcond=None)
            assert ((points @ solved > 0) == (side > 0)).mean() > 0.8
    assert {0, 1} <= seen


def test_words_of_a_mirrored_clip_are_mirrored(tmp_path: Path) -> None:
    folder = _described_clips(tmp_path / "clips")
    for number in range(3):
        path = folder / f"clip_{number:06d}.npz"
        clip = read_clip(path, lambda bounds: np.arange(2))
        plain, mirrored = (
            describe(path, 0, np.arange(2), clip, changed) for changed in (clip, mirror(clip))
        )
        assert plain is not None
        assert mirrored is not None
        np.testing.assert_array_equal(mirrored.objects[:, :, ::-1], plain.objects)
        np.testing.assert_array_equal(mirrored.classes[:, :, ::-1], plain.classes)
        assert mirrored.caption == plain.caption


def test_trainer_resumes_objectives_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives_module, "pretrained_trunk", EfficientNetLite0Trunk)
    monkeypatch.setattr(objectives_module, "installed_encoder", FakeEncoder)
    clips = _described_clips(tmp_path / "clips")

    def settings(run: str, steps: int):  # type: ignore[no-untyped-def]
        return replace(
            _settings(clips, tmp_path / run, steps),
            objectives=ObjectiveWeights(**ALL),
            lengths={2: 1.0, 4: 1.0},
            augmentation=STILL,
        )

    # The teacher of features is random here, and must be the same one each time.
    def trainer(run: str, steps: int) -> Trainer:
        torch.manual_seed(0)
        return Trainer(TINY, settings(run, steps), report=lambda line: None)

    trainer("whole", 9).run()
    stopped = trainer("pieces", 9)
    step = stopped._step

    def die(batch: Batch) -> dict[str, float]:
        if stopped.progress.step == 6:
            raise KeyboardInterrupt
        return step(batch)

    stopped._step = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = trainer("pieces", 9)
    assert resumed.progress.step == 4
    resumed.run()
    one, other = _state(tmp_path / "whole"), _state(tmp_path / "pieces")
    assert one.keys() == other.keys()
    assert any(name.startswith("objectives/distillation.cls.center") for name in one)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    with (tmp_path / "whole" / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[2]["dino"]
    assert rows[2]["caption"]
    assert not rows[1]["dino"], "the further pass is for every second step"
    exported, _ = load_model(tmp_path / "whole" / "best.safetensors")
    assert exported.language_head is not None
