# SPDX-License-Identifier: Apache-2.0
"""Under which licences the recordings are that weights were trained on, name by name.

Only the user can know: a licence is told when clips are cut (`omnistream clips --licence`) or heads
are trained, and goes with the names of the recordings from there into every card that follows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

NOT_STATED = "not stated"
_AND = "; "  # between licences of one name


def licences_in(recorded: Mapping[str, str] | Iterable[str] | None) -> dict[str, str]:
    """Licences by recording, from what a card says; older cards have a list of names alone."""
    if isinstance(recorded, Mapping):
        return dict(recorded)
    return dict.fromkeys(recorded or (), NOT_STATED)


def collected(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Licences by recording, in the order of names, from pairs of name and licence.

    Recordings may share a name, so a name has all licences told of it, "not stated" among them.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for name, licence in pairs:
        found[name].update(licence.split(_AND))
    return {name: _AND.join(sorted(found[name])) for name in sorted(found)}


def with_earlier(own: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """Licences of a training's own recordings and of those behind its first weights.

    Of a name in both, a licence that is stated wins over one that is not; two that differ stay.
    """
    pairs = [*own.items(), *before.items()]
    stated = {name for name, licence in pairs if licence != NOT_STATED}
    return collected(
        (name, licence) for name, licence in pairs if licence != NOT_STATED or name not in stated
    )


def told(licences: Mapping[str, str]) -> str:
    """Recordings with their licences in a line, for people."""
    return ", ".join(
        f"{name} ({'licence ' if licence == NOT_STATED else ''}{licence})"
        for name, licence in licences.items()
    )
