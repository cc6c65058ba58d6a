"""One terminal line per training event: its main numbers, shortened to the terminal width.

The layout depends on the names and the width, not on the numbers, so all lines of a run look alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

Number = float | None
MIN_NAME_LENGTH = 3
"""Shortest abbreviation of a task name; longer if two tasks begin with the same letters."""
NUMBER_WIDTH = 5
"""Width of a number in characters."""


def format_training_line(step: str, values: Mapping[str, Number], remaining_seconds: float | None, width: int) -> str:
    """Format ``step 10/60  loss 4.068  detection 0.829  depth 0.408  lr 0.00413  ETA 0:05:12``, one loss per task.

    Args:
        step: for example "10/60".
        values: name -> number of the event.
        remaining_seconds: estimated seconds until the end; None if unknown.
        width: columns of the terminal.
    """
    losses = {key.removeprefix("loss/"): values[key] for key in values if key[:5] == "loss/" and key.count("/") == 1}
    whole = [f"{task} {format_number(value)}" for task, value in losses.items()]
    cut = [
        f"{name} {format_number(value)}" for name, value in zip(abbreviate_names(losses), losses.values(), strict=True)
    ]
    head = f"step {step}  loss {format_number(values.get('loss'))}"
    lr, until = (
        values.get("lr") or math.nan,
        "?" if remaining_seconds is None else timedelta(seconds=round(remaining_seconds)),
    )
    return _choose_fitting_line(
        [(head, whole), *_list_shorter_layouts(head, cut)], f"lr {lr:<8.3g}  ETA {until}", width
    )


def format_evaluation_line(step: str, kind: str, values: Mapping[str, Number], width: int) -> str:
    """Format ``step 10/60  score 0.533 (best so far)  detection ap 0.046  segmentation miou 0.747  2 nan``.

    Shows the first metric of each task and, if there is room, counts the numbers that are not finite.

    Args:
        step: for example "10/60".
        kind: kind of the event; "quick..." is labeled as quick.
        values: name -> number; "best" is the best score so far, this one included.
        width: columns of the terminal.
    """
    measured = {key: value for key, value in values.items() if "/" in key}
    first: dict[str, tuple[str, str]] = {}
    for key, value in measured.items():
        task, _, metric = key.partition("/")
        first.setdefault(task, (metric, format_number(value)))
    unknown = sum(value is None or not math.isfinite(value) for value in measured.values())
    quick, score = kind.startswith("quick"), format_number(values.get("score"))
    called = ("quick score", "quick") if quick else ("score", "score")
    long, brief = (
        f"step {step}  {name} {score}{it}" for name, it in zip(called, _format_best_score(values), strict=True)
    )
    names, cut = list(first), abbreviate_names(first)
    metrics, numbers = [metric for metric, _ in first.values()], [number for _, number in first.values()]
    alone = metrics if len(set(metrics)) == len(metrics) else cut
    ways = [
        (long, [" ".join(parts) for parts in zip(names, metrics, numbers, strict=True)]),
        (long, [" ".join(parts) for parts in zip(cut, metrics, numbers, strict=True)]),
        *((head, [" ".join(parts) for parts in zip(alone, numbers, strict=True)]) for head in (long, brief)),
        (brief, few := [" ".join(parts) for parts in zip(cut, numbers, strict=True)]),
    ]
    line = _choose_fitting_line(ways, f"{unknown} nan" if unknown else " " * len("2 nan"), width)
    return line if len(line) <= width else _choose_fitting_line(_list_shorter_layouts(brief, few), "", width)


def _format_best_score(values: Mapping[str, Number]) -> tuple[str, str]:
    """Text beside a score, in a long and a short form."""
    best = values.get("best")
    if best is None or not math.isfinite(best):
        return "", ""
    if best == values.get("score"):
        return " (best so far)", " best"
    return f" (best {format_number(best)}) ", "     "


def _list_shorter_layouts(head: str, parts: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Layouts with all parts, then with fewer and fewer, each with the number of omitted parts."""
    shown = [[*parts[:count], f"+{len(parts) - count} more"] for count in reversed(range(len(parts)))]
    return [(head, each) for each in (list(parts), *shown)]


def _choose_fitting_line(layouts: Iterable[tuple[str, Sequence[str]]], tail: str, width: int) -> str:
    line = ""
    for head, parts in layouts:
        line = "  ".join([head, *parts, tail])
        if len(line) <= width:
            break
    return line.rstrip()


def abbreviate_names(names: Iterable[str]) -> list[str]:
    """Shorten each name to its first `MIN_NAME_LENGTH` letters, or as many as keep it unique."""
    names = list(names)
    found = []
    for name in names:
        others = [other for other in names if other != name]
        counts = range(MIN_NAME_LENGTH, len(name))
        found.append(name[: next((n for n in counts if not any(o[:n] == name[:n] for o in others)), len(name))])
    return found


def format_number(value: Number) -> str:
    """Format a number with three decimals, fewer for large numbers, padded to `NUMBER_WIDTH`."""
    value = math.nan if value is None else value
    return f"{value:.{3 if abs(value) < 10 else 2 if abs(value) < 100 else 1}f}".ljust(NUMBER_WIDTH)
