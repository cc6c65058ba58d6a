"""The report of a run: one self-contained HTML page that makes no network requests."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from perception.files.safe_names import escape_unprintable
from perception.files.safe_write import write_atomic
from perception.report.examples import ReportExample, render_gallery
from perception.report.format import (
    format_decimal,
    format_metric_name,
    format_task_name,
    render_metric_name,
    render_wide_table,
)
from perception.report.gradients import render_gradients
from perception.report.plots import render_metric_charts, render_training_charts
from perception.report.style import STYLE
from perception.types import TaskSpec

COUNT_COLUMNS = ("count", "pixels", "predicted")
"""Columns of a per-class table that hold counts. The others hold scores from 0 to 1."""

AUXILIARY_NOTE = "Auxiliary: trained and evaluated, but not part of the score and not exported."


def write_report(
    path: Path,
    *,
    title: str,
    specs: Mapping[str, TaskSpec],
    metrics: Mapping[str, float],
    tables: Mapping[str, Mapping[str, Mapping[str, float]]],
    events: Sequence[Mapping[str, Any]],
    examples: Sequence[ReportExample],
    recipe: str,
    metadata: Mapping[str, str],
    protocols: Mapping[str, str] | None = None,
    auxiliary: Collection[str] = (),
) -> None:
    """Write one self-contained HTML page (no scripts, no links, images inline).

    Args:
        path: file to write.
        title: title of the page.
        specs: task name -> its spec; sets the order of the tasks.
        metrics: "<task>/<metric>" -> final value; a task's first metric is shown large.
        tables: task name -> `Metric.compute_per_class`.
        events: the lines of metrics.jsonl (`read_events`).
        examples: candidate images; at most 3 worst and 3 best per task are shown.
        recipe: the resolved recipe as YAML.
        metadata: provenance of the run: command, hardware, versions, date.
        protocols: task name -> `Metric.protocol`, shown with the metrics.
        auxiliary: tasks that are trained, but neither scored nor exported; the page notes this.
    """
    protocols = dict(protocols or {})
    for name in auxiliary:
        protocols[name] = " ".join([AUXILIARY_NOTE, protocols.get(name, "")]).strip()
    charts = render_training_charts(events)
    parts = [
        _render_header(title, metadata),
        render_section("Results", _render_cards(specs, metrics, protocols)),
        render_section("Training", f"<div class=charts>{''.join(charts)}</div>" if charts else ""),
        render_section("Task interaction", render_gradients(events)),
    ]
    for name, spec in specs.items():
        curves = "".join(render_metric_charts(events, name)) + _render_class_table(tables.get(name, {}))
        content = f"<div class=charts>{curves}</div>" if curves else ""
        pictures = render_gallery([example for example in examples if example.task == name], spec)
        parts.append(render_section(format_task_name(name).capitalize(), content + pictures))
    parts.append(render_section("Provenance", render_metadata(metadata) + _render_recipe(recipe)))
    write_atomic(path, render_document(title, "".join(parts)).encode())


def render_document(title: str, body: str) -> str:
    """Render a complete HTML document with the report's style. ``title`` is plain text, ``body`` is HTML."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    shown = "\n".join(
        map(escape_unprintable, body.split("\n"))
    )  # names may contain control or right-to-left characters
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta name=color-scheme content="light dark">'
        f"<title>{escape(escape_unprintable(title))}</title><style>{STYLE}</style></head><body><main>{shown}</main></body></html>\n"
    )


def _render_header(title: str, metadata: Mapping[str, str]) -> str:
    shown = [escape(metadata[name]) for name in ("date", "hardware") if metadata.get(name)]
    return f"<header><h1>{escape(title)}</h1><p>{' · '.join(shown)}</p></header>"


def render_section(title: str, content: str) -> str:
    """Render a section from a plain-text title and HTML content; "" if there is no content."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _render_cards(specs: Mapping[str, TaskSpec], metrics: Mapping[str, float], protocols: Mapping[str, str]) -> str:
    cards = []
    for task in specs:
        own = {key.removeprefix(f"{task}/"): value for key, value in metrics.items() if key.startswith(f"{task}/")}
        if not own:
            continue
        first = next(iter(own))
        note = f"<p class=note>{escape(protocols[task])}</p>" if task in protocols else ""
        cards.append(
            f"<article><h3>{escape(format_task_name(task))}</h3>"
            f"<p class=big>{format_decimal(own[first])}<span>{render_metric_name(first)}</span></p>"
            f"{_render_metrics(own, first)}{note}</article>"
        )
    unnamed = {key: value for key, value in metrics.items() if key.partition("/")[0] not in specs}
    if unnamed:
        rows = "".join(
            f"<tr><th>{escape(format_metric_name(key))}<td>{format_decimal(value)}" for key, value in unnamed.items()
        )
        cards.append(f"<article><h3>all</h3><table>{rows}</table></article>")
    return f"<div class=cards>{''.join(cards)}</div>" if cards else ""


def _render_metrics(metrics: Mapping[str, float], first: str) -> str:
    """A task's metrics as rows, with aligned metrics in a separate column."""
    aligned = any(name.endswith("_aligned") for name in metrics)
    head = "<thead><tr><th><td>unaligned<td>aligned" if aligned else ""
    rows = []
    for name, value in metrics.items():
        if name.endswith("_aligned") or (name == first and not aligned):
            continue
        beside = f"<td>{format_decimal(metrics.get(f'{name}_aligned', math.nan))}" if aligned else ""
        rows.append(f"<tr><th>{render_metric_name(name)}<td>{format_decimal(value)}{beside}")
    return f"<table>{head}<tbody>{''.join(rows)}</table>" if rows else ""


def _render_class_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A table of classes by columns: scores with bars, and classes absent from the ground truth in a faint style."""
    if not rows:
        return ""
    columns = list(next(iter(rows.values())))
    head = "".join(f"<th>{escape(format_metric_name(column))}" for column in columns)
    body, absent = [], 0
    for name, row in rows.items():
        missing = math.isnan(row[columns[0]])
        absent += missing
        cells = "".join(_render_cell(column, row[column]) for column in columns)
        body.append(f"<tr{' class=absent' if missing else ''}><th>{escape(name)}{cells}")
    verb = "class is" if absent == 1 else "classes are"
    note = (
        f"<p class=note>{absent} {verb} absent from the ground truth (–) and excluded from the means.</p>"
        if absent
        else ""
    )
    table = render_wide_table(f"<thead><tr><th>class{head}<tbody>{''.join(body)}") + note
    opened = " open" if len(rows) <= 20 else ""
    return f"<details class=chart{opened}><summary>Per class</summary>{table}</details>"


def _render_cell(column: str, value: float) -> str:
    if column in COUNT_COLUMNS:
        return f"<td>{value:,.0f}"
    if math.isnan(value):
        return f"<td>{format_decimal(value)}"
    share = min(max(value, 0.0), 1.0)
    return f'<td class=bar style="--share:{share:.3f}">{format_decimal(value)}'


def render_metadata(metadata: Mapping[str, str]) -> str:
    """Render names and texts as an HTML definition list; "" if there are none."""
    rows = "".join(f"<dt>{escape(name)}<dd>{escape(text)}" for name, text in metadata.items())
    return f"<dl>{rows}</dl>" if rows else ""


def _render_recipe(recipe: str) -> str:
    return f"<details><summary>Recipe</summary><pre>{escape(recipe)}</pre></details>" if recipe else ""
