# SPDX-License-Identifier: Apache-2.0
"""What a card tells of the runs behind weights: sums over all of them, and the last one by itself.

Clips are no sum: those of one run are mostly those of the next as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnistream_ros.training.licences import licences_in, told

# Over all runs, each begun with the weights of the one before.
SUMMED = ("steps", "frames", "hours")
LAST_RUN = "last run"
_BESIDE_SUMS = ("seed", "clips")  # of the last run, where older cards have them


def rows(training: Mapping[str, Any]) -> dict[str, Any]:
    """The training of a card by name, as `omnistream info` says it."""
    rest = dict(training)
    sums = {f"{name}, all runs": rest.pop(name) for name in SUMMED if name in rest}
    last = {name: rest.pop(name) for name in _BESIDE_SUMS if name in rest}
    last |= rest.pop(LAST_RUN, {})
    if recorded := licences_in(rest.get("recorded")):
        rest["recorded"] = told(recorded)
    said = ", ".join(f"{name} {value}" for name, value in last.items())
    return {**sums, **({LAST_RUN: said} if said else {}), **rest}
