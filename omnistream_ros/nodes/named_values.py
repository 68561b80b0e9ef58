# SPDX-License-Identifier: Apache-2.0
"""Parameters that give a value to each of several names: lists of texts ``NAME: VALUE``.

ROS has no dictionaries among its parameters, and a list of numbers would have to be in the right
order. ``*`` stands for every name that is not listed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
EVERY = "*"


def parse(entries: Sequence[str]) -> dict[str, str]:
    """The values as texts, by name.

    Raises:
        ValueError: an entry has another form, or a name stands twice.
    """
    values: dict[str, str] = {}
    for entry in entries:
        name, colon, value = (part.strip() for part in entry.partition(":"))
        if not name or not colon or not value:
            raise ValueError(f"{entry!r} must be NAME: VALUE")
        if name in values:
            raise ValueError(f"{name!r} stands twice")
        values[name] = value
    return values


def number(text: str) -> float:
    """A positive number.

    Raises:
        ValueError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{text!r} must be a positive number")
    return value


def pair(text: str) -> tuple[float, float]:
    """Two numbers, the lower one first.

    Raises:
        ValueError: they are none.
    """
    try:
        low, high = (float(part) for part in text.split())
    except ValueError:
        raise ValueError(f"{text!r} must be two numbers, LOW HIGH") from None
    if not -float("inf") < low < high < float("inf"):
        raise ValueError(f"{text!r} must be two finite numbers, the lower one first")
    return low, high


def script(entries: Sequence[str]) -> list[tuple[float, list[float]]]:
    """Moments and the numbers at each, SECONDS: NUMBER NUMBER ..., in their order.

    Raises:
        ValueError: an entry has another form.
    """
    found = []
    for moment, values in parse(entries).items():
        try:
            found.append((float(moment), [float(value) for value in values.split()]))
        except ValueError:
            raise ValueError(f"'{moment}: {values}' must be SECONDS: NUMBER NUMBER ...") from None
    return found


def check(convert: Callable[[str], object]) -> Callable[[Sequence[str]], None]:
    """A check for `parameters.option`: every value can be converted."""

    def checked(entries: Sequence[str]) -> None:
        for name, value in parse(entries).items():
            try:
                convert(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    return checked


def resolve(entries: Sequence[str], names: Sequence[str], convert: Callable[[str], T]) -> list[T]:
    """One value per name, in the order of `names`.

    Raises:
        ValueError: a name is listed that does not exist, or one has no value.
    """
    values = parse(entries)
    unknown = set(values) - {*names, EVERY}
    if unknown:
        raise ValueError(f"{sorted(unknown)} are none of the names {list(names)}")
    without = [name for name in names if name not in values and EVERY not in values]
    if without:
        raise ValueError(f"no value for {without}")
    return [convert(values.get(name, values.get(EVERY, ""))) for name in names]
