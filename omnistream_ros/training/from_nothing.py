# SPDX-License-Identifier: Apache-2.0
"""`omnistream train` as a whole: from nothing to weights that a robot can use, in one command.

Clips that are missing are rendered, the network is trained, and weights without a matching head,
which the geometric pose needs, are given one. Each part goes on where it was stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from omnistream_ros.model import ModelConfig, load_model
from omnistream_ros.training.clips import fill
from omnistream_ros.training.train import train
from omnistream_ros.training.train_matching import MatchingSettings, network_of, train_matching
from omnistream_ros.training.train_settings import TrainSettings

_TRUNK = "efficientnet_lite0"  # whose features matching reads


def train_from_nothing(
    config: ModelConfig | str,
    settings: TrainSettings,
    seeds: tuple[int, int] | None = None,
    *,
    pictures: bool = True,
    matching_steps: int = 800,
    report: Callable[[str], None] = print,
) -> None:
    """Render the clips of these seeds (first, last excluded), train, and train matching.

    Args:
        seeds: None renders nothing; settings.clips has clips.
        pictures: hang the pictures of this machine in the rooms.
        matching_steps: of the matching head, where settings.output lacks one.

    Raises:
        ValueError: to be rendered by a team, whose processes would wait for the first.
        AssetError, RenderError, ClipError, StateError, RunFolderError: see the parts.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if seeds is not None:
        if size > 1:
            raise ValueError(
                "one process renders; the others of the team would wait for it: render first, with "
                f"omnistream render --clips {seeds[0]}:{seeds[1]} --out {settings.clips}"
            )
        fill(settings.clips, *seeds, pictures)
    finished = train(config, settings)
    if not finished or settings.output is None or os.environ.get("RANK", "0") != "0":
        return
    if not settings.output.exists():
        return
    model = load_model(settings.output)[0]
    if model.matching_head is None and model.config.patch_embed == _TRUNK:
        report(f"{settings.output} has no matching head for the geometric pose: training one")
        # A training that goes on to other weights needs another head for them.
        folder = settings.run / f"matching-{network_of(model)[:12]}"
        matching = MatchingSettings(settings.clips, folder, steps=matching_steps)
        train_matching(settings.output, settings.output, matching, report=report)
