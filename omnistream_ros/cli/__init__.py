# SPDX-License-Identifier: Apache-2.0
"""`omnistream <command>`: argument parsing, and nothing else.

A command is two functions in a module beside this one: one that declares its arguments and one that
runs it; the module's `declare` calls the first. What a command needs is imported when it runs, so
that help is quick and a missing package only matters to the commands that use it.

Exit status: 0 done, 1 the command ran and its answer is no (`verify`), 2 wrong arguments or input,
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from omnistream_ros.cli import (
    evaluation_commands,
    model_commands,
    policy_commands,
    probe_commands,
    recording_commands,
    training_commands,
)

PROJECT = "omnistream_ros"


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
    for module in (
        model_commands,
        recording_commands,
        evaluation_commands,
        training_commands,
        probe_commands,
        policy_commands,
    ):
        module.declare(commands)
    return parser


def _explains_itself(error: Exception) -> bool:
    """Whether the message was written for the user: an error of this package, or of the system."""
    if isinstance(error, ModuleNotFoundError):
        return not (error.name or "").startswith(PROJECT)
    if isinstance(error, OSError) or type(error).__module__.startswith(f"{PROJECT}."):
        return True
    # A plain ValueError is a validation when our code raised it, and a bug when numpy did.
    frames = traceback.walk_tb(error.__traceback__)
    *_, module = (frame.f_globals.get("__name__", "") for frame, _ in frames)
    return type(error) is ValueError and module.startswith(f"{PROJECT}.")


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"this command needs the Python package {error.name!r}, which is not installed"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
