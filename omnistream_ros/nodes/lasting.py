# SPDX-License-Identifier: Apache-2.0
"""Faults that may mend themselves: a word about them only once they last."""

from __future__ import annotations

import time
from collections.abc import Callable


class LastingFault:
    """Tells of what is wrong once it has been the same for a while; again when it is another.

    Args:
        tell: takes a sentence for people.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._text = ""
        self._since_s = 0.0
        self._told = False

    def look(self, text: str, patience_s: float) -> None:
        """What is wrong now, empty for nothing; to be called again and again."""
        now = time.monotonic()
        if text != self._text:
            self._text, self._since_s, self._told = text, now, False
        elif text and not self._told and now - self._since_s > patience_s:
            self._told = True
            self._tell(text)
