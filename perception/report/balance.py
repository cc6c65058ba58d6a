"""How the tasks got along: curves, the matrix of cosines, and advice where the evidence allows it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from perception.mtl.conflict import LEAST, in_conflict
from perception.mtl.delta_m import t_interval
from perception.report.events import keys, series
from perception.report.format import number, spaced
from perception.report.plots import COLORS, chart

LATER = 0.5
"""Advice rests on this last part of the training; what the first steps do is another matter."""
DOMINANT, LAGGING = 10.0, 3.0
"""Ratios of weighted gradients, and of the remaining parts of losses, that are worth a word."""


BROAD = 4
"""Tasks whose table of cosines has room in two columns of the page; more get a row of their own."""


class Pair(NamedTuple):
    """Two tasks over the last part of a run.

    cosine: mean; low, high: its 95 % interval; conflict: see `perception.mtl.conflict`; looks: log events that tell
    """

    one: str
    other: str
    cosine: float
    low: float
    high: float
    conflict: bool
    looks: int


def balance_section(events: Sequence[Mapping[str, Any]]) -> str:
    """The section as HTML; "" where nothing was logged of several tasks' gradients."""
    train = [event for event in events if event.get("kind") == "train"]
    tasks = [key.removeprefix("gradient/") for key in keys(train, "gradient/")]
    if len(tasks) < 2:
        return ""
    later = train[int(len(train) * LATER) :]
    pairs = pairs_of(later, tasks)
    strongest = sorted(pairs, key=lambda pair: -abs(pair.cosine))[: len(COLORS)]
    seen = {f"cosine/{pair.one}/{pair.other}" for pair in strongest}
    cosines = [key for key in keys(train, "cosine/") if key in seen]
    of = f", the {len(strongest)} farthest from 0 of {len(pairs)}" if len(strongest) < len(pairs) else ""
    curves = [
        chart(title, [series(train, key, key.removeprefix(prefix)) for key in chosen], unit, smooth=True)
        for prefix, chosen, title, unit in (
            ("gradient/", keys(train, "gradient/"), "Gradient norms where they are compared", "norm"),
            ("cosine/", cosines, f"Cosines between the tasks' gradients{of}", "cosine"),
            ("pace/", keys(train, "pace/"), "What is left of each task's first loss", "part of the loss"),
        )
    ]
    advice = "".join(f"<li>{escape(sentence)}" for sentence in advise(events, later, tasks, pairs))
    return f"<ul class=advice>{advice}</ul><div class=charts>{heat_map(tasks, pairs)}{''.join(curves)}</div>"


def pairs_of(events: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[Pair]:
    """Every two tasks whose gradients were seen together."""
    found = []
    for one, other in itertools.combinations(tasks, 2):
        cosines = list(series(events, f"cosine/{one}/{other}").values)
        if cosines:
            mean = float(np.mean(cosines))
            low, high = t_interval(cosines) if len(cosines) > 1 else (-math.inf, math.inf)
            found.append(Pair(one, other, mean, low, high, in_conflict(cosines), len(cosines)))
    return found


def heat_map(tasks: Sequence[str], pairs: Sequence[Pair]) -> str:
    """Mean cosines as a table with coloured cells, each with the half of its 95 % interval."""
    known = {(pair.one, pair.other): pair for pair in pairs} | {(pair.other, pair.one): pair for pair in pairs}
    head = "".join(f"<th>{escape(spaced(task))}" for task in tasks)
    rows = []
    for one in tasks:
        cells = "".join(_cell(known.get((one, other)), one == other) for other in tasks)
        rows.append(f"<tr><th>{escape(spaced(one))}{cells}")
    table = f"<table class=heat><thead><tr><th>{head}<tbody>{''.join(rows)}</table>"
    note = (
        "Mean over the last half of training and its 95 % interval. Blue: the tasks pull together, red: apart. "
        "A frame marks a conflict: a mean below -0.02 beyond the noise of single steps."
    )
    title = "Mean cosine between the tasks' gradients"
    inside = f"<figcaption>{title}</figcaption><div class=wide>{table}</div><p class=note>{note}</p>"
    return f'<figure class="chart {"broad" if len(tasks) <= BROAD else "whole"}">{inside}</figure>'


def _cell(pair: Pair | None, diagonal: bool) -> str:
    if diagonal:
        return "<td class=self>"
    if pair is None:
        return "<td>–"
    kind, strength = ("apart", -pair.cosine) if pair.cosine < 0 else ("together", pair.cosine)
    shade = min(1.0, 0.12 + strength) if strength > 0.005 else 0.0
    half = "" if math.isinf(pair.high) else f"<small>±{pair.high - pair.cosine:.2f}</small>"
    frame = " conflict" if pair.conflict else ""
    return f'<td class="{kind}{frame}" style="--shade:{shade:.2f}">{pair.cosine:+.2f}{half}'


def advise(
    events: Sequence[Mapping[str, Any]], later: Sequence[Mapping[str, Any]], tasks: Sequence[str], pairs: Sequence[Pair]
) -> list[str]:
    """Sentences, the most urgent first; one that says so where nothing stands out."""
    warned = [event["text"] for event in events if event.get("kind") == "warning"]
    said = [*warned, *_see_saws(events), *_conflicts(pairs), *_dominance(later, tasks), *_pace(later)]
    if said:
        return said
    looks = min((pair.looks for pair in pairs), default=0)
    if looks < LEAST:
        return ["Too few looks at the tasks' gradients for advice: train longer, or lower train.look_every."]
    return ["No task stands out: no lasting conflict, no gradient that drowns the others, no task left behind."]


def _see_saws(events: Sequence[Mapping[str, Any]]) -> list[str]:
    seen: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.get("kind") == "see_saw":
            seen.setdefault((event["falling"], event["rising"]), []).append(event["step"])
    return [
        f"See-saw: {spaced(falling)} fell in validation while {spaced(rising)} rose, beyond noise, at step "
        f"{', '.join(map(str, steps))}. Give {spaced(falling)} more weight, or a balancer against conflict."
        for (falling, rising), steps in seen.items()
    ]


def _conflicts(pairs: Sequence[Pair]) -> list[str]:
    bad = [pair for pair in pairs if pair.conflict]
    return [
        f"{spaced(pair.one).capitalize()} and {spaced(pair.other)} pull what they share apart: cosine "
        f"{pair.cosine:+.2f} (95 % interval {pair.low:+.2f} to {pair.high:+.2f}) over {pair.looks} looks. "
        "Try balance.name=upgrad or cagrad, or let them share less; perception group tells whether they help."
        for pair in sorted(bad, key=lambda pair: pair.cosine)
    ]


def _dominance(later: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[str]:
    pulls = {}
    for task in tasks:
        norms, weights = series(later, f"gradient/{task}").values, series(later, f"weight/{task}").values
        if norms and weights:
            pulls[task] = float(np.median(norms)) * abs(float(np.median(weights)))
    pulls = {task: pull for task, pull in pulls.items() if pull > 0}
    if len(pulls) < 2:
        return []
    strong, weak = max(pulls, key=lambda task: pulls[task]), min(pulls, key=lambda task: pulls[task])
    ratio = pulls[strong] / pulls[weak]
    if ratio < DOMINANT:
        return []
    return [
        f"{spaced(strong).capitalize()} decides what is shared: its weighted gradient is {ratio:.0f} times that of "
        f"{spaced(weak)}. Try balance.name=log_sum or uncertainty, or balance.weights.{weak} above 1."
    ]


def _pace(later: Sequence[Mapping[str, Any]]) -> list[str]:
    left = {key.removeprefix("pace/"): series(later, key).values for key in keys(later, "pace/")}
    parts = {task: float(np.median(values)) for task, values in left.items() if values}
    parts = {task: part for task, part in parts.items() if part > 0}
    if len(parts) < 2:
        return []
    slow, fast = max(parts, key=lambda task: parts[task]), min(parts, key=lambda task: parts[task])
    if parts[slow] / parts[fast] < LAGGING or parts[slow] < 0.5:
        return []
    return [
        f"{spaced(slow).capitalize()} lags: {number(parts[slow])} of its first loss is left, of {spaced(fast)}'s "
        f"{number(parts[fast])}. Try balance.name=dwa or famo, or balance.weights.{slow} above 1."
    ]
