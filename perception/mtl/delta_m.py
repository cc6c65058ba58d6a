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

_MAX_ENUMERATED = 6
"""Up to so many seeds the bootstrap goes through every resample; beyond, it draws."""
_NUM_RESAMPLES = 20_000
MAX_SEEDS = 1000
MIN_RATIO = 1e-3


@dataclass(frozen=True, slots=True)
class ChangeEstimate:
    """A relative change over seeds: of log-ratios taken, and transformed back, so that intervals are not symmetric.

    values:    one relative change a seed
    mean:      exp(mean log-ratio) - 1, the change of the geometric means. As often too high as too low; where networks
               and controls are equally noisy, by s^2 / 2n too high on average
    bootstrap_interval: percentile bootstrap over the seeds; with few of them too narrow, for it can only mix what was
    seen
    t_interval:         Student's interval, wide enough for few seeds (assumes Gaussian noise of the logarithms)

    Both intervals are None with fewer than two seeds.
    """

    values: tuple[float, ...]
    mean: float
    bootstrap_interval: Interval | None
    t_interval: Interval | None


def log_ratio(joint: float, control: float, sign: int = 1) -> float:
    """The log-ratio ``sign * log(joint / control)``; NaN where there is no number, or the control has nothing to divide
    by. A joint score of zero counts as `MIN_RATIO` of the control's: a task that was lost is a loss, not left out.

    sign: -1 for a metric of which less is better: half the error is as much as twice the accuracy
    """
    if not control > 0 or math.isnan(joint):
        return math.nan
    return sign * math.log(max(joint / control, MIN_RATIO))


def relative_change(value: float) -> float:
    """A log-ratio as a relative change: log 2 -> +1, twice as good."""
    return math.expm1(value)


def delta_m(log_ratios: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    """One log-ratio a seed: the mean of the tasks' (Vandenhende et al. 2021, eq. 3, with log-ratios for changes).

    log_ratios: task -> one log-ratio a seed. A task that has none for any seed is left out for all of them, or the
    seeds
    would not be means of the same tasks.
    """
    usable = [values for values in log_ratios.values() if not any(map(math.isnan, values))]
    return tuple(math.fsum(column) / len(usable) for column in zip(*usable, strict=True))


def estimate_change(log_ratios: Sequence[float], level: float = 0.95) -> ChangeEstimate:
    """The relative change of one log-ratio a seed, with both intervals. NaN where one is NaN or there is none."""
    numbers = tuple(map(float, log_ratios))
    values = tuple(map(relative_change, numbers))
    mean = math.fsum(numbers) / len(numbers) if numbers else math.nan
    if len(numbers) < 2 or math.isnan(mean):
        return ChangeEstimate(values, relative_change(mean), None, None)
    bootstrap, t = bootstrap_interval(numbers, level), t_interval(numbers, level)
    return ChangeEstimate(
        values,
        relative_change(mean),
        (relative_change(bootstrap[0]), relative_change(bootstrap[1])),
        (relative_change(t[0]), relative_change(t[1])),
    )


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Percentile interval of the mean over resamples with replacement; the same whenever it is called."""
    numbers = np.array(values, float)
    count = len(numbers)
    if count <= _MAX_ENUMERATED:
        means = np.array([numbers[list(chosen)].mean() for chosen in itertools.product(range(count), repeat=count)])
    else:
        means = numbers[np.random.default_rng(0).integers(count, size=(_NUM_RESAMPLES, count))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """mean +- t s / sqrt(n), with n - 1 degrees of freedom."""
    numbers = np.array(values, float)
    half = float(stats.t.ppf((1 + level) / 2, len(numbers) - 1)) * numbers.std(ddof=1) / math.sqrt(len(numbers))
    return float(numbers.mean() - half), float(numbers.mean() + half)


def required_seeds(std: float, effect: float, level: float = 0.95, power: float = 0.8) -> int | None:
    """How many seeds a paired two-sided t-test needs to find a relative change of ``effect`` with this power.

    std: standard deviation of the log-ratios over the seeds. None where even ``MOST_SEEDS`` would not do
    """
    shift = math.log1p(effect)
    return next((n for n in range(2, MAX_SEEDS + 1) if _power(shift, std, n, level) >= power), None)


def detectable_change(std: float, num_seeds: int, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest relative change that ``num_seeds`` seeds, at least two, tell with this power."""
    low, high = 0.0, 1000 * std + 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, std, num_seeds, level) >= power else (middle, high)
    return relative_change(high)


def _power(shift: float, std: float, num_seeds: int, level: float) -> float:
    """Of a two-sided t-test of ``num_seeds`` differences with this mean and standard deviation."""
    if std == 0:
        return 1.0
    limit = stats.t.ppf((1 + level) / 2, num_seeds - 1)
    return float(stats.nct.sf(limit, num_seeds - 1, shift / std * math.sqrt(num_seeds)))  # the other tail is nothing
