# SPDX-License-Identifier: Apache-2.0
"""A run folder belongs to one trainer at a time, and a polite end saves what was done."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType


class RunFolderError(RuntimeError):
    """The run folder is in use; the message says by whom."""


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process; the system lets go of it however the process ends.

    Raises:
        RunFolderError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise RunFolderError(
                f"{folder} is in use by another trainer ({holder}): stop that one, or give another "
                "--run folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextlib.contextmanager
def stop_on_signal(stop: Callable[[], None], report: Callable[[str], None]) -> Iterator[None]:
    """Calls `stop` on SIGINT and SIGTERM instead of ending there and then."""

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        report(f"{signal.Signals(number).name}: saving after this step")
        stop()

    previous = {n: signal.signal(n, ask_to_stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
