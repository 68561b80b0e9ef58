# SPDX-License-Identifier: Apache-2.0
"""Child processes that never outlive their purpose: watched through their log, ended in order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_POLL_S = 0.05
#: What a process gets to end in order, then to end at all.
_PATIENCE_S = ((signal.SIGINT, 15.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0))


class ChildError(RuntimeError):
    """A child process failed or did not do its part in time; the message has the end of its log."""


class ChildProcess:
    """One process in a session of its own, so that Ctrl-C reaches it only through its parent.

    Everything that it prints goes to a log file, which is also where its sentinels are looked for.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )

    @property
    def returncode(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """Everything printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def json_line(self, key: str) -> dict[str, Any] | None:
        """The first line printed that is a JSON object with this key."""
        for line in self.output().splitlines():
            if line.startswith("{"):
                with contextlib.suppress(json.JSONDecodeError):
                    found = json.loads(line)
                    if key in found:
                        return found
        return None

    def failure(self, what: str) -> ChildError:
        """An error about this process that shows the end of its log."""
        tail = "\n".join(self.output().splitlines()[-15:])
        return ChildError(f"{self.name} {what}; the end of {self.log}:\n{tail or '(empty)'}")

    def stop(self) -> None:
        """End it: first politely, in the end by force, with everything that it started."""
        for number, patience_s in _PATIENCE_S:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            try:
                self._process.wait(timeout=patience_s)
                return
            except subprocess.TimeoutExpired:
                continue


def wait_until(condition: Any, timeout_s: float, watched: Sequence[ChildProcess], what: str) -> Any:
    """Wait for a condition to give something true, and return that.

    Args:
        condition: called again and again.
        watched: processes that must stay alive meanwhile; the first is the one waited for.

    Raises:
        ChildError: too late, or a watched process ended.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        for child in watched:
            if child.returncode is not None:
                raise child.failure(f"ended with status {child.returncode} before {what}")
        if time.monotonic() > deadline:
            raise watched[0].failure(f"took more than {timeout_s:.0f} s: {what}")
        time.sleep(_POLL_S)


@contextlib.contextmanager
def children() -> Iterator[list[ChildProcess]]:
    """A list of processes that are ended when the block is left, however it is left.

    SIGTERM to this process counts as Ctrl-C meanwhile (in the main thread, where Python lets it).
    """
    started: list[ChildProcess] = []
    in_main = threading.current_thread() is threading.main_thread()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt) if in_main else None
    try:
        yield started
    finally:
        try:
            for child in reversed(started):
                child.stop()
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, before)
