# SPDX-License-Identifier: Apache-2.0
"""One measurement of ``omnistream bench``, in a process of its own so that its peak memory is its
own.

    python -m omnistream_ros.evaluation.bench_row '{"model": "omnistream-nano", "frames": 16, ...}'

prints one line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from omnistream_ros.model import BackboneOutput, KVCache, OmniStream, build_model
from omnistream_ros.model.cache_policy import Full
from omnistream_ros.model.cache_storage import TensorStorage
from omnistream_ros.model.fast_cpu import fast_model
from omnistream_ros.model.packed_storage import PackedStorage

Way = Literal["fast", "cached", "recompute"]

_WARM_UP = 2
#: Side of the square matrices whose product measures the machine: large enough to fill it.
_MATRIX = {"cpu": 2048, "cuda": 8192}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        model: name of a model; its weights are random, which costs the same.
        way: ``cached``: a step that sees ``frames`` frames; ``fast``: the same with the kernels for
            CPUs; ``recompute``: all frames anew.
        frames: length of the context, the new frame included.
        height, width: of the image that the model sees, multiples of its patch size.
        device, dtype: of the computation.
        repeats: measurements, of which the median counts.
        threads: CPU threads, 0 for all cores.
        budget_s: no further repetition is begun after so long.
    """

    model: str
    way: Way
    frames: int
    height: int
    width: int
    device: str = "cpu"
    dtype: str = "float32"
    repeats: int = 5
    threads: int = 0
    budget_s: float = 60.0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What came out.

    Attributes:
        milliseconds: median time per new frame, backbone and heads.
        peak_mib: most memory that the process (CPU) or the allocator (CUDA) held.
        cache_mib: of which the key/value cache.
        gflop: floating-point operations per new frame, in 1e9.
        peak_gflops: what this machine reaches in a large matrix product of the same type.
    """

    milliseconds: float
    peak_mib: float
    cache_mib: float
    gflop: float
    peak_gflops: float

    @property
    def fraction_of_peak(self) -> float:
        """Share of the machine's matrix-product speed that was reached."""
        return self.gflop / (self.milliseconds / 1000.0) / self.peak_gflops


def _attention_flop(query, key, value, *_, **__) -> int:  # type: ignore[no-untyped-def]
    """Operations of attention, from the shapes of its arguments (B, heads, tokens, d)."""
    return sdpa_flop_count(query, key, value)


#: What the counter of PyTorch does not know: the fused attention of CPUs.
_MORE_OPERATIONS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}


def measure(case: Case) -> Measurement:
    """Run one case in this process.

    Raises:
        ValueError: the model's patches do not fit the image size.
        RuntimeError: out of memory.
    """
    if case.threads:
        torch.set_num_threads(case.threads)
    device, dtype = torch.device(case.device), getattr(torch, case.dtype)
    torch.manual_seed(0)
    model = build_model(case.model, device=device).eval()
    model = fast_model(model, dtype) if case.way == "fast" else model.set_compute_dtype(dtype)
    cache_mib = 0.0
    with torch.inference_mode():
        if case.way == "recompute":
            step = _recompute(model, case, device, dtype)
        else:
            step, cache = _cached_step(model, case, device)
            cache_mib = cache.nbytes / 2**20
        milliseconds, peak, peak_gflops = _beside_the_machine(step, case, device, dtype)
        if case.way == "fast":  # the same operations, where the counter sees them
            del step, cache, model
            step, _ = _cached_step(build_model(case.model).eval(), case, device)
        gflop = count_flop(step) / 1e9
    return Measurement(milliseconds, peak, cache_mib, gflop, peak_gflops)


def count_flop(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, attention and convolutions in `step`.

    It must run eagerly, on torch's own attention: of other kernels the counter knows nothing.
    """
    with FlopCounterMode(display=False, custom_mapping=_MORE_OPERATIONS) as counter:
        step()
    return int(counter.get_total_flops())


def _cached_step(
    model: OmniStream, case: Case, device: torch.device
) -> tuple[Callable[[], object], KVCache]:
    """A step of a stream whose cache holds ``frames`` - 1 frames already."""
    policy = Full(case.frames)
    cache = model.backbone.allocate_cache(case.height, case.width, policy=policy)
    # Any numbers do: attention costs the same whatever it attends to.
    assert isinstance(cache.storage, TensorStorage | PackedStorage)
    cache.storage.keys.normal_()
    cache.storage.values.normal_()
    pixels = torch.randn(1, 3, case.height, case.width, device=device)

    def step() -> object:
        cache.frames_seen = case.frames - 1
        return model.step(pixels, cache)

    return step, cache


def _recompute(
    model: OmniStream, case: Case, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """The backbone over all frames, as without a cache; heads for the new frame only."""
    pixels = torch.randn(1, case.frames, 3, case.height, case.width, device=device)

    def run() -> object:
        features = model.backbone.forward_clip(pixels)
        return model.predict(_last_frame(features), rays=False)

    return run


def _last_frame(features: BackboneOutput) -> BackboneOutput:
    """The newest frame (B, ...) of a clip's features (B, T, ...)."""

    def last(value: Any) -> Any:
        return None if value is None else value[:, -1]

    return dataclasses.replace(
        features,
        hidden=[last(tensor) for tensor in features.hidden],
        patches=last(features.patches),
        cls=last(features.cls),
        camera=last(features.camera),
        registers=last(features.registers),
        pyramid={stride: last(tensor) for stride, tensor in features.pyramid.items()},
    )


def _beside_the_machine(
    step: Callable[[], object], case: Case, device: torch.device, dtype: torch.dtype
) -> tuple[float, float, float]:
    """Milliseconds of a step, peak memory in MiB, and GFLOP/s of a large matrix product.

    Step and product take turns, and the medians count: what a machine reaches changes from one
    minute to the next, where it is shared or gets warm.
    """
    begin = time.monotonic()
    times, speeds, peak = [], [], 0.0
    for repeat in range(_WARM_UP + case.repeats):
        _synchronise(device)
        start = time.perf_counter()
        step()
        _synchronise(device)
        if repeat < _WARM_UP:
            continue
        times.append(1000.0 * (time.perf_counter() - start))
        peak = peak or _peak_mib(device)  # of the step alone
        speeds.append(matrix_speed(device, dtype))
        if time.monotonic() - begin > case.budget_s:
            break
    return statistics.median(times), peak, statistics.median(speeds)


def matrix_speed(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product, the best of several."""
    side = _MATRIX[device.type]
    a = torch.randn(side, side, device=device, dtype=dtype)
    b = torch.randn(side, side, device=device, dtype=dtype)
    best = math.inf
    for _ in range(3):
        _synchronise(device)
        start = time.perf_counter()
        a @ b
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best / 1e9


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def main(text: str) -> int:
    """Measure the case written as JSON, print the measurement as JSON."""
    try:
        measurement = measure(Case(**json.loads(text)))
    except (RuntimeError, MemoryError) as error:  # torch's out of memory is a RuntimeError
        print(json.dumps({"error": str(error).splitlines()[0]}))
        return 1
    print(json.dumps(dataclasses.asdict(measurement)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
