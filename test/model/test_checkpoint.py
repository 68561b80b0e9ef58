# SPDX-License-Identifier: Apache-2.0
"""Weights on disk: what is written is read, and whatever is broken is refused with its name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY, TINY_TRUNK, lively

from omnistream_ros.model import (
    ModelCard,
    ModelConfig,
    ModelError,
    OmniStream,
    checkpoint,
    load_model,
    save_model,
)

CARD = ModelCard(
    name="tiny",
    licence="Apache-2.0",
    training={"frames": 12, "data": ["rendered"]},
    accuracy={"kitchen": {"AbsRel": 0.2}},
)
BACKBONE = ModelConfig(
    name="released", width=128, depth=4, heads=2, taps=(0, 1, 2, 3), model_pixels=512
)


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_model(path, lively(TINY), CARD)
    return path


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A folder as the publisher lays it out."""
    folder = tmp_path / "released"
    folder.mkdir()
    state = lively(BACKBONE).backbone.state_dict()
    tensors = {f"patch_embed.{name}": t.contiguous() for name, t in state.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "video_aggregator_layer": 4,
        "mlp_ratio": 4.0,
        "patch_size": 16,
        "ffn_layer": "mlp",
        "image_size": 64,
        "layer_norm_eps": 1e-6,
        "chosen_layers": [1, 2, 4, 5],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rewrite(file: Path, change) -> None:
    """Change the tensors of a file in place."""
    tensors, metadata = checkpoint.read_tensors(file)
    change(tensors)
    save_file(tensors, file, metadata)


def rewrite_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def same_weights(a: OmniStream, b: OmniStream) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("config", [TINY, TINY_TRUNK], ids=lambda c: c.name)
def test_what_is_saved_is_loaded(config, tmp_path):
    path = tmp_path / "model.safetensors"
    model = lively(config)
    save_model(path, model, CARD)
    for source in (path, str(path), tmp_path):  # a file, its name, a folder that holds it
        loaded, card = load_model(source)
        assert loaded.config == config
        assert same_weights(loaded, model)
        assert not loaded.training
        assert card == dataclasses.replace(
            CARD, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
        )
    pixels = torch.randn(1, 2, 3, 32, 48)
    assert torch.equal(loaded.forward_clip(pixels).depth, model.forward_clip(pixels).depth)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_others_may_read_a_saved_file(own_file):
    ordinary = own_file.with_name("ordinary")
    ordinary.touch()
    assert own_file.stat().st_mode == ordinary.stat().st_mode


def test_float16_halves_the_file_and_loads_as_float32(tmp_path):
    model = lively(TINY)
    save_model(tmp_path / "full.safetensors", model, CARD)
    half = dataclasses.replace(CARD, storage_dtype="float16")
    save_model(tmp_path / "half.safetensors", model, half)
    sizes = {p.stem: p.stat().st_size for p in tmp_path.iterdir()}
    assert sizes["half"] < 0.6 * sizes["full"]
    loaded, card = load_model(tmp_path / "half.safetensors")
    assert card.storage_dtype == "float16"
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].half().float())


def test_bfloat16_on_loading(own_file):
    model, _ = load_model(own_file, dtype=torch.bfloat16)
    assert model.backbone.compute_dtype == torch.bfloat16
    assert model.backbone.blocks[0].norm1.weight.dtype == torch.float32
    assert model.backbone.blocks[0].ls1.gamma.dtype == torch.float32


def test_a_loaded_model_does_not_follow_its_file(own_file):
    model, _ = load_model(own_file)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    size = own_file.stat().st_size
    with own_file.open("r+b") as stream:
        stream.seek(size // 2)
        stream.write(b"\xff" * (size // 2))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_the_released_layout_loads_unchanged(released):
    model, card = load_model(released)
    assert model.depth_head is None
    assert not model.config.metric
    assert card.sha256
    stored = load_file(released / "model.safetensors")
    ours = {f"patch_embed.{n}": t for n, t in model.backbone.state_dict().items()}
    assert ours.keys() == stored.keys()
    assert all(torch.equal(ours[n], stored[n]) for n in ours)


def test_shapes_decide_where_the_config_is_silent(released):
    names = ("hidden_size", "num_attention_heads", "video_aggregator_layer", "patch_size")
    rewrite_config(released, **dict.fromkeys((*names, "mlp_ratio", "ffn_layer")))
    config = load_model(released)[0].config
    assert (config.width, config.depth, config.heads, config.patch_size) == (128, 4, 2, 16)


@pytest.mark.parametrize(
    ("depth", "taps"),
    [(24, (11, 15, 19, 23)), (12, (5, 7, 9, 11)), (4, (0, 1, 2, 3)), (1, (0, 0, 0, 0))],
)
def test_heads_read_the_upper_half_of_a_released_backbone(tmp_path, depth, taps):
    config = dataclasses.replace(
        BACKBONE, width=64, heads=1, depth=depth, taps=(0, 0, 0, 0), head_width=0
    )
    state = lively(config).backbone.state_dict()
    tensors = {f"patch_embed.{name}": t.contiguous() for name, t in state.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert load_model(tmp_path)[0].config.taps == taps


def test_training_leftovers_are_ignored_and_said_once(released, caplog):
    extra = ("dino_head.mlp.0.weight", "ibot_head.last_layer.weight", "decoder.layers.3.bias")
    file = released / "model.safetensors"
    rewrite(file, lambda t: t.update({name: torch.full((3,), float("nan")) for name in extra}))
    with caplog.at_level(logging.WARNING):
        load_model(released)
    (record,) = caplog.records
    message = record.getMessage()
    assert str(file) in message
    assert "3 tensors" in message
    assert all(name in message for name in extra)


def nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = float("nan")
    return tensor


KEY = "backbone.blocks.1.attn.qkv.weight"
BROKEN_TENSORS = {
    "missing": (lambda t: t.pop(KEY), KEY, "missing"),
    "shape": (lambda t: t.update({KEY: t[KEY][:-1]}), KEY, "shape"),
    "transposed": (lambda t: t.update({KEY: t[KEY].T.contiguous()}), KEY, "shape"),
    "nan": (lambda t: t.update({KEY: nan(t[KEY])}), KEY, "not finite"),
    "infinite": (lambda t: t.update({KEY: t[KEY] / 0}), KEY, "not finite"),
    "integers": (lambda t: t.update({KEY: t[KEY].int()}), KEY, "not finite numbers"),
    "unknown": (lambda t: t.update({"colour": torch.ones(2)}), "colour", "unknown"),
    "one block more": (
        lambda t: t.update({"backbone.blocks.3.ls1.gamma": torch.ones(32)}),
        "backbone.blocks.3.ls1.gamma",
        "unknown",
    ),
}


@pytest.mark.parametrize("case", BROKEN_TENSORS)
def test_broken_tensors_are_named(own_file, case):
    change, key, reason = BROKEN_TENSORS[case]
    rewrite(own_file, change)
    with pytest.raises(ModelError) as caught:
        load_model(own_file)
    assert str(own_file) in str(caught.value)
    assert key in str(caught.value)
    assert reason in str(caught.value)


RELEASED_KEY = "patch_embed.blocks.2.mlp.fc1.weight"
BROKEN_RELEASED = {
    "missing": (lambda t: t.pop(RELEASED_KEY), RELEASED_KEY),
    "shape": (lambda t: t.update({RELEASED_KEY: t[RELEASED_KEY][1:]}), RELEASED_KEY),
    "nan": (lambda t: t.update({RELEASED_KEY: nan(t[RELEASED_KEY])}), RELEASED_KEY),
    "no embedding": (
        lambda t: t.pop("patch_embed.patch_embed.proj.weight"),
        "patch_embed.patch_embed.proj.weight",
    ),
    "unknown part of the backbone": (
        lambda t: t.update({"patch_embed.blocks.0.attn.q_norm.weight": torch.ones(64)}),
        "patch_embed.blocks.0.attn.q_norm.weight",
    ),
    "unknown": (lambda t: t.update({"colour": torch.ones(2)}), "colour"),
    "a block without most of its weights": (
        lambda t: t.update({"patch_embed.blocks.4.ls1.gamma": torch.ones(128)}),
        "blocks.4",
    ),
}


@pytest.mark.parametrize("case", BROKEN_RELEASED)
def test_broken_released_tensors_are_named_as_in_the_file(released, case):
    change, key = BROKEN_RELEASED[case]
    if case.startswith("a block"):
        rewrite_config(released, video_aggregator_layer=5)
    rewrite(released / "model.safetensors", change)
    with pytest.raises(ModelError) as caught:
        load_model(released)
    assert str(released / "model.safetensors") in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 192}, "hidden_size is 192"),
        ({"video_aggregator_layer": 24}, "video_aggregator_layer is 24"),
        ({"patch_size": 14}, "patch_size is 14"),
        ({"num_attention_heads": 3}, "3 heads"),
        ({"num_attention_heads": "many"}, "num_attention_heads"),
        ({"num_attention_heads": -2}, "num_attention_heads"),
        ({"num_attention_heads": 2.0}, "num_attention_heads must be a positive int"),
        ({"mlp_ratio": 3.0}, r"mlp\.fc1"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio"),
        ({"ffn_layer": "swiglu64"}, "ffn_layer"),
    ],
)
def test_configs_that_do_not_fit_the_weights(released, changes, message):
    rewrite_config(released, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(released)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\x00\xff", '{"hidden_size": NaN}'])
def test_a_broken_config_file(released, text):
    (released / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(released)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 0.5, 0.999])
def test_a_file_cut_short(own_file, keep):
    content = own_file.read_bytes()
    length = keep if isinstance(keep, int) else int(keep * len(content))
    own_file.write_bytes(content[:length])
    with pytest.raises(ModelError, match=str(own_file)):
        load_model(own_file)


def test_pickles_are_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    for name in ("model.safetensors", "model.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ModelError, match=name):
            load_model(tmp_path / name)


def test_a_safetensors_file_of_somebody_else(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"config": "{", "card": "{}"},
        {"config": "[]", "card": "{}"},
        {"config": json.dumps({**TINY.to_dict(), "heads": 5}), "card": "{}"},
        {"config": json.dumps(TINY.to_dict()), "card": "null"},
        {"config": json.dumps(TINY.to_dict()), "card": json.dumps({"name": "x"})},
    ],
)
def test_unreadable_metadata(own_file, metadata):
    tensors = load_file(own_file)
    save_file(tensors, own_file, {"format": checkpoint.FORMAT, **metadata})
    with pytest.raises(ModelError, match="config or card"):
        load_model(own_file)


def test_paths_that_hold_no_model(tmp_path):
    with pytest.raises(ModelError, match="omnistream-nano"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"must hold model\.safetensors"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="no weights of 'omnistream-l'"):
        load_model("omnistream-l")


def test_a_device_that_is_not_there(own_file):
    with pytest.raises(ModelError, match="abacus"):
        load_model(own_file, device="abacus")


def test_saving_refuses_what_loading_would(tmp_path):
    path = tmp_path / "model.safetensors"
    model = lively(TINY)
    with torch.no_grad():
        model.backbone.cls_token[0, 0, 3] = 1e6
    with pytest.raises(ModelError, match=r"backbone\.cls_token is not finite as float16"):
        save_model(path, model, dataclasses.replace(CARD, storage_dtype="float16"))
    with pytest.raises(ModelError, match="int8"):
        save_model(path, model, dataclasses.replace(CARD, storage_dtype="int8"))
    with pytest.raises(ModelError, match="cannot be written"):
        save_model(tmp_path / "nowhere" / "model.safetensors", model, CARD)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_dies_leaves_the_old_file(own_file, monkeypatch):
    old = own_file.read_bytes()

    def die(tensors, path, metadata):
        Path(path).write_bytes(old[: len(old) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", die)
    with pytest.raises(ModelError, match="No space left"):
        save_model(own_file, lively(TINY, seed=1), CARD)
    assert own_file.read_bytes() == old
    assert [p.name for p in own_file.parent.iterdir()] == [own_file.name]
