# SPDX-License-Identifier: Apache-2.0
"""A deeper network begins as the same function, and learns with all its blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_clips import plane_clip, write_clip

from omnistream_ros.model import OmniStream, build_model, load_model
from omnistream_ros.model.config import NANO
from omnistream_ros.training.deepen import deepened
from omnistream_ros.training.export import export_weights
from omnistream_ros.training.state import StateError
from omnistream_ros.training.train import Trainer
from omnistream_ros.training.train_settings import TrainSettings

TINY = replace(
    NANO,
    name="tiny",
    width=24,
    heads=1,
    depth=2,
    taps=(0, 0, 1, 1),
    head_width=8,
    model_pixels=48 * 64,
)


def shallow() -> OmniStream:
    torch.manual_seed(0)
    return build_model(TINY).eval()


@pytest.mark.parametrize("blocks", [2, 4, 6])
def test_it_is_the_same_function(blocks: int) -> None:
    model, pixels = shallow(), torch.randn(1, 3, 3, 48, 64)
    deeper = deepened(model, blocks).eval()
    assert deeper.config.depth == len(deeper.backbone.blocks) == blocks
    with torch.no_grad():
        before, after = (m.forward_clip(pixels, rays=True) for m in (model, deeper))
    for name in ("depth", "rays"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=0)


def test_all_blocks_learn_and_the_shallow_model_stays_as_it_is() -> None:
    model = shallow()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    deeper = deepened(model, 4).train()
    optimiser = torch.optim.SGD(deeper.parameters(), lr=0.1)
    start = {name: value.clone() for name, value in deeper.named_parameters()}
    for _ in range(2):  # the layer scales first: through 0 nothing reaches what is behind them
        optimiser.zero_grad()
        deeper.forward_clip(
            torch.randn(1, 2, 3, 48, 64), rays=True
        ).depth.square().mean().backward()
        optimiser.step()
    for block in range(4):
        for name in (f"backbone.blocks.{block}.{n}.weight" for n in ("attn.proj", "mlp.fc2")):
            assert not torch.equal(dict(deeper.named_parameters())[name], start[name]), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]), name


@pytest.mark.parametrize("blocks", [1, 3])
def test_blocks_that_are_no_multiple_are_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match="multiple of 2"):
        deepened(shallow(), blocks)


def test_more_blocks_need_weights_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--start-from"):
        TrainSettings(tmp_path, tmp_path, steps=1, blocks=8)


def test_a_deepened_run_goes_on_where_it_was_and_writes_the_deeper_model(tmp_path: Path) -> None:
    for number in (0, 1):  # number 0 is held out
        write_clip(tmp_path / f"clip_{number:06d}.npz", plane_clip(seed=number, frames=16))
    weights, said = tmp_path / "weights.safetensors", []
    export_weights(weights, shallow(), {})

    def run(steps: int, blocks: int | None = 4) -> Trainer:
        settings = TrainSettings(
            tmp_path, tmp_path / "run", steps=steps, start_from=weights, blocks=blocks,
            frames_per_step=4, lengths={2: 1.0}, full_sizes=((64, 48),),
        )  # fmt: skip
        trainer = Trainer(TINY, settings, report=said.append)
        trainer.run()
        return trainer

    before = run(2).model.state_dict()
    after = run(3)
    assert any("resuming at step 2" in line for line in said)
    assert after.progress.step == 3
    name = "backbone.blocks.3.mlp.fc2.weight"
    assert not torch.equal(before[name], after.model.state_dict()[name])
    best = load_model(tmp_path / "run" / "best.safetensors")[0]
    assert (best.config.depth, best.config.taps) == (4, (1, 1, 3, 3))
    state = (tmp_path / "run" / "state.safetensors").read_bytes()
    for other in (None, 6):
        with pytest.raises(StateError, match=r"--blocks|another model"):
            run(4, other)
    assert (tmp_path / "run" / "state.safetensors").read_bytes() == state
