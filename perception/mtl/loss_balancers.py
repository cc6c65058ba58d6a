"""Balancers that look at the losses of the step alone.

Kurin et al. 2022 and Xin et al. 2022 find that a tuned static weighting ties the elaborate methods; it is the default.
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
    """weights: task -> weight (>= 0); tasks that are not named weigh 1."""

    name: Literal["static"] = "static"


class Static(Balancer):
    """The weighted sum."""

    Config = StaticConfig

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        return torch.stack(list(losses.values())).sum()


@config_dataclass
class UncertaintyConfig(TaskWeightsConfig):
    """initial: the log-variance to start from; 0 = weight 1.

    A factor on a loss changes where its weight starts; at rest it is made up for.
    """

    name: Literal["uncertainty"] = "uncertainty"
    initial_log_variance: float = 0.0


class Uncertainty(Balancer):
    """Homoscedastic uncertainty (Kendall et al. 2018, eq. 10): sum of exp(-s) L + s / 2 with a learned log-variance s.

    At rest a task's weight is 1 / (2 L). An absent task's s gets no gradient and stays.
    """

    Config = UncertaintyConfig

    def __init__(self, config: UncertaintyConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.log_variances = nn.ParameterDict({name: torch.tensor(config.initial_log_variance) for name in tasks})

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        terms = [
            (-self.log_variances[name]).exp() * loss + self.log_variances[name] / 2 for name, loss in losses.items()
        ]
        return torch.stack(terms).sum()


@config_dataclass
class IMTLLConfig(TaskWeightsConfig):
    """A factor on a loss changes where its scale starts; at rest it is made up for."""

    name: Literal["imtl_l"] = "imtl_l"


class IMTLL(Balancer):
    """The loss balance of IMTL (Liu et al. 2021): sum of exp(s) L - s with a learned s; at rest a scaled loss is 1.

    An absent task's s gets no gradient and stays.
    """

    Config = IMTLLConfig

    def __init__(self, config: IMTLLConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.log_scales = nn.ParameterDict({name: torch.tensor(0.0) for name in tasks})

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        return sum_scaled_losses(losses, self.log_scales)


def sum_scaled_losses(losses: Mapping[str, Tensor], log_scales: nn.ParameterDict) -> Tensor:
    """The sum of exp(s) L - s."""
    return torch.stack([log_scales[name].exp() * loss - log_scales[name] for name, loss in losses.items()]).sum()


@config_dataclass
class GeometricMeanConfig:
    """Has no settings: a factor on a loss would scale the whole mean and favor no task."""

    name: Literal["geometric_mean"] = "geometric_mean"


class GeometricMean(Balancer):
    """Geometric loss strategy (GLS, Chennupati et al. 2019): the T-th root of the product of the T present losses.

    A loss of exactly zero (labeled, but nothing to learn from) would make the product zero and stop all tasks; it is
    left out of the mean.
    """

    Config = GeometricMeanConfig

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        above, rest = split_zero_losses(losses)
        return torch.stack(list(above.values())).log().mean().exp() + rest if above else rest


@config_dataclass
class LogSumConfig:
    """Has no settings: a factor on a loss would add a constant and change nothing."""

    name: Literal["log_sum"] = "log_sum"


class LogSum(Balancer):
    """The sum of the logarithms of the losses: every gradient is divided by its loss, so that tasks learn at equal
    relative rates whatever the units of their losses. A loss of exactly zero is left out."""

    Config = LogSumConfig

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        above, rest = split_zero_losses(losses)
        return torch.stack(list(above.values())).log().sum() + rest if above else rest


@config_dataclass
class RLWConfig(TaskWeightsConfig):
    """The factors on the losses multiply the random weights."""

    name: Literal["rlw"] = "rlw"


class RLW(Balancer):
    """Random loss weighting (Lin et al. 2022): each step's weights are the softmax of normal numbers, as
    `torchjd.scalarization.Random` draws them; here they are a function of seed and step, the same on all ranks."""

    Config = RLWConfig

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step))
        weights = torch.randn(len(losses), generator=generator).softmax(0)
        values = torch.stack(list(losses.values()))
        return (weights.to(values) * values).sum()
