"""The see-saw, a sign of negative transfer: one task's score falls while another's rises, both beyond noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

MIN_EVALUATIONS = 5
"""Evaluations before anything is said: fewer leave too few second differences to read the noise off."""
TAIL_PROBABILITY = 2e-3
"""Of Student's distribution, for each task at each evaluation: many are looked at in a run."""


class NegativeTransfer(NamedTuple):
    """falling, rising: tasks. fall, rise: of their scores since the best of the falling one, signed."""

    falling: str
    rising: str
    fall: float
    rise: float


def find_negative_transfer(scores: Mapping[str, Sequence[float]]) -> list[NegativeTransfer]:
    """The pairs of tasks of which one has fallen from its best while the other has risen.

    scores: task -> its score at each evaluation so far, higher is better; NaN where it was not measured

    Scores are averaged over two evaluations in a row. The last average of the one must lie below its highest, and that
    of the other above its own at that time, by more than t times the noise: the standard deviation by the median
    absolute second difference (a steady trend has none; at least a thousandth of the score), t of Student's
    distribution with (n - 2) / 2 degrees of freedom, about what n - 2 second differences that overlap are worth.

    Simulated, 4 tasks and 12 evaluations with independent Gaussian noise (``tests/mtl/test_see_saw.py``): a run without
    negative transfer raises a false alarm in 0.1 % of the cases where scores are level or rise and level off, and in
    5 % where one rises steadily while three stay level, the worst case. A task that falls by one standard deviation of
    the noise at each of the last six evaluations, beside one that rises, is found in 45 % of the runs, by two in 92 %.
    Noise that wanders (is correlated from one evaluation to the next) raises more false alarms.
    """
    found = []
    for falling, rising in itertools.permutations(scores, 2):
        pair = np.array([scores[falling], scores[rising]], float)
        pair = pair[:, np.isfinite(pair).all(0)]
        if pair.shape[1] >= MIN_EVALUATIONS:
            smooth = (pair[:, 1:] + pair[:, :-1]) / 2
            best = int(smooth[0, :-2].argmax())  # not of the two that share an evaluation with the last
            fall, rise = smooth[:, -1] - smooth[:, best]
            limits = [_noise_limit(values) for values in pair]
            if fall < -limits[0] and rise > limits[1]:
                found.append(NegativeTransfer(falling, rising, float(fall), float(rise)))
    return found


def _noise_limit(values: NDArray) -> float:
    """What a change between two averages must exceed; its standard deviation is that of one value."""
    noise = 1.4826 * float(np.median(np.abs(np.diff(values, 2)))) / math.sqrt(6)
    t = float(stdtrit((len(values) - 2) / 2, 1 - TAIL_PROBABILITY))
    return t * max(noise, 1e-3 * float(np.abs(values).mean()))
