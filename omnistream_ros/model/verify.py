# SPDX-License-Identifier: Apache-2.0
"""Self-check of a model: what it computes today against outputs stored beside its weights.

`DIR/expected.safetensors` holds inputs and outputs. Inputs are `pixel_values` (B, T, 3, H, W) and
`aspect_ratio` (B,). Outputs are named `case.output`, where the case says what is put in:

    camera     the camera token
    camera_ar  the camera token, told the aspect ratio
    plain      neither

and the output is one of

    hidden_states      (L, B, T, N, D)  raw output of every block
    last_hidden_state  (B, T, P, D)     patches after the final norm
    pooler_output      (B, T, D)        CLS after the final norm
    camera_token       (B, T, D)        CAMERA after the final norm

and, of a model with heads, `log_depth`, `log_depth_confidence`, `rays`, `log_ray_confidence`,
`translation`, `quaternion`, `fov` as in `Prediction`; logarithms, so that an absolute difference
means the same near and far. Any subset will do: what is stored is checked, as a clip and by steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from omnistream_ros.model.checkpoint import (
    ModelError,
    load_model,
    read_tensors,
    save_model,
    write_tensors,
)
from omnistream_ros.model.network import OmniStream, Prediction

EXPECTED = "expected.safetensors"
TOLERANCE = 1e-5
# case -> camera token, told the aspect ratio
CASES = {"camera": (True, False), "camera_ar": (True, True), "plain": (False, False)}


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference of one stored output, computed in both ways."""

    name: str
    scale: float  # largest absolute value that was stored
    clip: float
    steps: float

    def within(self, tolerance: float) -> bool:
        """Both below the tolerance; a NaN is not."""
        return self.clip < tolerance and self.steps < tolerance


def verify(folder: str | Path, *, device: torch.device | str = "cpu") -> list[Difference]:
    """Load the model in `folder` and compare it with `folder/expected.safetensors`.

    Raises:
        ModelError: the model or the file of expectations is missing or broken, or the file holds
            an output that this model does not have.
    """
    folder = Path(folder)
    file = folder / EXPECTED
    model, _ = load_model(folder, device=device)
    if not file.is_file():
        raise ModelError(f"{file}: nothing to compare with; `omnistream verify --make` writes it")
    stored, _ = read_tensors(file)
    try:
        pixels = stored.pop("pixel_values").to(device)
    except KeyError:
        raise ModelError(f"{file}: pixel_values is missing") from None
    aspect_ratio = stored.pop("aspect_ratio", None)
    if not stored:
        raise ModelError(f"{file}: inputs, but no outputs to compare with")

    differences = []
    for case in CASES:
        wanted = {name: t for name, t in stored.items() if name.startswith(f"{case}.")}
        if not wanted:
            continue
        if CASES[case][1] and aspect_ratio is None:
            raise ModelError(f"{file}: case {case} needs aspect_ratio, which is missing")
        try:
            clip = run_clip(model, pixels, aspect_ratio, case)
            steps = run_steps(model, pixels, aspect_ratio, case)
        except ValueError as error:  # of the inputs' shape
            raise ModelError(f"{file}: pixel_values: {error}") from error
        for name, expected in wanted.items():
            del stored[name]
            if name not in clip or clip[name].shape != expected.shape:
                has = tuple(clip[name].shape) if name in clip else "no such output"
                raise ModelError(f"{file}: {name} {tuple(expected.shape)}; the model has {has}")
            differences.append(
                Difference(
                    name=name,
                    scale=float(expected.abs().max()),
                    clip=float((clip[name] - expected).abs().max()),
                    steps=float((steps[name] - expected).abs().max()),
                )
            )
    if stored:
        raise ModelError(f"{file}: unknown tensor {min(stored)}")
    return differences


def table(differences: list[Difference], tolerance: float) -> str:
    """Differences as text, one line each, with the verdict."""
    lines = [f"{'output':28} {'largest':>9} {'clip':>9} {'steps':>9}"]
    for d in differences:
        verdict = "ok" if d.within(tolerance) else f"not below {tolerance:g}"
        lines.append(f"{d.name:28} {d.scale:9.3g} {d.clip:9.1e} {d.steps:9.1e}  {verdict}")
    return "\n".join(lines)


def make_expected(
    folder: str | Path,
    model: str | Path | None = None,
    *,
    frames: int = 6,
    height: int = 64,
    width: int = 96,
) -> Path:
    """Write `folder/expected.safetensors` from what the model in `folder` computes as a clip.

    Args:
        model: name, file or folder of a model that is first stored in `folder` as our own file;
            None: `folder` holds a model already.

    Raises:
        ModelError: no model there, or a folder that cannot be written.
    """
    folder = Path(folder)
    if model is not None:
        loaded, card = load_model(model)
        folder.mkdir(parents=True, exist_ok=True)
        save_model(folder / "model.safetensors", loaded, card)
    loaded, _ = load_model(folder)
    generator = torch.Generator().manual_seed(0)
    # Noise in patches of 4x4 pixels, so that trunks and convolutions have something to see.
    pixels = torch.randn(2, frames, 3, height // 4, width // 4, generator=generator)
    pixels = pixels.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)
    aspect_ratio = torch.tensor([height / width, 1.4])
    tensors = {"pixel_values": pixels, "aspect_ratio": aspect_ratio}
    for case in CASES:
        tensors |= run_clip(loaded, pixels, aspect_ratio, case)
    write_tensors(folder / EXPECTED, tensors)
    return folder / EXPECTED


@torch.no_grad()
def run_clip(
    model: OmniStream, pixels: Tensor, aspect_ratio: Tensor | None, case: str
) -> dict[str, Tensor]:
    """All outputs of one case, computed at once; on the CPU, named as in the file."""
    camera_token, told = CASES[case]
    features = model.backbone.forward_clip(
        pixels, aspect_ratio if told else None, camera_token=camera_token
    )
    return _name_outputs(case, model.predict(features))


@torch.no_grad()
def run_steps(
    model: OmniStream, pixels: Tensor, aspect_ratio: Tensor | None, case: str
) -> dict[str, Tensor]:
    """The same, frame by frame through a cache that keeps them all."""
    camera_token, told = CASES[case]
    batch, frames, _, height, width = pixels.shape
    cache = model.backbone.allocate_cache(
        height, width, window=frames, batch=batch, camera_token=camera_token
    )
    steps = []
    for t in range(frames):
        features = model.backbone.step(pixels[:, t], cache, aspect_ratio if told else None)
        steps.append(_name_outputs(case, model.predict(features)))
    return {
        name: torch.stack(
            [step[name] for step in steps], dim=2 if name.endswith(".hidden_states") else 1
        )
        for name in steps[0]
    }


def _name_outputs(case: str, prediction: Prediction) -> dict[str, Tensor]:
    features = prediction.features
    outputs: dict[str, Tensor | None] = {
        "hidden_states": torch.stack(features.hidden),
        "last_hidden_state": features.patches,
        "pooler_output": features.cls,
        "camera_token": features.camera,
        "rays": prediction.rays,
    }
    for name in ("depth", "depth_confidence", "ray_confidence"):
        value = getattr(prediction, name)
        outputs[f"log_{name}"] = None if value is None else value.log()
    if prediction.camera is not None:
        for name in ("translation", "quaternion", "fov"):
            outputs[name] = getattr(prediction.camera, name)
    return {
        f"{case}.{name}": value.float().cpu()
        for name, value in outputs.items()
        if value is not None
    }
