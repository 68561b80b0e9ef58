# SPDX-License-Identifier: Apache-2.0
"""The step run by ONNX Runtime on torch's memory: nothing is copied in, out or between frames.

Every input and output is bound to a torch tensor by address; the outputs that are the new caches
are bound to the old ones, so the cache is written where it lies and never leaves the device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnistream_ros.model import KVCache, OmniStream, Prediction
from omnistream_ros.model.cache_policy import Policy
from omnistream_ros.model.heads import CameraPrediction
from omnistream_ros.stream.engines.engine import EngineError, StepShape, TorchEngine, one_line
from omnistream_ros.stream.engines.onnx_format import (
    CAMERA_OUTPUTS,
    DEPTH_OUTPUTS,
    StepFacts,
    facts_of,
)
from omnistream_ros.stream.engines.step_graph import StepGraph, StepInputs, flat, tensors_of

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}


class OnnxEngine:
    """Runs a file of `export_step`; caches of another shape are stepped eagerly (see `remark`).

    Args:
        model: the same model in torch, for what a file does not hold.
        sha256: hash of its weights.
        provider: a key of PROVIDERS; by default that of the model's device.

    Raises:
        EngineError: onnxruntime or the provider is missing, or the file is none of ours, broken,
            or made from other weights or for another shape.
    """

    def __init__(
        self,
        file: str | Path,
        model: OmniStream,
        sha256: str,
        shape: StepShape,
        *,
        provider: str | None = None,
    ) -> None:
        self.remark = ""
        self.model = model
        self._shape = shape
        self._device = model.backbone.device
        provider = provider or self._device.type
        self._eager = TorchEngine(model)
        self._inputs = StepInputs(model, shape)
        self._graph = StepGraph(model, shape)
        self._session, self._run_options = _open(Path(file), provider, self._device)
        StepFacts.from_metadata(
            self._session.get_modelmeta().custom_metadata_map, str(file)
        ).check_equal(facts_of(model, sha256, shape), str(file))
        self.name = f"onnx ({provider})"
        self._sizes = {out.name: tuple(out.shape) for out in self._session.get_outputs()}
        self._types = {
            out.name: torch.float16 if "float16" in out.type else torch.float32
            for out in self._session.get_outputs()
        }
        self._has_heads = any(name in self._sizes for name in (*DEPTH_OUTPUTS, *CAMERA_OUTPUTS))
        # TensorRT may read an input after it has begun to write an output.
        self._in_place = provider != "tensorrt"

    def allocate_cache(self, height: int, width: int, policy: Policy) -> KVCache:
        cache = self._eager.allocate_cache(height, width, policy)
        self.remark = ""
        if not self._inputs.fits(cache):
            self.remark = (
                f"the ONNX file is made for {self._shape}; this stream has another size or memory "
                "and runs eagerly"
            )
        return cache

    @torch.no_grad()
    def step(
        self,
        pixels: Tensor,
        cache: KVCache,
        *,
        depth: bool,
        camera: bool,
        lap: Callable[[str], None] = lambda stage: None,
    ) -> Prediction:
        if not self._inputs.fits(cache):
            return self._eager.step(pixels, cache, depth=depth, camera=camera, lap=lap)
        inputs = self._inputs.begin(cache)
        wanted = [name for name in self._sizes if name.startswith(("hidden.", "pyramid."))]
        wanted += ["normed", *(DEPTH_OUTPUTS if depth else ()), *(CAMERA_OUTPUTS if camera else ())]
        out = self._run({"pixels": pixels, **inputs._asdict()}, cache, wanted)
        hidden = [out[f"hidden.{layer}"] for layer in range(self.model.config.depth)]
        pyramid = {
            int(name.partition(".")[2]): tensor
            for name, tensor in out.items()
            if name.startswith("pyramid.")
        }
        features = self._graph.output(hidden, out["normed"], pyramid)
        self._inputs.end(cache, features)
        if not self._has_heads:
            lap("backbone")
            prediction = self.model.predict(features, depth=depth, rays=False, camera=camera)
            lap("heads")
            return prediction
        prediction = Prediction(features)
        prediction.depth, prediction.depth_confidence = (out.get(name) for name in DEPTH_OUTPUTS)
        if camera and CAMERA_OUTPUTS[0] in out:
            prediction.camera = CameraPrediction(**{name: out[name] for name in CAMERA_OUTPUTS})
        lap("model")
        return prediction

    def _run(
        self, inputs: dict[str, Tensor], cache: KVCache, wanted: list[str]
    ) -> dict[str, Tensor]:
        binding = self._session.io_binding()
        # Bound by address: each tensor must live, as it is, until the run.
        inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
        for name, tensor in inputs.items():
            self._bind(binding.bind_input, name, tensor)
        storage = tensors_of(cache)
        written = []
        for what, stored in (("keys", storage.keys), ("values", storage.values)):
            for layer, tensor in enumerate(flat(stored)):
                self._bind(binding.bind_input, f"{what}.{layer}", tensor)
                target = tensor if self._in_place else torch.empty_like(tensor)
                self._bind(binding.bind_output, f"{what}.{layer}.out", target)
                written.append((tensor, target))
        outputs = {
            name: torch.empty(self._sizes[name], dtype=self._types[name], device=self._device)
            for name in wanted
            if name in self._sizes
        }
        for name, tensor in outputs.items():
            self._bind(binding.bind_output, name, tensor)
        self._session.run_with_iobinding(binding, self._run_options)
        if not self._in_place:
            for tensor, target in written:
                tensor.copy_(target)
        return outputs

    def _bind(self, bind: Callable[..., None], name: str, tensor: Tensor) -> None:
        device, index = self._device.type, self._device.index or 0
        bind(name, device, index, _NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())


def _open(file: Path, provider: str, device: torch.device) -> tuple[Any, Any]:
    """An inference session and how it is run; EngineError if there cannot be one."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"the engine needs the Python package {error.name!r}: pip install onnxruntime "
            "(onnxruntime-gpu for a GPU)"
        ) from error
    if (
        provider not in PROVIDERS
        or PROVIDERS[provider] not in onnxruntime.get_available_providers()
    ):
        there = ", ".join(onnxruntime.get_available_providers())
        raise EngineError(
            f"this onnxruntime {onnxruntime.__version__} has no provider for {provider!r} "
            f"(it has {there}); install onnxruntime-gpu, or run on the CPU"
        )
    if not file.is_file():
        raise EngineError(f"{file}: no such file; `omnistream export` writes it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    settings: dict[str, Any] = {}
    if device.type == "cuda":
        settings = {
            "device_id": device.index or 0,
            # On torch's own stream, so that the order of work needs no waiting.
            "user_compute_stream": str(torch.cuda.current_stream(device).cuda_stream),
        }
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=[(PROVIDERS[provider], settings)]
        )
    except Exception as error:  # onnxruntime's own classes have no common parent of theirs
        raise EngineError(f"{file}: onnxruntime cannot read it ({one_line(error)})") from error
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise EngineError(f"onnxruntime could not start {PROVIDERS[provider]} on this machine")
    run_options = onnxruntime.RunOptions()
    # On a GPU the host does not wait.
    run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return session, run_options
