"""Detection of conflicts between two tasks: opposing gradients, beyond the noise of single batches.

The cosine of one step is not informative. Two unrelated gradients have a negative one in every second step, and of four
unrelated tasks some pair has one in 97 % of the steps. So a pair of tasks is in conflict if the mean over recent
measurements is below ``-COSINE_MARGIN`` by more than its own uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from scipy import stats

COSINE_MARGIN = 0.02
"""Smaller cosines change the direction of an update by about a degree: no method can benefit."""
WINDOW, MIN_COSINES = 20, 8
"""Maximum number of recent measurements that are used, and minimum number for a decision."""
CONFIDENCE = 0.999
"""One-sided, by Student's t. With four unrelated tasks whose cosines have a standard deviation of 0.1, about 1 % of
runs with 50 measurements report some pair at some time. A mean cosine of -0.1 is detected in every second window of
20 measurements, -0.15 in nearly every one (simulated in tests/mtl/test_conflict.py). Longer runs have more windows (7 %
of runs that are tested 200 times). Correlated measurements raise more false alarms, so they are some steps apart."""


def mean_upper_bound(cosines: Sequence[float]) -> float:
    """Return the upper bound of the mean cosine at `CONFIDENCE`; infinite if there are too few."""
    values = np.asarray(cosines, float)
    if len(values) < MIN_COSINES:
        return math.inf
    return float(values.mean() + _t_quantile(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def is_conflicting(cosines: Sequence[float]) -> bool:
    """Return whether a pair of tasks with these cosines is in conflict."""
    return mean_upper_bound(cosines) < -COSINE_MARGIN


def record_cosines(history: dict[str, list[float]], gradient_stats: Mapping[str, float]) -> None:
    """Append the "cosine/<task>/<task>" of a measurement to the recent ones of each pair."""
    for key, value in gradient_stats.items():
        if key.startswith("cosine/"):
            history[key] = [*history.get(key, []), value][-WINDOW:]


def detect_conflicts(history: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return "conflict/<task>/<task>" and "conflict/any" of the pairs with enough measurements; 1 = in conflict."""
    known = {key: float(is_conflicting(values)) for key, values in history.items() if len(values) >= MIN_COSINES}
    found = {key.replace("cosine/", "conflict/", 1): value for key, value in known.items()}
    return {**found, "conflict/any": max(found.values())} if found else {}


@cache
def _t_quantile(degrees: int) -> float:
    return float(stats.t.ppf(CONFIDENCE, degrees))
