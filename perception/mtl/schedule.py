"""Which tasks a step trains, and what rests in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from perception.config import config_dataclass, suggest_name
from perception.types import ConfigError

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]

FREEZABLE_PARTS = ("backbone", "neck")
"""What can rest beside the heads, which go by the names of their tasks."""


@config_dataclass
class FreezeConfig:
    """part: "backbone", "neck" or the name of a task, whose head is meant. start: the first step that it rests in.
    stop: the first step after that; null = it rests to the end."""

    part: str
    start: NonNegativeInt = 0
    stop: NonNegativeInt | None = None


@config_dataclass
class TaskScheduleConfig:
    """turns:  "joint" = every step trains all tasks; "alternating" = groups of tasks take turns; "progress" = so do
            they, but a group whose losses have fallen less comes more often
    groups: tasks that take their turn together; empty = each task by itself
    turn_steps:  steps of a turn
    start_steps:   task -> the first step that trains it; the others begin at once, and so do the earliest where all
    are late
    freeze: parts that keep their weights, and the statistics of their BatchNorm, for a while

    A group without a labeled image in the step passes its turn on. Heads that are not in turn do not run.
    """

    mode: Literal["joint", "alternating", "progress"] = "joint"
    groups: tuple[tuple[str, ...], ...] = ()
    turn_steps: PositiveInt = 1
    start_steps: dict[str, NonNegativeInt] = dataclasses.field(default_factory=dict)
    freeze: tuple[FreezeConfig, ...] = ()


class TaskSchedule:
    """Says for each step which tasks it trains: a function of the step and of what is labeled, but for "progress",
    whose state is saved with the run. Raises ConfigError where the config names what the recipe does not have.

    is_partial: whether some step trains only some of the tasks
    """

    def __init__(self, config: TaskScheduleConfig, tasks: Sequence[str]) -> None:
        self.config, self.all_tasks = config, tuple(tasks)
        self._require_known_names()
        self.groups = config.groups or tuple((task,) for task in tasks)
        starts = {task: config.start_steps.get(task, 0) for task in tasks}
        self._start_steps = {task: 0 if start == min(starts.values()) else start for task, start in starts.items()}
        self.is_partial = len(self.all_tasks) > 1 and (config.mode != "joint" or any(self._start_steps.values()))
        self.initial_losses: dict[str, float] = {}
        self.average_losses: dict[str, float] = {}
        self.credit = [0.0] * len(self.groups)
        self.current_group = 0

    def _require_known_names(self) -> None:
        grouped = [task for group in self.config.groups for task in group]
        for key, named, known in (
            ("groups", grouped, self.all_tasks),
            ("start_steps", self.config.start_steps, self.all_tasks),
            ("freeze", [item.part for item in self.config.freeze], (*self.all_tasks, *FREEZABLE_PARTS)),
        ):
            for name in named:
                if name not in known:
                    raise ConfigError(f"schedule.{key}: this recipe has no '{name}'. {suggest_name(name, known)}")
        if (grouped and sorted(grouped) != sorted(self.all_tasks)) or not all(self.config.groups):
            raise ConfigError(
                f"schedule.groups: {[list(group) for group in self.config.groups]}. Expected every task of the recipe "
                f"in one group, and none empty: {', '.join(self.all_tasks)}."
            )

    def require_steps(self, steps: int) -> None:
        """Raise ConfigError where a training of ``steps`` steps ends before a task has begun."""
        for task, start in self._start_steps.items():
            if start >= steps:
                raise ConfigError(
                    f"schedule.join: {task} begins at step {start}, but train.steps is {steps}: it would never learn. "
                    "Let it join earlier, or leave the task out."
                )

    def choose_tasks(self, step: int, labeled_tasks: Collection[str]) -> tuple[str, ...]:
        """The tasks that a step trains, in the recipe's order; at least one. Called once for each step.

        labeled_tasks: tasks that some image of the step labels, over all ranks
        """
        joined = [task for task in self.all_tasks if self._start_steps[task] <= step]
        if self.config.mode == "joint":
            return tuple(joined)
        ready = [k for k, group in enumerate(self.groups) if any(task in joined for task in group)]
        useful = [k for k in ready if any(task in joined and task in labeled_tasks for task in self.groups[k])]
        choose = self._choose_alternating if self.config.mode == "alternating" else self._choose_by_progress
        chosen = self.groups[choose(step, useful or ready)]
        return tuple(task for task in joined if task in chosen)

    def _choose_alternating(self, step: int, candidates: Collection[int]) -> int:
        turn, count = step // self.config.turn_steps, len(self.groups)
        return next(k for k in ((turn + later) % count for later in range(count)) if k in candidates)

    def _choose_by_progress(self, step: int, candidates: Collection[int]) -> int:
        """Each turn hands out one unit of credit by what is left of the groups' losses; the richest group spends it."""
        if step % self.config.turn_steps and self.current_group in candidates:
            return self.current_group
        left = {k: self._remaining_loss(self.groups[k]) for k in candidates}
        for k, part in left.items():
            self.credit[k] += part / sum(left.values())
        self.current_group = max(candidates, key=lambda k: (self.credit[k], -k))
        self.credit[self.current_group] -= 1
        return self.current_group

    def _remaining_loss(self, group: Sequence[str]) -> float:
        """The part of their first losses that the tasks of a group still have, on average; 1 where none is known."""
        parts = [
            self.average_losses[task] / self.initial_losses[task]
            for task in group
            if self.initial_losses.get(task, 0.0) > 0
        ]
        return max(sum(parts) / len(parts), _MIN_REMAINING_LOSS) if parts else 1.0

    def observe(self, losses: Mapping[str, float]) -> None:
        """Take in the losses of a step that counted."""
        if self.config.mode == "progress":
            for task, loss in losses.items():
                self.initial_losses.setdefault(task, loss)
                self.average_losses[task] = (
                    _AVERAGE_DECAY * self.average_losses.get(task, loss) + (1 - _AVERAGE_DECAY) * loss
                )

    def frozen_parts(self, step: int) -> frozenset[str]:
        """The parts that rest in a step."""
        return frozenset(
            item.part for item in self.config.freeze if item.start <= step and (item.stop is None or step < item.stop)
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "initial_losses": self.initial_losses,
            "average_losses": self.average_losses,
            "credit": self.credit,
            "current_group": self.current_group,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.initial_losses, self.average_losses = dict(state["initial_losses"]), dict(state["average_losses"])
        self.credit, self.current_group = list(state["credit"]), state["current_group"]


_MIN_REMAINING_LOSS = 1e-3
"""A group that has learned all there is still comes now and then; a negative loss counts as this."""
_AVERAGE_DECAY = 0.9
"""Of a task's average loss, from one of its steps to the next."""
