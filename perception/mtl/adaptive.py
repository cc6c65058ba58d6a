"""Balancers that adapt to the history of losses or gradients. Their state is kept per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from perception.config import config_dataclass
from perception.mtl.balancer import Balancer, GradientSpace, Gramian, TaskWeightsConfig, split_zero_losses

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]


@config_dataclass
class DWAConfig(TaskWeightsConfig):
    """Config of `DWA`.

    A factor on a loss multiplies its weight, because loss ratios do not depend on it.

    Attributes:
        temperature: higher = more equal weights.
        window: steps over which losses are averaged; one epoch in the paper.
    """

    name: Literal["dwa"] = "dwa"
    temperature: PositiveFloat = 2.0
    window: PositiveInt = 100


class DWA(Balancer):
    """Dynamic weight average (Liu et al. 2019): tasks whose loss fell less get more weight.

    The weights are T softmax(r / temperature), r = newer / older average of the last two windows. A task without two
    complete windows has r = 1.
    """

    Config = DWAConfig

    def __init__(self, config: DWAConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.window_index = 0
        self.sums: dict[str, list[float]] = {name: [0.0, 0] for name in tasks}
        self.averages: dict[str, list[float]] = {name: [] for name in tasks}

    def observe(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Add the losses to the current window, see `Balancer.observe`."""
        if step // self.config.window != self.window_index:
            self.window_index = step // self.config.window
            for name, (total, count) in self.sums.items():
                if count:
                    self.averages[name] = [*self.averages[name], total / count][-2:]
                    self.sums[name] = [0.0, 0]
        for name, loss in losses.items():
            self.sums[name][0] += float(loss.detach())
            self.sums[name][1] += 1

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the weighted sum of the losses."""
        rates = torch.tensor([self._loss_ratio(name) for name in losses])
        weights = len(losses) * (rates / self.config.temperature).softmax(0)
        values = torch.stack(list(losses.values()))
        return (weights.to(values) * values).sum()

    def _loss_ratio(self, name: str) -> float:
        averages = self.averages[name]
        return averages[1] / averages[0] if len(averages) == 2 and averages[0] else 1.0

    def get_extra_state(self) -> dict[str, Any]:
        """Return the windows and averages."""
        return {"window": self.window_index, "sums": self.sums, "averages": self.averages}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the windows and averages."""
        self.window_index, self.sums, self.averages = state["window"], state["sums"], state["averages"]


class PerTaskAdam:
    """A scalar per task with its own Adam. Absent tasks keep their scalars and moments.

    Adam works elementwise, so if all tasks are present, this equals Adam of the whole vector.
    """

    def __init__(self, tasks: Sequence[str], initial: float, lr: float, weight_decay: float = 0.0) -> None:
        self.values = {name: torch.full((), initial, requires_grad=True) for name in tasks}
        self._adam = torch.optim.Adam(list(self.values.values()), lr=lr, weight_decay=weight_decay, foreach=False)

    def get(self, names: Sequence[str] | Mapping[str, Any]) -> Tensor:
        """Return the values of these tasks [T]."""
        return torch.stack([self.values[name] for name in names])

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Make one Adam step for the tasks in ``gradients``."""
        for name, gradient in gradients.items():
            self.values[name].grad = gradient.detach().to(self.values[name])
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def set(self, names: Mapping[str, Any], values: Tensor) -> None:
        """Set the values of these tasks."""
        for name, value in zip(names, values.detach(), strict=True):
            self.values[name].data.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the values and Adam's state."""
        numbers = {name: number.detach() for name, number in self.values.items()}
        return {"values": numbers, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the values and Adam's state."""
        for name, number in state["values"].items():
            self.values[name].data.copy_(number)
        self._adam.load_state_dict(state["adam"])


@config_dataclass
class FAMOConfig(TaskWeightsConfig):
    """Config of `FAMO`.

    FAMO uses logarithms: a factor on a loss changes the length of the update, but not how the tasks share it.

    Attributes:
        lr: learning rate of the Adam that learns the logits of the weights.
        weight_decay: its weight decay.
    """

    name: Literal["famo"] = "famo"
    lr: NonNegativeFloat = 0.025
    weight_decay: NonNegativeFloat = 1e-3


class FAMO(Balancer):
    """Fast adaptive multitask optimization (Liu et al. 2023): all losses fall at about the same relative rate.

    The scalar is c sum of z log L with z = softmax(w). w increases where the update reduced the loss of the batch
    least. This needs the losses of the same batch after the update: one more forward pass per step. A task whose loss
    is exactly zero is treated as absent in this step.
    """

    Config = FAMOConfig
    needs_updated_losses = True

    def __init__(self, config: FAMOConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.logits = PerTaskAdam(tasks, 0.0, config.lr, config.weight_decay)
        self._previous_losses: dict[str, Tensor] = {}

    def observe(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Store the losses before the update, see `Balancer.observe`."""
        self._previous_losses = {name: loss.detach().cpu() for name, loss in losses.items()}

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the weighted sum of the logarithms of the losses."""
        above, rest = split_zero_losses(losses)
        if not above:
            return rest
        values = torch.stack(list(above.values())) + _EPSILON
        weights = self.logits.get(above).softmax(0).detach().to(values)
        scale = (weights / values.detach()).sum()
        return (weights / scale * values.log()).sum() + rest

    def observe_updated_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Update the logits from the change of the losses."""
        learning = [name for name in losses if self._previous_losses[name] > 0 and self.loss_weights[name]]
        if not learning:
            return
        before = torch.stack([self._previous_losses[name] for name in learning])
        after = torch.stack([losses[name].detach().cpu() for name in learning])
        progress = (before + _EPSILON).log() - (after + _EPSILON).log()
        if not progress.isfinite().all():  # the update made the network diverge; the next step detects this
            return
        with torch.enable_grad():
            logits = self.logits.get(learning).detach().requires_grad_()
            gradient = torch.autograd.grad(logits.softmax(0), logits, progress.to(logits))[0]
        self.logits.step(dict(zip(learning, gradient, strict=True)))

    def get_extra_state(self) -> dict[str, Any]:
        """Return the logits and their Adam state."""
        return self.logits.state_dict()

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the logits and their Adam state."""
        self.logits.load_state_dict(state)


_EPSILON = 1e-8


@config_dataclass
class GradNormConfig(TaskWeightsConfig):
    """Config of `GradNorm`.

    A factor on a loss changes the initial value of its weight; the gradient targets compensate for it later.

    Attributes:
        alpha: how strongly slowly learning tasks are accelerated; 0 = equal gradient norms.
        lr: learning rate of the weights' Adam.
        space: where gradients are measured.
        update_every: steps between two measurements.
    """

    name: Literal["gradnorm"] = "gradnorm"
    alpha: NonNegativeFloat = 1.5
    lr: NonNegativeFloat = 0.025
    space: GradientSpace = "last_shared"
    update_every: PositiveInt = 1


class GradNorm(Balancer):
    """GradNorm (Chen et al. 2018): loss weights that equalize the norms of the tasks' weighted gradients.

    The target is mean norm * (relative inverse training rate)^alpha. The paper measures at the last shared layer:
    ``last_shared``. Adam minimizes the L1 distance, one step per measurement. Then the weights of the present tasks are
    rescaled to their previous sum. A task without a gradient at the step (its loss is exactly zero) is skipped.
    """

    Config = GradNormConfig

    def __init__(self, config: GradNormConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.space = config.space
        self.weights = PerTaskAdam(tasks, 1.0, config.lr)
        self.initial_losses: dict[str, float] = {}

    def needs_gramian(self, present: tuple[str, ...], step: int) -> bool:
        """Return True every ``update_every`` steps."""
        return step % self.config.update_every == 0

    def observe_gramian(self, gramian: Gramian, losses: Mapping[str, Tensor], step: int) -> None:
        """Update the weights from the gradient norms."""
        norms = gramian.diagonal().clamp(min=0).sqrt()
        moving = norms.gt(0)
        values = {n: float(loss.detach()) for (n, loss), moves in zip(losses.items(), moving, strict=True) if moves}
        if not values:
            return
        self.initial_losses = {**{name: value for name, value in values.items() if value > 0}, **self.initial_losses}
        weights = self.weights.get(values).detach()
        gradient = self.gradient(weights.double(), norms[moving], values)
        self.weights.step(dict(zip(values, gradient, strict=True)))
        found = self.weights.get(values).detach().clamp(min=_MIN_WEIGHT)
        self.weights.set(values, found * (weights.sum() / found.sum()))

    def gradient(self, weights: Tensor, norms: Tensor, losses: Mapping[str, float]) -> Tensor:
        """Return the gradient of the sum of |norm - target| by the weights, in units of the mean norm.

        Args:
            weights: weights of the tasks [T].
            norms: norms of the weighted gradients [T].
            losses: task -> loss.
        """
        norms = norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        rates = torch.tensor(
            [loss / self.initial_losses.get(name, 1.0) for name, loss in losses.items()], dtype=norms.dtype
        )
        relative = rates / rates.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        target = norms.mean() * relative**self.config.alpha
        return (norms - target).sign() * norms / weights

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the weighted sum of the losses."""
        values = torch.stack(list(losses.values()))
        return (self.weights.get(losses).detach().to(values) * values).sum()

    def get_extra_state(self) -> dict[str, Any]:
        """Return the weights and initial losses."""
        return {"weights": self.weights.state_dict(), "initial_losses": self.initial_losses}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the weights and initial losses."""
        self.weights.load_state_dict(state["weights"])
        self.initial_losses = dict(state["initial_losses"])


_MIN_WEIGHT = 1e-3
"""Minimum weight: the L1 steps could make a weight negative."""
