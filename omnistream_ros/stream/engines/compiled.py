# SPDX-License-Identifier: Apache-2.0
"""The step compiled by torch: one graph for the backbone, one for the depth head if it is wanted.

They are compiled when the engine is made, for one shape; no frame number, slot or time is part of
a graph, so nothing is compiled again however long a stream runs. Slots that are still empty are
masked; the mask costs nothing that could be measured on a CPU. On CUDA the graphs are recorded and
replayed as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omnistream_ros.model import KVCache, OmniStream, Prediction
from omnistream_ros.model.cache_policy import Policy
from omnistream_ros.stream.engines.engine import EngineError, StepShape, TorchEngine, one_line
from omnistream_ros.stream.engines.step_graph import (
    FlatMemory,
    GraphInputs,
    StepGraph,
    StepInputs,
    flat,
    tensors_of,
)


class CompiledEngine:
    """Compiled for one shape; caches of another shape are stepped eagerly, and `remark` says so.

    Raises:
        EngineError: torch cannot compile here, with its reason.
    """

    name = "compiled"

    def __init__(self, model: OmniStream, shape: StepShape) -> None:
        self.remark = ""
        self.model = model
        self._shape = shape
        self._eager = TorchEngine(model)
        self._inputs = StepInputs(model, shape)
        self._graph = StepGraph(model, shape)
        self._cuda_graphs = model.backbone.device.type == "cuda"
        try:
            self._backbone = self._compile(self._run_backbone)
            self._depth = self._compile(self._run_depth)
            self._warm_up()
        except Exception as error:  # whatever a compiler, its parts or its processes may raise
            raise EngineError(f"torch cannot compile the step here: {one_line(error)}") from error

    def allocate_cache(self, height: int, width: int, policy: Policy) -> KVCache:
        cache = self._eager.allocate_cache(height, width, policy)
        self.remark = ""
        if not self._inputs.fits(cache):
            self.remark = (
                f"compiled for {self._shape}; this stream has another size or memory and "
                "runs eagerly"
            )
        elif self._cuda_graphs:
            # A CUDA graph reads and writes fixed addresses, which a cache never changes.
            storage = tensors_of(cache)
            for tensor in (storage.keys, storage.values):
                torch._dynamo.mark_static_address(tensor)
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
        if self._cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        inputs, storage = self._inputs.begin(cache), tensors_of(cache)
        features = self._own(self._backbone(pixels, inputs, storage.keys, storage.values))
        output = self._graph.output(*features)
        self._inputs.end(cache, output)
        lap("backbone")
        prediction = self.model.predict(output, depth=False, rays=False, camera=camera)
        if depth and self.model.depth_head is not None:
            maps = self._own(self._depth(output.hidden, output.pyramid))
            prediction.depth, prediction.depth_confidence = maps
        lap("heads")
        return prediction

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        mode = "reduce-overhead" if self._cuda_graphs else "default"
        return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)

    # The two functions that are compiled.

    def _run_backbone(
        self, pixels: Tensor, inputs: GraphInputs, keys: Tensor, values: Tensor
    ) -> tuple[list[Tensor], Tensor, dict[int, Tensor]]:
        memory = FlatMemory(flat(keys), flat(values), inputs.rows, inputs.bias, in_place=True)
        return self._graph(pixels, inputs, memory)

    def _run_depth(self, hidden: list[Tensor], pyramid: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        assert self.model.depth_head is not None
        output = self._graph.output(hidden, hidden[-1], pyramid)  # the head takes its own norm
        dense = self.model.depth_head(output, depth=True, rays=False)
        return dense.depth, dense.depth_confidence

    def _own(self, outputs: Any) -> Any:
        """Outputs of a CUDA graph lie where the next replay writes: copies do not."""
        if not self._cuda_graphs:
            return outputs
        return torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, outputs)

    def _warm_up(self) -> None:
        """Compile everything now; a robot must not wait for a compiler later."""
        shape, backbone = self._shape, self.model.backbone
        cache = self.allocate_cache(shape.height, shape.width, shape.policy)
        pixels = torch.zeros(
            1, 3, shape.height, shape.width, device=backbone.device, dtype=backbone.compute_dtype
        )
        with torch.no_grad():
            inputs, storage = self._inputs.begin(cache), tensors_of(cache)
            # A CUDA graph warms up at the first call and is recorded at the second.
            for _ in range(3 if self._cuda_graphs else 1):
                torch.compiler.cudagraph_mark_step_begin()
                features = self._backbone(pixels, inputs, storage.keys, storage.values)
                if self.model.depth_head is not None:
                    hidden, _, pyramid = self._own(features)
                    self._depth(hidden, pyramid)
