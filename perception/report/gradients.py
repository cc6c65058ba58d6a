"""How the tasks got along: curves, the matrix of cosines, and advice where the evidence allows it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from perception.mtl.conflict import MIN_COSINES, is_conflicting
from perception.mtl.delta_m import t_interval
from perception.report.events import extract_series, list_keys
from perception.report.format import format_decimal, format_task_name
from perception.report.plots import COLORS, render_chart

LATE_FRACTION = 0.5
"""Advice rests on this last part of the training; what the first steps do is another matter."""
DOMINANCE_RATIO, LAG_RATIO = 10.0, 3.0
"""Ratios of weighted gradients, and of the remaining parts of losses, that are worth a word."""


MAX_HALF_WIDTH_TASKS = 4
"""Tasks whose table of cosines has room in two columns of the page; more get a row of their own."""


class TaskPair(NamedTuple):
    """Two tasks over the last part of a run.

    cosine: mean; low, high: its 95 % interval; conflict: see `perception.mtl.conflict`; looks: log events that tell
    """

    first: str
    second: str
    cosine: float
    ci_low: float
    ci_high: float
    is_conflict: bool
    num_samples: int


def render_gradients(events: Sequence[Mapping[str, Any]]) -> str:
    """The section as HTML; "" where nothing was logged of several tasks' gradients."""
    train = [event for event in events if event.get("kind") == "train"]
    tasks = [key.removeprefix("task_gradient_norm/") for key in list_keys(train, "task_gradient_norm/")]
    if len(tasks) < 2:
        return ""
    later = train[int(len(train) * LATE_FRACTION) :]
    pairs = compute_pairs(later, tasks)
    strongest = sorted(pairs, key=lambda pair: -abs(pair.cosine))[: len(COLORS)]
    seen = {f"cosine/{pair.first}/{pair.second}" for pair in strongest}
    cosines = [key for key in list_keys(train, "cosine/") if key in seen]
    of = f", the {len(strongest)} farthest from 0 of {len(pairs)}" if len(strongest) < len(pairs) else ""
    curves = [
        render_chart(title, [extract_series(train, key, key.removeprefix(prefix)) for key in chosen], unit, smooth=True)
        for prefix, chosen, title, unit in (
            (
                "task_gradient_norm/",
                list_keys(train, "task_gradient_norm/"),
                "Gradient norms where they are compared",
                "norm",
            ),
            ("cosine/", cosines, f"Cosines between the tasks' gradients{of}", "cosine"),
            (
                "loss_ratio/",
                list_keys(train, "loss_ratio/"),
                "What is left of each task's first loss",
                "part of the loss",
            ),
        )
    ]
    advice = "".join(f"<li>{escape(sentence)}" for sentence in advise(events, later, tasks, pairs))
    return f"<ul class=advice>{advice}</ul><div class=charts>{render_heat_map(tasks, pairs)}{''.join(curves)}</div>"


def compute_pairs(events: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[TaskPair]:
    """Every two tasks whose gradients were seen together."""
    found = []
    for one, other in itertools.combinations(tasks, 2):
        cosines = list(extract_series(events, f"cosine/{one}/{other}").values)
        if cosines:
            mean = float(np.mean(cosines))
            low, high = t_interval(cosines) if len(cosines) > 1 else (-math.inf, math.inf)
            found.append(TaskPair(one, other, mean, low, high, is_conflicting(cosines), len(cosines)))
    return found


def render_heat_map(tasks: Sequence[str], pairs: Sequence[TaskPair]) -> str:
    """Mean cosines as a table with colored cells, each with the half of its 95 % interval."""
    known = {(pair.first, pair.second): pair for pair in pairs} | {(pair.second, pair.first): pair for pair in pairs}
    head = "".join(f"<th>{escape(format_task_name(task))}" for task in tasks)
    rows = []
    for one in tasks:
        cells = "".join(_render_cell(known.get((one, other)), one == other) for other in tasks)
        rows.append(f"<tr><th>{escape(format_task_name(one))}{cells}")
    table = f"<table class=heat><thead><tr><th>{head}<tbody>{''.join(rows)}</table>"
    note = (
        "Mean over the last half of training and its 95 % interval. Blue: the tasks pull together, red: apart. "
        "A frame marks a conflict: a mean below -0.02 beyond the noise of single steps."
    )
    title = "Mean cosine between the tasks' gradients"
    inside = f"<figcaption>{title}</figcaption><div class=wide>{table}</div><p class=note>{note}</p>"
    return f'<figure class="chart {"broad" if len(tasks) <= MAX_HALF_WIDTH_TASKS else "whole"}">{inside}</figure>'


def _render_cell(pair: TaskPair | None, is_diagonal: bool) -> str:
    if is_diagonal:
        return "<td class=self>"
    if pair is None:
        return "<td>–"
    kind, strength = ("apart", -pair.cosine) if pair.cosine < 0 else ("together", pair.cosine)
    shade = min(1.0, 0.12 + strength) if strength > 0.005 else 0.0
    half = "" if math.isinf(pair.ci_high) else f"<small>±{pair.ci_high - pair.cosine:.2f}</small>"
    frame = " conflict" if pair.is_conflict else ""
    return f'<td class="{kind}{frame}" style="--shade:{shade:.2f}">{pair.cosine:+.2f}{half}'


def advise(
    events: Sequence[Mapping[str, Any]],
    late_events: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    pairs: Sequence[TaskPair],
) -> list[str]:
    """Sentences, the most urgent first; one that says so where nothing stands out."""
    warned = [event["text"] for event in events if event.get("kind") == "warning"]
    said = [
        *warned,
        *_describe_negative_transfer(events),
        *_describe_conflicts(pairs),
        *_describe_dominance(late_events, tasks),
        *_describe_lag(late_events),
    ]
    if said:
        return said
    looks = min((pair.num_samples for pair in pairs), default=0)
    if looks < MIN_COSINES:
        return ["Too few looks at the tasks' gradients for advice: train longer, or lower train.look_every."]
    return ["No task stands out: no lasting conflict, no gradient that drowns the others, no task left behind."]


def _describe_negative_transfer(events: Sequence[Mapping[str, Any]]) -> list[str]:
    seen: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.get("kind") == "negative_transfer":
            seen.setdefault((event["falling"], event["rising"]), []).append(event["step"])
    return [
        f"See-saw: {format_task_name(falling)} fell in validation while "
        f"{format_task_name(rising)} rose, beyond noise, at step "
        f"{', '.join(map(str, steps))}. Give {format_task_name(falling)} more weight, or a balancer against conflict."
        for (falling, rising), steps in seen.items()
    ]


def _describe_conflicts(pairs: Sequence[TaskPair]) -> list[str]:
    bad = [pair for pair in pairs if pair.is_conflict]
    return [
        f"{format_task_name(pair.first).capitalize()} and {format_task_name(pair.second)} "
        "pull what they share apart: cosine "
        f"{pair.cosine:+.2f} (95 % interval {pair.ci_low:+.2f} to {pair.ci_high:+.2f}) over {pair.num_samples} looks. "
        "Try balance.name=upgrad or cagrad, or let them share less; perception group tells whether they help."
        for pair in sorted(bad, key=lambda pair: pair.cosine)
    ]


def _describe_dominance(late_events: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[str]:
    pulls = {}
    for task in tasks:
        norms, weights = (
            extract_series(late_events, f"task_gradient_norm/{task}").values,
            extract_series(late_events, f"weight/{task}").values,
        )
        if norms and weights:
            pulls[task] = float(np.median(norms)) * abs(float(np.median(weights)))
    pulls = {task: pull for task, pull in pulls.items() if pull > 0}
    if len(pulls) < 2:
        return []
    strong, weak = max(pulls, key=lambda task: pulls[task]), min(pulls, key=lambda task: pulls[task])
    ratio = pulls[strong] / pulls[weak]
    if ratio < DOMINANCE_RATIO:
        return []
    return [
        f"{format_task_name(strong).capitalize()} decides what is shared: its "
        f"weighted gradient is {ratio:.0f} times that of "
        f"{format_task_name(weak)}. Try balance.name=log_sum or uncertainty, or balance.weights.{weak} above 1."
    ]


def _describe_lag(late_events: Sequence[Mapping[str, Any]]) -> list[str]:
    left = {
        key.removeprefix("loss_ratio/"): extract_series(late_events, key).values
        for key in list_keys(late_events, "loss_ratio/")
    }
    parts = {task: float(np.median(values)) for task, values in left.items() if values}
    parts = {task: part for task, part in parts.items() if part > 0}
    if len(parts) < 2:
        return []
    slow, fast = max(parts, key=lambda task: parts[task]), min(parts, key=lambda task: parts[task])
    if parts[slow] / parts[fast] < LAG_RATIO or parts[slow] < 0.5:
        return []
    return [
        f"{format_task_name(slow).capitalize()} lags: {format_decimal(parts[slow])} of "
        f"its first loss is left, of {format_task_name(fast)}'s "
        f"{format_decimal(parts[fast])}. Try balance.name=dwa or famo, or balance.weights.{slow} above 1."
    ]
