"""Conflict between two tasks: gradients that point apart, beyond the noise of single batches.

The cosine of one step says little. Two unrelated gradients have a negative one in every second step, and of four
unrelated tasks some pair has one in 97 % of the steps. So a pair of tasks conflicts where the mean over recent looks is
below ``-MARGIN`` by more than its own uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from scipy import stats

COSINE_MARGIN = 0.02
"""Cosines nearer to zero than this change the direction of an update by about a degree: no method can gain by it."""
WINDOW, MIN_COSINES = 20, 8
"""Looks that are taken into account, and how many there must be before anything is said."""
CONFIDENCE = 0.999
"""One-sided, by Student's t. With four unrelated tasks whose cosines have a standard deviation of 0.1, some pair is
reported at some time in about 1 % of runs of 50 looks. A mean cosine of -0.1 is found in every second window of 20
looks, -0.15 in nearly every one (simulated in tests/mtl/test_conflict.py). Longer runs have more windows (7 % of runs
that
are judged 200 times), and looks that resemble one another raise more false alarms: so they are some steps apart."""


def mean_upper_bound(cosines: Sequence[float]) -> float:
    """What the mean of the cosines is below with `CONFIDENCE`; infinite where there are too few."""
    values = np.asarray(cosines, float)
    if len(values) < MIN_COSINES:
        return math.inf
    return float(values.mean() + _t_quantile(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def is_conflicting(cosines: Sequence[float]) -> bool:
    """Whether a pair of tasks conflicts, by its cosines at some looks."""
    return mean_upper_bound(cosines) < -COSINE_MARGIN


def record_cosines(history: dict[str, list[float]], gradient_stats: Mapping[str, float]) -> None:
    """Add the "cosine/<task>/<task>" of a look to the recent ones of each pair."""
    for key, value in gradient_stats.items():
        if key.startswith("cosine/"):
            history[key] = [*history.get(key, []), value][-WINDOW:]


def detect_conflicts(history: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """ "conflict/<task>/<task>" and "conflict/any": 1 = in conflict, 0 = not; of the pairs with enough looks."""
    known = {key: float(is_conflicting(values)) for key, values in history.items() if len(values) >= MIN_COSINES}
    found = {key.replace("cosine/", "conflict/", 1): value for key, value in known.items()}
    return {**found, "conflict/any": max(found.values())} if found else {}


@cache
def _t_quantile(degrees: int) -> float:
    return float(stats.t.ppf(CONFIDENCE, degrees))
