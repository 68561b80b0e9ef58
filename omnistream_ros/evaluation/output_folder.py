# SPDX-License-Identifier: Apache-2.0
"""A folder of results belongs to one process at a time: two that share it would spoil both."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class OutputFolderError(RuntimeError):
    """The folder is in use; the message says by whom."""


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make ``folder`` and hold it; the system lets go of it however this process ends.

    Raises:
        OutputFolderError: another process writes into it.
        OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OutputFolderError(
                f"{folder} is being written by {file.read().strip() or 'another process'}: wait "
                "for it, or name another folder with --out"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
