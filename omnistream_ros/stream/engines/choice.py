# SPDX-License-Identifier: Apache-2.0
"""Which engine runs: the one that was asked for, or the fastest one that is right.

`auto` makes every engine that this machine allows, checks it, times its steps, and remembers the
winner in a small file, so that the next start makes the winner alone. The file is a help, never a
truth: an unreadable one, or a choice that does not work any more, is dropped with a word.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from omnistream_ros.model import OmniStream
from omnistream_ros.model.fast_cpu import fast_model
from omnistream_ros.model.packed_storage import rounding_pays
from omnistream_ros.stream.engines.check import Reference
from omnistream_ros.stream.engines.compiled import CompiledEngine
from omnistream_ros.stream.engines.engine import (
    Engine,
    EngineError,
    StepShape,
    TorchEngine,
    one_line,
)
from omnistream_ros.stream.engines.onnx_engine import OnnxEngine
from omnistream_ros.stream.engines.onnx_export import export_step
from omnistream_ros.stream.engines.onnx_format import facts_of

ENGINES = ("auto", "default", "eager", "fast", "compiled", "onnx", "tensorrt")
_MEASURED = ("eager", "fast", "compiled", "onnx")
_FORMAT = 1
_TIMED_STEPS = 9


def cache_folder() -> Path:
    """Where this user's exported steps and choices are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "omnistream_ros"


@dataclass
class EngineMaker:
    """Makes, checks and chooses engines for one model and one shape.

    Attributes:
        model: on its device, in float32; left as it is.
        dtype: of the matrix products of what is made.
        sha256: of its weights.
        shape: of the stream.
        onnx_file: written by `omnistream export`; None: made where it is needed, and kept.
        folder: for what is kept between starts.
        tell: told in words what the user should know.
    """

    model: OmniStream
    sha256: str
    shape: StepShape
    dtype: torch.dtype = torch.float32
    onnx_file: Path | None = None
    folder: Path = field(default_factory=cache_folder)
    tell: Callable[[str], None] = lambda text: None

    def make(self, wish: str) -> Engine:
        """The engine of that name, checked. A compiled one that cannot be is eager, with a remark.

        Raises:
            EngineError: it cannot be used here, or does not compute what the model says.
            ValueError: there is none of that name.
        """
        if wish not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {wish!r}")
        if wish == "auto":
            return self._choose()
        if wish == "default":
            return self._fast_or_eager()
        try:
            return self._checked(wish)
        except EngineError as error:
            if wish != "compiled":
                raise
            self.tell(f"{error}; the model runs eagerly")
            return self._verified(TorchEngine(self.rounded, remark=f"{error}; runs eagerly"))

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self.model, self.shape)

    @cached_property
    def rounded(self) -> OmniStream:
        """The model in its precision."""
        if self.dtype == torch.float32:
            return self.model
        return copy.deepcopy(self.model).set_compute_dtype(self.dtype)

    def _checked(self, name: str) -> Engine:
        return self._verified(self._build(name))

    def _verified(self, engine: Engine) -> Engine:
        if isinstance(engine, TorchEngine) and engine.model is self.model:
            return engine  # the reference itself
        self.tell(f"engine {engine.name}: {self._reference.verify(engine)}")
        return engine

    def _build(self, name: str) -> Engine:
        if name == "eager":
            return TorchEngine(self.rounded)
        if name == "fast":
            return self._fast(self.dtype)
        if name == "compiled":
            return CompiledEngine(self.rounded, self.shape)
        provider = None if name == "onnx" else name
        file = self.onnx_file or self._exported()
        return OnnxEngine(file, self.rounded, self.sha256, self.shape, provider=provider)

    def _fast_or_eager(self) -> Engine:
        """On a CPU the fast engine, as long as nobody could tell it from eager by its results.

        Asked for float32, it may round in the blocks, where our kernel makes that worth it: it is
        held to the limits of float32 all the same, and without the kernel or outside of the limits
        it is float32 throughout. Nothing is timed.
        """
        if self.model.backbone.device.type == "cpu":
            kinds = [self.dtype]
            if self.dtype == torch.float32 and rounding_pays(self.model.config.head_dim):
                kinds.insert(0, torch.bfloat16)
            for dtype in kinds:
                try:
                    return self._verified(self._fast(dtype))
                except EngineError as error:
                    self.tell(f"not taken: {error}")
        return self._checked("eager")

    def _fast(self, dtype: torch.dtype) -> Engine:
        try:
            return TorchEngine(fast_model(self.model, dtype), name="fast")
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"the fast engine cannot run here: {one_line(error)}") from error

    def _exported(self) -> Path:
        """The step of this model and shape in the folder, written now if it is not there."""
        facts = facts_of(self.rounded, self.sha256, self.shape)
        text = json.dumps(facts.to_metadata(), sort_keys=True)
        file = self.folder / f"{facts.model}-{_digest(text)[:16]}.onnx"
        if not file.is_file():
            self.tell(f"exporting the step to {file}")
            try:
                export_step(file, self.rounded, self.sha256, self.shape)
            except OSError as error:
                raise EngineError(f"{file}: cannot be written ({error.strerror})") from error
        return file

    def _choose(self) -> Engine:
        memory = ChoiceMemory(self.folder / "engines.json", self.tell)
        key = self._key()
        known = memory.recall(key)
        if known is not None:
            try:
                engine = self._checked(known)
                self.tell(f"engine {engine.name}: the fastest when it was measured last")
                return engine
            except EngineError as error:
                self.tell(f"the engine remembered as the fastest does not work any more: {error}")
        timed: dict[str, float] = {}
        engines: dict[str, Engine] = {}
        for name in _MEASURED:
            if name == "onnx" and not self._can_try_onnx():
                continue
            try:
                engines[name] = self._checked(name)
            except EngineError as error:
                self.tell(f"not considered: {error}")
                continue
            timed[name] = step_seconds(engines[name], self.shape)
        if not timed:
            raise EngineError("no engine of this machine computes what the model says")
        best = min(timed, key=lambda name: timed[name])
        figures = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in timed.items())
        self.tell(f"engine {best} chosen: {figures} a step")
        memory.remember(key, best, timed)
        return engines[best]

    def _can_try_onnx(self) -> bool:
        exporter = ("onnx", "onnxscript")
        needed = ("onnxruntime", *(() if self.onnx_file else exporter))
        return all(importlib.util.find_spec(name) is not None for name in needed)

    def _key(self) -> str:
        """All that the fastest engine depends on, in one word."""
        facts = {
            "weights": self.sha256,
            "shape": str(self.shape),
            "dtype": str(self.dtype),
            "machine": machine(self.model.backbone.device),
            "file": str(self.onnx_file or ""),
            "versions": {name: _version(name) for name in ("torch", "onnxruntime", "onnxscript")},
        }
        return _digest(json.dumps(facts, sort_keys=True))


class ChoiceMemory:
    """Which engine was the fastest, by key; one small JSON file for all models of a user."""

    def __init__(self, file: Path, tell: Callable[[str], None]) -> None:
        self._file = file
        self._tell = tell

    def recall(self, key: str) -> str | None:
        """The engine remembered for a key; None when there is none that makes sense."""
        choice = self._read().get(key)
        if choice is None:
            return None
        engine = choice.get("engine") if isinstance(choice, dict) else None
        if engine not in ENGINES[1:]:
            self._tell(f"{self._file}: a choice in it makes no sense and is ignored")
            return None
        return str(engine)

    def remember(self, key: str, engine: str, seconds: dict[str, float]) -> None:
        """Add a choice; where the file cannot be written, it is measured again next time."""
        choices = self._read()
        timed = {name: round(1e3 * s, 3) for name, s in seconds.items()}
        choices[key] = {"engine": engine, "milliseconds": timed}
        partial = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"format": _FORMAT, "choices": choices}, indent=1))
            partial.replace(self._file)
        except OSError as error:
            self._tell(f"{self._file}: the choice cannot be remembered ({error.strerror})")

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._file.read_text())
            if content["format"] != _FORMAT or not isinstance(content["choices"], dict):
                raise ValueError
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError):
            self._tell(f"{self._file}: cannot be read and is ignored; engines are measured anew")
            return {}
        return dict(content["choices"])


def step_seconds(engine: Engine, shape: StepShape) -> float:
    """Median time of a step with all heads and a full cache."""
    backbone = engine.model.backbone
    device = backbone.device
    pixels = torch.zeros(
        1, 3, shape.height, shape.width, device=device, dtype=backbone.compute_dtype
    )
    cache = engine.allocate_cache(shape.height, shape.width, shape.policy)
    if shape.policy.limit > 2 * shape.policy.slots:
        cache.frames_seen = shape.policy.slots
    times = []
    for _ in range(_TIMED_STEPS + 2):
        if cache.frames_seen >= shape.policy.limit:
            cache.reset()
        begin = time.perf_counter()
        engine.step(pixels, cache, depth=True, camera=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def machine(device: torch.device) -> str:
    """The processor that runs the model, as far as it tells its name, and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{name}, {torch.get_num_threads()} threads"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
