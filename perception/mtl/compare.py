"""Did joint training help? Relative changes against single-task controls, Delta_m, and how sure they are.

Every change is signed so that **positive is better**. Seeds are paired: the joint run of a seed is compared with the
controls of the same seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Interval = tuple[float, float]

_ENUMERATED = 6
"""Up to so many seeds the bootstrap goes through every resample; beyond, it draws."""
_DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds.

    values:    one number a seed
    bootstrap: percentile bootstrap over the seeds; with few of them too narrow, for it can only mix what was seen
    t:         Student's interval, which widens as it must with few seeds (and takes the noise for Gaussian)

    Both intervals are None with fewer than two seeds.
    """

    values: tuple[float, ...]
    mean: float
    bootstrap: Interval | None
    t: Interval | None


def relative_change(joint: float, control: float, sign: int = 1) -> float:
    """``sign * (joint - control) / |control|``; NaN where there is no number, or none to divide by.

    sign: -1 for a metric of which less is better
    """
    return sign * (joint - control) / abs(control) if control else math.nan


def delta_m(changes: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    """One number a seed: the mean of the tasks' relative changes (Vandenhende et al. 2021, eq. 3).

    changes: task -> one change a seed. A task whose change is NaN for any seed is left out for all of them, or the
    seeds would not be means of the same tasks.
    """
    usable = [values for values in changes.values() if not any(map(math.isnan, values))]
    return tuple(math.fsum(column) / len(usable) for column in zip(*usable, strict=True))


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The mean of one number a seed, with both intervals. NaN where a value is NaN or there is none."""
    numbers = tuple(map(float, values))
    mean = math.fsum(numbers) / len(numbers) if numbers else math.nan
    if len(numbers) < 2 or math.isnan(mean):
        return Estimate(numbers, mean, None, None)
    return Estimate(numbers, mean, bootstrap_interval(numbers, level), t_interval(numbers, level))


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Percentile interval of the mean over resamples with replacement; the same whenever it is called."""
    numbers = np.array(values, float)
    count = len(numbers)
    if count <= _ENUMERATED:
        means = np.array([numbers[list(chosen)].mean() for chosen in itertools.product(range(count), repeat=count)])
    else:
        means = numbers[np.random.default_rng(0).integers(count, size=(_DRAWS, count))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """mean +- t s / sqrt(n), with n - 1 degrees of freedom."""
    numbers = np.array(values, float)
    half = t_quantile(level, len(numbers) - 1) * numbers.std(ddof=1) / math.sqrt(len(numbers))
    return float(numbers.mean() - half), float(numbers.mean() + half)


def t_quantile(level: float, degrees: int) -> float:
    """The t with P(|T| <= t) = level for Student's distribution of a whole number of degrees of freedom."""
    low, high = 0.0, 1.0
    while t_probability(high, degrees) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, degrees) < level else (low, middle)
    return high


def t_probability(t: float, degrees: int) -> float:
    """P(|T| <= t): the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    inner = total * math.sin(angle)
    return 2 / math.pi * (angle + inner) if odd else inner
