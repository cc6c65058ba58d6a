"""The lines of ``metrics.jsonl`` as series of numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perception.files.event_lines import read_event_lines


class Series(NamedTuple):
    """A number over the steps of a run."""

    name: str
    steps: list[float]
    values: list[float]


def read_events(path: Path) -> list[dict[str, Any]]:
    """The objects in a ``metrics.jsonl``; damaged lines are passed over with a warning, a last one that a killed run
    left unfinished without."""
    events, damaged = read_event_lines(path)
    if damaged:
        warnings.warn(f"{path}: line {', '.join(map(str, damaged))} is damaged and left out.", stacklevel=2)
    return [event for _, event in events]


def extract_series(events: Iterable[Mapping[str, Any]], key: str, name: str = "") -> Series:
    """The numbers of ``key`` in the order of their steps. Of a step that a resumed run repeated, the last counts."""
    found = {}
    for event in events:
        value = event.get(key)
        if isinstance(value, (int, float)) and math.isfinite(value) and "step" in event:
            found[float(event["step"])] = float(value)
    steps = sorted(found)
    return Series(name or key, steps, [found[step] for step in steps])


def list_keys(events: Iterable[Mapping[str, Any]], prefix: str) -> list[str]:
    """The keys that start with ``prefix``, in the order of their first appearance."""
    return list(dict.fromkeys(key for event in events for key in event if key.startswith(prefix)))


def downsample_series(series: Series, max_points: int) -> Series:
    """At most ``max_points`` numbers: means over equal shares of the series."""
    if len(series.steps) <= max_points:
        return series
    steps, values = (
        [float(part.mean()) for part in np.array_split(np.array(numbers), max_points)] for numbers in series[1:]
    )
    return Series(series.name, steps, values)


def smooth_values(values: Sequence[float], window: int) -> list[float]:
    """The mean over ``window`` neighbors, over fewer at the ends."""
    padded = np.cumsum([0.0, *values])
    half = window // 2
    spans = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [float(padded[stop] - padded[start]) / (stop - start) for start, stop in spans]
