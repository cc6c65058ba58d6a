"""Time series from the lines of ``metrics.jsonl``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perception.files.event_lines import read_event_lines


class Series(NamedTuple):
    """A logged number over the steps of a run.

    Attributes:
        name: name in charts.
        steps: steps in ascending order.
        values: one value per step.
    """

    name: str
    steps: list[float]
    values: list[float]


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the events of a ``metrics.jsonl``.

    Damaged lines are skipped with a warning. An unfinished last line of a killed run is skipped without a warning.
    """
    events, damaged = read_event_lines(path)
    if damaged:
        warnings.warn(f"{path}: line {', '.join(map(str, damaged))} is damaged and was skipped.", stacklevel=2)
    return [event for _, event in events]


def extract_series(events: Iterable[Mapping[str, Any]], key: str, name: str = "") -> Series:
    """Extract the values of ``key`` in step order. If a resumed run repeated a step, the last value counts."""
    found = {}
    for event in events:
        value = event.get(key)
        if isinstance(value, (int, float)) and math.isfinite(value) and "step" in event:
            found[float(event["step"])] = float(value)
    steps = sorted(found)
    return Series(name or key, steps, [found[step] for step in steps])


def list_keys(events: Iterable[Mapping[str, Any]], prefix: str) -> list[str]:
    """List the keys that start with ``prefix``, in the order of their first appearance."""
    return list(dict.fromkeys(key for event in events for key in event if key.startswith(prefix)))


def downsample_series(series: Series, max_points: int) -> Series:
    """Reduce a series to at most ``max_points`` values: means over equal parts."""
    if len(series.steps) <= max_points:
        return series
    steps, values = (
        [float(part.mean()) for part in np.array_split(np.array(numbers), max_points)] for numbers in series[1:]
    )
    return Series(series.name, steps, values)


def smooth_values(values: Sequence[float], window: int) -> list[float]:
    """Compute the running mean over ``window`` values, fewer at the ends."""
    padded = np.cumsum([0.0, *values])
    half = window // 2
    spans = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [float(padded[stop] - padded[start]) / (stop - start) for start, stop in spans]
