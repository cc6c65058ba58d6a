"""What every balancer is: it decides how much each of several tasks counts in an update.

A task that no image of the step labels is *absent*. It has no weight, changes no balancer's state and no other
task's weight: a balancer behaves as if the recipe did not have it. Its loss, a zero that is connected to the graph, is
only added so that every parameter takes part in the backward pass.
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

features:    at the features that they share. Free, but blind: cosines are near zero whatever the tasks do to the
             weights, because they read different channels and places, and exactly zero where no image labels two tasks
last_shared: in the last shared layers (GradNorm's choice), the neck with hard sharing
late:        in those and in the late layers of each backbone: close to ``all_shared``, at a fraction of its cost
all_shared:  in all shared parameters, as the papers define their methods; a backward pass for each task
"""

Gramian: TypeAlias = Tensor
"""Inner products of the gradients of the present tasks' terms of the scalar, [T, T] float64 on the CPU, in the order of
the losses. A task's term is its loss times what the scalar multiplies its gradient with."""


@config_dataclass
class TaskWeightsConfig:
    """weights: task -> factor (>= 0) on its loss before the balancer looks at it; 1 where a task is not named. A task
    of weight 0 has no say, as if it were absent.
    """

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = dataclasses.field(default_factory=dict)


class Balancer(nn.Module, ABC):
    """Turns the losses of a step into one scalar and, if it asks for their gradients, weighs these where they meet.

    Its parameters are trained and saved with the network's; any other state is saved through `get_extra_state`. Raises
    ConfigError where the config weighs a task that is not among ``tasks``.

    config: of the class; its `weights`, where it has any, are applied here (`TaskWeightsConfig`)
    tasks:  the recipe's, in its order
    seed:   of what is random, together with the step
    """

    Config: ClassVar[Any]
    space: GradientSpace | None = None
    """Where this balancer wants the tasks' gradients compared; None: it looks at losses alone."""
    has_shared_weights: bool = False
    """Whether `shared_weights` weighs the gradients where they meet."""
    has_head_weights: bool = False
    """Whether `shared_weights` multiplies each task's whole gradient, that of its own head too, as minimising the
    weighted sum of the losses would. False: heads descend the scalar of `forward`, whatever the shared weights."""
    needs_updated_losses: bool = False
    """Whether `look_back` wants the losses of the same batch once more, after the update."""

    def __init__(self, config: Any, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        self.config, self.tasks, self.seed = config, tuple(tasks), seed
        given = getattr(config, "weights", {})
        if unknown := sorted(set(given) - set(tasks)):
            raise ConfigError(f"balance.weights: no task '{unknown[0]}' in this recipe. Its tasks: {', '.join(tasks)}.")
        self.loss_weights: dict[str, float] = {name: given.get(name, 1.0) for name in tasks}

    def forward(self, losses: Mapping[str, Tensor], present: Collection[str], step: int) -> Tensor:
        """The scalar to differentiate.

        losses:  task -> scalar, in the recipe's order
        present: the tasks that at least one image labels, over all ranks
        step:    number of the step, from 0; anything random is a function of it
        """
        chosen = [name for name in losses if name in present and self.loss_weights[name]]
        here = {name: losses[name] * self.loss_weights[name] for name in chosen}
        absent = sum(loss * 0.0 for name, loss in losses.items() if name not in here)
        return (self.combine(here, step) if here else 0.0) + absent  # type: ignore[return-value]

    @abstractmethod
    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """The scalar of the present losses (at least one), each times its factor of the config's weights."""

    def observe(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Take in the present losses, without the config's weights; once a step, before `forward`."""

    def needs_gramian(self, present: tuple[str, ...], step: int) -> bool:
        """Whether `compare` is wanted at this step."""
        return self.space is not None

    def observe_gramian(self, gramian: Gramian, losses: Mapping[str, Tensor], step: int) -> None:
        """Take in how the gradients of the present losses lie to each other; after `forward`."""

    def shared_weights(self, present: tuple[str, ...]) -> Tensor | None:
        """What the gradient of each present task's term is multiplied with where the gradients meet and from there on
        down (`weighs_heads`: everywhere), [T] float64. None: the scalar's gradient is the update."""
        return None

    def observe_updated_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Take in the present losses of the same batch after the update."""


def split_zero_losses(losses: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The losses above zero, for their logarithms, and a zero that keeps the others in the graph (NaN where one is). A
    loss of exactly zero is labeled, but there is nothing to learn from it: a depth map without a valid pixel."""
    positive = torch.stack([loss.detach() for loss in losses.values()]).gt(0).tolist()
    above = {name: loss for (name, loss), known in zip(losses.items(), positive, strict=True) if known}
    rest = [loss * 0.0 for name, loss in losses.items() if name not in above]
    return above, torch.stack(rest).sum() if rest else next(iter(losses.values())).new_zeros(())


def effective_weights(total: Tensor, losses: Mapping[str, Tensor]) -> dict[str, float]:
    """d total / d loss: what each task's gradient is multiplied with, for the log. The graph is kept."""
    gradients = torch.autograd.grad(total, list(losses.values()), retain_graph=True, allow_unused=True)
    return {name: 0.0 if g is None else float(g) for name, g in zip(losses, gradients, strict=True)}


def derive_seed(seed: int, step: int) -> int:
    """A seed for torch that is a function of the run's seed and the step, the same on all ranks."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
