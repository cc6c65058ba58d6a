"""One line of the terminal for an event of a training run: what matters of its numbers, in the columns there are.

Which form a line takes depends on its names and on the columns, not on its numbers: the lines of a run look alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

Number = float | None
MIN_NAME_LENGTH = 3
"""Letters that are left of a task's name where columns are few; more where two tasks begin alike."""
NUMBER_WIDTH = 5
"""Places of a number."""


def format_training_line(step: str, values: Mapping[str, Number], remaining_seconds: float | None, width: int) -> str:
    """``step 10/60  loss 4.068  detection 0.829  depth 0.408  lr 0.00413  ETA 0:05:12``: each task by its loss.

    step: "10/60"; remaining_seconds: seconds until the end, None = unknown
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
    """``step 10/60  score 0.533 (best so far)  detection ap 0.046  segmentation miou 0.747  2 nan``.

    Each task by its first number. "best" among the values is the best score so far, this one included. The numbers that
    are not finite are counted where there is room: metrics.jsonl has them all.
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
    """What stands beside a score, at length and in short."""
    best = values.get("best")
    if best is None or not math.isfinite(best):
        return "", ""
    if best == values.get("score"):
        return " (best so far)", " best"
    return f" (best {format_number(best)}) ", "     "


def _list_shorter_layouts(head: str, parts: Sequence[str]) -> list[tuple[str, list[str]]]:
    """All the parts, or as many as it may be, with the number of those that are left out."""
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
    """Each name by so many of its first letters, `SHORTEST` or more, that no two are alike."""
    names = list(names)
    found = []
    for name in names:
        others = [other for other in names if other != name]
        counts = range(MIN_NAME_LENGTH, len(name))
        found.append(name[: next((n for n in counts if not any(o[:n] == name[:n] for o in others)), len(name))])
    return found


def format_number(value: Number) -> str:
    """Three digits after the point, fewer of large numbers, in `NUMBER_WIDTH` places."""
    value = math.nan if value is None else value
    return f"{value:.{3 if abs(value) < 10 else 2 if abs(value) < 100 else 1}f}".ljust(NUMBER_WIDTH)
