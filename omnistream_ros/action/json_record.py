# SPDX-License-Identifier: Apache-2.0
"""JSON from outside, entry by entry, with types checked and nothing ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Record:
    """A JSON object whose entries are taken one by one, with their types checked."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{where} must be an object, got {values!r:.80}")
        self._values = dict(values)
        self._where = where

    def take(self, name: str, kind: type) -> Any:
        if name not in self._values:
            raise ValueError(f"{self._where}: {name!r} is missing")
        value = self._values.pop(name)
        right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if not right:
            raise ValueError(f"{self._where}: {name!r} must be {kind.__name__}, got {value!r:.80}")
        return value

    def number(self, name: str) -> float:
        value = self._values.get(name)
        return float(self.take(name, int if isinstance(value, int) else float))

    def texts(self, name: str) -> tuple[str, ...]:
        return self._all(name, lambda value: isinstance(value, str), "texts")

    def integers(self, name: str) -> tuple[int, ...]:
        return self._all(
            name, lambda value: isinstance(value, int) and not isinstance(value, bool), "integers"
        )

    def numbers(self, name: str) -> tuple[float, ...]:
        values = self._all(
            name,
            lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
            "numbers",
        )
        return tuple(float(value) for value in values)

    def optional(self, name: str, make: Callable[[Record], Any]) -> Any:
        if self._values.get(name) is None:
            self._values.pop(name, None)
            return None
        return make(Record(self.take(name, dict), name))

    def finish(self) -> None:
        """Refuse what nobody took: a misspelt entry would else be ignored."""
        if self._values:
            raise ValueError(f"{self._where}: unknown entries {sorted(self._values)}")

    def _all(self, name: str, right: Callable[[Any], bool], what: str) -> tuple:
        values = self.take(name, list)
        if not all(right(value) for value in values):
            raise ValueError(f"{self._where}: {name!r} must be a list of {what}")
        return tuple(values)
