# SPDX-License-Identifier: Apache-2.0
"""The ablation: resumable, and a table that says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_probes import _write_described
from test_train import TINY

from omnistream_ros.model import CameraPrediction
from omnistream_ros.training import ablation
from omnistream_ros.training.ablation import VARIANTS, AblationSettings, ablate, as_markdown
from omnistream_ros.training.camera_score import camera_score
from omnistream_ros.training.train import Trainer


def _settings(tmp_path: Path, steps: int = 3) -> AblationSettings:
    clips = tmp_path / "clips"
    if not clips.exists():
        _write_described(clips, 10)
    return AblationSettings(
        clips,
        clips,
        tmp_path / "run",
        steps=steps,
        probe_count=10,
        motion_steps=5,
        training={
            "pretrained": False,
            "save_period": 2,
            "frames_per_step": 2,
            "coarse_sizes": (),
        },
        config=TINY,
    )


def test_goes_on_where_it_was_and_writes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tmp_path)
    variants = (VARIANTS[0], VARIANTS[2])
    run = Trainer.run

    def killed_in_the_second(self: Trainer):  # type: ignore[no-untyped-def]
        if self.settings.run.name == "without_gradient_matching":
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(Trainer, "run", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        ablate(settings, variants, lambda line: None)
    assert (settings.run / "geometry.json").exists()

    done = []

    def counted(self: Trainer):  # type: ignore[no-untyped-def]
        done.append(self.settings.run.name)
        return run(self)

    monkeypatch.setattr(Trainer, "run", counted)
    text = ablate(settings, variants, lambda line: None)
    assert done == ["without_gradient_matching"], "what was done is done again"
    assert text == (settings.run / "ablation.md").read_text()
    assert "| geometry |" in text
    assert "| without gradient matching |" in text
    assert "stands still" in text
    with pytest.raises(ValueError, match="another --run"):
        ablate(_settings(tmp_path, steps=4), variants, lambda line: None)


def test_a_polite_stop_leaves_the_variant_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tmp_path)
    run = Trainer.run

    def stopped(self: Trainer):  # type: ignore[no-untyped-def]
        self.stop.set()
        return run(self)

    monkeypatch.setattr(Trainer, "run", stopped)
    ablate(settings, VARIANTS[:1], lambda line: None)
    assert not (settings.run / "geometry.json").exists()


def test_variants_differ_in_what_their_names_say() -> None:
    assert len({v.name for v in VARIANTS}) == len(VARIANTS)
    base = VARIANTS[0]
    for variant in VARIANTS[1:]:
        one = (variant.weights, variant.objectives, variant.seed)
        assert one != (base.weights, base.objectives, base.seed), variant.name
    assert ablation.VARIANTS[-1].objectives.withholds
    assert ablation.VARIANTS[-1].objectives.language


def test_best_of_a_column_is_bold() -> None:
    def row(name: str, error: float, room: float) -> dict[str, object]:
        return {
            "name": name,
            "minutes": 3.0,
            "depth": {"abs_rel": error, "abs_rel_scaled": error, "delta_1": 1 - error},
            "camera": {
                "translation": error,
                "rotation": error,
                "still_translation": 1.0,
                "still_rotation": 2.0,
            },
            "probes": {"room": room, "segments": 0.1, "motion": 0.1, "rendered_j_and_f": 0.1},
        }

    text = json.loads(json.dumps([row("a", 0.2, 0.9), row("b", 0.1, 0.5)]))
    lines = as_markdown(text).splitlines()
    assert lines[2].startswith("| a | 0.200 | 0.200 | 0.800 | 0.200 | 0.20 | **90.0**")
    assert lines[3].startswith("| b | **0.100** | **0.100** | **0.900** |")


def test_camera_score_by_hand() -> None:
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[1, 0, 3], poses[2, 0, 3] = 1.0, 3.0
    identity = torch.tensor([0.0, 0, 0, 1]).repeat(3, 1)
    quarter = torch.tensor([0.0, 0, 0.5**0.5, -(0.5**0.5)]).repeat(3, 1)  # a quarter turn
    camera = CameraPrediction(poses[:, :3, 3] + 0.5, quarter, torch.zeros(3, 2))
    found = camera_score([(camera, poses)])
    assert found.translation == pytest.approx(0.75**0.5)
    assert found.rotation == pytest.approx(90, abs=1e-3)
    assert found.still_translation == pytest.approx(2)
    assert found.still_rotation == pytest.approx(0, abs=0.1)
    still = CameraPrediction(torch.zeros(3, 3), identity, torch.zeros(3, 2))
    assert camera_score([(still, poses)]).translation == pytest.approx(2)
    with pytest.raises(ValueError, match="poses"):
        camera_score([])
