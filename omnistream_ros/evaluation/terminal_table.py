# SPDX-License-Identifier: Apache-2.0
"""The result of an evaluation as text, for a terminal."""

from __future__ import annotations

import math
from typing import Any


def table(content: dict[str, Any]) -> str:
    """The result as text, one line per sequence."""
    width = max([8, *(len(one["name"]) for one in content["sequences"])])
    titles = (
        "  frames  AbsRel  d<1.25  AbsRel  d<1.25  constant     ATE     ATE      RPE     RPE",
        "          metric  metric   scale   scale    AbsRel     se3    sim3     sim3     deg",
    )
    lines = [" " * width + title for title in titles]
    for one in content["sequences"]:
        if one["status"] == "failed":
            lines.append(f"{one['name']:{width}}  failed: {one['error']}")
            continue
        partial = " (partial)" if one["status"] == "partial" else ""
        lines.append(f"{one['name']:{width}}  {one['frames']:6d}" + _cells(one) + partial)
    mean = content["averages"]
    count = len(mean["averaged"])
    if count > 1 or mean["left_out"]:
        lines.append(f"{f'mean ({count})':{width}}  {'':6}" + _cells(mean))
    if mean["left_out"]:
        lines.append(f"not in the mean: {', '.join(mean['left_out'])}")
    return "\n".join(line.rstrip() for line in lines)


def _cells(numbers: dict[str, Any]) -> str:
    depth, pose = numbers["depth"], numbers["pose"]
    out = ""
    for name in ("metric", "scale"):
        out += _cell(depth.get(name, {}).get("abs_rel"), 8, 3)
        out += _cell(depth.get(name, {}).get("delta1"), 8, 3)
    out += _cell(depth.get("constant", {}).get("abs_rel"), 10, 3)
    sim3 = pose.get("sim3", {})
    return (
        out
        + _cell(pose.get("se3", {}).get("ate_m"), 8, 3)
        + _cell(sim3.get("ate_m"), 8, 3)
        + _cell(sim3.get("rpe_m"), 9, 4)
        + _cell(sim3.get("rpe_deg"), 8, 3)
    )


def _cell(value: float | None, width: int, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return f"{'-':>{width}}"
    return f"{value:>{width}.{digits}f}"
