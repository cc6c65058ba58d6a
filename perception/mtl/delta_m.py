"""Did joint training help? Relative changes against single-task controls, Delta_m, and how sure they are.

Every change is signed so that **positive is better**. Seeds are paired: the joint run of a seed is compared with the
controls of the same seed. Averages are of log-ratios (`gain`) and are told as relative changes (`change`): the mean of
ratios themselves lies too high where the control is noisy (four tasks, one of them with noise of 20 %: +1.1 %), that of
their logarithms only changes its sign when the two sides change places.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Interval = tuple[float, float]

_ENUMERATED = 6
"""Up to so many seeds the bootstrap goes through every resample; beyond, it draws."""
_DRAWS = 20_000
MOST_SEEDS = 1000
LEAST_RATIO = 1e-3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A relative change over seeds: of log-ratios taken, and transformed back, so that intervals are not symmetric.

    values:    one relative change a seed
    mean:      exp(mean log-ratio) - 1, the change of the geometric means. As often too high as too low; where networks
               and controls are equally noisy, by s^2 / 2n too high on average
    bootstrap: percentile bootstrap over the seeds; with few of them too narrow, for it can only mix what was seen
    t:         Student's interval, which widens as it must with few seeds (and takes the logarithms' noise for Gaussian)

    Both intervals are None with fewer than two seeds.
    """

    values: tuple[float, ...]
    mean: float
    bootstrap: Interval | None
    t: Interval | None


def gain(joint: float, control: float, sign: int = 1) -> float:
    """The log-ratio ``sign * log(joint / control)``; NaN where there is no number, or the control has nothing to divide
    by. A joint score of zero counts as `LEAST_RATIO` of the control's: a task that was lost is a loss, not left out.

    sign: -1 for a metric of which less is better: half the error is as much as twice the accuracy
    """
    if not control > 0 or math.isnan(joint):
        return math.nan
    return sign * math.log(max(joint / control, LEAST_RATIO))


def change(gain: float) -> float:
    """A log-ratio as a relative change: log 2 -> +1, twice as good."""
    return math.expm1(gain)


def delta_m(gains: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    """One log-ratio a seed: the mean of the tasks' (Vandenhende et al. 2021, eq. 3, with log-ratios for changes).

    gains: task -> one log-ratio a seed. A task that has none for any seed is left out for all of them, or the seeds
    would not be means of the same tasks.
    """
    usable = [values for values in gains.values() if not any(map(math.isnan, values))]
    return tuple(math.fsum(column) / len(usable) for column in zip(*usable, strict=True))


def estimate(gains: Sequence[float], level: float = 0.95) -> Estimate:
    """The relative change of one log-ratio a seed, with both intervals. NaN where one is NaN or there is none."""
    numbers = tuple(map(float, gains))
    values = tuple(map(change, numbers))
    mean = math.fsum(numbers) / len(numbers) if numbers else math.nan
    if len(numbers) < 2 or math.isnan(mean):
        return Estimate(values, change(mean), None, None)
    bootstrap, t = bootstrap_interval(numbers, level), t_interval(numbers, level)
    return Estimate(values, change(mean), (change(bootstrap[0]), change(bootstrap[1])), (change(t[0]), change(t[1])))


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
    half = float(stats.t.ppf((1 + level) / 2, len(numbers) - 1)) * numbers.std(ddof=1) / math.sqrt(len(numbers))
    return float(numbers.mean() - half), float(numbers.mean() + half)


def seeds_to_tell(spread: float, effect: float, level: float = 0.95, power: float = 0.8) -> int | None:
    """How many seeds a paired two-sided t-test needs to find a relative change of ``effect`` with this power.

    spread: standard deviation of the log-ratios over the seeds. None where even ``MOST_SEEDS`` would not do
    """
    shift = math.log1p(effect)
    return next((n for n in range(2, MOST_SEEDS + 1) if _power(shift, spread, n, level) >= power), None)


def detectable(spread: float, count: int, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest relative change that ``count`` seeds, at least two, tell with this power."""
    low, high = 0.0, 1000 * spread + 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, spread, count, level) >= power else (middle, high)
    return change(high)


def _power(shift: float, spread: float, count: int, level: float) -> float:
    """Of a two-sided t-test of ``count`` differences with this mean and standard deviation."""
    if spread == 0:
        return 1.0
    limit = stats.t.ppf((1 + level) / 2, count - 1)
    return float(stats.nct.sf(limit, count - 1, shift / spread * math.sqrt(count)))  # the other tail is nothing
