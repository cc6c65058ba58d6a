"""The see-saw: one task's validation falls while another's rises, and both by more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SPAN = 2
"""Evaluations in each of the two means that are compared."""
LEAST = 3 + 2 * SPAN
"""Evaluations before anything is said: noise is read off their second differences."""
LIMIT = 3.0
"""Standard deviations that a change must exceed."""


class SeeSaw(NamedTuple):
    """falling, rising: tasks. fall, rise: of the mean of their last scores against that of those before, signed."""

    falling: str
    rising: str
    fall: float
    rise: float


def see_saws(scores: Mapping[str, Sequence[float]]) -> list[SeeSaw]:
    """The pairs of tasks of which one has fallen and the other has risen.

    scores: task -> its score at each evaluation so far, higher is better; NaN where it was not measured

    The noise of a score is estimated from how it bends (a steady trend does not bend): the median of its absolute
    second differences, which few true changes of course do not move. It is at least a thousandth of the score.
    """
    changes = {}
    for task, values in scores.items():
        known = np.array([value for value in values if math.isfinite(value)])
        if len(known) >= LEAST:
            changes[task] = _change(known)
    falling = [task for task, (change, limit) in changes.items() if change < -limit]
    rising = [task for task, (change, limit) in changes.items() if change > limit]
    return [SeeSaw(one, other, changes[one][0], changes[other][0]) for one in falling for other in rising]


def _change(values: NDArray) -> tuple[float, float]:
    """The change between the last two means, and what it must exceed."""
    change = float(values[-SPAN:].mean() - values[-2 * SPAN : -SPAN].mean())
    bends = np.abs(np.diff(values, 2))
    noise = max(1.4826 * float(np.median(bends)) / math.sqrt(6), 1e-3 * float(np.abs(values).mean()))
    return change, LIMIT * noise * math.sqrt(2 / SPAN)
