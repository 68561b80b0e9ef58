# SPDX-License-Identifier: Apache-2.0
"""Commands that measure, and one that looks: `evaluate`, `compare`, `label`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omnistream_ros.cli.arguments import add_command, add_selection, count, selection


def declare(commands: Any) -> None:
    _declare_evaluate(commands)
    _declare_compare(commands)
    _declare_label(commands)


def _declare_evaluate(commands: Any) -> None:
    command = add_command(
        commands,
        "evaluate",
        _run_evaluate,
        "measure depth and pose on recordings with ground truth",
    )
    command.add_argument("recordings", nargs="+", type=Path, metavar="RECORDING")
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the report"
    )
    command.add_argument("--model", default="omnistream-nano", help="name or file of the model")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda")
    command.add_argument("--sink", type=int, default=1, help="first frames that stay visible")
    command.add_argument("--window", type=int, default=16, help="recent frames that stay visible")
    command.add_argument(
        "--memory",
        choices=("window", "full", "window+memory"),
        default="window",
        help="what the stream remembers: the most recent frames, all of them, or the recent ones "
        "and keyframes in reduced resolution (default: %(default)s)",
    )
    command.add_argument(
        "--keyframes", type=int, default=16, help="that window+memory keeps (default: %(default)s)"
    )
    command.add_argument(
        "--keyframe-cell",
        type=int,
        default=2,
        help="patches along a square of which a keyframe keeps one (default: %(default)s)",
    )
    command.add_argument(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="score depth (.npy, 16-bit .png) and trajectory.tum of this folder instead of a model",
    )
    command.add_argument(
        "--png-scale", type=float, default=1000.0, help="steps to a metre of .png predictions"
    )
    command.add_argument("--frames", metavar="START:STOP:STEP", help="only these frames")
    command.add_argument(
        "--protocol", help="sintel, bonn, kitti, tum-dynamics or scannet: frames, limits, sequences"
    )
    command.add_argument(
        "--per-frame", action="store_true", help="align the depth of every frame by itself"
    )
    command.add_argument(
        "--live", action="store_true", help="also play every recording to a real node"
    )
    command.add_argument(
        "--jobs", type=int, default=1, help="recordings evaluated at the same time"
    )
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="spread them over this Ray cluster (`local`: a new one here)",
    )
    command.add_argument(
        "--threads", type=int, default=1, help="CPU threads of the model in each process"
    )
    add_selection(command)


def _run_evaluate(options: argparse.Namespace) -> int:
    from omnistream_ros.evaluation.evaluate import Options
    from omnistream_ros.evaluation.evaluate_command import run
    from omnistream_ros.evaluation.protocols import FrameRange

    wishes = Options(
        model=options.model,
        device=options.device,
        sink=options.sink,
        window=options.window,
        memory=options.memory,
        keyframes=options.keyframes,
        keyframe_cell=options.keyframe_cell,
        predictions=options.predictions,
        predictions_per_metre=options.png_scale,
        threads=options.threads,
        selection=selection(options),
        frames=FrameRange.parse(options.frames) if options.frames else None,
        protocol=options.protocol,
        per_frame=options.per_frame,
    )
    good = run(
        options.recordings,
        wishes,
        options.out,
        jobs=options.jobs,
        ray=options.ray,
        live=options.live,
    )
    return 0 if good else 1


def _declare_compare(commands: Any) -> None:
    command = add_command(commands, "compare", _run_compare, "set two evaluations side by side")
    command.add_argument("first", type=Path, metavar="A", help="folder of an evaluation")
    command.add_argument("second", type=Path, metavar="B", help="folder of another")


def _run_compare(options: argparse.Namespace) -> None:
    from omnistream_ros.evaluation.compare import compare

    print(compare(options.first, options.second))


def _declare_label(commands: Any) -> None:
    command = add_command(
        commands, "label", _run_label, "a picture of a recording, labelled in words of your own"
    )
    command.add_argument("recording", type=Path, metavar="RECORDING")
    command.add_argument(
        "--words",
        nargs="+",
        required=True,
        metavar="WORD",
        help="two or more, such as: chair 'potted plant' floor wall",
    )
    command.add_argument("--out", type=Path, required=True, metavar="PICTURE", help="a .png file")
    command.add_argument("--frames", type=count, default=6, help="shown (default: %(default)s)")
    command.add_argument("--model", default="omnistream-nano", help="name or file of the model")


def _run_label(options: argparse.Namespace) -> None:
    from omnistream_ros.evaluation.label_picture import label_recording

    shares = label_recording(
        options.recording,
        options.words,
        options.out,
        model=options.model,
        count=options.frames,
    )
    for word, share in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"{word:<24} {100 * share:5.1f} % of the patches")
    print(f"picture: {options.out}")
