# SPDX-License-Identifier: Apache-2.0
"""Commands that ask what was learned, and from what: `probe`, `ablate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omnistream_ros.cli.arguments import add_command


def declare(commands: Any) -> None:
    _declare_probe(commands)
    _declare_ablate(commands)


def _declare_probe(commands: Any) -> None:
    command = add_command(
        commands,
        "probe",
        _run_probe,
        "ask frozen features for rooms, classes, motions and moving masks",
    )
    command.add_argument("clips", type=Path, help="folder of clips (omnistream render)")
    command.add_argument("--model", default="omnistream-nano", help="default: %(default)s")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the table")
    command.add_argument("--count", type=int, default=300, help="of clips (default: %(default)s)")
    command.add_argument("--davis", type=Path, help="folder of DAVIS 2017")
    command.add_argument("--page", type=Path, help="a document to put the table into")
    command.add_argument("--threads", type=int, help="default: one for each core")


def _run_probe(options: argparse.Namespace) -> None:
    import torch

    from omnistream_ros.training.probes import table

    if options.threads:
        torch.set_num_threads(options.threads)
    settings = table.ProbeSettings(options.clips, count=options.count, davis=options.davis)
    davis = " --davis DAVIS" if options.davis else ""
    command = f"omnistream probe CLIPS --count {options.count}{davis}"
    table.run(options.model, settings, options.out, command, options.page)


def _declare_ablate(commands: Any) -> None:
    command = add_command(
        commands,
        "ablate",
        _run_ablate,
        "train small models with one loss more or less, and say what it changed; resumably",
    )
    command.add_argument("clips", type=Path, help="folder of clips to train on")
    command.add_argument(
        "--probe-clips", type=Path, required=True, help="clips for the probes, others than those"
    )
    command.add_argument(
        "--run", dest="run_folder", type=Path, required=True, help="the same one again goes on"
    )
    command.add_argument("--steps", type=int, default=600, help="default: %(default)s")
    command.add_argument("--bfloat16", action="store_true", help="for machines fast in bfloat16")
    command.add_argument("--threads", type=int, help="default: one for each core")


def _run_ablate(options: argparse.Namespace) -> None:
    import torch

    from omnistream_ros.training.ablation import AblationSettings, ablate

    if options.threads:
        torch.set_num_threads(options.threads)
    settings = AblationSettings(
        options.clips,
        options.probe_clips,
        options.run_folder,
        steps=options.steps,
        training={"bfloat16": options.bfloat16},
    )
    print(ablate(settings))
