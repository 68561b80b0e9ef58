# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report: examples, errors over time, paths, latency, memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from omnistream_ros.evaluation import camera_path
from omnistream_ros.evaluation.depth_pairs import resize_prediction
from omnistream_ros.evaluation.pose_metrics import absolute_errors, align, match
from omnistream_ros.evaluation.sequence_result import Example, SequenceResult
from omnistream_ros.evaluation.summary import latency

BLUE, ORANGE, GREY, GREEN = "#2f6db3", "#e4572e", "#8a9199", "#3a9d6e"
INK, GRID, UNKNOWN = "#22262b", "#e6e8eb", "#d9dce0"
_DEPTH_COLOURS, _ERROR_COLOURS = "turbo_r", "magma"
_ERROR_LIMIT = 0.5
_ROWS = 6  # of examples
_WIDTH = 10.6  # inches; the page's column
_MANY = 3000  # points, beyond which a line is drawn as pixels: an SVG of it would be megabytes


def examples(result: SequenceResult) -> bytes:
    """Rows of input, prediction, truth and error as JPEG, on one scale of metres."""
    kept = result.examples
    shown = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, _ROWS).round().astype(int))]
    truth = any(example.truth is not None for example in shown)
    columns = 4 if truth else 2
    height, width = shown[0].image.shape[:2]
    cell = 2.5
    figure = Figure(figsize=(columns * cell + 1.0, len(shown) * cell * height / width + 0.4))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), columns, squeeze=False)
    norm = _depth_norm(shown)
    scale = result.depth["scale"].alignment if "scale" in result.depth else None
    for row, example in zip(axes, shown, strict=True):
        prediction = example.prediction if scale is None else scale.apply(example.prediction)
        prediction = resize_prediction(prediction, (height, width))
        _picture(row[0], example.image)
        depth = row[1].imshow(prediction, cmap=_DEPTH_COLOURS, norm=norm, aspect="auto")
        row[0].set_ylabel(f"frame {example.number}", fontsize=8, color=INK)
        if example.truth is not None:
            fitted = resize_prediction(prediction, example.truth.shape)
            row[2].imshow(example.truth, cmap=_DEPTH_COLOURS, norm=norm, aspect="auto")
            error = row[3].imshow(
                100 * np.abs(fitted - example.truth) / example.truth,
                cmap=_ERROR_COLOURS, vmin=0, vmax=100 * _ERROR_LIMIT, aspect="auto",
            )  # fmt: skip
        for cell_axes in row:
            _bare(cell_axes)
    titles = ("Input", "Depth, one scale" if scale else "Depth", "True depth", "Error")
    for title, head in zip(titles, axes[0], strict=False):
        head.set_title(title, fontsize=10, color=INK)
    figure.subplots_adjust(left=0.03, right=0.87, top=0.94, bottom=0.02, wspace=0.03, hspace=0.04)
    bars = [(depth, "m", 0.885)]
    if truth:
        bars.append((error, "error (%)", 0.945))
    for image, label, x in bars:
        place = figure.add_axes((x, 0.08, 0.012, 0.8))
        bar = figure.colorbar(image, cax=place)
        bar.set_label(label, fontsize=8, color=INK)
        bar.ax.tick_params(which="both", labelsize=7)
        bar.ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        bar.ax.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    return _saved(figure, "jpg", pil_kwargs={"quality": 88})


def errors(result: SequenceResult) -> bytes:
    """Depth error, flicker and position error over time, as SVG."""
    figure, (above, below) = _panels(2, 4.2)
    start = result.rows[0].stamp_ns
    for name, colour in (("metric", ORANGE), ("scale", BLUE)):
        if name not in result.depth:
            continue
        values = [np.nan if m is None else m.abs_rel for m in result.depth[name].per_frame]
        seconds = (np.array(result.depth_stamps) - start) / 1e9
        above.plot(seconds, values, color=colour, linewidth=1.2, label=f"AbsRel, {name}")
    flicker = [row.temporal_change for row in result.rows]
    seconds = np.array([row.stamp_ns - start for row in result.rows]) / 1e9
    if np.isfinite(flicker).any():
        above.plot(seconds, flicker, color=GREEN, linewidth=1.0, label="flicker")
    _finish(above, "depth error", "")
    if result.trajectory is not None and result.truth is not None:
        estimate, truth = match(result.trajectory, result.truth)
        for alignment, colour in (("se3", ORANGE), ("sim3", BLUE)):
            moved = align(estimate, truth, alignment).apply(estimate)  # type: ignore[arg-type]
            below.plot(
                (estimate.stamps_ns - start) / 1e9, absolute_errors(moved, truth),
                color=colour, linewidth=1.2, label=alignment,
            )  # fmt: skip
    _finish(below, "position error (m)", "time (s)")
    for row in result.rows:
        if row.epoch_reason and row.number != result.rows[0].number:
            for axes in (above, below):
                axes.axvline((row.stamp_ns - start) / 1e9, color=GREY, linewidth=0.8, linestyle=":")
    return _svg(figure)


def paths(result: SequenceResult) -> bytes:
    """The path from above and from the side, estimated and true, as SVG."""
    figure = Figure(figsize=(_WIDTH, 4.4))
    top, side = figure.subplots(1, 2)
    estimate, truth = result.trajectory, result.truth
    assert estimate is not None
    drawn = []
    if truth is not None:
        matched, truth = match(estimate, truth)
        estimate = align(matched, truth, "sim3").apply(estimate)
        drawn.append((truth, camera_path.TRUE_COLOUR, "true", 2.6))
    drawn.append((estimate, camera_path.ESTIMATE_COLOUR, "estimated", 1.5))
    reference = drawn[0][0]
    view, origin = camera_path.view_axes(reference), reference.translations[0]
    for axes, from_side in ((top, False), (side, True)):
        for path, colour, label, width in drawn:
            camera_path.draw_path(
                axes, path, view, origin, colour=colour, label=label, side=from_side, width=width
            )
        axes.set_aspect("equal", adjustable="datalim")
    _finish(top, "forward (m)", "right (m)")
    _finish(side, "up (m)", "forward (m)")
    top.set_title("from above", fontsize=10, color=INK)
    side.set_title("from the side", fontsize=10, color=INK)
    figure.tight_layout()
    return _svg(figure)


def timing(result: SequenceResult) -> bytes:
    """Latency as histogram and over time, by stage, as SVG."""
    figure = Figure(figsize=(_WIDTH, 3.2))
    histogram, timeline = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1, 2]})
    totals = np.array([sum(row.timings_ms.values()) for row in result.rows])
    late = float(np.percentile(totals, 99))
    histogram.hist(totals[totals <= late], bins=40, color=BLUE)
    for label, value in latency(result).get("total", {}).items():  # those of the table
        histogram.axvline(value, color=INK, linewidth=1.0, linestyle="--")
        histogram.text(value, histogram.get_ylim()[1], f" {label}", fontsize=7, va="top")
    stages = list(dict.fromkeys(stage for row in result.rows for stage in row.timings_ms))
    frames = [row.number for row in result.rows]
    heights = [[row.timings_ms.get(stage, 0.0) for row in result.rows] for stage in stages]
    timeline.stackplot(frames, heights, labels=stages, linewidth=0, alpha=0.9)
    timeline.set_ylim(0, 1.15 * late)
    _finish(histogram, "frames", "ms per frame")
    _finish(timeline, "ms", "frame")
    figure.tight_layout()
    return _svg(figure)


def memory(result: SequenceResult) -> bytes:
    """Memory of the process and frames in the context over time, as SVG."""
    figure = Figure(figsize=(_WIDTH, 2.6))
    left, right = figure.subplots(1, 2)
    frames = [row.number for row in result.rows]
    left.plot(frames, [row.memory_mib for row in result.rows], color=BLUE, linewidth=1.2)
    left.set_ylim(bottom=0)
    right.plot(frames, [row.context_frames for row in result.rows], color=GREEN, linewidth=1.2)
    if result.context_capacity:
        right.axhline(result.context_capacity, color=GREY, linewidth=1.0, linestyle="--")
    right.set_ylim(0, max(1.15 * result.context_capacity, 1.0))
    _finish(left, "memory (MiB)", "frame")
    _finish(right, "cache fill (frames)", "frame")
    figure.tight_layout()
    return _svg(figure)


# -- parts ----------------------------------------------------------------------------------------


def _panels(count: int, height: float) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.subplots(count, 1, sharex=True)
    figure.subplots_adjust(left=0.08, right=0.99, top=0.97, bottom=0.12, hspace=0.12)
    return figure, axes


def _finish(axes: Axes, ylabel: str, xlabel: str) -> None:
    """The look that all plots share."""
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, length=2, colors=INK)
    for spine in axes.spines.values():
        spine.set_color("#c9ccd1")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none", loc="best")


def _picture(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, aspect="auto")


def _bare(axes: Axes) -> None:
    axes.set_facecolor(UNKNOWN)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _depth_norm(shown: Sequence[Example]) -> colors.Normalize:
    values = [e.truth[e.truth > 0] for e in shown if e.truth is not None]
    if not sum(len(value) for value in values):
        values = [e.prediction[e.prediction > 0] for e in shown]
    depth = np.concatenate(values)
    low, high = np.percentile(depth, [1, 99]) if len(depth) else (1.0, 2.0)
    return colors.LogNorm(max(float(low), 1e-3), max(float(high), 1.05 * float(low)))


def _svg(figure: Figure) -> bytes:
    for axes in figure.axes:
        for artist in (*axes.lines, *axes.collections):
            axes_points = max((len(path.vertices) for path in _paths(artist)), default=0)
            artist.set_rasterized(axes_points > _MANY)
    return _saved(figure, "svg", metadata={"Date": None})


def _paths(artist: Any) -> list[Any]:
    return [artist.get_path()] if hasattr(artist, "get_path") else artist.get_paths()


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=110, facecolor="white", **options)
    return out.getvalue()
