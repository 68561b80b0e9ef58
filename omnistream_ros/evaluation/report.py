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
from omnistream_ros.evaluation.sequence_result import SequenceResult
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
figure { margin: .8rem 0 1.2rem; }
figcaption { color: var(--soft); font-size: .87rem; max-width: 62rem; }
img { width: 100%; height: auto; display: block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
@media print {
  body { font-size: 10pt; } main { padding: 0; max-width: none; }
  h2 { break-before: page; } h2.first { break-before: auto; }
  @page { margin: 14mm; }
  figure, table, h3 { break-inside: avoid; } h3, table { break-after: avoid; }
  th, td { padding: .2rem .45rem; } .scroll { overflow: visible; }
}
"""


_EXAMPLES_CAPTION = (
    "Frames evenly spread over the sequence. Depth after the one factor of the row <b>scale</b>, "
    "where there is truth; both depths share one logarithmic scale. Error is |predicted - true| / "
    "true, cut at 50 %. Grey: unknown."
)
_PATH_CAPTION = (
    "The estimate is laid onto the truth by Sim(3): rotated, moved and scaled as a whole, over all "
    "matched poses. A circle is the start, a square the end."
)
_ERRORS_CAPTION = (
    "Above: AbsRel of every frame, and flicker. Below: distance to the true position after Sim(3) "
    "and after SE(3) alignment of the whole path. Dotted: a new epoch began."
)
_TIMING_CAPTION = (
    "Time in the model's stages, on this machine while the evaluation ran; reading and scoring are "
    "not in it. The slowest percent lies outside of the histogram."
)
_MEMORY_CAPTION = (
    "Left: memory of the whole evaluating process, with the pixels that it keeps for scoring. "
    "Right: frames in the KV-cache; dashed: its capacity."
)


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
        f'<p class="soft">{len(results)} {"recording" if len(results) == 1 else "recordings"}, '
        f"{sum(len(result.rows) for result in results)} frames; "
        f"{_text(content.get('machine', ''))}</p>",
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
    head = ("sequence", "frames", "AbsRel metric", "d &lt; 1.25 metric", "AbsRel scale",
            "d &lt; 1.25 scale", "AbsRel constant", "ATE (m)", "RPE (m)", "RPE (deg)",
            "ATE static (m)")  # fmt: skip
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
        '<p class="soft">Depth: <b>metric</b> as predicted, <b>scale</b> after one factor per '
        "sequence, <b>constant</b> the baseline that sees nothing: the sequence's median depth "
        "everywhere. Pose: ATE and RPE after Sim(3) alignment (rotation, translation, scale); "
        "<b>static</b> is a camera that stands still. Depth means are weighted by valid pixels, "
        "pose means are not.</p>"
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
        out += _figure(result, report_figures.examples, "examples", "jpeg", _EXAMPLES_CAPTION)
    if numbers["pose"]:
        out += "<h3>Pose</h3>" + _pose_table(numbers)
    if result.trajectory is not None:
        truth = _PATH_CAPTION if result.truth is not None else "No true path to compare with."
        out += _figure(result, report_figures.paths, "camera path", "svg+xml", truth)
    if result.depth or result.pose:
        out += "<h3>Error over time</h3>"
        out += _figure(
            result, report_figures.errors, "errors over time", "svg+xml", _ERRORS_CAPTION
        )
    if numbers["latency_ms"]:
        out += "<h3>Time per frame</h3>" + _latency_table(numbers)
        out += _figure(result, report_figures.timing, "latency", "svg+xml", _TIMING_CAPTION)
        out += "<h3>Memory and cache</h3>"
        out += _figure(result, report_figures.memory, "memory", "svg+xml", _MEMORY_CAPTION)
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
    if numbers["depth"].get("scale", {"alignment": {}})["alignment"] is None:
        text += "; every frame aligned by itself"
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
        f'<p class="soft">{first["matched"]} poses matched within 20 ms; the true path is '
        f"{first['path_m']:.2f} m long</p>"
    )


def _latency_table(numbers: dict[str, Any]) -> str:
    rows = [
        _row([_text(stage), _number(value["median"], 1), _number(value["p95"], 1)])
        for stage, value in numbers["latency_ms"].items()
    ]
    return f"<table>{_head(('stage', 'median (ms)', 'p95 (ms)'))}{''.join(rows)}</table>"


def _live_table(live: dict[str, Any]) -> str:
    dropped = ", ".join(f"{count} {_text(why)}" for why, count in live["dropped"].items())
    rows = {
        "frames": f"{live['played']} played, {live['received']} received, "
        f"{live['processed']} processed",
        "dropped": dropped or "none",
        "rate": f"{_number(live['rate_hz'], 1)} of {_number(live['played_hz'], 1)} Hz",
        "receipt to last output": f"{_number(live['latency_median_ms'], 1)} ms median, "
        f"{_number(live['latency_p95_ms'], 1)} ms p95",
        **{f"stage {name}": f"{value} ms" for name, value in live["stages_ms"].items()},
    }
    table = "".join(_row([_text(name), _text(value)]) for name, value in rows.items())
    return (
        f"<table>{table}</table>"
        '<p class="soft">The recording was played in real time to a real node. Stages: median / '
        f"p95. A replay of the {live['same_frames']} frames that the node used gives the same "
        f"results to {live['depth_difference']:.2g} (relative, depth) and "
        f"{live['position_difference_m']:.2g} m (position), at most.</p>"
    )


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
    result: SequenceResult,
    draw: Callable[[SequenceResult], bytes],
    alt: str,
    kind: str,
    caption: str,
) -> str:
    data = base64.b64encode(draw(result)).decode("ascii")
    image = f'<img alt="{alt}" src="data:image/{kind};base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


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
