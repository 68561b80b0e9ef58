# SPDX-License-Identifier: Apache-2.0
"""The tables of a report, as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any


def overview(content: dict[str, Any]) -> str:
    """All sequences and their means."""
    head = ("sequence", "frames", "AbsRel metric", "d &lt; 1.25 metric", "AbsRel scale",
            "d &lt; 1.25 scale", "AbsRel constant", "ATE SE(3) (m)", "ATE Sim(3) (m)",
            "RPE (m)", "RPE (deg)", "ATE static (m)")  # fmt: skip
    rows = []
    for one in content["sequences"]:
        if one["status"] == "failed":
            cell = f'<td colspan="{len(head) - 1}" class="bad">failed: {escaped(one["error"])}</td>'
            rows.append(f"<tr><td>{escaped(one['name'])}</td>{cell}</tr>")
            continue
        name = escaped(one["name"]) + (" (partial)" if one["status"] == "partial" else "")
        rows.append(_row([name, str(one["frames"]), *_headline(one)]))
    mean = content["averages"]
    if len(mean["averaged"]) > 1 or mean["left_out"]:
        label = f"mean of {len(mean['averaged'])}"
        rows.append(_row([label, "", *_headline(mean)], "mean"))
    out = '<h2 class="first">Overview</h2><div class="scroll overview"><table>' + _head(head)
    out += "".join(rows) + "</table></div>"
    if mean["left_out"]:
        left_out = "; ".join(f"{name}: {why}" for name, why in mean["left_out"].items())
        out += f'<p class="bad">Not in the mean: {escaped(left_out)}</p>'
    for note in content.get("notes", []):
        out += f'<p class="bad">{escaped(note)}</p>'
    return out + (
        '<p class="soft">Depth: <b>metric</b> as predicted, <b>scale</b> after one factor per '
        "sequence, <b>constant</b> the baseline that sees nothing: the sequence's median depth "
        "everywhere. Pose: <b>ATE SE(3)</b> is in metres as estimated; <b>ATE Sim(3)</b> and RPE "
        "are after alignment with scale, the protocol's way; <b>static</b> is a camera that stands "
        "still. Depth means are weighted by valid pixels, pose means are not.</p>"
    )


def _headline(numbers: dict[str, Any]) -> list[str]:
    depth, pose = numbers["depth"], numbers["pose"]
    metric, scale = depth.get("metric", {}), depth.get("scale", {})
    sim3 = pose.get("sim3", {})
    return [
        _number(metric.get("abs_rel"), 3),
        _percent(metric.get("delta1")),
        _number(scale.get("abs_rel"), 3),
        _percent(scale.get("delta1")),
        _number(depth.get("constant", {}).get("abs_rel"), 3),
        _number(pose.get("se3", {}).get("ate_m"), 3),
        _number(sim3.get("ate_m"), 3),
        _number(sim3.get("rpe_m"), 4),
        _number(sim3.get("rpe_deg"), 2),
        _number(pose.get("static", {}).get("ate_m"), 3),
    ]


def depth_table(numbers: dict[str, Any]) -> str:
    rows = []
    for name, depth in numbers["depth"].items():
        alignment = depth.get("alignment") or {}
        rows.append(
            _row(
                [
                    escaped(name),
                    _number(depth["abs_rel"], 3),
                    _number(depth["sq_rel"], 3),
                    _number(depth["rmse"], 3),
                    _number(depth["log_rmse"], 3),
                    _number(depth["log_mae"], 3),
                    *(_percent(depth[f"delta{power}"]) for power in (1, 2, 3)),
                    _number(alignment.get("scale"), 3),
                    _number(alignment.get("shift"), 3),
                ],
                "baseline" if name == "constant" else "",
            )
        )
    head = ("alignment", "AbsRel", "SqRel", "RMSE", "log RMSE", "log MAE", "&lt; 1.25",
            "&lt; 1.25<sup>2</sup>", "&lt; 1.25<sup>3</sup>", "scale", "shift")  # fmt: skip
    first = next(iter(numbers["depth"].values()))
    text = f"{first['pixels']:,} pixels"
    if "coverage" in first:
        text += f", {100 * first['coverage']:.1f} % of the valid truth; "
    text += f"flicker {_percent(numbers['flicker'])}"
    if numbers["depth"].get("scale", {"alignment": {}})["alignment"] is None:
        text += "; every frame aligned by itself"
    return f'<div class="scroll"><table>{_head(head)}{"".join(rows)}</table></div>' + (
        f'<p class="soft">{text}</p>'
    )


def pose_table(numbers: dict[str, Any]) -> str:
    rows = [
        _row(
            [
                escaped(name),
                _number(pose["ate_m"], 3),
                _number(pose["rpe_m"], 4),
                _number(pose["rpe_deg"], 3),
                _number(pose["scale"], 3),
                _number(pose["scale_drift_percent"], 1),
                _number(pose["tracked_percent"], 1),
            ],
            "baseline" if name == "static" else "",
        )
        for name, pose in numbers["pose"].items()
    ]
    head = (
        "alignment",
        "ATE (m)",
        "RPE (m)",
        "RPE (deg)",
        "scale",
        "scale drift (%)",
        "tracked (%)",
    )
    first = next(iter(numbers["pose"].values()))
    return f'<div class="scroll"><table>{_head(head)}{"".join(rows)}</table></div>' + (
        f'<p class="soft">{first["matched"]} poses matched within 20 ms; the true path is '
        f"{first['path_m']:.2f} m long</p>"
    )


def latency_table(numbers: dict[str, Any]) -> str:
    rows = [
        _row([escaped(stage), _number(value["median"], 1), _number(value["p95"], 1)])
        for stage, value in numbers["latency_ms"].items()
    ]
    return f"<table>{_head(('stage', 'median (ms)', 'p95 (ms)'))}{''.join(rows)}</table>"


def live_table(live: dict[str, Any]) -> str:
    dropped = ", ".join(f"{count} {escaped(why)}" for why, count in live["dropped"].items())
    rows = {
        "frames": f"{live['played']} played, {live['received']} received, "
        f"{live['processed']} processed",
        "dropped": dropped or "none",
        "rate": f"{_number(live['rate_hz'], 1)} of {_number(live['played_hz'], 1)} Hz",
        "receipt to last output": f"{_number(live['latency_median_ms'], 1)} ms median, "
        f"{_number(live['latency_p95_ms'], 1)} ms p95",
        **{f"stage {name}": f"{value} ms" for name, value in live["stages_ms"].items()},
    }
    table = "".join(_row([escaped(name), escaped(value)]) for name, value in rows.items())
    return (
        f"<table>{table}</table>"
        '<p class="soft">The recording was played in real time to a real node. Stages: median / '
        f"p95. A replay of the {live['same_frames']} frames that the node used gives the same "
        f"results to {live['depth_difference']:.2g} (relative, depth) and "
        f"{live['position_difference_m']:.2g} m (position), at most.</p>"
    )


def definitions(items: dict[str, str]) -> str:
    """A list of names and what they mean, without those that mean nothing."""
    pairs = [(escaped(name), escaped(value)) for name, value in items.items() if value]
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in pairs) + "</dl>"


def _head(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<th>{cell}</th>" for cell in cells) + "</tr>"


def _row(cells: Sequence[str], kind: str = "") -> str:
    opening = f'<tr class="{kind}">' if kind else "<tr>"
    return opening + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def escaped(value: Any) -> str:
    return html.escape(str(value))
