"""Effect of joint training: relative changes against single-task controls, Delta_m, and their confidence intervals.

Every change is signed so that **positive is better**. Seeds are paired: the joint run of a seed is compared with the
controls of the same seed. Averages are computed over log-ratios (`log_ratio`) and reported as relative changes
(`relative_change`). The mean of the ratios is biased upward if the control is noisy (four tasks, one of them with noise
of 20 %: +1.1 %). The mean of log-ratios only changes its sign when the two sides are swapped.
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
"""Up to this number of seeds the bootstrap enumerates all resamples; beyond, it samples."""
_NUM_RESAMPLES = 20_000
MAX_SEEDS = 1000
MIN_RATIO = 1e-3


@dataclass(frozen=True, slots=True)
class ChangeEstimate:
    """A relative change over seeds.

    It is computed from log-ratios and transformed back, so intervals are not symmetric. Both intervals are None with
    fewer than two seeds.

    Attributes:
        values: one relative change per seed.
        mean: exp(mean log-ratio) - 1, the change of the geometric means. Its median is unbiased; if networks and
            controls are equally noisy, its mean is too high by s^2 / 2n.
        bootstrap_interval: percentile bootstrap over the seeds; too narrow with few seeds, because it only resamples
            observed values.
        t_interval: Student's interval, wide enough for few seeds (assumes Gaussian noise of the logarithms).
    """

    values: tuple[float, ...]
    mean: float
    bootstrap_interval: Interval | None
    t_interval: Interval | None


def log_ratio(joint: float, control: float, sign: int = 1) -> float:
    """Return the log-ratio ``sign * log(joint / control)``; NaN if a value is missing or the control is not positive.

    A joint score of zero counts as `MIN_RATIO` of the control's, so a failed task counts as a loss and is not excluded.

    Args:
        joint: score of the joint network.
        control: score of the single-task control.
        sign: -1 for a metric where lower is better: half the error then counts like twice the accuracy.
    """
    if not control > 0 or math.isnan(joint):
        return math.nan
    return sign * math.log(max(joint / control, MIN_RATIO))


def relative_change(value: float) -> float:
    """Convert a log-ratio to a relative change: log 2 -> +1, twice as good."""
    return math.expm1(value)


def delta_m(log_ratios: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    """Return one log-ratio per seed: the mean over tasks (Vandenhende et al. 2021, eq. 3, with log-ratios for changes).

    Args:
        log_ratios: task -> one log-ratio per seed. A task with NaN for any seed is excluded for all seeds, so that all
            seeds are means over the same tasks.
    """
    usable = [values for values in log_ratios.values() if not any(map(math.isnan, values))]
    return tuple(math.fsum(column) / len(usable) for column in zip(*usable, strict=True))


def estimate_change(log_ratios: Sequence[float], level: float = 0.95) -> ChangeEstimate:
    """Return the relative change of one log-ratio per seed, with both intervals. NaN if one is NaN or there is none."""
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
    """Return the percentile interval of the mean over resamples with replacement. Deterministic."""
    numbers = np.array(values, float)
    count = len(numbers)
    if count <= _MAX_ENUMERATED:
        means = np.array([numbers[list(chosen)].mean() for chosen in itertools.product(range(count), repeat=count)])
    else:
        means = numbers[np.random.default_rng(0).integers(count, size=(_NUM_RESAMPLES, count))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return mean +- t s / sqrt(n), with n - 1 degrees of freedom."""
    numbers = np.array(values, float)
    half = float(stats.t.ppf((1 + level) / 2, len(numbers) - 1)) * numbers.std(ddof=1) / math.sqrt(len(numbers))
    return float(numbers.mean() - half), float(numbers.mean() + half)


def required_seeds(std: float, effect: float, level: float = 0.95, power: float = 0.8) -> int | None:
    """Return the number of seeds with which a paired two-sided t-test detects a relative change of ``effect``.

    Args:
        std: standard deviation of the log-ratios over the seeds.
        effect: the relative change.
        level: confidence level.
        power: probability of detection.

    Returns:
        None if `MAX_SEEDS` seeds are not enough.
    """
    shift = math.log1p(effect)
    return next((n for n in range(2, MAX_SEEDS + 1) if _power(shift, std, n, level) >= power), None)


def detectable_change(std: float, num_seeds: int, level: float = 0.95, power: float = 0.8) -> float:
    """Return the smallest relative change that ``num_seeds`` seeds, at least two, detect with this power."""
    low, high = 0.0, 1000 * std + 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, std, num_seeds, level) >= power else (middle, high)
    return relative_change(high)


def _power(shift: float, std: float, num_seeds: int, level: float) -> float:
    """Return the power of a two-sided t-test of ``num_seeds`` differences with this mean and standard deviation."""
    if std == 0:
        return 1.0
    limit = stats.t.ppf((1 + level) / 2, num_seeds - 1)
    return float(stats.nct.sf(limit, num_seeds - 1, shift / std * math.sqrt(num_seeds)))  # the other tail is negligible
