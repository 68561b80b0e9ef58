# SPDX-License-Identifier: Apache-2.0
"""Features of a frozen backbone on disk: computed once, read as often as heads are trained.

One file per clip, streamed through the cache as the node does it, so that heads learn from what
they will get. A file exists when it is complete; computing goes on where it was interrupted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omnistream_ros.model import BackboneOutput, OmniStream
from omnistream_ros.training.clip_files import Clip
from omnistream_ros.training.data import Batch, collate
from omnistream_ros.training.state import write_atomically

_INDEX = "features.json"
_LARGEST = 6e4  # float16 ends at 65504


class FeatureError(ValueError):
    """Features that cannot be made, stored or used; the message says what to do."""


@dataclass(frozen=True)
class StoredClip:
    """One file of features: its frames, whether their poses are known, and what it is kept for."""

    path: Path
    frames: int
    size: tuple[int, int]  # of the image, height and width
    posed: bool
    held_out: bool
    source: str


class FeatureStore:
    """A folder of features of one backbone at one setting.

    Args:
        spec: what the features depend on (checksum of the backbone, window, ...), plain JSON.

    Raises:
        FeatureError: the folder holds features of another spec.
    """

    def __init__(self, folder: Path, spec: dict[str, object]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        index = folder / _INDEX
        if index.exists():
            try:
                known = json.loads(index.read_text())
            except ValueError:
                known = None
            if known != spec:
                different = sorted(k for k in spec if not known or known.get(k) != spec[k])
                raise FeatureError(
                    f"{folder} holds features of another setting ({', '.join(different)}): remove "
                    "the folder, or use another --run"
                )
            return
        partial = index.with_suffix(".part")
        partial.write_text(json.dumps(spec, indent=1))
        partial.replace(index)

    def path(self, number: int) -> Path:
        """Where the features of a clip are or will be."""
        return self.folder / f"clip_{number:06d}.safetensors"

    def has(self, number: int) -> bool:
        """Whether the clip is done."""
        return self.path(number).is_file()

    def clips(self) -> list[StoredClip]:
        """All clips that are done; FeatureError names a file that cannot be read."""
        found = []
        for path in sorted(self.folder.glob("clip_*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    metadata = file.metadata() or {}
                    frames, height, width = file.get_slice("depth").get_shape()
            except (OSError, SafetensorError) as error:
                raise FeatureError(f"{path}: not readable ({error}); delete it") from error
            found.append(
                StoredClip(
                    path,
                    frames,
                    (height, width),
                    metadata["posed"] == "true",
                    metadata["held_out"] == "true",
                    metadata["source"],
                )
            )
        return found

    def compute(
        self,
        number: int,
        model: OmniStream,
        clip: Clip,
        *,
        sink: int,
        window: int,
        posed: bool,
        held_out: bool,
        source: str,
    ) -> None:
        """Stream a clip through the frozen model and store what heads read.

        Raises:
            FeatureError: features that are not finite, or beyond float16.
            StateError: the file cannot be written (a full disk).
        """
        tensors = stream_features(model, clip, sink=sink, window=window)
        for name, value in tensors.items():
            if not (value.abs() < _LARGEST).all():  # also refuses NaN
                raise FeatureError(
                    f"{source}: {name} of the backbone reach {float(value.abs().max()):.3g}, "
                    "which float16 cannot store; is it the right checkpoint?"
                )
        batch = collate([clip])
        stored = {name: value.to(torch.float16) for name, value in tensors.items()}
        stored["depth"] = batch.depth[0]  # (T, H, W), NaN unknown
        stored["poses"] = batch.poses[0]  # (T, 4, 4), relative to the first frame
        stored["intrinsics"] = batch.intrinsics[0]
        metadata = {
            "posed": json.dumps(posed),
            "held_out": json.dumps(held_out),
            "source": source,
        }
        write_atomically(self.path(number), stored, metadata)


@torch.no_grad()
def stream_features(model: OmniStream, clip: Clip, *, sink: int, window: int) -> dict[str, Tensor]:
    """What heads read of every frame of a clip, on the CPU in float32.

    tap_N (T, P, D) patch tokens after block N, cls and camera (T, D), pyramid_S (T, C, H/S, W/S).
    """
    backbone = model.backbone
    pixels = collate([clip]).pixels[0]  # (T, 3, H, W)
    cache = backbone.allocate_cache(*pixels.shape[-2:], sink=sink, window=window)
    collected: dict[str, list[Tensor]] = {}
    for image in pixels:
        image = image[None].to(backbone.device, backbone.compute_dtype)
        out = backbone.step(image, cache)
        h, w = out.grid
        values = {f"tap_{tap}": out.hidden[tap][:, -h * w :] for tap in set(model.config.taps)}
        assert out.camera is not None
        values |= {"cls": out.cls, "camera": out.camera}
        values |= {f"pyramid_{stride}": f for stride, f in out.pyramid.items()}
        for name, value in values.items():
            collected.setdefault(name, []).append(value[0].float().cpu())
    return {name: torch.stack(values) for name, values in collected.items()}


def bytes_per_frame(model: OmniStream, height: int, width: int) -> int:
    """Disk that the features and the truth of one frame take."""
    h, w = model.config.grid(height, width)
    taps = len(set(model.config.taps)) * h * w + 2
    total = 2 * taps * model.config.width + 4 * height * width
    if model.config.patch_embed == "efficientnet_lite0":
        total += sum(2 * c * height * width // s**2 for s, c in ((2, 16), (4, 24), (8, 40)))
        total += 2 * 112 * h * w
    return total


def check_space(folder: Path, needed: int) -> None:
    """FeatureError unless the disk has room for that many bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FeatureError(
            f"features will take {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB left: "
            "use fewer or smaller images (--stride, --pixels) or another --run folder"
        )


def read_features(
    choices: Sequence[tuple[StoredClip, NDArray[np.int64]]],
    model: OmniStream,
    device: torch.device | str = "cpu",
) -> tuple[BackboneOutput, Batch]:
    """Frames of stored clips, an equal number of each, as the heads and the losses want them.

    Poses are relative to the first frame of each clip; all leading dimensions are (B, L).

    Raises:
        FeatureError: a file that cannot be read.
    """
    rows: dict[str, list[Tensor]] = {}
    for stored, frames in choices:
        try:
            with safe_open(stored.path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    whole = file.get_slice(name)
                    picked = torch.stack([whole[int(f)] for f in frames])
                    rows.setdefault(name, []).append(picked)
        except (OSError, SafetensorError) as error:
            raise FeatureError(f"{stored.path}: not readable ({error}); delete it") from error
    t = {name: torch.stack(values).to(device).float() for name, values in rows.items()}
    batch = Batch(
        pixels=torch.empty(0),
        depth=t["depth"],
        poses=t["poses"],
        intrinsics=t["intrinsics"],
    )
    H, W = t["depth"].shape[-2:]
    empty = t["cls"][..., None, :][..., :0, :]  # (B, L, 0, D), for blocks that no head reads
    hidden = [t.get(f"tap_{i}", empty) for i in range(model.config.depth)]
    return (
        BackboneOutput(
            hidden=hidden,
            patches=empty,
            cls=t["cls"],
            camera=t["camera"],
            registers=empty,
            grid=model.config.grid(H, W),
            pyramid={
                int(n.removeprefix("pyramid_")): v for n, v in t.items() if n.startswith("pyramid_")
            },
        ),
        batch,
    )
