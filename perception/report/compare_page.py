"""The HTML page that compares a joint network with its single-task controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from perception.files.safe_write import write_atomic
from perception.report.format import format_decimal, format_metric_name, format_task_name, render_wide_table
from perception.report.page import render_document, render_metadata, render_section

_WIDTH, _ROW, _USED = 560, 30, 0.84
"""Width and height of one row of the plot, pixels; share of the width that the widest interval uses."""
_STYLE = """<style>
.forest{background:var(--card);border:1px solid var(--line);border-collapse:separate;border-spacing:0;
border-radius:10px;padding:10px 16px;max-width:820px;font-size:13.5px}
.forest th{width:30%}.forest td{padding:0}
.forest svg{display:block;width:100%;height:auto}.forest line{stroke:var(--ink)}
.forest .axis{stroke:var(--line)}.forest .seed{fill:var(--soft);opacity:.6}
.ticks{position:relative;height:20px;font-size:12px;color:var(--soft)}
.ticks span{position:absolute;transform:translateX(-50%)}
.better{fill:#10b981;stroke:#10b981}.worse{fill:#ef4444;stroke:#ef4444}.unsure{fill:#6b7280;stroke:#6b7280}
.forest line.better{stroke:#10b981}.forest line.worse{stroke:#ef4444}.forest line.unsure{stroke:#6b7280}
@media(max-width:640px){.forest th,.forest td{display:block;width:auto}.ticks{font-size:10px}}
ul.verdicts{padding-left:20px}.lead{font-size:17px;font-weight:600}
</style>"""


def write_compare_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page for the contents of compare.json."""
    title = f"Compare: {result['recipe']}"
    seeds = ", ".join(map(str, result["seeds"]))
    said = f"{len(result['seeds'])} seeds ({seeds}) · {result['steps']} steps · {result['metadata']['date']}"
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(said)} · {escape(result['metadata']['hardware'])}</p></header>"
    ]
    for kind, against in result["controls"].items():
        parts.append(
            render_section(f"Comparison with single-task controls of equal {kind}", _render_comparison(against))
        )
    if result["cost"]:
        parts.append(render_section("Inference cost", _render_cost(result["cost"])))
    for kind, against in result["controls"].items():
        parts.append(render_section(f"All metrics, controls of equal {kind}", _render_metrics(against)))
    facts = {"changes": result["change_definition"], "judged by": result["score_metrics"], **result["metadata"]}
    parts.append(render_section("Provenance", render_metadata(facts)))
    write_atomic(path, render_document(title, _STYLE + "".join(parts)).encode())


def _render_comparison(comparison: Mapping[str, Any]) -> str:
    rows = [(format_task_name(name), its["change"]) for name, its in comparison["tasks"].items()]
    verdicts = "".join(f"<li>{escape(its['verdict'])}" for its in comparison["tasks"].values())
    left_out = comparison["excluded_tasks"]
    note = (
        f"<p class=note>Not in Delta_m, because a control's score is not above zero: {escape(', '.join(left_out))}.</p>"
        if left_out
        else ""
    )
    return (
        f"<p class=lead>{escape(comparison['verdict'])}</p>"
        f"{render_forest_plot([*rows, ('Delta_m', comparison['delta_m'])])}"
        f"<p class=note>Change relative to the control of the same seed. Positive is better. Bar: Student's 95 % "
        f"interval. Small dots: single seeds.</p><ul class=verdicts>{verdicts}</ul>{note}"
        f"<p class=note>{escape(comparison['equal_budget'])}</p>"
    )


def render_forest_plot(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Render relative changes as a forest plot: a table of names and inline SVGs.

    Args:
        rows: (name, change) pairs. A change has "mean", "values" (one per seed) and "t_interval".

    Returns:
        HTML with the mean, its interval and the seeds of each row, and a line at 0; "" if no mean is known.
    """
    known = [(name, change) for name, change in rows if not math.isnan(change["mean"])]
    if not known:
        return ""
    numbers = [0.0, *(value for _, change in known for value in (*change["values"], *(change["t_interval"] or ())))]
    reach = max(map(abs, numbers)) or 0.01

    def x(value: float) -> float:
        return _WIDTH / 2 * (1 + value / reach * _USED)

    body = "".join(f"<tr><th>{escape(name)}<td>{_render_estimate(name, change, x)}" for name, change in known)
    ticks = "".join(
        f'<span style="left:{x(value) / _WIDTH:.1%}">{value:+.1%}</span>'
        for value in (-reach, -reach / 2, 0.0, reach / 2, reach)
    )
    return f"<table class=forest>{body}<tr><th><td><div class=ticks>{ticks}</div></table>"


def _render_estimate(name: str, change: Mapping[str, Any], to_x: Callable[[float], float]) -> str:
    y, kind, middle = _ROW / 2, _classify_change(change), to_x(0.0)
    parts = [f"<line class=axis x1={middle} x2={middle} y1=0 y2={_ROW} />"]
    parts += [f"<circle class=seed cx={to_x(value):.1f} cy={y + 7} r=2.5 />" for value in change["values"]]
    if change["t_interval"]:
        low, high = change["t_interval"]
        parts.append(f"<line class={kind} x1={to_x(low):.1f} x2={to_x(high):.1f} y1={y} y2={y} stroke-width=3 />")
    parts.append(f"<circle class={kind} cx={to_x(change['mean']):.1f} cy={y} r=5 />")
    label = escape(f"{name}: {change['mean']:+.1%}", quote=True)
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {_ROW}">{"".join(parts)}</svg>'


def _classify_change(change: Mapping[str, Any]) -> str:
    if not change["t_interval"]:
        return "unsure"
    low, high = change["t_interval"]
    return "better" if low > 0 else "worse" if high < 0 else "unsure"


def _render_cost(cost: Mapping[str, Any]) -> str:
    rows = [
        ("one network", cost["networks"]["joint"], cost["ratio"]),
        ("all controls, one after another", cost["sum_of_controls"], None),
    ]
    rows += [
        (f"{format_task_name(name)} alone", its, None) for name, its in cost["networks"].items() if name != "joint"
    ]
    body = "".join(
        f"<tr><th>{escape(name)}<td>{its['parameters']:,}<td>{its['milliseconds']:.1f} ms<td>{_format_ratio(ratio)}"
        for name, its, ratio in rows
    )
    size = "x".join(map(str, cost["size"]))
    return (
        f"{render_wide_table(f'<thead><tr><th>network<th>parameters<th>time<th>ratio<tbody>{body}')}"
        f"<p class=note>{escape(cost['protocol'])}, {size} pixels. The ratio of times is computed per round.</p>"
    )


def _format_ratio(ratio: Mapping[str, float] | None) -> str:
    return f"{ratio['time']:.2f} x the time, {ratio['parameters']:.2f} x the parameters" if ratio else ""


def _render_metrics(comparison: Mapping[str, Any]) -> str:
    body = "".join(
        f"<tr><th>{escape(format_task_name(name.partition('/')[0]))}, "
        f"{escape(format_metric_name(name.partition('/')[2]))}"
        f"<td>{format_decimal(both['control'])}<td>{format_decimal(both['joint'])}"
        for its in comparison["tasks"].values()
        for name, both in its["metrics"].items()
    )
    return render_wide_table(f"<thead><tr><th>metric, mean over the seeds<th>single-task<th>joint<tbody>{body}")
