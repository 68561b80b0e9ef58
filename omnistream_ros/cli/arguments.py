# SPDX-License-Identifier: Apache-2.0
"""What commands share: how one is added, and the options that several of them have."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], summary: str
) -> argparse.ArgumentParser:
    """A command `name` that calls `run`; returns its parser, for its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    command.set_defaults(run=run)
    return command


def add_selection(command: argparse.ArgumentParser) -> None:
    """Options that say what a recording's topics are, where that cannot be found by itself."""
    group = command.add_argument_group("recording")
    group.add_argument("--image-topic", metavar="TOPIC", help="images (default: the only ones)")
    group.add_argument("--info-topic", metavar="TOPIC", help="camera_info of the images")
    group.add_argument("--depth-topic", metavar="TOPIC", help="ground-truth depth")
    group.add_argument("--pose-topic", metavar="TOPIC", help="TF, Odometry or PoseStamped")
    group.add_argument("--camera-frame", metavar="FRAME", help="camera in TF (default: images')")
    group.add_argument("--layout", help="kind of recording, where the path does not tell")


def selection(options: argparse.Namespace) -> Any:
    import dataclasses

    from omnistream_ros.evaluation.recordings import Selection

    names = [field.name for field in dataclasses.fields(Selection)]
    return Selection(**{name: getattr(options, name) for name in names})


def add_ros_args(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--ros-args",
        nargs=argparse.REMAINDER,
        default=[],
        help="the rest goes to ROS, such as `-r image:=/camera/image_raw`",
    )


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def positive(text: str) -> float:
    """A positive, finite number, for argparse."""
    number = float(text)
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return number


def licence(text: str) -> str:
    """The name of a licence in one line, for argparse."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a licence, such as 'CC BY 4.0'")
    return " ".join(text.split())
