"""Detect negative transfer: one task's score falls while another's rises, both beyond noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

MIN_EVALUATIONS = 5
"""Minimum number of evaluations: fewer give too few second differences to estimate the noise."""
TAIL_PROBABILITY = 2e-3
"""Tail probability of Student's distribution, for each task at each evaluation; a run has many of these tests."""


class NegativeTransfer(NamedTuple):
    """One pair of tasks with negative transfer.

    Attributes:
        falling: task whose score falls.
        rising: task whose score rises.
        fall: signed change of the falling score since its best value.
        rise: signed change of the rising score since the same evaluation.
    """

    falling: str
    rising: str
    fall: float
    rise: float


def find_negative_transfer(scores: Mapping[str, Sequence[float]]) -> list[NegativeTransfer]:
    """Return the pairs of tasks of which one has fallen from its best while the other has risen.

    Scores are averaged over two consecutive evaluations. The last average of the falling task must be below its highest
    one, and that of the rising task above its own at that time, both by more than t times the noise. The noise is the
    standard deviation estimated from the median absolute second difference (zero for a steady trend; at least a
    thousandth of the score). t is from Student's distribution with (n - 2) / 2 degrees of freedom, about the
    information in n - 2 overlapping second differences.

    Simulated, 4 tasks and 12 evaluations with independent Gaussian noise (``tests/mtl/test_see_saw.py``): a run without
    negative transfer raises a false alarm in 0.1 % of the cases if scores are level or rise and level off, and in 5 %
    if one rises steadily while three stay level, the worst case. A task that falls by one standard deviation of the
    noise at each of the last six evaluations, while another rises, is detected in 45 % of the runs; by two standard
    deviations in 92 %. Noise that is correlated between evaluations raises more false alarms.

    Args:
        scores: task -> its score at each evaluation so far, higher is better; NaN where it was not measured.
    """
    found = []
    for falling, rising in itertools.permutations(scores, 2):
        pair = np.array([scores[falling], scores[rising]], float)
        pair = pair[:, np.isfinite(pair).all(0)]
        if pair.shape[1] >= MIN_EVALUATIONS:
            smooth = (pair[:, 1:] + pair[:, :-1]) / 2
            best = int(smooth[0, :-2].argmax())  # excludes the average that shares an evaluation with the last
            fall, rise = smooth[:, -1] - smooth[:, best]
            limits = [_noise_limit(values) for values in pair]
            if fall < -limits[0] and rise > limits[1]:
                found.append(NegativeTransfer(falling, rising, float(fall), float(rise)))
    return found


def _noise_limit(values: NDArray) -> float:
    """Return the threshold for a change between two averages, whose standard deviation is that of one value."""
    noise = 1.4826 * float(np.median(np.abs(np.diff(values, 2)))) / math.sqrt(6)
    t = float(stdtrit((len(values) - 2) / 2, 1 - TAIL_PROBABILITY))
    return t * max(noise, 1e-3 * float(np.abs(values).mean()))
