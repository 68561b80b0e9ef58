# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omnistream_ros.evaluation import report_figures
from omnistream_ros.evaluation.replay import SequenceResult
from omnistream_ros.evaluation.summary import EXPLANATIONS

_STYLE = """
:root { --ink: #22262b; --soft: #6b7178; --line: #e1e4e8; --warn: #b3401e; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: var(--ink); margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .8rem;
     border-top: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p.soft, .soft { color: var(--soft); }
code { font: .9em "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .8rem; border-bottom: 1px solid var(--line); text-align: right;
         white-space: nowrap; }
td[colspan], dd { white-space: normal; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { white-space: normal; }
tr.mean td { font-weight: 600; border-top: 2px solid var(--line); }
tr.baseline td { color: var(--soft); }
.bad { color: var(--warn); }
.scroll { overflow-x: auto; }
img { max-width: 100%; height: auto; display: block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
@media print {
  body { font-size: 10pt; } main { padding: 0; max-width: none; }
  h2 { break-before: page; } h2.first { break-before: auto; }
  img, table, h3 { break-inside: avoid; } h3 { break-after: avoid; }
}
"""


def write_report(path: Path, content: dict[str, Any], results: Sequence[SequenceResult]) -> None:
    """Write the report.

    Args:
        content: what `summary.write_files` returned.
        results: the same sequences, for the pictures.

    Raises:
        OSError: the file cannot be written.
    """
    models = sorted({(r.model, r.sha256) for r in results if r.model})
    title = f"Evaluation of {', '.join(name for name, _ in models) or 'nothing'}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="soft">{len(results)} recordings, '
        f"{sum(len(result.rows) for result in results)} frames</p>",
        _overview(content),
    ]
    for numbers, result in zip(content["sequences"], results, strict=True):
        parts.append(_sequence(numbers, result))
    parts += ["<h2>What the numbers mean</h2>", _definitions(EXPLANATIONS), _about(content, models)]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


# -- numbers --------------------------------------------------------------------------------------


def _overview(content: dict[str, Any]) -> str:
    """All sequences and their means."""
    head = ("sequence", "frames", "AbsRel metric", "d &lt; 1.25", "AbsRel scale", "d &lt; 1.25",
            "constant", "ATE (m)", "RPE (m)", "RPE (deg)", "standing still (m)")  # fmt: skip
    rows = []
    for one in content["sequences"]:
        if one["status"] == "failed":
            cell = f'<td colspan="{len(head) - 1}" class="bad">failed: {_text(one["error"])}</td>'
            rows.append(f"<tr><td>{_text(one['name'])}</td>{cell}</tr>")
            continue
        name = _text(one["name"]) + (" (partial)" if one["status"] == "partial" else "")
        rows.append(_row([name, str(one["frames"]), *_headline(one)]))
    mean = content["averages"]
    if len(mean["averaged"]) > 1 or mean["left_out"]:
        label = f"mean of {len(mean['averaged'])}"
        rows.append(_row([label, "", *_headline(mean)], "mean"))
    out = '<h2 class="first">Overview</h2><div class="scroll"><table>' + _head(head)
    out += "".join(rows) + "</table></div>"
    if mean["left_out"]:
        left_out = "; ".join(f"{name}: {why}" for name, why in mean["left_out"].items())
        out += f'<p class="bad">Not in the mean: {_text(left_out)}</p>'
    for note in content.get("notes", []):
        out += f'<p class="bad">{_text(note)}</p>'
    return out + (
        '<p class="soft">Depth means are weighted by valid pixels, pose means are not. ATE and RPE '
        "after Sim(3).</p>"
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
        _number(sim3.get("ate_m"), 3),
        _number(sim3.get("rpe_m"), 4),
        _number(sim3.get("rpe_deg"), 2),
        _number(pose.get("static", {}).get("ate_m"), 3),
    ]


def _sequence(numbers: dict[str, Any], result: SequenceResult) -> str:
    """One sequence: its tables and its pictures."""
    out = f"<h2>{_text(result.name)}</h2>"
    if result.status == "failed":
        return out + f'<p class="bad">Failed: {_text(result.error)}</p>'
    info = result.info
    if info is not None:
        size = f", {info.width}x{info.height}" if info.width else ""
        out += f'<p class="soft">{_text(info.layout)}{size}; <code>{_text(result.path)}</code></p>'
    for note in result.notes:
        out += f'<p class="soft">Note: {_text(note)}</p>'
    if numbers["depth"]:
        out += "<h3>Depth</h3>" + _depth_table(numbers)
    if result.examples:
        out += _figure(result, report_figures.examples, "examples", "png")
    if numbers["pose"]:
        out += "<h3>Pose</h3>" + _pose_table(numbers)
    if result.trajectory is not None:
        out += _figure(result, report_figures.paths, "camera path", "svg+xml")
    if result.depth or result.pose:
        out += "<h3>Error over time</h3>"
        out += _figure(result, report_figures.errors, "errors over time", "svg+xml")
    if numbers["latency_ms"]:
        out += "<h3>Time per frame</h3>" + _latency_table(numbers)
        out += _figure(result, report_figures.timing, "latency", "svg+xml")
        out += "<h3>Memory and context</h3>"
        out += _figure(result, report_figures.memory, "memory", "svg+xml")
    if result.live is not None:
        out += "<h3>Live</h3>" + _live_table(numbers["live"])
    return out


def _depth_table(numbers: dict[str, Any]) -> str:
    rows = []
    for name, depth in numbers["depth"].items():
        alignment = depth.get("alignment") or {}
        rows.append(
            _row(
                [
                    _text(name),
                    _number(depth["abs_rel"], 3),
                    _number(depth["sq_rel"], 3),
                    _number(depth["rmse"], 3),
                    _number(depth["log_rmse"], 3),
                    *(_percent(depth[f"delta{power}"]) for power in (1, 2, 3)),
                    _number(alignment.get("scale"), 3),
                    _number(alignment.get("shift"), 3),
                ],
                "baseline" if name == "constant" else "",
            )
        )
    head = ("alignment", "AbsRel", "SqRel", "RMSE", "log RMSE", "&lt; 1.25",
            "&lt; 1.25<sup>2</sup>", "&lt; 1.25<sup>3</sup>", "scale", "shift")  # fmt: skip
    first = next(iter(numbers["depth"].values()))
    text = f"{first['pixels']:,} pixels"
    if "coverage" in first:
        text += f", {100 * first['coverage']:.1f} % of the valid truth; "
    text += f"flicker {_percent(numbers['flicker'])}"
    return f'<div class="scroll"><table>{_head(head)}{"".join(rows)}</table></div>' + (
        f'<p class="soft">{text}</p>'
    )


def _pose_table(numbers: dict[str, Any]) -> str:
    rows = [
        _row(
            [
                _text(name),
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
        f'<p class="soft">{first["matched"]} matched poses, {first["path_m"]:.2f} m of way</p>'
    )


def _latency_table(numbers: dict[str, Any]) -> str:
    rows = [
        _row([_text(stage), _number(value["median"], 1), _number(value["p95"], 1)])
        for stage, value in numbers["latency_ms"].items()
    ]
    return f"<table>{_head(('stage', 'median (ms)', 'p95 (ms)'))}{''.join(rows)}</table>"


def _live_table(live: dict[str, Any]) -> str:
    rows = [
        _row([_text(key.replace("_", " ")), _text(_short(value))]) for key, value in live.items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) or "none"
    return str(value)


def _about(content: dict[str, Any], models: list[tuple[str, str]]) -> str:
    rows = {
        "command": content.get("command", ""),
        "model": "; ".join(f"{name} {sha}".strip() for name, sha in models),
        "machine": content.get("machine", ""),
        "versions": ", ".join(f"{k} {v}" for k, v in content.get("versions", {}).items()),
    }
    return "<h2>How it was made</h2>" + _definitions(rows)


# -- parts ----------------------------------------------------------------------------------------


def _figure(
    result: SequenceResult, draw: Callable[[SequenceResult], bytes], alt: str, kind: str
) -> str:
    data = base64.b64encode(draw(result)).decode("ascii")
    return f'<img alt="{alt}" src="data:image/{kind};base64,{data}">'


def _definitions(items: dict[str, str]) -> str:
    return "<dl>" + "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in items.items() if value
    ) + "</dl>"  # fmt: skip


def _head(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<th>{cell}</th>" for cell in cells) + "</tr>"


def _row(cells: Sequence[str], kind: str = "") -> str:
    opening = f'<tr class="{kind}">' if kind else "<tr>"
    return opening + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def _text(value: Any) -> str:
    return html.escape(str(value))
