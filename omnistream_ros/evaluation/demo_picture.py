# SPDX-License-Identifier: Apache-2.0
"""The demo's picture: what the camera saw, what the model made of it, and the truth beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec

from omnistream_ros.evaluation import camera_path
from omnistream_ros.evaluation.demo_report import DemoResult, Example
from omnistream_ros.evaluation.depth_pairs import resize_prediction
from omnistream_ros.evaluation.node_bag import percentiles
from omnistream_ros.evaluation.pose_metrics import align, match
from omnistream_ros.evaluation.trajectory import TrajectoryError

_DEPTH_COLOURS = "turbo_r"  # near is warm
_ERROR_COLOURS = "magma"
_ERROR_LIMIT = 0.5  # of the true depth
_UNKNOWN = "#d9dce0"
_INK = "#22262b"


def draw(result: DemoResult, path: Path) -> None:
    """Draw the picture of a run into a PNG file.

    Raises:
        OSError: the file cannot be written.
    """
    truth = any(example.truth is not None for example in result.examples)
    columns = 4 if truth else 2
    rows = max(len(result.examples), 1)
    aspect = _aspect(result.examples)
    cell = 2.6 if truth else 3.4
    depth_width = columns * cell
    path_width = 4.6
    height = rows * (cell / aspect) + 1.9
    figure = Figure(figsize=(depth_width + path_width + 1.1, height), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        1, 2, width_ratios=[depth_width, path_width], left=0.02, right=0.985,
        top=1 - 0.95 / height, bottom=0.75 / height, wspace=0.12,
    )  # fmt: skip
    _draw_examples(figure, grid[0].subgridspec(rows, columns, wspace=0.03, hspace=0.05), result)
    _draw_side(figure, grid[1].subgridspec(2, 1, height_ratios=[3.4, 1.0], hspace=0.16), result)
    figure.text(
        0.02, 1 - 0.38 / height, f"{result.run.model_name} on {result.name}",
        fontsize=15, fontweight="bold", color=_INK, va="center",
    )  # fmt: skip
    figure.savefig(path, dpi=110)


def _aspect(examples: list[Example]) -> float:
    """Width over height of the images."""
    return examples[0].frame.width / examples[0].frame.height if examples else 4 / 3


# -- images and depth -----------------------------------------------------------------------------


def _draw_examples(figure: Figure, grid: GridSpecFromSubplotSpec, result: DemoResult) -> None:
    examples = result.examples
    if not examples:
        empty = figure.add_subplot(grid[:, :])
        empty.axis("off")
        empty.text(0.5, 0.5, "no depth was published", ha="center", color=_INK, fontsize=13)
        return
    norm = _depth_norm(examples)
    truth = any(example.truth is not None for example in examples)
    first_axes: list[Axes] = []
    for row, example in enumerate(examples):
        axes = [figure.add_subplot(grid[row, column]) for column in range(4 if truth else 2)]
        if row == 0:
            first_axes = axes
        elapsed = (example.frame.stamp_ns - examples[0].frame.stamp_ns) / 1e9
        shape = example.frame.image.shape[:2]
        _show(axes[0], example.frame.image)
        axes[0].text(
            0.025, 0.04, f"{elapsed:.1f} s", transform=axes[0].transAxes, color="white", fontsize=8,
            bbox={"facecolor": "black", "alpha": 0.55, "pad": 2.0, "linewidth": 0},
        )  # fmt: skip
        prediction = resize_prediction(example.prediction, shape)
        _show(axes[1], prediction, cmap=_DEPTH_COLOURS, norm=norm)
        if example.truth is not None:
            at_truth = resize_prediction(example.prediction, example.truth.shape)
            error = np.abs(at_truth - example.truth) / example.truth
            _show(axes[2], example.truth, cmap=_DEPTH_COLOURS, norm=norm)
            _show(axes[3], error, cmap=_ERROR_COLOURS, vmin=0.0, vmax=_ERROR_LIMIT)
        elif truth:
            for blank in axes[2:]:
                _show(blank, np.full(shape, np.nan))
    for title, axes_of in zip(("Input", "Depth", "True depth", "Error"), first_axes, strict=False):
        axes_of.set_title(title, fontsize=11, color=_INK, pad=5)
    unit = "m" if result.run.metric else "up to scale"
    _colour_bar(
        figure, grid, slice(1, 3 if truth else 2), _DEPTH_COLOURS, norm, f"depth ({unit})", "both"
    )
    if truth:
        error_norm = colors.Normalize(0.0, 100 * _ERROR_LIMIT)
        _colour_bar(
            figure, grid, slice(3, 4), _ERROR_COLOURS, error_norm, "error (% of depth)", "max"
        )


def _show(axes: Axes, image: np.ndarray, **options: Any) -> None:
    """One image without ticks; what is NaN stays light grey."""
    axes.imshow(image, interpolation="nearest", aspect="auto", **options)
    axes.set_facecolor(_UNKNOWN)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _depth_norm(examples: list[Example]) -> colors.Normalize:
    """One logarithmic scale for all depth images: near things are what one wants to tell apart."""
    values = [e.truth[np.isfinite(e.truth)] for e in examples if e.truth is not None]
    if not sum(len(v) for v in values):
        values = [e.prediction[e.prediction > 0] for e in examples]
    depth = np.concatenate(values) if values else np.ones(1)
    low, high = np.percentile(depth, [1, 99]) if len(depth) else (1.0, 2.0)
    low = max(float(low), 1e-3)
    return colors.LogNorm(low, max(float(high), 1.05 * low))


def _colour_bar(
    figure: Figure,
    grid: GridSpecFromSubplotSpec,
    columns: slice,
    cmap: str,
    norm: colors.Normalize,
    label: str,
    extend: str,
) -> None:
    """A horizontal bar below some columns of the grid."""
    place = grid[-1, columns].get_position(figure)
    height = figure.get_size_inches()[1]
    inset = 0.12 * place.width
    axes = figure.add_axes(
        (place.x0 + inset, place.y0 - 0.2 / height, place.width - 2 * inset, 0.1 / height)
    )
    bar = figure.colorbar(
        ScalarMappable(norm, cmap), cax=axes, orientation="horizontal", extend=extend
    )
    bar.ax.spines["outline"].set_visible(False)
    ticks = _round_ticks(float(norm.vmin or 0), float(norm.vmax or 1))
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8, length=2, colors=_INK)
    bar.set_label(label, fontsize=9, color=_INK, labelpad=1)


def _round_ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) inside an interval."""
    if low <= 0:
        return [float(tick) for tick in np.linspace(low, high, 6)]
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 4:
            break
    return inside or [low, high]


# -- path and numbers -----------------------------------------------------------------------------


def _draw_side(figure: Figure, grid: GridSpecFromSubplotSpec, result: DemoResult) -> None:
    _draw_paths(figure.add_subplot(grid[0]), result)
    _draw_numbers(figure.add_subplot(grid[1]), result)


def _draw_paths(axes: Axes, result: DemoResult) -> None:
    """The camera's path from above, estimated and true."""
    axes.set_title("Camera path from above", fontsize=11, color=_INK, pad=18)
    estimate, truth = result.trajectory, result.true_trajectory
    if estimate is not None and truth is not None:
        try:
            matched, true = match(estimate, truth)
        except TrajectoryError:
            truth = None
        else:
            estimate = align(matched, true, "se3").apply(estimate)
            truth = true
            axes.text(
                0.5, 1.012, "estimate moved onto the truth as a rigid body, not scaled",
                transform=axes.transAxes, ha="center", fontsize=8.5, color="#6b7178",
            )  # fmt: skip
    reference = truth if truth is not None else estimate
    if reference is None:
        axes.axis("off")
        axes.text(0.5, 0.5, "no pose was published", ha="center", color=_INK, fontsize=11)
        return
    view = camera_path.view_axes(reference)
    origin = reference.translations[0]
    paths = []
    if truth is not None:
        paths.append((truth, camera_path.TRUE_COLOUR, "true", 3.0))
    if estimate is not None:
        paths.append((estimate, camera_path.ESTIMATE_COLOUR, "estimated", 1.8))
    points = np.concatenate([(p.translations - origin) @ view.T for p, *_ in paths])
    extent = max(float(np.ptp(points[:, :2], axis=0).max()), 0.2)
    for trajectory, colour, label, width in paths:
        camera_path.draw_path(
            axes, trajectory, view, origin, colour=colour, label=label, width=width
        )
        camera_path.draw_cameras(axes, trajectory, view, origin, colour=colour, size=0.09 * extent)
    _fit_limits(axes, points[:, :2], margin=0.14 * extent)
    axes.grid(color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color("#c9ccd1")
    axes.tick_params(labelsize=8, length=2, colors=_INK)
    unit = "m" if result.run.metric or truth is not None else "up to scale"
    axes.set_xlabel(f"right ({unit})", fontsize=9, color=_INK, labelpad=2)
    axes.set_ylabel(f"forward ({unit})", fontsize=9, color=_INK, labelpad=2)
    for marker, label in (("o", "start"), ("s", "end")):
        axes.plot([], [], marker, color="#9aa0a6", markersize=6, label=label)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=9, frameon=True,
        framealpha=0.9, edgecolor="none", handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip


def _fit_limits(axes: Axes, points: np.ndarray, margin: float) -> None:
    """Show all points (N, 2) with equal scales, filling the axes; more room on top for a legend."""
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin * np.array([1.0, 1.7])
    width, height = axes.bbox.size
    half = 0.5 * (high - low)
    half = np.maximum(half, half[::-1] * (width / height, height / width))
    middle = 0.5 * (low + high)
    axes.set_xlim(middle[0] - half[0], middle[0] + half[0])
    axes.set_ylim(middle[1] - half[1], middle[1] + half[1])


def _draw_numbers(axes: Axes, result: DemoResult) -> None:
    """The handful of numbers that a person asks for first."""
    axes.axis("off")
    run = result.run
    median, late = percentiles([frame.latency_ms for frame in run.frames])
    lines = [
        ("frames", f"{run.processed} of {result.sent}, {run.rate_hz:.1f} per second"),
        ("latency", f"{median:.0f} ms median, {late:.0f} ms p95"),
    ]
    if result.depth and result.constant_depth:
        lines.append(
            (
                "depth error",
                f"{100 * result.depth.abs_rel:.0f} %   (constant depth "
                f"{100 * result.constant_depth.abs_rel:.0f} %)",
            )
        )
    if result.pose and result.static_pose:
        lines.append(
            (
                "pose error",
                f"{result.pose.ate_m:.2f} m over {result.pose.path_m:.1f} m   "
                f"(standing still {result.static_pose.ate_m:.2f} m)",
            )
        )
    for row, (name, value) in enumerate(lines):
        y = 0.95 - 0.27 * row
        axes.text(0.0, y, name, fontsize=10, color="#6b7178", va="center", transform=axes.transAxes)
        axes.text(0.26, y, value, fontsize=10, color=_INK, va="center", transform=axes.transAxes)
