"""The trials of a tuning study: what is asked, trained, stopped early and told."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from perception import config
from perception import recipe as recipes
from perception.bench.cost import measure, ratio
from perception.engine.log import FILE
from perception.recipe import Recipe
from perception.report import read_events
from perception.studies.job_runner import Run, last_metrics
from perception.studies.search_space import Dimension, Space, applied, current, front, suggest
from perception.types import PerceptionError

STARTUP = 5
"""Trials that must have come as far before one is stopped for being worse."""
AS_FAST = 1.02
"""Times within 2 % are one: measured, they differ by as much."""


class Search:
    """Trials of a study (`optuna.Study` of two directions: score up, time down) as runs of `train_all`.

    runs:   those that are known so far. closed: names of those that were stopped early or failed
    """

    def __init__(self, recipe: Recipe, space: Space, out: Path, study: Any) -> None:
        from optuna.trial import TrialState

        self.recipe, self.space, self.out, self.study, self.states = recipe, space, out, study, TrialState
        self.closed: set[str] = set()
        self.runs: list[Run] = []
        self._seen: dict[str, int] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if "recipe" in trial.user_attrs:
                self.runs.append(self._run(trial))
            if trial.state in (TrialState.PRUNED, TrialState.FAIL):
                self.closed.add(_name(trial.number))

    def ask(self, trials: int) -> Iterator[Run]:
        """First the runs that an interrupted study left behind, then new ones up to ``trials`` in all."""
        for trial in self.study.get_trials(states=(self.states.RUNNING,)):
            if "recipe" in trial.user_attrs:
                yield self._run(trial)
            else:
                self._give_up(trial.number, "interrupted before it began")
        own = current(self.space, self.recipe)
        if own is not None and not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial({key: _coded(self.space[key], value) for key, value in own.items()})
        while sum(trial.state != self.states.WAITING for trial in self.study.get_trials(deepcopy=False)) < trials:
            trial = self.study.ask()
            values = suggest(self.space, lambda key, dimension: _suggested(trial, key, dimension))  # noqa: B023 - called at once
            try:
                recipe = applied(self.recipe, values)
                time = self._time(recipe)
            except PerceptionError as error:
                self._give_up(trial.number, str(error))
                continue
            trial.set_user_attr("time", time)
            trial.set_user_attr("values", values)
            trial.set_user_attr("recipe", config.dump(recipe))
            self.runs.append(Run(_name(trial.number), recipe, self._folder(trial.number)))
            yield self.runs[-1]

    def finished(self, run: Run) -> None:
        """A run came to its end: tell its score and time."""
        trial = self._trial(run)
        if trial.state == self.states.RUNNING:
            self.study.tell(trial.number, [last_metrics(run)["score"], trial.user_attrs["time"]])

    def hopeless(self, run: Run) -> bool:
        """Whether a run is worse than the median of the trials that are at least as fast and came as far.

        Slower ones are no measure: a fast network may be less accurate and still on the front.
        """
        scores = _scores(run.folder)
        step = max(scores, default=0)
        if step in (0, run.steps, self._seen.get(run.name)):
            return False
        self._seen[run.name] = step
        trial = self._trial(run)
        rivals = [
            theirs[step]
            for other in self.study.get_trials(deepcopy=False)
            if other.number != trial.number and other.user_attrs.get("time", 1e9) <= trial.user_attrs["time"] * AS_FAST
            if step in (theirs := _scores(self._folder(other.number)))
        ]
        if len(rivals) < STARTUP or scores[step] >= statistics.median(rivals):
            return False
        self.study.tell(trial.number, state=self.states.PRUNED)
        self.closed.add(run.name)
        return True

    def failed(self, failures: Mapping[str, str]) -> None:
        """Runs that broke."""
        for run in self.runs:
            if run.name in failures:
                self._give_up(self._trial(run).number, failures[run.name])

    def conclude(self) -> dict[str, Any]:
        """Every trial, and which of them no other beats in both score and time."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != self.states.WAITING]
        complete = [trial for trial in trials if trial.state == self.states.COMPLETE]
        best = [complete[i].number for i in front([tuple(trial.values) for trial in complete])]
        return {
            "trials": [self._row(trial) for trial in trials],
            "front": best,
            "base_milliseconds": self.study.user_attrs.get("base_milliseconds"),
            "size": list(self.recipe.data.size),
        }

    def _row(self, trial: Any) -> dict[str, Any]:
        scores = _scores(self._folder(trial.number))
        return {
            "number": trial.number,
            "state": {"COMPLETE": "complete", "PRUNED": "stopped early"}.get(trial.state.name, "failed"),
            "values": trial.user_attrs.get("values", {}),
            "score": scores[max(scores)] if scores else None,
            "step": max(scores, default=0),
            "time": trial.user_attrs.get("time"),
            "failure": self.study.user_attrs.get(f"failure/{trial.number}"),
            "folder": str(self._folder(trial.number)),
        }

    def _time(self, recipe: Recipe) -> float:
        """Time of its network over the recipe's own; measured once for every architecture, before it is trained."""
        parts = [_architecture(each) for each in (recipe, self.recipe)]
        if parts[0] == parts[1] and "base_milliseconds" in self.study.user_attrs:
            return 1.0
        key = f"time/{hashlib.sha256(parts[0].encode()).hexdigest()}"
        if key not in self.study.user_attrs:
            models = {
                name: recipes.build_model(each, weights=False).eval()
                for name, each in (("own", recipe), ("base", self.recipe))
            }
            sizes = {each.data.size for each in (recipe, self.recipe)}
            if len(sizes) > 1:
                raise PerceptionError("Trials of unlike data.size have scores that cannot be compared. Take it out.")
            picture = torch.randint(0, 256, (1, 3, *sizes.pop()), dtype=torch.uint8)
            costs = measure(models, picture)
            self.study.set_user_attr("base_milliseconds", costs["base"].milliseconds)
            self.study.set_user_attr(key, 1.0 if parts[0] == parts[1] else ratio(costs["own"], [costs["base"]]))
        return self.study.user_attrs[key]

    def _give_up(self, number: int, reason: str) -> None:
        self.study.set_user_attr(f"failure/{number}", reason)
        self.study.tell(number, state=self.states.FAIL)
        self.closed.add(_name(number))

    def _trial(self, run: Run) -> Any:
        return self.study.get_trials(deepcopy=False)[int(run.folder.name.rpartition("_")[2])]

    def _run(self, trial: Any) -> Run:
        recipe = recipes.parse(trial.user_attrs["recipe"], where=_name(trial.number))
        return Run(_name(trial.number), recipe, self._folder(trial.number))

    def _folder(self, number: int) -> Path:
        return self.out / f"trial_{number:04d}"


def _name(number: int) -> str:
    return f"trial {number}"


def _architecture(recipe: Recipe) -> str:
    return config.dump({"model": config.to_plain(recipe.model), "tasks": config.to_plain(recipe.tasks)})


def _suggested(trial: Any, key: str, dimension: Dimension) -> Any:
    match dimension.kind:
        case "choice":
            return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in dimension.values]))
        case "integer":
            return trial.suggest_int(key, *dimension.values)
        case kind:
            return trial.suggest_float(key, *dimension.values, log=kind == "log")


def _coded(dimension: Dimension, value: Any) -> Any:
    return json.dumps(value) if dimension.kind == "choice" else value


def _scores(folder: Path) -> dict[int, float]:
    """Step -> score, as far as the log goes: on the pictures of quick evaluations, at the last step on all."""
    log = folder / FILE
    events = read_events(log) if log.is_file() else []
    kinds = ("quick_evaluation", "evaluation")  # at the last step the second follows the first
    return {e["step"]: e["score"] for e in events if e.get("kind") in kinds and e.get("score") is not None}
