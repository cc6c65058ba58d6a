"""A joint network against its single-task controls, as one HTML page that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from perception.files.safe_write import write_whole
from perception.report.format import label, number, spaced, wide
from perception.report.page import _document, _facts, _section

_WIDTH, _ROW, _USED = 560, 30, 0.84
"""Pixels of an estimate's drawing, and the share of it that the widest interval takes."""
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


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of what compare.json holds."""
    title = f"Compare: {result['recipe']}"
    seeds = ", ".join(map(str, result["seeds"]))
    said = f"{len(result['seeds'])} seeds ({seeds}) · {result['steps']} steps · {result['facts']['date']}"
    parts = [f"<header><h1>{escape(title)}</h1><p>{escape(said)} · {escape(result['facts']['hardware'])}</p></header>"]
    for kind, against in result["controls"].items():
        parts.append(_section(f"Against single-task controls of equal {kind}", _against(against)))
    if result["cost"]:
        parts.append(_section("What it costs to run", _cost(result["cost"])))
    for kind, against in result["controls"].items():
        parts.append(_section(f"Every metric, controls of equal {kind}", _metrics(against)))
    facts = {"changes": result["changes_are"], "judged by": result["judged_by"], **result["facts"]}
    parts.append(_section("How it was made", _facts(facts)))
    write_whole(path, _document(title, _STYLE + "".join(parts)).encode())


def _against(against: Mapping[str, Any]) -> str:
    rows = [(spaced(name), its["change"]) for name, its in against["tasks"].items()]
    verdicts = "".join(f"<li>{escape(its['verdict'])}" for its in against["tasks"].values())
    left_out = against["left_out"]
    note = (
        f"<p class=note>Not in Delta_m, for want of a control's score above zero: {escape(', '.join(left_out))}.</p>"
        if left_out
        else ""
    )
    return (
        f"<p class=lead>{escape(against['verdict'])}</p>{forest([*rows, ('Delta_m', against['delta_m'])])}"
        f"<p class=note>Change against the control of the same seed, positive is better. Bar: Student's 95 % interval. "
        f"Small dots: the seeds.</p><ul class=verdicts>{verdicts}</ul>{note}"
        f"<p class=note>{escape(against['held_equal'])}</p>"
    )


def forest(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Estimates below each other, as a table of names and inline SVGs: the mean, its interval, the seeds. Relative
    changes, 0 marked."""
    known = [(name, change) for name, change in rows if not math.isnan(change["mean"])]
    if not known:
        return ""
    numbers = [0.0, *(value for _, change in known for value in (*change["values"], *(change["t"] or ())))]
    reach = max(map(abs, numbers)) or 0.01

    def x(value: float) -> float:
        return _WIDTH / 2 * (1 + value / reach * _USED)

    body = "".join(f"<tr><th>{escape(name)}<td>{_estimate(name, change, x)}" for name, change in known)
    ticks = "".join(
        f'<span style="left:{x(value) / _WIDTH:.1%}">{value:+.1%}</span>'
        for value in (-reach, -reach / 2, 0.0, reach / 2, reach)
    )
    return f"<table class=forest>{body}<tr><th><td><div class=ticks>{ticks}</div></table>"


def _estimate(name: str, change: Mapping[str, Any], x: Callable[[float], float]) -> str:
    y, kind, middle = _ROW / 2, _kind(change), x(0.0)
    parts = [f"<line class=axis x1={middle} x2={middle} y1=0 y2={_ROW} />"]
    parts += [f"<circle class=seed cx={x(value):.1f} cy={y + 7} r=2.5 />" for value in change["values"]]
    if change["t"]:
        low, high = change["t"]
        parts.append(f"<line class={kind} x1={x(low):.1f} x2={x(high):.1f} y1={y} y2={y} stroke-width=3 />")
    parts.append(f"<circle class={kind} cx={x(change['mean']):.1f} cy={y} r=5 />")
    label = escape(f"{name}: {change['mean']:+.1%}", quote=True)
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {_ROW}">{"".join(parts)}</svg>'


def _kind(change: Mapping[str, Any]) -> str:
    if not change["t"]:
        return "unsure"
    low, high = change["t"]
    return "better" if low > 0 else "worse" if high < 0 else "unsure"


def _cost(cost: Mapping[str, Any]) -> str:
    rows = [
        ("one network", cost["networks"]["joint"], cost["ratio"]),
        ("the controls in sequence", cost["sum_of_controls"], None),
    ]
    rows += [(f"{spaced(name)} alone", its, None) for name, its in cost["networks"].items() if name != "joint"]
    body = "".join(
        f"<tr><th>{escape(name)}<td>{its['parameters']:,}<td>{its['milliseconds']:.1f} ms<td>{_ratio(ratio)}"
        for name, its, ratio in rows
    )
    size = "x".join(map(str, cost["size"]))
    return (
        f"{wide(f'<thead><tr><th>network<th>parameters<th>time<th>ratio<tbody>{body}')}"
        f"<p class=note>{escape(cost['how'])}, {size} pixels. The ratio of times is taken turn by turn.</p>"
    )


def _ratio(ratio: Mapping[str, float] | None) -> str:
    return f"{ratio['time']:.2f} x the time, {ratio['parameters']:.2f} x the parameters" if ratio else ""


def _metrics(against: Mapping[str, Any]) -> str:
    body = "".join(
        f"<tr><th>{escape(spaced(name.partition('/')[0]))}, {escape(label(name.partition('/')[2]))}"
        f"<td>{number(both['control'])}<td>{number(both['joint'])}"
        for its in against["tasks"].values()
        for name, both in its["metrics"].items()
    )
    return wide(f"<thead><tr><th>metric, mean of the seeds<th>alone<th>joint<tbody>{body}")
