"""Task interaction during training: curves, the matrix of gradient cosines, and advice."""

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
"""The last part of training, on which advice is based. The first steps are not representative."""
DOMINANCE_RATIO, LAG_RATIO = 10.0, 3.0
"""Ratios of weighted gradient norms, and of remaining loss fractions, from which advice is given."""


MAX_HALF_WIDTH_TASKS = 4
"""Maximum tasks for a cosine table of two page columns. With more tasks the table uses the full width."""


class TaskPair(NamedTuple):
    """The gradients of two tasks over the last part of a run.

    Attributes:
        first: name of a task.
        second: name of the other task.
        cosine: mean cosine of their gradients.
        ci_low: lower end of its 95 % interval.
        ci_high: upper end of its 95 % interval.
        is_conflict: see `perception.mtl.conflict`.
        num_samples: log events with this cosine.
    """

    first: str
    second: str
    cosine: float
    ci_low: float
    ci_high: float
    is_conflict: bool
    num_samples: int


def render_gradients(events: Sequence[Mapping[str, Any]]) -> str:
    """Render the section as HTML; "" if gradients of fewer than two tasks were logged."""
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
                "Gradient norms of the tasks",
                "norm",
            ),
            ("cosine/", cosines, f"Cosines between task gradients{of}", "cosine"),
            (
                "loss_ratio/",
                list_keys(train, "loss_ratio/"),
                "Loss relative to each task's first loss",
                "fraction of the loss",
            ),
        )
    ]
    advice = "".join(f"<li>{escape(sentence)}" for sentence in advise(events, later, tasks, pairs))
    return f"<ul class=advice>{advice}</ul><div class=charts>{render_heat_map(tasks, pairs)}{''.join(curves)}</div>"


def compute_pairs(events: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[TaskPair]:
    """Compute the pairs of tasks whose gradients were logged together."""
    found = []
    for one, other in itertools.combinations(tasks, 2):
        cosines = list(extract_series(events, f"cosine/{one}/{other}").values)
        if cosines:
            mean = float(np.mean(cosines))
            low, high = t_interval(cosines) if len(cosines) > 1 else (-math.inf, math.inf)
            found.append(TaskPair(one, other, mean, low, high, is_conflicting(cosines), len(cosines)))
    return found


def render_heat_map(tasks: Sequence[str], pairs: Sequence[TaskPair]) -> str:
    """Render mean cosines as a table with colored cells, each with half the width of its 95 % interval."""
    known = {(pair.first, pair.second): pair for pair in pairs} | {(pair.second, pair.first): pair for pair in pairs}
    head = "".join(f"<th>{escape(format_task_name(task))}" for task in tasks)
    rows = []
    for one in tasks:
        cells = "".join(_render_cell(known.get((one, other)), one == other) for other in tasks)
        rows.append(f"<tr><th>{escape(format_task_name(one))}{cells}")
    table = f"<table class=heat><thead><tr><th>{head}<tbody>{''.join(rows)}</table>"
    note = (
        "Mean over the last half of training, with its 95 % interval. Blue: gradients agree. Red: gradients conflict. "
        "A frame marks a significant conflict: a mean below -0.02, beyond the noise of single steps."
    )
    title = "Mean cosine between task gradients"
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
    """Give advice from the log of a run.

    Args:
        events: all events of the run.
        late_events: training events of its last part.
        tasks: names of the tasks.
        pairs: cosines of their gradients.

    Returns:
        Sentences, the most urgent first; a single one if nothing stands out.
    """
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
        return ["Too few gradient samples for advice. Train longer, or lower train.log_gradients_every."]
    return ["No task stands out: no lasting conflict, no dominant gradient, no lagging task."]


def _describe_negative_transfer(events: Sequence[Mapping[str, Any]]) -> list[str]:
    seen: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.get("kind") == "negative_transfer":
            seen.setdefault((event["falling"], event["rising"]), []).append(event["step"])
    return [
        f"Negative transfer: {format_task_name(falling)} became worse in validation while "
        f"{format_task_name(rising)} improved, beyond noise, at step "
        f"{', '.join(map(str, steps))}. Give {format_task_name(falling)} a larger weight, "
        "or use a balancer for gradient conflicts."
        for (falling, rising), steps in seen.items()
    ]


def _describe_conflicts(pairs: Sequence[TaskPair]) -> list[str]:
    bad = [pair for pair in pairs if pair.is_conflict]
    return [
        f"{format_task_name(pair.first).capitalize()} and {format_task_name(pair.second)} "
        "conflict on their shared parameters: cosine "
        f"{pair.cosine:+.2f} (95 % interval {pair.ci_low:+.2f} to {pair.ci_high:+.2f}) over {pair.num_samples} "
        "samples. Try balance.name=upgrad or cagrad, or share fewer layers. "
        "perception group measures whether they help each other."
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
        f"{format_task_name(strong).capitalize()} dominates the shared parameters: its "
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
        f"its first loss remains, compared with {format_task_name(fast)}'s "
        f"{format_decimal(parts[fast])}. Try balance.name=dwa or famo, or balance.weights.{slow} above 1."
    ]
