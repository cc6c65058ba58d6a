"""Freezes and unfreezes parts of a network according to a schedule."""

from __future__ import annotations

from collections.abc import Collection

import torch

from perception.engine import distributed
from perception.model import MultiTaskModel
from perception.mtl.schedule import FREEZABLE_PARTS, TaskSchedule
from perception.types import Batch, ConfigError


class FreezeSchedule:
    """Sets which parts of the network train in a step, and chooses the tasks whose losses the step uses.

    Raises:
        ConfigError: the schedule freezes a part that this network does not have.
    """

    def __init__(self, schedule: TaskSchedule, model: MultiTaskModel) -> None:
        self._schedule, self._model = schedule, model
        self._trainable_parameters = [
            (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
        ]
        self._training_modules = [(name, module) for name, module in model.named_modules() if module.training]
        for item in schedule.config.freeze:
            if not any(_is_in_part(name, item.part) for name, _ in model.named_parameters()):
                raise ConfigError(f"schedule.freeze: part '{item.part}' of this network has no weights. Remove it.")
        self._frozen_parts: frozenset[str] = frozenset()
        self._loss_function: distributed.LossFunction | None = None

    def __call__(self, step: int, batch: Batch) -> tuple[distributed.LossFunction, Collection[str] | None]:
        """Apply the schedule. Returns the loss function of the step and its tasks (None: all)."""
        frozen = self._schedule.frozen_parts(step)
        if self._loss_function is None or frozen != self._frozen_parts:
            self._freeze(frozen)
            self._loss_function = distributed.LossFunction(self._model, self._schedule.is_partial)
        tasks = (
            self._schedule.choose_tasks(step, self._find_labeled_tasks(batch)) if self._schedule.is_partial else None
        )
        return self._loss_function, tasks

    def _freeze(self, parts: frozenset[str]) -> None:
        for name, parameter in self._trainable_parameters:
            parameter.requires_grad_(not any(_is_in_part(name, part) for part in parts))
        for name, module in self._training_modules:
            module.training = not any(_is_in_part(name, part) for part in parts)
        self._frozen_parts = parts

    def _find_labeled_tasks(self, batch: Batch) -> list[str]:
        """Tasks with at least one labeled image in the step, over all ranks."""
        tasks, place = self._schedule.all_tasks, next(self._model.parameters()).device
        counts = torch.tensor([sum(a is not None for a in batch.annotations[task]) for task in tasks], device=place)
        return [task for task, count in zip(tasks, distributed.all_reduce_sum(counts).tolist(), strict=True) if count]


def _is_in_part(name: str, part: str) -> bool:
    """Whether a dotted parameter or module name belongs to a part of the network."""
    path = name.split(".")
    return part in path if part in FREEZABLE_PARTS else path[:2] == ["tasks", part]
