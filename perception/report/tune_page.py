"""The HTML page of a tuning study: score against time of its trials."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from perception.files.safe_write import write_atomic
from perception.report.format import format_decimal, render_wide_table
from perception.report.page import render_document, render_metadata, render_section

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 360, 60, 40
_STYLE = """<style>
.scatter{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px;width:100%;height:auto;
min-width:560px;max-width:820px;font-size:12px}
.scatter text{fill:var(--soft)}.scatter .axis{stroke:var(--line)}.scatter .other{fill:var(--soft);opacity:.55}
.scatter .front{fill:#10b981}.scatter polyline{fill:none;stroke:#10b981;stroke-width:1.5;opacity:.7}
td.values{text-align:left;font-family:ui-monospace,SFMono-Regular,Menlo,monospace;font-size:12px}
</style>"""


def write_tune_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page for the contents of tune.json."""
    title = f"Tune: {result['recipe']}"
    trials = {trial["number"]: trial for trial in result["trials"]}
    chosen = [trials[number] for number in result["pareto_front"]]
    states = [trial["state"] for trial in result["trials"]]
    said = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(said)} · {escape(result['metadata']['date'])} · "
        f"{escape(result['metadata']['hardware'])}</p></header>",
        render_section("Score against time", render_scatter(result) + _render_note(result)),
        render_section("Pareto front", _render_table(chosen)),
        render_section("All trials", _render_table(result["trials"])),
        render_section("Provenance", render_metadata(result["metadata"])),
    ]
    write_atomic(path, render_document(title, _STYLE + "".join(parts)).encode())


def _render_note(result: Mapping[str, Any]) -> str:
    base = result["baseline_milliseconds"]
    size = "x".join(map(str, result["size"]))
    measured = f" The recipe's network took {base:.1f} ms for an image of {size} pixels." if base else ""
    return (
        "<p class=note>Score: geometric mean of the tasks' metrics (1 / x if lower is better) at the last step. "
        "Time: one image including decoding, on one thread, "
        f"relative to the recipe's network, measured in interleaved rounds.{escape(measured)} Green: no trial is "
        "better in both. A trial uses one seed: confirm a choice between close trials with more seeds.</p>"
    )


def render_scatter(result: Mapping[str, Any]) -> str:
    """Render the complete trials as inline SVG, with the Pareto front connected; "" if there is none."""
    points = [trial for trial in result["trials"] if trial["state"] == "complete"]
    if not points:
        return ""
    times, scores = [p["time"] for p in points], [p["score"] for p in points]
    x = _make_scale(min(times), max(times), _LEFT, _WIDTH - 30)
    y = _make_scale(min(scores), max(scores), _HEIGHT - _BOTTOM, 20)
    front = [next(p for p in points if p["number"] == number) for number in result["pareto_front"]]
    line = " ".join(f"{x(p['time']):.1f},{y(p['score']):.1f}" for p in front)
    drawn = [
        f"<line class=axis x1={_LEFT} x2={_WIDTH - 10} y1={_HEIGHT - _BOTTOM} y2={_HEIGHT - _BOTTOM} />",
        f"<line class=axis x1={_LEFT} x2={_LEFT} y1=10 y2={_HEIGHT - _BOTTOM} />",
        f"<polyline points='{line}' />",
    ]
    for p in points:
        kind = "front" if p["number"] in result["pareto_front"] else "other"
        drawn.append(f"<circle class={kind} cx={x(p['time']):.1f} cy={y(p['score']):.1f} r=5 />")
        drawn.append(f"<text x={x(p['time']) + 7:.1f} y={y(p['score']) - 5:.1f}>{p['number']}</text>")
    drawn += [
        f"<text x={_LEFT} y={_HEIGHT - 20}>{min(times):.2f} x</text>",
        f"<text x={_WIDTH - 30} y={_HEIGHT - 20} text-anchor=end>{max(times):.2f} x the time</text>",
        f"<text x={_LEFT - 6} y={y(min(scores)):.1f} text-anchor=end>{min(scores):.3f}</text>",
        f"<text x={_LEFT - 6} y={y(max(scores)):.1f} text-anchor=end>{max(scores):.3f}</text>",
    ]
    names = f'role="img" aria-label="Score against time" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return f"<div class=wide><svg class=scatter {names}>{''.join(drawn)}</svg></div>"


def _make_scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A map from number to coordinate; the center if all numbers are equal."""
    if high <= low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _render_table(trials: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><th>{trial['number']}<td>{format_decimal(trial['score'])}<td>{format_decimal(trial['time'])} "
        f"x<td>{trial['state']}"
        f"<td class=values>{escape(format_values(trial))}"
        for trial in trials
    )
    return render_wide_table(f"<thead><tr><th>trial<th>score<th>time<th>state<th>values<tbody>{rows}")


def format_values(trial: Mapping[str, Any]) -> str:
    """Format the values that a trial changed in one line, followed by the reason if it failed."""
    found = ", ".join(f"{key}={_format_value(value)}" for key, value in trial["values"].items())
    return f"{found}: {trial['failure']}" if trial["failure"] else found


def _format_value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
