"""From T named losses to ONE scalar: how much each task counts.

A task that no picture of the step labels is *absent*. It has no weight and changes no balancer's state; its loss, a
zero that is connected to the graph, is only added so that every parameter takes part in the backward pass.

Kurin et al. 2022 and Xin et al. 2022 find that a tuned static weighting ties the elaborate methods; it is the default.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import configuration
from perception.types import ConfigError


class Balancer(nn.Module, ABC):
    """Combines the losses of a step. Its parameters are trained and saved with the network's."""

    def forward(self, losses: Mapping[str, Tensor], present: Collection[str], step: int) -> Tensor:
        """The scalar to differentiate.

        losses:  task -> scalar, in the recipe's order
        present: the tasks that at least one picture labels, over all ranks
        step:    number of the step, from 0; anything random is a function of it
        """
        here = {name: loss for name, loss in losses.items() if name in present}
        absent = sum(loss * 0.0 for name, loss in losses.items() if name not in present)
        return (self.combine(here, step) if here else 0.0) + absent  # type: ignore[return-value]

    @abstractmethod
    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """The scalar of the present losses (at least one)."""


def effective_weights(total: Tensor, losses: Mapping[str, Tensor]) -> dict[str, float]:
    """d total / d loss: what each task's gradient is multiplied with, for the log. The graph is kept."""
    gradients = torch.autograd.grad(total, list(losses.values()), retain_graph=True, allow_unused=True)
    return {name: 0.0 if g is None else float(g) for name, g in zip(losses, gradients, strict=True)}


@configuration
class StaticConfig:
    """weights: task -> weight (>= 0); tasks that are not named weigh 1."""

    name: Literal["static"] = "static"
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = dataclasses.field(default_factory=dict)


class Static(Balancer):
    """The weighted sum."""

    Config = StaticConfig

    def __init__(self, config: StaticConfig, tasks: Sequence[str]) -> None:
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

    def __init__(self, config: UncertaintyConfig, tasks: Sequence[str]) -> None:
        super().__init__()
        self.log_variances = nn.ParameterDict({name: torch.tensor(config.initial) for name in tasks})

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        terms = [
            (-self.log_variances[name]).exp() * loss + self.log_variances[name] / 2 for name, loss in losses.items()
        ]
        return torch.stack(terms).sum()


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

    def __init__(self, config: GeometricMeanConfig, tasks: Sequence[str]) -> None:
        super().__init__()

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        zeros = [loss for loss in losses.values() if not loss.detach() > 0]
        others = [loss for loss in losses.values() if loss.detach() > 0]
        rest = torch.stack(zeros).sum() * 0.0 if zeros else 0.0
        return torch.stack(others).log().mean().exp() + rest if others else rest  # type: ignore[return-value]


BALANCERS: dict[str, Any] = {"static": Static, "uncertainty": Uncertainty, "geometric_mean": GeometricMean}

BalanceConfig: TypeAlias = Annotated[
    StaticConfig | UncertaintyConfig | GeometricMeanConfig, Field(discriminator="name")
]


def build_balancer(config: StaticConfig | UncertaintyConfig | GeometricMeanConfig, tasks: Sequence[str]) -> Balancer:
    """The balancer that a config names, over the recipe's tasks. Raises ConfigError where it names another task."""
    return BALANCERS[config.name](config, tasks)
