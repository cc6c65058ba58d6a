"""Which tasks a step trains, and what does not learn in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from perception.config import configuration
from perception.types import ConfigError

Count = Annotated[int, Field(gt=0)]
Step = Annotated[int, Field(ge=0)]


@configuration
class FreezeConfig:
    """part: "backbone", "neck" or the name of a task, whose head is meant. start: the first step that it is frozen in.
    stop: the first step after that; null = it stays frozen."""

    part: str
    start: Step = 0
    stop: Step | None = None


@configuration
class ScheduleConfig:
    """turns:  "joint" = every step trains all tasks; "alternating" = groups of tasks take turns; "progress" = so do
            they, but a group whose losses have fallen less comes more often
    groups: tasks that take their turn together; empty = each task by itself
    every:  steps of a turn
    join:   task -> the first step that trains it; the others begin at once
    freeze: parts that keep their weights, and the statistics of their BatchNorm, for a while
    """

    turns: Literal["joint", "alternating", "progress"] = "joint"
    groups: tuple[tuple[str, ...], ...] = ()
    every: Count = 1
    join: dict[str, Step] = dataclasses.field(default_factory=dict)
    freeze: tuple[FreezeConfig, ...] = ()


class Schedule:
    """Says for each step which tasks it trains. What it does is a function of the step, but for "progress", whose state
    is saved with the run."""

    def __init__(self, config: ScheduleConfig, tasks: Sequence[str]) -> None:
        self.config, self.all = config, tuple(tasks)
        self.groups = config.groups or tuple((task,) for task in tasks)
        self._refuse_unknown()
        self.first: dict[str, float] = {}
        self.average: dict[str, float] = {}
        self.credit = [0.0] * len(self.groups)
        self.current = 0

    def _refuse_unknown(self) -> None:
        named = {f"groups: {task}": task for group in self.groups for task in group}
        named |= {f"join: {task}": task for task in self.config.join}
        named |= {f"freeze: {item.part}": item.part for item in self.config.freeze if item.part not in _PARTS}
        for where, task in named.items():
            if task not in self.all:
                known = f"{', '.join(self.all)}{'' if not where.startswith('freeze') else ', backbone, neck'}"
                raise ConfigError(f"schedule.{where}: no such task in this recipe. Expected one of: {known}.")
        flat = [task for group in self.groups for task in group]
        if sorted(flat) != sorted(self.all):
            raise ConfigError(
                f"schedule.groups holds {', '.join(flat)}. Expected every task of the recipe once: "
                f"{', '.join(self.all)}."
            )

    @property
    def partial(self) -> bool:
        """Whether some step trains only some of the tasks."""
        return self.config.turns != "joint" or any(self.config.join.values())

    def tasks(self, step: int, labelled: Collection[str]) -> tuple[str, ...]:
        """The tasks that a step trains, in the recipe's order; at least one. Called once for each step.

        labelled: tasks that some picture of the step labels, over all ranks; a turn that finds nothing is passed on
        """
        joined = [task for task in self.all if self.config.join.get(task, 0) <= step] or list(self.all)
        if self.config.turns == "joint":
            return tuple(joined)
        useful = [k for k, group in enumerate(self.groups) if any(t in joined and t in labelled for t in group)]
        able = useful or [k for k, group in enumerate(self.groups) if any(t in joined for t in group)]
        chosen = self._in_turn(step, able) if self.config.turns == "alternating" else self._by_progress(step, able)
        return tuple(task for task in joined if task in self.groups[chosen])

    def _in_turn(self, step: int, able: Collection[int]) -> int:
        count = len(self.groups)
        return next(k for k in ((step // self.config.every + j) % count for j in range(count)) if k in able)

    def _by_progress(self, step: int, able: Collection[int]) -> int:
        """Each turn hands out one unit of credit by what is left of the groups' losses; the richest group spends it."""
        if step % self.config.every and self.current in able:
            return self.current
        left = {k: self._left(self.groups[k]) for k in able}
        for k, part in left.items():
            self.credit[k] += part / sum(left.values())
        self.current = max(able, key=lambda k: (self.credit[k], -k))
        self.credit[self.current] -= 1
        return self.current

    def _left(self, group: Sequence[str]) -> float:
        parts = [self.average[task] / self.first[task] for task in group if self.first.get(task, 0.0) > 0]
        return max(sum(parts) / len(parts), 1e-3) if parts else 1.0

    def observe(self, losses: Mapping[str, float]) -> None:
        """Take in the losses of a step that counted."""
        if self.config.turns == "progress":
            for task, loss in losses.items():
                self.first.setdefault(task, loss)
                self.average[task] = 0.9 * self.average.get(task, loss) + 0.1 * loss

    def frozen(self, step: int) -> frozenset[str]:
        """The parts that a step leaves as they are."""
        return frozenset(
            item.part for item in self.config.freeze if item.start <= step and (item.stop is None or step < item.stop)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "average": self.average, "credit": self.credit, "current": self.current}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first, self.average = dict(state["first"]), dict(state["average"])
        self.credit, self.current = list(state["credit"]), state["current"]


_PARTS = ("backbone", "neck")


def freeze(model: nn.Module, parts: Collection[str], learns: Collection[str]) -> None:
    """Let a network in training learn everywhere but in ``parts``, which keep weights and BatchNorm's statistics.

    learns: names of the parameters that learn where nothing is frozen
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learns and not _within(name, parts))
    for name, module in model.named_modules():
        module.training = not _within(name, parts)


def _within(name: str, parts: Collection[str]) -> bool:
    path = name.split(".")
    head = path[1] if len(path) > 1 and path[0] == "tasks" else None
    return any(part in path if part in _PARTS else part == head for part in parts)
