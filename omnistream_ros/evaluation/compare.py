# SPDX-License-Identifier: Apache-2.0
"""``omnistream compare A B``: two evaluations side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from omnistream_ros.evaluation.recordings import RecordingError
from omnistream_ros.evaluation.summary import memory_text

#: (label, path into a sequence's numbers, digits, whether lower is better)
_ROWS: tuple[tuple[str, tuple[str, ...], int, bool], ...] = (
    ("AbsRel metric", ("depth", "metric", "abs_rel"), 4, True),
    ("d<1.25 metric", ("depth", "metric", "delta1"), 4, False),
    ("log MAE metric", ("depth", "metric", "log_mae"), 4, True),
    ("AbsRel scale", ("depth", "scale", "abs_rel"), 4, True),
    ("d<1.25 scale", ("depth", "scale", "delta1"), 4, False),
    ("flicker", ("flicker",), 4, True),
    ("ATE sim3 (m)", ("pose", "sim3", "ate_m"), 4, True),
    ("ATE se3 (m)", ("pose", "se3", "ate_m"), 4, True),
    ("RPE (m)", ("pose", "sim3", "rpe_m"), 4, True),
    ("RPE (deg)", ("pose", "sim3", "rpe_deg"), 3, True),
    ("total (ms)", ("latency_ms", "total", "median"), 1, True),
)


def read_metrics(path: Path) -> dict[str, Any]:
    """The ``metrics.json`` of an evaluation, given that file or its folder.

    Raises:
        RecordingError: there is none, or it is not one of ours.
    """
    file = path / "metrics.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"averages", "sequences"} <= content.keys():
            raise ValueError("it has no averages and sequences")
    except (OSError, ValueError) as error:
        raise RecordingError(
            f"{file} is not the metrics.json of an evaluation ({error}); make one with "
            "`omnistream evaluate RECORDING --out DIR`"
        ) from error
    return content


def compare(first: Path, second: Path) -> str:
    """A table of both runs with their differences; sequences are matched by name.

    A ``+`` marks the better value. Sequences that only one run has, or that failed, are named.

    Raises:
        RecordingError: a run cannot be read.
    """
    a, b = read_metrics(first), read_metrics(second)
    a_by_name = {one["name"]: one for one in a["sequences"]}
    b_by_name = {one["name"]: one for one in b["sequences"]}
    lines = []
    for label, path, content in (("A", first, a), ("B", second, b)):
        memory = memory_text(content["sequences"])
        made_by = _models(content) + (f"; {memory}" if memory else "")
        lines.append(f"{label}  {path}  ({made_by})")
        # The same weights may have run in other ways; the command says in which.
        lines += [f"   {content['command']}"] if content.get("command") else []
    shared = [name for name in a_by_name if name in b_by_name]
    for name in shared:
        lines += ["", *_block(name, a_by_name[name], b_by_name[name])]
    if len(shared) > 1:
        lines += ["", *_block("mean", a["averages"], b["averages"])]
        if a["averages"].get("averaged") != b["averages"].get("averaged"):
            lines.append("  the means are over different sequences")
    for label, ours, others in (("A", a_by_name, b_by_name), ("B", b_by_name, a_by_name)):
        only = [name for name in ours if name not in others]
        if only:
            lines += ["", f"only in {label}: {', '.join(only)}"]
    return "\n".join(lines)


def _block(name: str, a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    lines = [f"{name:<22}{'A':>12}{'B':>12}{'B - A':>12}"]
    for label, one in (("A", a), ("B", b)):
        if one.get("status", "ok") != "ok":
            lines.append(f"  {label} {one['status']}: {one.get('error') or 'see its notes'}")
    counts = [one.get("frames") for one in (a, b)]
    if counts[0] != counts[1]:
        lines.append(f"  not the same frames: A has {counts[0]}, B has {counts[1]}")
    shares = [_value(one, ("depth", "metric", "coverage")) for one in (a, b)]
    if None not in shares and shares[0] != shares[1]:
        lines.append(
            f"  not the same pixels: A has {shares[0]:.1%} of the valid truth, B {shares[1]:.1%}"
        )
    for label, path, digits, lower in _ROWS:
        x, y = _value(a, path), _value(b, path)
        if x is None and y is None:
            continue
        cells = "".join(f"{'-' if v is None else f'{v:.{digits}f}':>12}" for v in (x, y))
        if x is None or y is None:
            lines.append(f"  {label:<20}{cells}")
            continue
        change = y - x
        mark = "" if abs(change) < 0.5 * 10**-digits else " +B" if (change < 0) == lower else " +A"
        lines.append(f"  {label:<20}{cells}{change:>+12.{digits}f}{mark}")
    return lines


def _value(numbers: dict[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = numbers
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _models(content: dict[str, Any]) -> str:
    names = {f"{s['model']} {s['weights_sha256'][:12]}".strip() for s in content["sequences"]}
    return ", ".join(sorted(name for name in names if name)) or "no model"
