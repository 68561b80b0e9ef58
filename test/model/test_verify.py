# SPDX-License-Identifier: Apache-2.0
"""`omnistream verify`: right answers pass, wrong ones do not, and broken folders are explained."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY, TINY_TRUNK, lively

from omnistream_ros.cli import main
from omnistream_ros.model import ModelCard, ModelConfig, ModelError, load_model, save_model
from omnistream_ros.model.verify import EXPECTED, Difference, make_expected, verify


def make_folder(folder: Path, config: ModelConfig) -> Path:
    save_model(folder / "model.safetensors", lively(config), ModelCard("tiny", "CC0"))
    make_expected(folder, frames=3, height=32, width=48)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path, TINY)


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / EXPECTED)
    change(tensors)
    save_file(tensors, folder / EXPECTED)


@pytest.mark.parametrize("config", [TINY, TINY_TRUNK], ids=lambda c: c.name)
def test_a_model_agrees_with_itself(config, tmp_path, capsys):
    folder = make_folder(tmp_path, config)
    assert main(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {line.split()[0] for line in lines[1:]}
    assert names == set(load_file(folder / EXPECTED)) - {"pixel_values", "aspect_ratio"}
    assert all(line.endswith("ok") for line in lines[1:])
    for output in ("hidden_states", "camera_token", "log_depth", "rays", "quaternion", "fov"):
        assert f"camera_ar.{output}" in names
    assert "plain.camera_token" not in names


@pytest.mark.parametrize("change", [1e-3, math.nan, math.inf])
def test_one_wrong_number_is_found(folder, change, capsys):
    def spoil(tensors):
        tensors["camera.hidden_states"][1, 0, 2, 4, 7] += change

    edit(folder, spoil)
    assert main(["verify", str(folder)]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if "not below" in line]
    assert len(bad) == 1
    assert bad[0].startswith("camera.hidden_states")


def test_the_tolerance_decides(folder):
    edit(folder, lambda t: t["plain.pooler_output"].add_(1e-3))
    assert main(["verify", str(folder), "--tolerance", "1e-2"]) == 0
    assert main(["verify", str(folder), "--tolerance", "1e-4"]) == 1


def test_steps_are_checked_by_themselves(folder, monkeypatch):
    from omnistream_ros.model.kv_cache import KVCache

    # a cache that learns nothing
    monkeypatch.setattr(KVCache, "end_frame", lambda self, patches: None)
    by_name = {d.name: d for d in verify(folder)}
    assert by_name["camera.last_hidden_state"].clip < 1e-5
    assert by_name["camera.last_hidden_state"].steps > 1e-2


def test_other_weights_do_not_pass(folder):
    model, card = load_model(folder)
    save_model(folder / "model.safetensors", lively(model.config, seed=5), card)
    assert main(["verify", str(folder)]) == 1


def test_any_subset_will_do(folder):
    keep = {"pixel_values", "plain.last_hidden_state"}
    edit(folder, lambda t: [t.pop(n) for n in list(t) if n not in keep])
    assert [d.name for d in verify(folder)] == ["plain.last_hidden_state"]


def test_a_difference_that_is_no_number_is_not_within():
    assert Difference("x", 1, 0, 0).within(1e-5)
    assert not Difference("x", 1, 0, math.nan).within(1e-5)
    assert not Difference("x", 1, 1e-5, 0).within(1e-5)


BROKEN = {
    "no pixels": (lambda t: t.pop("pixel_values"), "pixel_values is missing"),
    "no ratio": (lambda t: t.pop("aspect_ratio"), "needs aspect_ratio"),
    "no outputs": (
        lambda t: [t.pop(n) for n in list(t) if "." in n],
        "no outputs to compare with",
    ),
    "unknown case": (lambda t: t.update({"night.rays": torch.ones(1)}), r"unknown .* night\.rays"),
    "unknown output": (
        lambda t: t.update({"plain.colour": torch.ones(1)}),
        r"plain\.colour .* no such output",
    ),
    "shape": (lambda t: t.update({"plain.rays": torch.ones(2)}), r"plain\.rays \(2,\)"),
    "pixels of a wrong shape": (
        lambda t: t.update({"pixel_values": torch.zeros(2, 3, 3, 20, 20)}),
        "multiples of 16",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_expectations_are_explained(folder, case, capsys):
    change, message = BROKEN[case]
    edit(folder, change)
    with pytest.raises(ModelError, match=message) as caught:
        verify(folder)
    assert str(folder / EXPECTED) in str(caught.value)
    assert main(["verify", str(folder)]) == 2
    assert str(folder / EXPECTED) in capsys.readouterr().err


def test_a_file_cut_short(folder, capsys):
    file = folder / EXPECTED
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["verify", str(folder)]) == 2
    assert "not a complete safetensors file" in capsys.readouterr().err


def test_nothing_to_compare_with(folder, capsys):
    (folder / EXPECTED).unlink()
    assert main(["verify", str(folder)]) == 2
    assert "--make" in capsys.readouterr().err


def test_make_stores_another_model_first(folder, tmp_path, capsys):
    made = tmp_path / "made"
    model = str(folder / "model.safetensors")
    assert main(["verify", "--make", "--model", model, str(made)]) == 0
    assert main(["verify", str(made)]) == 0


def test_make_needs_a_model(tmp_path, capsys):
    assert main(["verify", "--make", str(tmp_path)]) == 2
    assert "model.safetensors" in capsys.readouterr().err
