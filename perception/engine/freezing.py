"""A network that follows a schedule: before each step it is set to what learns in it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from perception.engine import distributed
from perception.mtl.schedule import PARTS, Schedule
from perception.types import Batch, ConfigError


class Following:
    """Sets what of a network in training learns, and says which tasks' losses a step takes.

    Raises ConfigError where the schedule freezes a part that this network does not have.
    """

    def __init__(self, schedule: Schedule, model: Any) -> None:
        self._schedule, self._model = schedule, model
        self._learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._training = [(name, module) for name, module in model.named_modules() if module.training]
        for item in schedule.config.freeze:
            if not any(_within(name, item.part) for name, _ in model.named_parameters()):
                raise ConfigError(f"schedule.freeze: this network's {item.part} has no weights. Take it out.")
        self._frozen: frozenset[str] = frozenset()
        self._losses_of: distributed.LossesOf | None = None

    def __call__(self, step: int, batch: Batch) -> tuple[distributed.LossesOf, Collection[str] | None]:
        """The pass that gives a step's losses, and the tasks to take; None for all."""
        frozen = self._schedule.frozen(step)
        if self._losses_of is None or frozen != self._frozen:
            self._freeze(frozen)
            self._losses_of = distributed.LossesOf(self._model, self._schedule.partial)
        tasks = self._schedule.tasks(step, self._labelled(batch)) if self._schedule.partial else None
        return self._losses_of, tasks

    def _freeze(self, parts: frozenset[str]) -> None:
        for name, parameter in self._learning:
            parameter.requires_grad_(not any(_within(name, part) for part in parts))
        for name, module in self._training:
            module.training = not any(_within(name, part) for part in parts)
        self._frozen = parts

    def _labelled(self, batch: Batch) -> list[str]:
        """The tasks that some picture of the step labels, over all ranks."""
        tasks, place = self._schedule.all, next(self._model.parameters()).device
        counts = torch.tensor([sum(a is not None for a in batch.annotations[task]) for task in tasks], device=place)
        return [task for task, count in zip(tasks, distributed.total(counts).tolist(), strict=True) if count]


def _within(name: str, part: str) -> bool:
    """Whether a parameter or module of that dotted name belongs to a part of the network."""
    path = name.split(".")
    return part in path if part in PARTS else path[:2] == ["tasks", part]
