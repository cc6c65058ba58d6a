"""Balancers that look at the losses of the step alone.

Kurin et al. 2022 and Xin et al. 2022 find that a tuned static weighting ties the elaborate methods; it is the default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import configuration
from perception.mtl.balancer import Balancer, seeded
from perception.types import ConfigError


@configuration
class StaticConfig:
    """weights: task -> weight (>= 0); tasks that are not named weigh 1."""

    name: Literal["static"] = "static"
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = dataclasses.field(default_factory=dict)


class Static(Balancer):
    """The weighted sum."""

    Config = StaticConfig

    def __init__(self, config: StaticConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        if unknown := sorted(set(config.weights) - set(tasks)):
            raise ConfigError(f"balance.weights: no task '{unknown[0]}' in this recipe. Its tasks: {', '.join(tasks)}.")
        self.weights = {name: config.weights.get(name, 1.0) for name in tasks}

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        return torch.stack([loss * self.weights[name] for name, loss in losses.items()]).sum()


@configuration
class UncertaintyConfig:
    """initial: the log-variance to start from; 0 = weight 1."""

    name: Literal["uncertainty"] = "uncertainty"
    initial: float = 0.0


class Uncertainty(Balancer):
    """Homoscedastic uncertainty (Kendall et al. 2018, eq. 10): sum of exp(-s) L + s / 2 with a learned log-variance s.

    At rest a task's weight is 1 / (2 L). An absent task's s gets no gradient and stays.
    """

    Config = UncertaintyConfig

    def __init__(self, config: UncertaintyConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        self.log_variances = nn.ParameterDict({name: torch.tensor(config.initial) for name in tasks})

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        terms = [
            (-self.log_variances[name]).exp() * loss + self.log_variances[name] / 2 for name, loss in losses.items()
        ]
        return torch.stack(terms).sum()


@configuration
class IMTLLConfig:
    """Has no settings."""

    name: Literal["imtl_l"] = "imtl_l"


class IMTLL(Balancer):
    """The loss balance of IMTL (Liu et al. 2021): sum of exp(s) L - s with a learned s; at rest a scaled loss is 1.

    An absent task's s gets no gradient and stays.
    """

    Config = IMTLLConfig

    def __init__(self, config: IMTLLConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        self.log_scales = nn.ParameterDict({name: torch.tensor(0.0) for name in tasks})

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        return scaled_losses(losses, self.log_scales)


def scaled_losses(losses: Mapping[str, Tensor], log_scales: nn.ParameterDict) -> Tensor:
    """The sum of exp(s) L - s."""
    return torch.stack([log_scales[name].exp() * loss - log_scales[name] for name, loss in losses.items()]).sum()


@configuration
class GeometricMeanConfig:
    """Has no settings: the geometric mean needs no weights (a factor on a loss scales the whole)."""

    name: Literal["geometric_mean"] = "geometric_mean"


class GeometricMean(Balancer):
    """Geometric loss strategy (GLS, Chennupati et al. 2019): the T-th root of the product of the T present losses.

    A loss of exactly zero (labelled, but nothing to learn from) would make the product zero and stop all tasks; it is
    left out of the mean.
    """

    Config = GeometricMeanConfig

    def __init__(self, config: GeometricMeanConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__()

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        logs, rest = _logarithms(losses)
        return logs.mean().exp() + rest if len(logs) else rest


@configuration
class LogSumConfig:
    """Has no settings: a factor on a loss changes nothing."""

    name: Literal["log_sum"] = "log_sum"


class LogSum(Balancer):
    """The sum of the logarithms of the losses: every gradient is divided by its loss, so that tasks learn at equal
    relative rates whatever the units of their losses. A loss of exactly zero is left out."""

    Config = LogSumConfig

    def __init__(self, config: LogSumConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__()

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        logs, rest = _logarithms(losses)
        return logs.sum() + rest


def _logarithms(losses: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logarithms of the losses that are not zero, and a zero that keeps the others in the graph."""
    zeros = [loss * 0.0 for loss in losses.values() if not loss.detach() > 0]
    others = [loss for loss in losses.values() if loss.detach() > 0]
    some = next(iter(losses.values()))
    logs = torch.stack(others).log() if others else some.new_zeros(0)
    return logs, torch.stack(zeros).sum() if zeros else some.new_zeros(())


@configuration
class RLWConfig:
    """Has no settings."""

    name: Literal["rlw"] = "rlw"


class RLW(Balancer):
    """Random loss weighting (Lin et al. 2022): each step's weights are the softmax of normal numbers, as
    `torchjd.scalarization.Random` draws them; here they are a function of seed and step, the same on all ranks."""

    Config = RLWConfig

    def __init__(self, config: RLWConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seeded(self.seed, step))
        weights = torch.randn(len(losses), generator=generator).softmax(0)
        values = torch.stack(list(losses.values()))
        return (weights.to(values) * values).sum()
