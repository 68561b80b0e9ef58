# SPDX-License-Identifier: Apache-2.0
"""Ways to run a model's step: eager torch, fast on CPUs, compiled torch, ONNX Runtime.

`engine` says what an engine is, `choice` makes, checks and chooses one. All compute the same on the
same cache; another way to run is another class with these three methods, and one line in `choice`.
"""

from omnistream_ros.stream.engines.choice import ENGINES, EngineMaker, cache_folder
from omnistream_ros.stream.engines.engine import Engine, EngineError, StepShape, TorchEngine

__all__ = [
    "ENGINES",
    "Engine",
    "EngineError",
    "EngineMaker",
    "StepShape",
    "TorchEngine",
    "cache_folder",
]
