"""Task schedule: which tasks are trained in a step, and which parts are frozen."""

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
"""Parts that can be frozen, in addition to the heads, which have the names of their tasks."""


@config_dataclass
class FreezeConfig:
    """Freezes a part of the network for a range of steps.

    Attributes:
        part: "backbone", "neck" or the name of a task, for its head.
        start: the first frozen step.
        stop: the first step after it that is not frozen; null = frozen until the end.
    """

    part: str
    start: NonNegativeInt = 0
    stop: NonNegativeInt | None = None


@config_dataclass
class TaskScheduleConfig:
    """Config of `TaskSchedule`.

    If no image of the step labels a group, the next group is trained. Heads of other groups do not run.

    Attributes:
        mode: "joint" = every step trains all tasks; "alternating" = groups of tasks take turns; "progress" = groups
            take turns, and those whose losses have fallen less are trained more often.
        groups: tasks that are trained together in a turn; empty = each task is its own group.
        turn_steps: steps per turn.
        start_steps: task -> the first step that trains it; default 0. If all tasks start late, the earliest start at 0.
        freeze: parts whose weights and BatchNorm statistics are frozen for a range of steps.
    """

    mode: Literal["joint", "alternating", "progress"] = "joint"
    groups: tuple[tuple[str, ...], ...] = ()
    turn_steps: PositiveInt = 1
    start_steps: dict[str, NonNegativeInt] = dataclasses.field(default_factory=dict)
    freeze: tuple[FreezeConfig, ...] = ()


class TaskSchedule:
    """Selects the tasks of each step as a function of the step and of the labeled tasks.

    With "progress" it also has a state, which is saved with the run.

    Args:
        config: the schedule's config.
        tasks: the recipe's tasks.

    Attributes:
        is_partial: whether some step trains only some of the tasks.

    Raises:
        ConfigError: the config names a task or part that the recipe does not have.
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
                f"in exactly one group, and no empty group: {', '.join(self.all_tasks)}."
            )

    def require_steps(self, steps: int) -> None:
        """Check that every task begins within ``steps`` training steps.

        Raises:
            ConfigError: a task begins later.
        """
        for task, start in self._start_steps.items():
            if start >= steps:
                raise ConfigError(
                    f"schedule.start_steps: {task} begins at step {start}, but train.steps is {steps}: it would never "
                    "be trained. Start it earlier, or remove the task."
                )

    def choose_tasks(self, step: int, labeled_tasks: Collection[str]) -> tuple[str, ...]:
        """Return the tasks that a step trains, in the recipe's order; at least one. Called once per step.

        Args:
            step: number of the step, from 0.
            labeled_tasks: tasks that some image of the step labels, over all ranks.
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
        """Return the group with the most credit, which then spends one unit.

        Each turn distributes one unit of credit in proportion to the groups' remaining losses.
        """
        if step % self.config.turn_steps and self.current_group in candidates:
            return self.current_group
        left = {k: self._remaining_loss(self.groups[k]) for k in candidates}
        for k, part in left.items():
            self.credit[k] += part / sum(left.values())
        self.current_group = max(candidates, key=lambda k: (self.credit[k], -k))
        self.credit[self.current_group] -= 1
        return self.current_group

    def _remaining_loss(self, group: Sequence[str]) -> float:
        """Return the mean share of their first losses that the tasks of a group still have; 1 if unknown."""
        parts = [
            self.average_losses[task] / self.initial_losses[task]
            for task in group
            if self.initial_losses.get(task, 0.0) > 0
        ]
        return max(sum(parts) / len(parts), _MIN_REMAINING_LOSS) if parts else 1.0

    def observe(self, losses: Mapping[str, float]) -> None:
        """Record the losses of a completed step."""
        if self.config.mode == "progress":
            for task, loss in losses.items():
                self.initial_losses.setdefault(task, loss)
                self.average_losses[task] = (
                    _AVERAGE_DECAY * self.average_losses.get(task, loss) + (1 - _AVERAGE_DECAY) * loss
                )

    def frozen_parts(self, step: int) -> frozenset[str]:
        """Return the parts that are frozen in a step."""
        return frozenset(
            item.part for item in self.config.freeze if item.start <= step and (item.stop is None or step < item.stop)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the mode "progress"."""
        return {
            "initial_losses": self.initial_losses,
            "average_losses": self.average_losses,
            "credit": self.credit,
            "current_group": self.current_group,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of the mode "progress"."""
        self.initial_losses, self.average_losses = dict(state["initial_losses"]), dict(state["average_losses"])
        self.credit, self.current_group = list(state["credit"]), state["current_group"]


_MIN_REMAINING_LOSS = 1e-3
"""A fully trained group still gets a turn occasionally; a negative loss counts as this value."""
_AVERAGE_DECAY = 0.9
"""Decay of a task's average loss, per step that trains it."""
