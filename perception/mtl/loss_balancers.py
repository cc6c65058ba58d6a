"""Balancers that use only the losses of the current step.

Kurin et al. 2022 and Xin et al. 2022 find that a tuned static weighting matches the more complex methods; it is the
default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.mtl.balancer import Balancer, TaskWeightsConfig, derive_seed, split_zero_losses


@config_dataclass
class StaticConfig(TaskWeightsConfig):
    """Config of `Static`.

    Attributes:
        weights: task -> weight (>= 0); default 1.
    """

    name: Literal["static"] = "static"


class Static(Balancer):
    """The weighted sum of the losses."""

    Config = StaticConfig

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the sum of the weighted losses."""
        return torch.stack(list(losses.values())).sum()


@config_dataclass
class UncertaintyConfig(TaskWeightsConfig):
    """Config of `Uncertainty`.

    A factor on a loss changes the initial value of its weight; at the optimum it cancels.

    Attributes:
        initial_log_variance: initial log-variance; 0 = weight 1.
    """

    name: Literal["uncertainty"] = "uncertainty"
    initial_log_variance: float = 0.0


class Uncertainty(Balancer):
    """Homoscedastic uncertainty (Kendall et al. 2018, eq. 10): sum of exp(-s) L + s / 2 with a learned log-variance s.

    At the optimum a task's weight is 1 / (2 L). The s of an absent task gets no gradient and does not change.
    """

    Config = UncertaintyConfig

    def __init__(self, config: UncertaintyConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.log_variances = nn.ParameterDict({name: torch.tensor(config.initial_log_variance) for name in tasks})

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the sum of exp(-s) L + s / 2."""
        terms = [
            (-self.log_variances[name]).exp() * loss + self.log_variances[name] / 2 for name, loss in losses.items()
        ]
        return torch.stack(terms).sum()


@config_dataclass
class IMTLLConfig(TaskWeightsConfig):
    """Config of `IMTLL`. A factor on a loss changes the initial value of its scale; at the optimum it cancels."""

    name: Literal["imtl_l"] = "imtl_l"


class IMTLL(Balancer):
    """The loss balance of IMTL (Liu et al. 2021): sum of exp(s) L - s with a learned s.

    At the optimum a scaled loss is 1. The s of an absent task gets no gradient and does not change.
    """

    Config = IMTLLConfig

    def __init__(self, config: IMTLLConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.log_scales = nn.ParameterDict({name: torch.tensor(0.0) for name in tasks})

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the sum of exp(s) L - s."""
        return sum_scaled_losses(losses, self.log_scales)


def sum_scaled_losses(losses: Mapping[str, Tensor], log_scales: nn.ParameterDict) -> Tensor:
    """Return the sum of exp(s) L - s."""
    return torch.stack([log_scales[name].exp() * loss - log_scales[name] for name, loss in losses.items()]).sum()


@config_dataclass
class GeometricMeanConfig:
    """Config of `GeometricMean`, without settings: a factor on a loss would scale the whole mean and favor no task."""

    name: Literal["geometric_mean"] = "geometric_mean"


class GeometricMean(Balancer):
    """Geometric loss strategy (GLS, Chennupati et al. 2019): the T-th root of the product of the T present losses.

    A loss of exactly zero (labeled, but nothing to learn) would make the product zero and stop all tasks. It is
    excluded from the mean.
    """

    Config = GeometricMeanConfig

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the geometric mean of the positive losses."""
        above, rest = split_zero_losses(losses)
        return torch.stack(list(above.values())).log().mean().exp() + rest if above else rest


@config_dataclass
class LogSumConfig:
    """Config of `LogSum`, without settings: a factor on a loss would add a constant and have no effect."""

    name: Literal["log_sum"] = "log_sum"


class LogSum(Balancer):
    """The sum of the logarithms of the losses. A loss of exactly zero is excluded.

    Every gradient is divided by its loss, so tasks learn at equal relative rates for any units of their losses.
    """

    Config = LogSumConfig

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the sum of the logarithms of the positive losses."""
        above, rest = split_zero_losses(losses)
        return torch.stack(list(above.values())).log().sum() + rest if above else rest


@config_dataclass
class RLWConfig(TaskWeightsConfig):
    """Config of `RLW`. The factors on the losses multiply the random weights."""

    name: Literal["rlw"] = "rlw"


class RLW(Balancer):
    """Random loss weighting (Lin et al. 2022): each step's weights are the softmax of normal random numbers.

    `torchjd.scalarization.Random` uses the same distribution. Here they are a function of seed and step, the same on
    all ranks.
    """

    Config = RLWConfig

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the randomly weighted sum of the losses."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step))
        weights = torch.randn(len(losses), generator=generator).softmax(0)
        values = torch.stack(list(losses.values()))
        return (weights.to(values) * values).sum()
