# SPDX-License-Identifier: Apache-2.0
"""Wrong engines, wrong files, a compiler that fails, and a choice that is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import SHA256, SHAPE, model_in
from torch import Tensor

from omnistream_ros.model import KVCache, OmniStream, Prediction
from omnistream_ros.model.cache_policy import Full, Window
from omnistream_ros.model.fast_cpu import fast_model
from omnistream_ros.model.packed_storage import rounding_pays
from omnistream_ros.stream.engines import EngineError, EngineMaker, StepShape, TorchEngine, choice
from omnistream_ros.stream.engines.check import Reference
from omnistream_ros.stream.engines.onnx_engine import OnnxEngine
from omnistream_ros.stream.engines.onnx_export import export_step

OnnxFile = Callable[[str], Path]


@pytest.fixture(scope="module")
def model() -> OmniStream:
    return model_in("float32")


@pytest.fixture(scope="module")
def reference(model: OmniStream) -> Reference:
    return Reference(model, SHAPE)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def maker(model: OmniStream, tmp_path: Path, told: list[str]) -> Callable[..., EngineMaker]:
    def make(**changes: Any) -> EngineMaker:
        given = {"model": model, "sha256": SHA256, "shape": SHAPE}
        return EngineMaker(**{**given, "folder": tmp_path, "tell": told.append, **changes})

    return make


class Distorted(TorchEngine):
    """An engine that computes a little, or entirely, the wrong thing."""

    def __init__(self, model: OmniStream, spoil: Callable[[Prediction], None]) -> None:
        super().__init__(model, name="distorted")
        self._spoil = spoil

    def step(self, pixels: Tensor, cache: KVCache, **wanted: Any) -> Prediction:
        prediction = super().step(pixels, cache, **wanted)
        self._spoil(prediction)
        return prediction


def noise(prediction: Prediction) -> None:
    patches = prediction.features.patches
    patches.add_(0.05 * torch.randn_like(patches))


def not_a_number(prediction: Prediction) -> None:
    prediction.features.patches[0, 0, 0] = torch.nan


def nearer(prediction: Prediction) -> None:
    assert prediction.depth is not None
    prediction.depth.mul_(0.99)


def depth_lost(prediction: Prediction) -> None:
    assert prediction.depth is not None
    prediction.depth.fill_(torch.nan)


@pytest.mark.parametrize("spoil", [noise, not_a_number, nearer, depth_lost])
def test_an_engine_that_is_off_is_refused_with_the_numbers(
    model: OmniStream, reference: Reference, spoil: Callable[[Prediction], None]
) -> None:
    with pytest.raises(EngineError, match=r"cosine (nan|0\.\d+|1\.0+), depth off by (nan|\d)"):
        reference.verify(Distorted(model, spoil))


def test_an_engine_that_forgets_is_refused(model: OmniStream, reference: Reference) -> None:
    """Right on each image by itself: only a check of several frames can see it."""

    class Forgetful(TorchEngine):
        def step(self, pixels: Tensor, cache: KVCache, **wanted: Any) -> Prediction:
            cache.storage.keys.zero_()
            return super().step(pixels, cache, **wanted)

    with pytest.raises(EngineError, match="does not compute what the model says"):
        reference.verify(Forgetful(model))


def test_the_eager_engine_agrees_with_itself(model: OmniStream, reference: Reference) -> None:
    agreement = reference.verify(TorchEngine(model))
    assert agreement.cosine == pytest.approx(1.0)
    assert agreement.depth == 0.0


def test_bfloat16_may_be_rounded_but_not_wrong(reference: Reference) -> None:
    rounded = model_in("bfloat16")
    agreement = reference.compare(TorchEngine(rounded))
    assert 0.99 < agreement.cosine < 1.0
    assert 0.0 < agreement.depth < 0.1


def test_an_onnx_file_of_another_model_is_refused_with_both_hashes(
    model: OmniStream, onnx_file: OnnxFile
) -> None:
    other = "0f" * 32
    with pytest.raises(EngineError) as refusal:
        OnnxEngine(onnx_file("float32"), model, other, SHAPE)
    assert SHA256 in str(refusal.value)
    assert other in str(refusal.value)


def test_a_file_without_heads_leaves_them_to_torch(
    model: OmniStream, reference: Reference, onnx_file: OnnxFile, tmp_path: Path
) -> None:
    onnx_file("float32")  # or skips
    export_step(tmp_path / "features.onnx", model, SHA256, SHAPE, heads=False)
    engine = OnnxEngine(tmp_path / "features.onnx", model, SHA256, SHAPE)
    assert "depth" not in engine._sizes
    reference.verify(engine)
    cache = engine.allocate_cache(SHAPE.height, SHAPE.width, SHAPE.policy)
    pixels = torch.zeros(1, 3, SHAPE.height, SHAPE.width)
    assert engine.step(pixels, cache, depth=False, camera=False).depth is None


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        (StepShape(48, 32, Window(1, 3)), "height 32, wanted here is 48"),
        (StepShape(32, 48, Window(1, 4)), "tokens"),
    ],
)
def test_an_onnx_file_for_another_shape_is_refused(
    model: OmniStream, onnx_file: OnnxFile, shape: StepShape, what: str
) -> None:
    with pytest.raises(EngineError, match=what):
        OnnxEngine(onnx_file("float32"), model, SHA256, shape)


def test_an_onnx_file_of_another_precision_is_refused(onnx_file: OnnxFile) -> None:
    with pytest.raises(EngineError, match="dtype float32, wanted here is float16"):
        OnnxEngine(onnx_file("float32"), model_in("float16"), SHA256, SHAPE)


def test_other_files_are_refused(model: OmniStream, onnx_file: OnnxFile, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    missing = tmp_path / "missing.onnx"
    with pytest.raises(EngineError, match=r"missing\.onnx: no such file"):
        OnnxEngine(missing, model, SHA256, SHAPE)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx_file("float32").read_bytes()[:5000])
    with pytest.raises(EngineError, match=r"broken\.onnx: onnxruntime cannot read it"):
        OnnxEngine(broken, model, SHA256, SHAPE)
    foreign = onnx.load(onnx_file("float32"))
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(EngineError, match=r"foreign\.onnx: not a step written by"):
        OnnxEngine(tmp_path / "foreign.onnx", model, SHA256, SHAPE)


def test_a_file_that_lies_about_its_model_is_caught_by_the_check(
    maker: Callable[..., EngineMaker], onnx_file: OnnxFile, tmp_path: Path
) -> None:
    """The right names on the wrong weights."""
    onnx = pytest.importorskip("onnx")
    numpy_helper = pytest.importorskip("onnx.numpy_helper")
    file = onnx.load(onnx_file("float32"))
    largest = max(file.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(largest)
    largest.raw_data = (0.5 * values).astype(values.dtype).tobytes()
    onnx.save(file, tmp_path / "other.onnx")
    with pytest.raises(EngineError, match="does not compute what the model says"):
        maker(onnx_file=tmp_path / "other.onnx").make("onnx")


def test_a_provider_that_is_not_there(model: OmniStream, onnx_file: OnnxFile) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has TensorRT")
    with pytest.raises(EngineError, match=r"no provider for 'tensorrt' .*CPUExecutionProvider"):
        OnnxEngine(onnx_file("float32"), model, SHA256, SHAPE, provider="tensorrt")


def test_bfloat16_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="float32 or float16"):
        export_step(tmp_path / "no.onnx", model_in("bfloat16"), SHA256, SHAPE)
    assert not list(tmp_path.iterdir())


def test_a_failing_compiler_falls_back_to_eager_and_says_so(
    maker: Callable[..., EngineMaker], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    engine = maker().make("compiled")
    assert engine.name == "eager"
    assert "no working C++ compiler" in engine.remark
    assert "runs eagerly" in engine.remark
    assert "long story" not in engine.remark
    assert any("no working C++ compiler" in text for text in told)


def test_an_unknown_engine(maker: Callable[..., EngineMaker]) -> None:
    with pytest.raises(ValueError, match=r"eager, fast, compiled, onnx, tensorrt, got 'warp'"):
        maker().make("warp")


class Timed:
    """Stands in for building and timing, so that what is measured is known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
        self.built: list[str] = []
        self.seconds = seconds

        def build(maker: EngineMaker, name: str) -> TorchEngine:
            self.built.append(name)
            if name not in self.seconds:
                raise EngineError(f"{name} does not work here")
            return TorchEngine(maker.model, name=name)

        monkeypatch.setattr(EngineMaker, "_build", build)
        monkeypatch.setattr(EngineMaker, "_can_try_onnx", lambda _: True)
        monkeypatch.setattr(choice, "step_seconds", lambda engine, *_: self.seconds[engine.name])


def test_auto_takes_the_fastest_and_remembers(
    maker: Callable[..., EngineMaker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed = Timed(monkeypatch, {"eager": 0.03, "compiled": 0.02, "onnx": 0.01})
    assert maker().make("auto").name == "onnx"
    assert timed.built == ["eager", "fast", "compiled", "onnx"]
    timed.built.clear()
    assert maker().make("auto").name == "onnx"
    assert timed.built == ["onnx"]  # nothing was measured again
    assert json.loads((tmp_path / "engines.json").read_text())["format"] == 1


def test_auto_measures_again_for_another_model_shape_or_precision(
    maker: Callable[..., EngineMaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Timed(monkeypatch, {"eager": 0.03, "compiled": 0.02})
    maker().make("auto")
    other = StepShape(32, 48, Window(1, 5))
    for change in (
        {"sha256": "aa" * 32},
        {"shape": other},
        {"dtype": torch.bfloat16},
        {"onnx_file": Path("file.onnx")},
    ):
        timed.built.clear()
        maker(**change).make("auto")
        assert timed.built == ["eager", "fast", "compiled", "onnx"], change


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 1}',
        '{"format": 2, "choices": {}}',
        '{"format": 1, "choices": []}',
        "\x00\xff",
    ],
)
def test_a_broken_memory_is_ignored_with_a_word(
    maker: Callable[..., EngineMaker],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    told: list[str],
    content: str,
) -> None:
    Timed(monkeypatch, {"eager": 0.02, "compiled": 0.03})
    (tmp_path / "engines.json").write_text(content, encoding="latin-1")
    assert maker().make("auto").name == "eager"
    assert any("engines.json" in text and "ignored" in text for text in told)
    told.clear()
    assert maker().make("auto").name == "eager"
    assert not any("ignored" in text for text in told)  # it has been written anew


@pytest.mark.parametrize("entry", [{"engine": "auto"}, {"engine": "warp"}, {}, 3, "onnx"])
def test_a_remembered_choice_that_makes_no_sense_is_ignored(
    maker: Callable[..., EngineMaker],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    told: list[str],
    entry: object,
) -> None:
    Timed(monkeypatch, {"eager": 0.02, "compiled": 0.03})
    maker().make("auto")
    file = tmp_path / "engines.json"
    content = json.loads(file.read_text())
    content["choices"] = {key: entry for key in content["choices"]}
    file.write_text(json.dumps(content))
    assert maker().make("auto").name == "eager"
    assert any("makes no sense" in text for text in told)


def test_a_remembered_choice_that_stopped_working_is_measured_again(
    maker: Callable[..., EngineMaker], monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    timed = Timed(monkeypatch, {"eager": 0.03, "compiled": 0.01})
    maker().make("auto")
    del timed.seconds["compiled"]
    assert maker().make("auto").name == "eager"
    assert any("does not work any more" in text for text in told)


def test_auto_without_a_place_to_remember(
    maker: Callable[..., EngineMaker],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    told: list[str],
) -> None:
    Timed(monkeypatch, {"eager": 0.02})
    (tmp_path / "file").write_text("")
    assert maker(folder=tmp_path / "file" / "below").make("auto").name == "eager"
    assert any("cannot be remembered" in text for text in told)


def test_auto_for_real(maker: Callable[..., EngineMaker], onnx_file: OnnxFile) -> None:
    """Without compiling, which takes long: whatever is chosen is right."""
    file = onnx_file("float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", _no_compiler)
        engine = maker(onnx_file=file).make("auto")
    assert engine.name in ("eager", "fast", "onnx (cpu)")


def _no_compiler(*_: object, **__: object) -> Callable[..., None]:
    raise RuntimeError("no compiler here")


def test_a_memory_of_everything_may_be_smaller_than_the_check(
    model: OmniStream, maker: Callable[..., EngineMaker]
) -> None:
    shape = StepShape(32, 48, Full(2))
    assert Reference(model, shape).verify(TorchEngine(model)).depth == 0.0
    assert choice.step_seconds(TorchEngine(model), shape) > 0
    assert maker(shape=shape).make("default").name == "fast"


def test_by_default_a_cpu_runs_the_fast_engine(maker: Callable[..., EngineMaker]) -> None:
    engine = maker().make("default")
    assert engine.name == "fast"
    rounded = rounding_pays(engine.model.config.head_dim)
    assert engine.model.backbone.cache_dtype == (torch.bfloat16 if rounded else torch.float32)


def test_the_default_falls_back_from_rounding_to_float32_to_eager(
    maker: Callable[..., EngineMaker], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[torch.dtype] = []

    def refuse(model: OmniStream, dtype: torch.dtype) -> OmniStream:
        tried.append(dtype)
        raise ValueError("not on this machine")

    monkeypatch.setattr(choice, "fast_model", refuse)
    monkeypatch.setattr(choice, "rounding_pays", lambda *_: True)
    engine = maker().make("default")
    assert engine.name == "eager"
    assert tried == [torch.bfloat16, torch.float32]
    assert sum("not on this machine" in text for text in told) == 2


def test_the_default_takes_nothing_that_is_off(
    maker: Callable[..., EngineMaker], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(model: OmniStream, dtype: torch.dtype) -> OmniStream:
        wrong = fast_model(model, dtype)
        with torch.no_grad():
            wrong.backbone.post_layernorm.weight = torch.nn.Parameter(
                wrong.backbone.post_layernorm.weight * torch.linspace(1, 3, model.config.width)
            )
        return wrong

    monkeypatch.setattr(choice, "fast_model", off)
    assert maker().make("default").name == "eager"
    assert any("does not compute what the model says" in text for text in told)
