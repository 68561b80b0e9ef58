# SPDX-License-Identifier: Apache-2.0
"""A policy in an ONNX file, run by ONNX Runtime; `policy_facts` has what such a file says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime

from omnistream_ros.action.policy import Needs, Observation, PolicyError
from omnistream_ros.action.policy_file import PolicyFileError, open_policy_file

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class OnnxPolicy:
    """See `policy.Policy`.

    Args:
        file: written through `policy_file.write_policy_facts`.
        provider: a key of PROVIDERS; "auto" takes CUDA where it is there.

    Raises:
        PolicyFileError: the file cannot be used, or the provider is not there.
    """

    def __init__(self, file: str | Path, provider: str = "cpu") -> None:
        self._session, facts = open_policy_file(file, _providers(provider))
        self.provider = self._session.get_providers()[0]
        if provider != "auto" and self.provider != PROVIDERS[provider]:
            raise PolicyFileError(
                f"ONNX Runtime could not start {PROVIDERS[provider]} and would use "
                f"{self.provider}: a driver or library is missing here; install it, or choose auto"
            )
        self.name = facts.name
        self.sha256 = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        self.spec = facts.action
        self.facts = facts
        self.needs = Needs(
            features=facts.features,
            model_sha256=facts.model_sha256 if facts.features else "",
            joints=facts.proprioception.names if facts.proprioception else (),
            instruction=facts.instruction is not None,
            embedding=facts.instruction is not None,
        )
        self._run_options = onnxruntime.RunOptions()
        self._run({name: np.zeros(shape, np.float32) for name, shape in facts.inputs.items()})

    def act(self, observation: Observation) -> np.ndarray:
        facts = self.facts
        inputs = {
            feature.input: observation.features[feature.stream, feature.key][None]
            for feature in facts.features
        }
        if facts.proprioception is not None:
            inputs[facts.proprioception.input] = observation.joints[None].astype(np.float32)
        if facts.instruction is not None:
            assert observation.embedding is not None
            inputs[facts.instruction.input] = observation.embedding[None]
        return self._run(inputs)[0]  # (H, n)

    def reset(self) -> None:
        """Nothing is remembered from one call to the next."""

    def cancel(self) -> None:
        self._run_options.terminate = True
        self._run_options = onnxruntime.RunOptions()

    def close(self) -> None:
        del self._session

    def _run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        try:
            (actions,) = self._session.run([self.facts.output], inputs, self._run_options)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PolicyError(f"ONNX Runtime could not run the policy: {reason}") from error
        return actions


def _providers(name: str) -> list[str]:
    """Execution providers in order of preference.

    Raises:
        PolicyFileError: it is not there.
    """
    available = onnxruntime.get_available_providers()
    if name == "auto":
        name = "cuda" if PROVIDERS["cuda"] in available else "cpu"
    if PROVIDERS[name] not in available:
        raise PolicyFileError(
            f"ONNX Runtime here has no {PROVIDERS[name]}, only {', '.join(available)}; "
            "pip install onnxruntime-gpu, or choose cpu"
        )
    order = list(PROVIDERS)
    wanted = [PROVIDERS[slower] for slower in reversed(order[: order.index(name) + 1])]
    return [found for found in wanted if found in available]
