"""Which tasks a step trains, and what rests in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from perception.config import configuration, expected
from perception.types import ConfigError

Count = Annotated[int, Field(gt=0)]
Step = Annotated[int, Field(ge=0)]

PARTS = ("backbone", "neck")
"""What can rest beside the heads, which go by the names of their tasks."""


@configuration
class FreezeConfig:
    """part: "backbone", "neck" or the name of a task, whose head is meant. start: the first step that it rests in.
    stop: the first step after that; null = it rests to the end."""

    part: str
    start: Step = 0
    stop: Step | None = None


@configuration
class ScheduleConfig:
    """turns:  "joint" = every step trains all tasks; "alternating" = groups of tasks take turns; "progress" = so do
            they, but a group whose losses have fallen less comes more often
    groups: tasks that take their turn together; empty = each task by itself
    every:  steps of a turn
    join:   task -> the first step that trains it; the others begin at once, and so do the earliest where all are late
    freeze: parts that keep their weights, and the statistics of their BatchNorm, for a while

    A group without a labelled picture in the step passes its turn on. Heads that are not in turn do not run.
    """

    turns: Literal["joint", "alternating", "progress"] = "joint"
    groups: tuple[tuple[str, ...], ...] = ()
    every: Count = 1
    join: dict[str, Step] = dataclasses.field(default_factory=dict)
    freeze: tuple[FreezeConfig, ...] = ()


class Schedule:
    """Says for each step which tasks it trains: a function of the step and of what is labelled, but for "progress",
    whose state is saved with the run. Raises ConfigError where the config names what the recipe does not have.

    partial: whether some step trains only some of the tasks
    """

    def __init__(self, config: ScheduleConfig, tasks: Sequence[str]) -> None:
        self.config, self.all = config, tuple(tasks)
        self._refuse_unknown()
        self.groups = config.groups or tuple((task,) for task in tasks)
        starts = {task: config.join.get(task, 0) for task in tasks}
        self._starts = {task: 0 if start == min(starts.values()) else start for task, start in starts.items()}
        self.partial = len(self.all) > 1 and (config.turns != "joint" or any(self._starts.values()))
        self.first: dict[str, float] = {}
        self.average: dict[str, float] = {}
        self.credit = [0.0] * len(self.groups)
        self.current = 0

    def _refuse_unknown(self) -> None:
        grouped = [task for group in self.config.groups for task in group]
        for key, named, known in (
            ("groups", grouped, self.all),
            ("join", self.config.join, self.all),
            ("freeze", [item.part for item in self.config.freeze], (*self.all, *PARTS)),
        ):
            for name in named:
                if name not in known:
                    raise ConfigError(f"schedule.{key}: this recipe has no '{name}'. {expected(name, known)}")
        if (grouped and sorted(grouped) != sorted(self.all)) or not all(self.config.groups):
            raise ConfigError(
                f"schedule.groups: {[list(group) for group in self.config.groups]}. Expected every task of the recipe "
                f"in one group, and none empty: {', '.join(self.all)}."
            )

    def require_steps(self, steps: int) -> None:
        """Raise ConfigError where a training of ``steps`` steps ends before a task has begun."""
        for task, start in self._starts.items():
            if start >= steps:
                raise ConfigError(
                    f"schedule.join: {task} begins at step {start}, but train.steps is {steps}: it would never learn. "
                    "Let it join earlier, or leave the task out."
                )

    def tasks(self, step: int, labelled: Collection[str]) -> tuple[str, ...]:
        """The tasks that a step trains, in the recipe's order; at least one. Called once for each step.

        labelled: tasks that some picture of the step labels, over all ranks
        """
        joined = [task for task in self.all if self._starts[task] <= step]
        if self.config.turns == "joint":
            return tuple(joined)
        ready = [k for k, group in enumerate(self.groups) if any(task in joined for task in group)]
        useful = [k for k in ready if any(task in joined and task in labelled for task in self.groups[k])]
        choose = self._in_turn if self.config.turns == "alternating" else self._by_progress
        chosen = self.groups[choose(step, useful or ready)]
        return tuple(task for task in joined if task in chosen)

    def _in_turn(self, step: int, able: Collection[int]) -> int:
        turn, count = step // self.config.every, len(self.groups)
        return next(k for k in ((turn + later) % count for later in range(count)) if k in able)

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
        """The part of their first losses that the tasks of a group still have, on average; 1 where none is known."""
        parts = [self.average[task] / self.first[task] for task in group if self.first.get(task, 0.0) > 0]
        return max(sum(parts) / len(parts), _LEAST) if parts else 1.0

    def observe(self, losses: Mapping[str, float]) -> None:
        """Take in the losses of a step that counted."""
        if self.config.turns == "progress":
            for task, loss in losses.items():
                self.first.setdefault(task, loss)
                self.average[task] = _KEPT * self.average.get(task, loss) + (1 - _KEPT) * loss

    def frozen(self, step: int) -> frozenset[str]:
        """The parts that rest in a step."""
        return frozenset(
            item.part for item in self.config.freeze if item.start <= step and (item.stop is None or step < item.stop)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "average": self.average, "credit": self.credit, "current": self.current}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first, self.average = dict(state["first"]), dict(state["average"])
        self.credit, self.current = list(state["credit"]), state["current"]


_LEAST = 1e-3
"""A group that has learned all there is still comes now and then; a negative loss counts as this."""
_KEPT = 0.9
"""Of a task's average loss, from one of its steps to the next."""
