"""Charts as SVG with the colors of the page, so that they work in light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from perception.metrics.metric import LOWER_IS_BETTER
from perception.report.events import Series, downsample_series, extract_series, list_keys, smooth_values
from perception.report.format import (
    format_decimal,
    format_metric_name,
    format_task_name,
    render_metric_name,
    render_wide_table,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308", "#14b8a6", "#ec4899")
LINE_STYLES = ("solid", "dashed", "dotted")
"""The first lines are solid. Lines that reuse a color are dashed or dotted."""
INK_PLACEHOLDER, GRID_PLACEHOLDER = "#010203", "#040506"
"""Placeholders that `_render_svg` replaces with the page's colors."""
MAX_POINTS = 300
MIN_CURVE_POINTS = 3
"""Minimum number of evaluations for a curve. Fewer are shown as a table."""
TICK_STEPS = (1, 2, 5, 10)
METRIC_GROUPS = (
    ("ap", "ap50", "ap75"),
    ("miou", "pixel_accuracy"),
    ("top1", "top5"),
    ("delta1", "delta1_aligned"),
    ("abs_rel", "abs_rel_aligned"),
    ("rmse", "rmse_aligned"),
)
"""Metrics that share a chart."""
TABLE_ONLY = frozenset(
    name + ending
    for name in ("ap_small", "ap_medium", "ap_large", "ar100", "sq_rel", "rmse_log", "silog", "delta2", "delta3")
    for ending in ("", "_aligned")
)
"""Metrics without a chart, because their final value is enough."""


def render_training_charts(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Render the logged training curves: total loss, losses per task, task weights, learning rate and speed."""
    train = [event for event in events if event.get("kind") == "train"]
    names = list_keys(train, "loss/")
    tasks = [name for name in names if name.count("/") == 1]
    charts = [render_chart("Loss, total", [extract_series(train, "loss", "total")], "loss", smooth=True)]
    for task in tasks:
        parts = [name for name in names if name.startswith(f"{task}/")]
        lines = [
            extract_series(train, task, "sum"),
            *(extract_series(train, part, part.rpartition("/")[2]) for part in parts),
        ]
        chosen = lines if len(parts) > 1 else lines[:1]
        charts.append(
            render_chart(f"Loss, {format_task_name(task.removeprefix('loss/'))}", chosen, "loss", smooth=True)
        )
    weights = [extract_series(train, key, key.removeprefix("weight/")) for key in list_keys(train, "weight/")]
    if any(len(set(weight.values)) > 1 for weight in weights):
        charts.append(render_chart("Task weights", weights, "weight"))
    seen = [
        extract_series(train, key, key.removeprefix("labeled_fraction/"))
        for key in list_keys(train, "labeled_fraction/")
    ]
    if any(value < 1 for line in seen for value in line.values):
        charts.append(
            render_chart("Images labeled for the task", seen, "fraction of the images", smooth=True, start_at_zero=True)
        )
    charts.append(render_chart("Learning rate", [extract_series(train, "lr", "learning rate")], "learning rate"))
    charts.append(
        render_chart(
            "Speed", [extract_series(train, "images_per_second", "speed")], "images per second", start_at_zero=True
        )
    )
    return [drawn for drawn in charts if drawn]


def render_metric_charts(events: Sequence[Mapping[str, Any]], task: str) -> list[str]:
    """Render a task's metrics over the steps, with related metrics in one chart.

    Fewer than `MIN_CURVE_POINTS` evaluations are rendered as a table.
    """
    kinds = [event.get("kind") for event in events]
    wanted = "quick_evaluation" if "quick_evaluation" in kinds else "evaluation"  # not both: they use different images
    evaluations = {event["step"]: event for event, kind in zip(events, kinds, strict=True) if kind == wanted}
    evaluations = [evaluations[step] for step in sorted(evaluations)]
    names = [key.removeprefix(f"{task}/") for key in list_keys(evaluations, f"{task}/")]
    if names and len(evaluations) < MIN_CURVE_POINTS:
        return [_render_table(evaluations, task, names)]
    groups = [[name for name in group if name in names] for group in METRIC_GROUPS]
    grouped = {name for group in groups for name in group}
    groups += [[name] for name in names if name not in grouped and name not in TABLE_ONLY]
    charts = []
    for group in groups:
        if group:
            lines = [extract_series(evaluations, f"{task}/{name}", format_metric_name(name)) for name in group]
            better = "lower is better" if group[0] in LOWER_IS_BETTER else "higher is better"
            charts.append(
                render_chart(
                    f"{format_metric_name(group[0])}, {better}",
                    lines,
                    format_metric_name(group[0]),
                    start_at_zero=True,
                    show_markers=True,
                )
            )
    return [drawn for drawn in charts if drawn]


def _render_table(evaluations: Sequence[Mapping[str, Any]], task: str, names: Sequence[str]) -> str:
    """A table of a task's metrics, one column per evaluation."""
    head = "".join(f"<th>step {event['step']:,}" for event in evaluations)
    rows = [
        f"<tr><th>{render_metric_name(name)}"
        + "".join(f"<td>{format_decimal(event.get(f'{task}/{name}'))}" for event in evaluations)
        for name in names
    ]
    inside = f"<thead><tr><th>metric{head}<tbody>{''.join(rows)}"
    return f"<figure class=chart><figcaption>During training</figcaption>{render_wide_table(inside)}</figure>"


def render_chart(
    title: str,
    lines: Sequence[Series],
    unit: str,
    *,
    smooth: bool = False,
    start_at_zero: bool = False,
    show_markers: bool = False,
) -> str:
    """Render lines over steps as an HTML figure with inline SVG.

    Args:
        title: title of the chart.
        lines: series to draw; empty ones are skipped.
        unit: label of the vertical axis.
        smooth: draw the values faint and their running mean strong.
        start_at_zero: start the vertical axis at 0.
        show_markers: draw a dot at every value.

    Returns:
        HTML; "" if there is nothing to draw.
    """
    lines = [downsample_series(line, MAX_POINTS) for line in lines if line.steps]
    if not lines:
        return ""
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": title}):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for k, line in enumerate(lines):
            color, dashes = COLORS[k % len(COLORS)], LINE_STYLES[k // len(COLORS) % len(LINE_STYLES)]
            window = len(line.values) // 20 if smooth else 0
            dots = "o" if len(line.values) == 1 or (show_markers and len(line.values) <= 40) else ""
            if window > 1:
                axes.plot(line.steps, line.values, color=color, linewidth=0.8, alpha=0.3)
            values = smooth_values(line.values, window) if window > 1 else line.values
            axes.plot(line.steps, values, color=color, linewidth=1.7, linestyle=dashes, marker=dots, markersize=3.2)
        _style_axes(axes, unit, start_at_zero)
        names = _render_line_legend([line.name for line in lines]) if len(lines) > 1 else ""
        return (
            f"<figure class=chart><figcaption>{escape(title)}</figcaption>{names}{_render_svg(figure, title)}</figure>"
        )


def _render_line_legend(lines: Sequence[str]) -> str:
    """The legend of a chart as text of the page, so that long legends do not shrink the plot."""
    items = (
        f'<span><i style="background:{COLORS[k % len(COLORS)]}"{" class=dashed" * (k >= len(COLORS))}></i>'
        f"{escape(format_task_name(name))}</span>"
        for k, name in enumerate(lines)
    )
    return f"<p class=lines>{''.join(items)}</p>"


def _style_axes(axes: Axes, unit: str, start_at_zero: bool) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID_PLACEHOLDER)
    axes.grid(axis="y", color=GRID_PLACEHOLDER, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK_PLACEHOLDER, length=0, labelsize=8.5)
    axes.set_xlabel("step", color=INK_PLACEHOLDER, fontsize=8.5)
    axes.set_ylabel(unit, color=INK_PLACEHOLDER, fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=TICK_STEPS))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if start_at_zero:
        axes.set_ylim(bottom=0)


def _render_svg(figure: Figure, title: str) -> str:
    """The figure as an inline <svg> element: no metadata, no repeated ids, colors and font of the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for useless in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",
        r' xmlns(?::xlink)?="[^"]*"',
        r' (?:width|height)="[\d.]+pt"',
        r'(?<=<g) id="[^"]*"',
        r'font-family: [^;"]*;?',
    ):
        svg = re.sub(useless, "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'font: ([\d.]+px) [^;"]*', r"font-size: \1", svg
    )  # matplotlib before 3.10 writes both in one property
    svg = (
        re.sub(r"\s*\n\s*", " ", svg).replace(INK_PLACEHOLDER, "currentColor").replace(GRID_PLACEHOLDER, "var(--line)")
    )
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
