# SPDX-License-Identifier: Apache-2.0
"""Commands that make models: `render`, `clips`, `train`, `train-*` for its heads, `card`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from omnistream_ros.cli.arguments import add_command, count, licence, positive
from omnistream_ros.training.licences import NOT_STATED
from omnistream_ros.training.loss_terms import GEOMETRIC_TERMS


def declare(commands: Any) -> None:
    _declare_render(commands)
    _declare_clips(commands)
    _declare_train(commands)
    _declare_train_heads(commands)
    _declare_train_matching(commands)
    _declare_train_language(commands)
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
        f"motion {clip.motions[0]}, {len(clip.scene.items)} objects"
    )


def _declare_clips(commands: Any) -> None:
    command = add_command(
        commands, "clips", _run_clips, "cut posed RGB-D recordings into clips for training"
    )
    command.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING")
    command.add_argument("--out", type=Path, required=True, help="folder to write, or to add to")
    command.add_argument(
        "--stride", type=count, default=1, help="every so many frames (default: %(default)s)"
    )
    command.add_argument(
        "--licence",
        type=licence,
        default=NOT_STATED,
        metavar="TEXT",
        help="of the recordings, such as 'CC BY 4.0', for cards of weights (default: %(default)s)",
    )


def _run_clips(options: argparse.Namespace) -> None:
    from omnistream_ros.training.recorded_clips import write_recorded_clips

    written = write_recorded_clips(options.recordings, options.out, options.stride, options.licence)
    print(f"{options.out}: {written} clips")


def _declare_train(commands: Any) -> None:
    command = add_command(
        commands, "train", _run_train, "render clips, train a model on them, resumably"
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
    command.add_argument(
        "--render",
        metavar="FIRST:LAST",
        help="first render the clips of these seeds that are missing",
    )
    command.add_argument(
        "--pictures", action="store_true", help="of --render: hang pictures of this machine"
    )
    command.add_argument("--recorded", type=Path, help="folder of clips of omnistream clips")
    command.add_argument(
        "--recorded-share",
        type=float,
        default=0.35,
        help="of the clips in a step (default: %(default)s)",
    )
    command.add_argument(
        "--start-from",
        type=Path,
        help="weights that a new run begins with",
    )
    command.add_argument(
        "--blocks",
        type=count,
        metavar="N",
        help="of --start-from: deepen the network to so many, from the same function",
    )
    command.add_argument(
        "--coarse-part",
        type=float,
        metavar="SHARE",
        help="first part of the run that sees small images (default: 0.75, from weights 0)",
    )
    command.add_argument(
        "--held-out",
        type=Path,
        nargs="+",
        default=[],
        metavar="RECORDING",
        help="keep the weights that do best here (default: on every fiftieth clip)",
    )
    command.add_argument(
        "--patience",
        type=count,
        metavar="N",
        help="end after N judgements, 300 steps apart, that bring nothing better",
    )
    command.add_argument("--model", default="omnistream-nano", help="default: %(default)s")
    length = command.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="of training time, over all pieces")
    length.add_argument("--steps", type=int)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--learning-rate",
        type=positive,
        default=8e-4,
        help="at its highest; the trunk's is a quarter (default: %(default)s)",
    )
    command.add_argument(
        "--without",
        nargs="+",
        default=[],
        choices=GEOMETRIC_TERMS,
        metavar="TERM",
        help=f"switch terms of the loss off: {', '.join(GEOMETRIC_TERMS)}",
    )
    command.add_argument("--threads", type=int, help="default: one for each core")
    command.add_argument("--bfloat16", action="store_true", help="for machines fast in bfloat16")
    command.add_argument(
        "--no-pretrained", action="store_true", help="start the trunk from random weights"
    )
    command.add_argument(
        "--stream-frames",
        type=int,
        metavar="N",
        help="fine-tune on streams of N frames seen through the cache (see --start-from)",
    )
    command.add_argument(
        "--window", type=int, default=16, help="of that cache (default: %(default)s)"
    )
    for name, summary in (
        ("distillation", "DINO and iBOT against the moving average"),
        ("temporal", "predict the moving average's tokens of what is withheld and of the future"),
        ("feature-teacher", "predict the features of the pretrained trunk"),
        ("language", "captions, classes and names of what is seen"),
        ("step-motion", "pose between neighbouring frames"),
    ):
        command.add_argument(
            f"--{name}", type=float, default=0.0, metavar="WEIGHT", help=f"{summary} (default: off)"
        )


def _run_train(options: argparse.Namespace) -> None:
    import torch

    from omnistream_ros.training.clips import seeds
    from omnistream_ros.training.from_nothing import train_from_nothing
    from omnistream_ros.training.losses import LossWeights
    from omnistream_ros.training.objectives import ObjectiveWeights
    from omnistream_ros.training.train_settings import TrainSettings

    if options.threads:
        torch.set_num_threads(options.threads)
    settings = TrainSettings(
        clips=options.clips,
        run=options.run_folder,
        output=options.output,
        steps=options.steps,
        minutes=options.minutes,
        seed=options.seed,
        recorded=options.recorded,
        recorded_share=options.recorded_share,
        start_from=options.start_from,
        blocks=options.blocks,
        coarse_fraction=options.coarse_part,
        held_out=tuple(options.held_out),
        patience=options.patience,
        pretrained=not options.no_pretrained,
        bfloat16=options.bfloat16,
        stream_frames=options.stream_frames,
        context=(1, options.window),
        learning_rate=options.learning_rate,
        trunk_learning_rate=options.learning_rate / 4,
        weights=replace(
            LossWeights(step_translation=options.step_motion, step_rotation=options.step_motion),
            **dict.fromkeys(options.without, 0.0),
        ),
        objectives=ObjectiveWeights(
            distillation=options.distillation,
            temporal=options.temporal,
            teacher=options.feature_teacher,
            language=options.language,
        ),
    )
    train_from_nothing(
        options.model,
        settings,
        seeds(options.render) if options.render else None,
        pictures=options.pictures,
    )


def _declare_train_heads(commands: Any) -> None:
    command = add_command(
        commands,
        "train-heads",
        _run_train_heads,
        "train depth, ray and camera heads for a backbone that stays as it is, resumably",
    )
    command.add_argument(
        "--backbone",
        required=True,
        help="folder of a released checkpoint, a .safetensors file, or the name of a model",
    )
    command.add_argument(
        "--recordings",
        type=Path,
        nargs="+",
        default=[],
        metavar="RECORDING",
        help="bags, TUM folders, ... with registered depth, calibration and poses",
    )
    command.add_argument(
        "--licence",
        type=licence,
        nargs="+",
        default=[],
        metavar="TEXT",
        help="of the recordings in their order, or one of all (default: not stated)",
    )
    command.add_argument("--clips", type=Path, help="folder of rendered clips, besides or instead")
    command.add_argument(
        "--held-out",
        type=Path,
        nargs="+",
        default=[],
        metavar="RECORDING",
        help="judge on these alone (default: on the last 15 %% of everything)",
    )
    command.add_argument(
        "--run",
        dest="run_folder",
        type=Path,
        required=True,
        help="folder of features, state and curve; the same one again goes on",
    )
    command.add_argument("--output", type=Path, required=True, help="the .safetensors to write")
    command.add_argument("--steps", type=int, default=3000, help="default: %(default)s")
    command.add_argument("--head-width", type=int, default=0, help="channels of the dense head")
    command.add_argument("--pixels", type=int, default=0, help="of the image the model sees")
    command.add_argument("--clip-frames", type=int, default=64, help="default: %(default)s")
    command.add_argument("--stride", type=int, default=1, help="use every n-th frame")
    command.add_argument(
        "--copies", type=int, default=1, help="features of each clip, all but one augmented"
    )
    command.add_argument("--window", type=int, default=16, help="of the cache; as it will run")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    command.add_argument("--bfloat16", action="store_true", help="compute features in bfloat16")
    command.add_argument(
        "--storage", default="", help="float32, float16 or bfloat16 (default: as the backbone)"
    )
    command.add_argument("--threads", type=int, help="default: one for each core")


def _run_train_heads(options: argparse.Namespace) -> None:
    import torch

    from omnistream_ros.training.head_settings import HeadSettings
    from omnistream_ros.training.train_heads import train_heads

    if options.threads:
        torch.set_num_threads(options.threads)
    settings = HeadSettings(
        backbone=options.backbone,
        run=options.run_folder,
        output=options.output,
        recordings=tuple(options.recordings),
        licences=tuple(options.licence),
        clips=options.clips,
        held_out=tuple(options.held_out),
        steps=options.steps,
        head_width=options.head_width,
        pixels=options.pixels,
        clip_frames=options.clip_frames,
        stride=options.stride,
        copies=options.copies,
        window=options.window,
        seed=options.seed,
        device=options.device,
        bfloat16=options.bfloat16,
        storage=options.storage,
    )
    train_heads(settings)


def _declare_train_matching(commands: Any) -> None:
    command = add_command(
        commands,
        "train-matching",
        _run_train_matching,
        "train the matching head (geometric pose) of a model, after every change of its trunk, "
        "resumably",
    )
    command.add_argument("weights", type=Path, help="a .safetensors file")
    command.add_argument("clips", type=Path, help="folder of clips (omnistream render)")
    command.add_argument(
        "--run",
        dest="run_folder",
        type=Path,
        required=True,
        help="folder of the state; the same one again goes on",
    )
    command.add_argument("--output", type=Path, help="default: the weights file itself")
    command.add_argument("--start-from", type=Path, help="weights whose head a new run begins with")
    command.add_argument("--steps", type=int, default=800, help="default: %(default)s")
    command.add_argument("--clip-count", type=int, default=150, help="default: %(default)s")
    command.add_argument("--seed", type=int, default=0)


def _run_train_matching(options: argparse.Namespace) -> None:
    from omnistream_ros.training.train_matching import MatchingSettings, train_matching

    settings = MatchingSettings(
        clips=options.clips,
        run=options.run_folder,
        steps=options.steps,
        clip_count=options.clip_count,
        seed=options.seed,
    )
    output = options.output or options.weights
    train_matching(options.weights, output, settings, start_from=options.start_from)


def _declare_train_language(commands: Any) -> None:
    command = add_command(
        commands,
        "train-language",
        _run_train_language,
        "train the language head (labels in words of your choosing) of a finished model",
    )
    command.add_argument("weights", help="a .safetensors file, or the name of a model")
    command.add_argument("clips", type=Path, help="folder of clips (omnistream render)")
    command.add_argument("--output", type=Path, required=True, help="the .safetensors to write")
    command.add_argument("--steps", type=int, default=1500, help="default: %(default)s")
    command.add_argument("--clip-count", type=int, default=200, help="default: %(default)s")
    command.add_argument("--seed", type=int, default=0)


def _run_train_language(options: argparse.Namespace) -> None:
    from omnistream_ros.training.train_language import LanguageSettings, train_language

    settings = LanguageSettings(
        clips=options.clips,
        steps=options.steps,
        clip_count=options.clip_count,
        seed=options.seed,
    )
    train_language(options.weights, options.output, settings)


def _declare_card(commands: Any) -> None:
    command = add_command(
        commands, "card", _run_card, "measure weights on recordings and say so in their card"
    )
    command.add_argument("weights", type=Path, help="a .safetensors file; its card is rewritten")
    command.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING")


def _run_card(options: argparse.Namespace) -> None:
    from omnistream_ros.training.card import measure_into_card

    measure_into_card(options.weights, options.recordings)
