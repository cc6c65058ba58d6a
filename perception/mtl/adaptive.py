"""Balancers that learn from how losses or gradients develop. Their state is kept task by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from perception.config import configuration
from perception.mtl.balancer import Balancer, Gramian, Space, WeightsConfig, without_zeros

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


@configuration
class DWAConfig(WeightsConfig):
    """temperature: higher = more equal weights. window: steps over which losses are averaged, an epoch in the paper.

    A factor on a loss multiplies its weight: rates of loss do not depend on it.
    """

    name: Literal["dwa"] = "dwa"
    temperature: Positive = 2.0
    window: Count = 100


class DWA(Balancer):
    """Dynamic weight average (Liu et al. 2019): tasks whose loss fell less between the last two windows count more.

    T softmax(r / temperature), r = newer / older average; r = 1 for a task without two windows behind it.
    """

    Config = DWAConfig

    def __init__(self, config: DWAConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.window = 0
        self.sums: dict[str, list[float]] = {name: [0.0, 0] for name in tasks}
        self.averages: dict[str, list[float]] = {name: [] for name in tasks}

    def observe(self, losses: Mapping[str, Tensor], step: int) -> None:
        if step // self.config.window != self.window:
            self.window = step // self.config.window
            for name, (total, count) in self.sums.items():
                if count:
                    self.averages[name] = [*self.averages[name], total / count][-2:]
                    self.sums[name] = [0.0, 0]
        for name, loss in losses.items():
            self.sums[name][0] += float(loss.detach())
            self.sums[name][1] += 1

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        rates = torch.tensor([self._rate(name) for name in losses])
        weights = len(losses) * (rates / self.config.temperature).softmax(0)
        values = torch.stack(list(losses.values()))
        return (weights.to(values) * values).sum()

    def _rate(self, name: str) -> float:
        averages = self.averages[name]
        return averages[1] / averages[0] if len(averages) == 2 and averages[0] else 1.0

    def get_extra_state(self) -> dict[str, Any]:
        return {"window": self.window, "sums": self.sums, "averages": self.averages}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.window, self.sums, self.averages = state["window"], state["sums"], state["averages"]


class Learner:
    """A number for each task with its own Adam, stepped for the tasks that are present: the others keep number and
    moments. Adam works number by number, so for tasks that are all present this is Adam of the whole vector."""

    def __init__(self, tasks: Sequence[str], initial: float, lr: float, weight_decay: float = 0.0) -> None:
        self.numbers = {name: torch.full((), initial, requires_grad=True) for name in tasks}
        self._adam = torch.optim.Adam(list(self.numbers.values()), lr=lr, weight_decay=weight_decay, foreach=False)

    def of(self, names: Sequence[str] | Mapping[str, Any]) -> Tensor:
        return torch.stack([self.numbers[name] for name in names])

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            self.numbers[name].grad = gradient.detach().to(self.numbers[name])
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def set(self, names: Mapping[str, Any], values: Tensor) -> None:
        for name, value in zip(names, values.detach(), strict=True):
            self.numbers[name].data.copy_(value)

    def state(self) -> dict[str, Any]:
        numbers = {name: number.detach() for name, number in self.numbers.items()}
        return {"numbers": numbers, "adam": self._adam.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        for name, number in state["numbers"].items():
            self.numbers[name].data.copy_(number)
        self._adam.load_state_dict(state["adam"])


@configuration
class FAMOConfig(WeightsConfig):
    """lr, weight_decay: of the Adam that learns the logits of the weights.

    FAMO works on logarithms: a factor on a loss changes the length of the update, not how the tasks share it.
    """

    name: Literal["famo"] = "famo"
    lr: Amount = 0.025
    weight_decay: Amount = 1e-3


class FAMO(Balancer):
    """Fast adaptive multitask optimisation (Liu et al. 2023): all losses fall at about the same relative rate.

    c sum of z log L with z = softmax(w); w goes up where the update lowered the loss of the batch least. This takes the
    losses of the same batch after the update: one more forward pass a step. A task whose loss is exactly zero takes no
    part in the step, as if it were absent.
    """

    Config = FAMOConfig
    looks_back = True

    def __init__(self, config: FAMOConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.logits = Learner(tasks, 0.0, config.lr, config.weight_decay)
        self._before: dict[str, Tensor] = {}

    def observe(self, losses: Mapping[str, Tensor], step: int) -> None:
        self._before = {name: loss.detach().cpu() for name, loss in losses.items()}

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        above, rest = without_zeros(losses)
        if not above:
            return rest
        values = torch.stack(list(above.values())) + _TINY
        weights = self.logits.of(above).softmax(0).detach().to(values)
        scale = (weights / values.detach()).sum()
        return (weights / scale * values.log()).sum() + rest

    def look_back(self, losses: Mapping[str, Tensor]) -> None:
        learning = [name for name in losses if self._before[name] > 0 and self.factors[name]]
        if not learning:
            return
        before = torch.stack([self._before[name] for name in learning])
        after = torch.stack([losses[name].detach().cpu() for name in learning])
        progress = (before + _TINY).log() - (after + _TINY).log()
        if not progress.isfinite().all():  # the update broke the network: the next step finds out
            return
        with torch.enable_grad():
            logits = self.logits.of(learning).detach().requires_grad_()
            gradient = torch.autograd.grad(logits.softmax(0), logits, progress.to(logits))[0]
        self.logits.step(dict(zip(learning, gradient, strict=True)))

    def get_extra_state(self) -> dict[str, Any]:
        return self.logits.state()

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.logits.load(state)


_TINY = 1e-8


@configuration
class GradNormConfig(WeightsConfig):
    """alpha: how strongly tasks that learn slowly are pulled up; 0 = equal gradient norms. lr: of the weights' Adam.

    space: where gradients are measured. every: steps between two measurements. A factor on a loss changes where its
    weight starts; the gradients' targets make up for it.
    """

    name: Literal["gradnorm"] = "gradnorm"
    alpha: Amount = 1.5
    lr: Amount = 0.025
    space: Space = "last_shared"
    every: Count = 1


class GradNorm(Balancer):
    """GradNorm (Chen et al. 2018): weights of the losses that bring the norms of the tasks' weighted gradients towards
    mean norm * (relative inverse training rate)^alpha. The paper measures at the last shared layer: ``last_shared``.

    The L1 distance is minimised by Adam, a step for each measurement; then the weights of the present tasks are scaled
    back to the sum that they had. A task without a gradient at the step (its loss is exactly zero) takes no part in it.
    """

    Config = GradNormConfig

    def __init__(self, config: GradNormConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.space = config.space
        self.weights = Learner(tasks, 1.0, config.lr)
        self.first: dict[str, float] = {}

    def wants_gramian(self, present: tuple[str, ...], step: int) -> bool:
        return step % self.config.every == 0

    def compare(self, gramian: Gramian, losses: Mapping[str, Tensor], step: int) -> None:
        norms = gramian.diagonal().clamp(min=0).sqrt()
        moving = norms.gt(0)
        values = {n: float(loss.detach()) for (n, loss), moves in zip(losses.items(), moving, strict=True) if moves}
        if not values:
            return
        self.first = {**{name: value for name, value in values.items() if value > 0}, **self.first}
        weights = self.weights.of(values).detach()
        gradient = self.gradient(weights.double(), norms[moving], values)
        self.weights.step(dict(zip(values, gradient, strict=True)))
        found = self.weights.of(values).detach().clamp(min=_LEAST)
        self.weights.set(values, found * (weights.sum() / found.sum()))

    def gradient(self, weights: Tensor, norms: Tensor, losses: Mapping[str, float]) -> Tensor:
        """Of the sum of |norm - target| by the weights, in units of the mean norm. norms: of the weighted gradients."""
        norms = norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        rates = torch.tensor([loss / self.first.get(name, 1.0) for name, loss in losses.items()], dtype=norms.dtype)
        relative = rates / rates.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        target = norms.mean() * relative**self.config.alpha
        return (norms - target).sign() * norms / weights

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        values = torch.stack(list(losses.values()))
        return (self.weights.of(losses).detach().to(values) * values).sum()

    def get_extra_state(self) -> dict[str, Any]:
        return {"weights": self.weights.state(), "first": self.first}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.weights.load(state["weights"])
        self.first = dict(state["first"])


_LEAST = 1e-3
"""A weight never falls below this: the L1 steps could carry it through zero."""
