"""One line of the terminal for an event of a training run: what matters of its numbers, in the columns there are.

Which form a line takes depends on its names and on the columns, not on its numbers: the lines of a run look alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

Number = float | None
SHORTEST = 3
"""Letters that are left of a task's name where columns are few; more where two tasks begin alike."""
DIGITS = 5
"""Places of a number."""


def training_line(step: str, values: Mapping[str, Number], left: float | None, columns: int) -> str:
    """``step 10/60  loss 4.068  detection 0.829  depth 0.408  lr 0.00413  ETA 0:05:12``: each task by its loss.

    step: "10/60"; left: seconds until the end, None = unknown
    """
    losses = {key.removeprefix("loss/"): values[key] for key in values if key[:5] == "loss/" and key.count("/") == 1}
    whole = [f"{task} {short(value)}" for task, value in losses.items()]
    cut = [f"{name} {short(value)}" for name, value in zip(shortened(losses), losses.values(), strict=True)]
    head = f"step {step}  loss {short(values.get('loss'))}"
    lr, until = values.get("lr") or math.nan, "?" if left is None else timedelta(seconds=round(left))
    return _first_that_fits([(head, whole), *_fewer(head, cut)], f"lr {lr:<8.3g}  ETA {until}", columns)


def evaluation_line(step: str, kind: str, values: Mapping[str, Number], columns: int) -> str:
    """``step 10/60  score 0.533 (best so far)  detection ap 0.046  segmentation miou 0.747  2 nan``.

    Each task by its first number. "best" among the values is the best score so far, this one included. The numbers that
    are not finite are counted where there is room: metrics.jsonl has them all.
    """
    measured = {key: value for key, value in values.items() if "/" in key}
    first: dict[str, tuple[str, str]] = {}
    for key, value in measured.items():
        task, _, metric = key.partition("/")
        first.setdefault(task, (metric, short(value)))
    unknown = sum(value is None or not math.isfinite(value) for value in measured.values())
    quick, score = kind.startswith("quick"), short(values.get("score"))
    called = ("quick score", "quick") if quick else ("score", "score")
    long, brief = (f"step {step}  {name} {score}{it}" for name, it in zip(called, _beside(values), strict=True))
    names, cut = list(first), shortened(first)
    metrics, numbers = [metric for metric, _ in first.values()], [number for _, number in first.values()]
    alone = metrics if len(set(metrics)) == len(metrics) else cut
    ways = [
        (long, [" ".join(parts) for parts in zip(names, metrics, numbers, strict=True)]),
        (long, [" ".join(parts) for parts in zip(cut, metrics, numbers, strict=True)]),
        *((head, [" ".join(parts) for parts in zip(alone, numbers, strict=True)]) for head in (long, brief)),
        (brief, few := [" ".join(parts) for parts in zip(cut, numbers, strict=True)]),
    ]
    line = _first_that_fits(ways, f"{unknown} nan" if unknown else " " * len("2 nan"), columns)
    return line if len(line) <= columns else _first_that_fits(_fewer(brief, few), "", columns)


def _beside(values: Mapping[str, Number]) -> tuple[str, str]:
    """What stands beside a score, at length and in short."""
    best = values.get("best")
    if best is None or not math.isfinite(best):
        return "", ""
    if best == values.get("score"):
        return " (best so far)", " best"
    return f" (best {short(best)}) ", "     "


def _fewer(head: str, parts: Sequence[str]) -> list[tuple[str, list[str]]]:
    """All the parts, or as many as it may be, with the number of those that are left out."""
    shown = [[*parts[:count], f"+{len(parts) - count} more"] for count in reversed(range(len(parts)))]
    return [(head, each) for each in (list(parts), *shown)]


def _first_that_fits(ways: Iterable[tuple[str, Sequence[str]]], tail: str, columns: int) -> str:
    line = ""
    for head, parts in ways:
        line = "  ".join([head, *parts, tail])
        if len(line) <= columns:
            break
    return line.rstrip()


def shortened(names: Iterable[str]) -> list[str]:
    """Each name by so many of its first letters, `SHORTEST` or more, that no two are alike."""
    names = list(names)
    found = []
    for name in names:
        others = [other for other in names if other != name]
        counts = range(SHORTEST, len(name))
        found.append(name[: next((n for n in counts if not any(o[:n] == name[:n] for o in others)), len(name))])
    return found


def short(value: Number) -> str:
    """Three digits after the point, fewer of large numbers, in `DIGITS` places."""
    value = math.nan if value is None else value
    return f"{value:.{3 if abs(value) < 10 else 2 if abs(value) < 100 else 1}f}".ljust(DIGITS)
