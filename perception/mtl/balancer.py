"""The base class of the balancers, which decide the weight of each task in an update.

A task that no image of the step labels is *absent*. It has no weight, and changes neither a balancer's state nor
another task's weight: a balancer behaves as if the recipe did not contain it. Its loss, a zero connected to the graph,
is only added so that every parameter takes part in the backward pass.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.types import ConfigError

GradientSpace: TypeAlias = Literal["features", "last_shared", "late", "all_shared"]
"""Where the tasks' gradients are compared.

features:    at the shared features. Free, but not informative: cosines are near zero whatever the tasks do to the
             weights, because tasks read different channels and locations, and exactly zero if no image labels two tasks
last_shared: in the last shared layers (GradNorm's choice), the neck with hard sharing
late:        in those and in the late layers of each backbone: close to ``all_shared``, at a fraction of its cost
all_shared:  in all shared parameters, as the papers define their methods; one backward pass per task"""

Gramian: TypeAlias = Tensor
"""Inner products of the gradients of the present tasks' terms of the scalar, [T, T] float64 on the CPU, in the order of
the losses. A task's term is its loss times the factor that the scalar applies to its gradient."""


@config_dataclass
class TaskWeightsConfig:
    """Settings of all balancers with task weights.

    Attributes:
        weights: task -> factor (>= 0) on its loss before balancing; default 1. A task of weight 0 is treated as absent.
    """

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = dataclasses.field(default_factory=dict)


class Balancer(nn.Module, ABC):
    """Combines the losses of a step into one scalar and optionally weights their gradients where they meet.

    Its parameters are trained and saved with the network's. Other state is saved through `get_extra_state`.

    Args:
        config: a config of class ``Config``. Its `weights`, if any, are applied here (`TaskWeightsConfig`).
        tasks: the recipe's tasks, in its order.
        seed: random seed, combined with the step.

    Raises:
        ConfigError: the config has a weight for a task that is not in ``tasks``.
    """

    Config: ClassVar[Any]
    space: GradientSpace | None = None
    """Where this balancer needs the tasks' gradients compared; None: it uses losses only."""
    has_shared_weights: bool = False
    """Whether `shared_weights` weights the gradients where they meet."""
    has_head_weights: bool = False
    """Whether `shared_weights` multiplies each task's whole gradient, including that of its head, as minimizing the
    weighted sum of the losses does. False: heads descend the scalar of `forward`, whatever the shared weights are."""
    needs_updated_losses: bool = False
    """Whether `observe_updated_losses` needs the losses of the same batch again, after the update."""

    def __init__(self, config: Any, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        self.config, self.tasks, self.seed = config, tuple(tasks), seed
        given = getattr(config, "weights", {})
        if unknown := sorted(set(given) - set(tasks)):
            raise ConfigError(
                f"balance.weights: this recipe has no task '{unknown[0]}'. Its tasks: {', '.join(tasks)}."
            )
        self.loss_weights: dict[str, float] = {name: given.get(name, 1.0) for name in tasks}

    def forward(self, losses: Mapping[str, Tensor], present: Collection[str], step: int) -> Tensor:
        """Return the scalar to differentiate.

        Args:
            losses: task -> scalar, in the recipe's order.
            present: the tasks that at least one image labels, over all ranks.
            step: number of the step, from 0. Everything random is a function of it.
        """
        chosen = [name for name in losses if name in present and self.loss_weights[name]]
        here = {name: losses[name] * self.loss_weights[name] for name in chosen}
        absent = sum(loss * 0.0 for name, loss in losses.items() if name not in here)
        return (self.combine(here, step) if here else 0.0) + absent  # type: ignore[return-value]

    @abstractmethod
    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the scalar of the present losses (at least one), each already multiplied by its config weight."""

    def observe(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Record the present losses, without the config's weights; called once per step, before `forward`."""

    def needs_gramian(self, present: tuple[str, ...], step: int) -> bool:
        """Return whether `observe_gramian` is needed at this step."""
        return self.space is not None

    def observe_gramian(self, gramian: Gramian, losses: Mapping[str, Tensor], step: int) -> None:
        """Record the inner products of the gradients of the present losses; called after `forward`."""

    def shared_weights(self, present: tuple[str, ...]) -> Tensor | None:
        """Return the factors [T] float64 on the gradients of the present tasks' terms, from where they meet downward.

        With `has_head_weights` they apply everywhere. None: the scalar's gradient is the update.
        """
        return None

    def observe_updated_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Record the present losses of the same batch after the update."""


def split_zero_losses(losses: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the positive losses, for logarithms, and a zero that keeps the others in the graph (NaN if one is NaN).

    A loss of exactly zero is labeled but has nothing to learn, for example a depth map without a valid pixel.
    """
    positive = torch.stack([loss.detach() for loss in losses.values()]).gt(0).tolist()
    above = {name: loss for (name, loss), known in zip(losses.items(), positive, strict=True) if known}
    rest = [loss * 0.0 for name, loss in losses.items() if name not in above]
    return above, torch.stack(rest).sum() if rest else next(iter(losses.values())).new_zeros(())


def effective_weights(total: Tensor, losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Return d total / d loss, the factor on each task's gradient, for the log. The graph is kept."""
    gradients = torch.autograd.grad(total, list(losses.values()), retain_graph=True, allow_unused=True)
    return {name: 0.0 if g is None else float(g) for name, g in zip(losses, gradients, strict=True)}


def derive_seed(seed: int, step: int) -> int:
    """Return a torch seed that is a function of the run's seed and the step, the same on all ranks."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
