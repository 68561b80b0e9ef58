# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omnistream_ros.evaluation import report_figures, report_tables
from omnistream_ros.evaluation.report_tables import escaped
from omnistream_ros.evaluation.sequence_result import SequenceResult
from omnistream_ros.evaluation.summary import EXPLANATIONS, memory_text

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
.overview :is(th, td):not(:first-child) { padding: .28rem .5rem; }
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
  .examples img { width: auto; max-height: 135mm; margin: auto; }
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
        content: from `summary.summarise`.
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
        f"{escaped(content.get('machine', ''))}</p>",
        report_tables.overview(content),
    ]
    for numbers, result in zip(content["sequences"], results, strict=True):
        parts.append(_sequence(numbers, result, "first" if len(results) == 1 else ""))
    parts += [
        "<h2>What the numbers mean</h2>",
        report_tables.definitions(EXPLANATIONS),
        _about(content, models),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _sequence(numbers: dict[str, Any], result: SequenceResult, place: str) -> str:
    """One sequence: its tables and its pictures; on paper on a new page, unless it is ``first``."""
    out = f'<h2 class="{place}">{escaped(result.name)}</h2>'
    if result.status == "failed":
        return out + f'<p class="bad">Failed: {escaped(result.error)}</p>'
    info = result.info
    if info is not None:
        size = f", {info.width}x{info.height}" if info.width else ""
        out += (
            f'<p class="soft">{escaped(info.layout)}{size}; <code>{escaped(result.path)}</code></p>'
        )
    for note in result.notes:
        out += f'<p class="soft">Note: {escaped(note)}</p>'
    if numbers["depth"]:
        out += "<h3>Depth</h3>" + report_tables.depth_table(numbers)
    if result.examples:
        out += _figure(result, report_figures.examples, "examples", "jpeg", _EXAMPLES_CAPTION)
    if numbers["pose"]:
        out += "<h3>Pose</h3>" + report_tables.pose_table(numbers)
    if result.trajectory is not None:
        truth = _PATH_CAPTION if result.truth is not None else "No true path to compare with."
        out += _figure(result, report_figures.paths, "camera path", "svg+xml", truth)
    if result.depth or result.pose:
        out += "<h3>Error over time</h3>"
        out += _figure(
            result, report_figures.errors, "errors over time", "svg+xml", _ERRORS_CAPTION
        )
    if numbers["latency_ms"]:
        out += "<h3>Time per frame</h3>" + report_tables.latency_table(numbers)
        out += _figure(result, report_figures.timing, "latency", "svg+xml", _TIMING_CAPTION)
        out += "<h3>Memory and cache</h3>"
        out += _figure(result, report_figures.memory, "memory", "svg+xml", _MEMORY_CAPTION)
    if result.live is not None:
        out += "<h3>Live</h3>" + report_tables.live_table(numbers["live"])
    return out


def _about(content: dict[str, Any], models: list[tuple[str, str]]) -> str:
    rows = {
        "command": content.get("command", ""),
        "model": "; ".join(f"{name} {sha}".strip() for name, sha in models),
        "memory of a stream": memory_text(content["sequences"]),
        "machine": content.get("machine", ""),
        "versions": ", ".join(f"{k} {v}" for k, v in content.get("versions", {}).items()),
    }
    return "<h2>How it was made</h2>" + report_tables.definitions(rows)


def _figure(
    result: SequenceResult,
    draw: Callable[[SequenceResult], bytes],
    alt: str,
    kind: str,
    caption: str,
) -> str:
    data = base64.b64encode(draw(result)).decode("ascii")
    image = f'<img alt="{alt}" src="data:image/{kind};base64,{data}">'
    kind_of = alt.replace(" ", "-")
    return f'<figure class="{kind_of}">{image}<figcaption>{caption}</figcaption></figure>'
