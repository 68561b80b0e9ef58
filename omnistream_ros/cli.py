# SPDX-License-Identifier: Apache-2.0
"""`omnistream <command>`: argument parsing, and nothing else.

A command is two functions here: one that declares its arguments and one that runs it. What a
command needs is imported when it runs, so that help is quick and a missing optional package only
matters to the commands that use it.

Exit status: 0 done, 1 the command ran and its answer is no (`verify`), 2 wrong arguments or input,
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors that the user can mend become one line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader (`| head`) has gone. Nothing is left to be flushed at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if options.traceback or not _explains_itself(error):
            raise
        print(f"omnistream {options.command}: {_one_line(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="omnistream",
        description="Streaming depth, camera pose and features from camera images.",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the code an error was found"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for declare in (_declare_info, _declare_play, _declare_record):
        declare(commands)
    return parser


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], summary: str
) -> argparse.ArgumentParser:
    """A command `name` that calls `run`; returns its parser, for its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    command.set_defaults(run=run)
    return command


def _explains_itself(error: Exception) -> bool:
    """Whether the message was written for the user: an error of this package, or of the system."""
    if isinstance(error, ModuleNotFoundError):
        return not (error.name or "").startswith(__package__)
    if isinstance(error, OSError) or type(error).__module__.startswith(f"{__package__}."):
        return True
    # A plain ValueError is a validation when our code raised it, and a bug when numpy did.
    frames = traceback.walk_tb(error.__traceback__)
    *_, module = (frame.f_globals.get("__name__", "") for frame, _ in frames)
    return type(error) is ValueError and module.startswith(f"{__package__}.")


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"this command needs the Python package {error.name!r}, which is not installed"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


# --- info ---------------------------------------------------------------------------------------


def _declare_info(commands: Any) -> None:
    command = _add(commands, "info", _run_info, "say what a model is, and how accurate")
    command.add_argument(
        "model",
        nargs="?",
        default="omnistream-nano",
        help="a name, a .safetensors file or a checkpoint folder (default: %(default)s)",
    )


def _run_info(options: argparse.Namespace) -> None:
    from omnistream_ros.model import load_model

    model, card = load_model(options.model)
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    scale = "metric" if config.metric else "up to scale"
    heads = [name for name in ("depth", "camera") if getattr(model, f"{name}_head") is not None]
    rows = {
        "model": card.name,
        "licence": card.licence,
        "weights": f"sha256 {card.sha256}, stored as {card.storage_dtype}",
        "parameters": f"{parameters:,}",
        "network": f"{config.depth} blocks of width {config.width}, {config.patch_embed} embedding",
        "heads": f"{', '.join(heads)}; depth is {scale}" if heads else "none (backbone only)",
        **{f"trained: {key}": value for key, value in card.training.items()},
        **{f"accuracy: {key}": value for key, value in card.accuracy.items()},
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")


# --- play and record ----------------------------------------------------------------------------


def _declare_play(commands: Any) -> None:
    command = _add(commands, "play", _run_play, "publish a recording as a camera would")
    command.add_argument("recording", help="a rosbag2, a data set folder or a video file")
    command.add_argument("--speed", type=float, default=1.0, help="2 plays twice as fast")
    command.add_argument(
        "--frame-id",
        default="camera_optical_frame",
        help="frame of the images (default: %(default)s)",
    )
    command.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for a subscriber (default: %(default)g)",
    )
    _add_ros_args(command)


def _run_play(options: argparse.Namespace) -> int:
    from omnistream_ros.evaluation.recordings import open_recording
    from omnistream_ros.nodes.player import play

    recording = open_recording(options.recording)
    report = play(
        recording.frames(),
        frame_id=options.frame_id,
        speed=options.speed,
        wait_s=options.wait,
        ros_args=["--ros-args", *options.ros_args],
    )
    return 0 if report.complete else 128 + signal.SIGINT


def _declare_record(commands: Any) -> None:
    command = _add(commands, "record", _run_record, "record topics into a rosbag2")
    command.add_argument("bag", help="folder to make")
    command.add_argument("topics", nargs="+", metavar="TOPIC")
    _add_ros_args(command)


def _run_record(options: argparse.Namespace) -> int:
    from omnistream_ros.nodes.recorder import record

    return record(Path(options.bag), options.topics, ["--ros-args", *options.ros_args])


def _add_ros_args(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--ros-args",
        nargs=argparse.REMAINDER,
        default=[],
        help="the rest goes to ROS, such as `-r image:=/camera/image_raw`",
    )


if __name__ == "__main__":
    sys.exit(main())
