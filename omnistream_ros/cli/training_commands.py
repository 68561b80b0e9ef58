# SPDX-License-Identifier: Apache-2.0
"""Commands that make models: `render`, `train`, `train-matching`, `card`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omnistream_ros.cli.arguments import add_command


def declare(commands: Any) -> None:
    _declare_render(commands)
    _declare_train(commands)
    _declare_train_matching(commands)
    _declare_card(commands)


def _declare_render(commands: Any) -> None:
    command = add_command(
        commands, "render", _run_render, "render furnished rooms: one recording, or training clips"
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="one recording; the same seed, the same clip")
    what.add_argument(
        "--clips", metavar="FIRST:LAST", help="training clips of these seeds; goes on where it was"
    )
    command.add_argument(
        "--out", type=Path, required=True, help="folder to write; a recording's must not exist"
    )
    command.add_argument("--room", help="kind of room, such as 'living room' (default: random)")
    command.add_argument("--motion", help="kind of camera path, such as tour (default: random)")
    command.add_argument("--seconds", type=float, default=6.0, help="default: %(default)s")
    command.add_argument("--rate", type=float, default=15.0, help="in Hz (default: %(default)s)")
    command.add_argument("--width", type=int, default=480, help="default: %(default)s")
    command.add_argument("--height", type=int, default=360, help="default: %(default)s")
    command.add_argument(
        "--fov", type=float, default=70.0, help="horizontal, in degrees (default: %(default)s)"
    )
    command.add_argument(
        "--pictures", action="store_true", help="hang pictures installed on this machine"
    )


def _run_render(options: argparse.Namespace) -> None:
    if options.clips:
        from omnistream_ros.training.clips import fill, seeds

        fill(options.out, *seeds(options.clips), options.pictures)
        return
    from omnistream_ros.training.clip_recording import ClipSettings, render_recording

    settings = ClipSettings(
        seed=options.seed,
        kind=options.room,
        motion=options.motion,
        seconds=options.seconds,
        rate=options.rate,
        width=options.width,
        height=options.height,
        fov=options.fov,
        pictures=options.pictures,
    )
    clip = render_recording(settings, options.out)
    print(
        f"{options.out}: {len(clip.rgb)} frames of a {clip.scene.room.kind}, "
        f"motion {clip.motion}, {len(clip.scene.items)} objects"
    )


def _declare_train(commands: Any) -> None:
    command = add_command(
        commands, "train", _run_train, "train a model on rendered clips, resumably"
    )
    command.add_argument("clips", type=Path, help="folder of clips (omnistream render)")
    command.add_argument(
        "--run",
        dest="run_folder",
        type=Path,
        required=True,
        help="folder of state, curve and best weights; the same one again goes on",
    )
    command.add_argument("--output", type=Path, help="also keep the best weights in this file")
    command.add_argument("--model", default="omnistream-nano", help="default: %(default)s")
    length = command.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="of training time, over all pieces")
    length.add_argument("--steps", type=int)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--threads", type=int, help="default: one for each core")
    command.add_argument("--bfloat16", action="store_true", help="for machines fast in bfloat16")
    command.add_argument(
        "--no-pretrained", action="store_true", help="start the trunk from random weights"
    )


def _run_train(options: argparse.Namespace) -> None:
    import torch

    from omnistream_ros.training.train import TrainSettings, train

    if options.threads:
        torch.set_num_threads(options.threads)
    settings = TrainSettings(
        clips=options.clips,
        run=options.run_folder,
        output=options.output,
        steps=options.steps,
        minutes=options.minutes,
        seed=options.seed,
        pretrained=not options.no_pretrained,
        bfloat16=options.bfloat16,
    )
    train(options.model, settings)


def _declare_train_matching(commands: Any) -> None:
    command = add_command(
        commands,
        "train-matching",
        _run_train_matching,
        "train the matching head (geometric pose) of a model, after every change of its trunk",
    )
    command.add_argument("weights", type=Path, help="a .safetensors file")
    command.add_argument("clips", type=Path, help="folder of clips (omnistream render)")
    command.add_argument("--output", type=Path, help="default: the weights file itself")
    command.add_argument("--start-from", type=Path, help="weights with a head to go on from")
    command.add_argument("--steps", type=int, default=800, help="default: %(default)s")
    command.add_argument("--clip-count", type=int, default=150, help="default: %(default)s")
    command.add_argument("--seed", type=int, default=0)


def _run_train_matching(options: argparse.Namespace) -> None:
    from omnistream_ros.training.train_matching import MatchingSettings, train_matching

    settings = MatchingSettings(
        clips=options.clips,
        steps=options.steps,
        clip_count=options.clip_count,
        seed=options.seed,
    )
    output = options.output or options.weights
    train_matching(options.weights, output, settings, start_from=options.start_from)


def _declare_card(commands: Any) -> None:
    command = add_command(
        commands, "card", _run_card, "measure weights on recordings and say so in their card"
    )
    command.add_argument("weights", type=Path, help="a .safetensors file; its card is rewritten")
    command.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING")


def _run_card(options: argparse.Namespace) -> None:
    from omnistream_ros.training.card import measure_into_card

    measure_into_card(options.weights, options.recordings)
