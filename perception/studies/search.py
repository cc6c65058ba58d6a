"""The trials of a tuning study: sampled, trained, stopped early, and reported to Optuna."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from perception import config
from perception import recipe as recipes
from perception.bench.cost import measure_costs, time_ratio
from perception.engine.log import FILE
from perception.recipe import Recipe
from perception.report import read_events
from perception.studies.job_runner import TrainingRun, read_last_metrics
from perception.studies.search_space import (
    Dimension,
    SearchSpace,
    apply_values,
    find_pareto_front,
    find_recipe_point,
    suggest_values,
)
from perception.types import PerceptionError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

MIN_TRIALS_TO_PRUNE = 5
"""Fewest trials with a score at the same step before a trial may be stopped early."""
TIME_TOLERANCE = 1.02
"""Times within 2 % count as equal, because measurements vary by that much."""


class RecipeSearch:
    """Maps the trials of an `optuna.Study` (maximize score, minimize time) to runs of `train_all`.

    Args:
        recipe: the recipe to start from.
        space: the search space.
        out: folder of the study.
        study: the Optuna study.

    Attributes:
        runs: the runs known so far.
        abandoned: names of runs that failed or were stopped early.
    """

    def __init__(self, recipe: Recipe, space: SearchSpace, out: Path, study: Study) -> None:
        from optuna.trial import TrialState

        self.recipe, self.space, self.out, self.study, self.trial_states = recipe, space, out, study, TrialState
        self.abandoned: set[str] = set()
        self.runs: list[TrainingRun] = []
        self._judged_steps: dict[str, int] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if "recipe" in trial.user_attrs:
                self.runs.append(self._restore_run(trial))
            if trial.state in (TrialState.PRUNED, TrialState.FAIL):
                self.abandoned.add(_trial_name(trial.number))

    def generate_runs(self, num_trials: int) -> Iterator[TrainingRun]:
        """Yield the runs that an interrupted study left, then new ones up to ``num_trials`` in total."""
        for trial in self.study.get_trials(states=(self.trial_states.RUNNING,)):
            if "recipe" in trial.user_attrs:
                yield self._restore_run(trial)
            else:
                self._abandon_trial(trial.number, "interrupted before it started")
        own = find_recipe_point(self.space, self.recipe)
        if own is not None and not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial({key: _encode_value(self.space[key], value) for key, value in own.items()})
        while (
            sum(trial.state != self.trial_states.WAITING for trial in self.study.get_trials(deepcopy=False))
            < num_trials
        ):
            trial = self.study.ask()
            values = suggest_values(self.space, lambda key, dimension: _suggest_value(trial, key, dimension))  # noqa: B023 - called at once
            try:
                recipe = apply_values(self.recipe, values)
                time = self._measure_relative_time(recipe)
            except PerceptionError as error:
                self._abandon_trial(trial.number, str(error))
                continue
            trial.set_user_attr("time", time)
            trial.set_user_attr("values", values)
            trial.set_user_attr("recipe", config.dump_yaml(recipe))
            self.runs.append(TrainingRun(_trial_name(trial.number), recipe, self._trial_folder(trial.number)))
            yield self.runs[-1]

    def report_finished(self, run: TrainingRun) -> None:
        """Report the score and time of a finished run to the study."""
        trial = self._find_trial(run)
        if trial.state == self.trial_states.RUNNING:
            self.study.tell(trial.number, [read_last_metrics(run)["score"], trial.user_attrs["time"]])

    def should_prune(self, run: TrainingRun) -> bool:
        """Whether a run scores below the median, at the same step, of all trials that are at least as fast.

        Slower trials do not count, because a fast network may be less accurate and still be on the Pareto front.
        """
        scores = _read_scores(run.folder)
        step = max(scores, default=0)
        if step in (0, run.steps, self._judged_steps.get(run.name)):
            return False
        self._judged_steps[run.name] = step
        trial = self._find_trial(run)
        rivals = [
            theirs[step]
            for other in self.study.get_trials(deepcopy=False)
            if other.number != trial.number
            and other.user_attrs.get("time", 1e9) <= trial.user_attrs["time"] * TIME_TOLERANCE
            if step in (theirs := _read_scores(self._trial_folder(other.number)))
        ]
        if len(rivals) < MIN_TRIALS_TO_PRUNE or scores[step] >= statistics.median(rivals):
            return False
        self.study.tell(trial.number, state=self.trial_states.PRUNED)
        self.abandoned.add(run.name)
        return True

    def report_failures(self, failures: Mapping[str, str]) -> None:
        """Mark failed runs in the study."""
        for run in self.runs:
            if run.name in failures:
                self._abandon_trial(self._find_trial(run).number, failures[run.name])

    def summarize(self) -> dict[str, Any]:
        """Summarize all trials and the Pareto front of score and time."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != self.trial_states.WAITING]
        complete = [trial for trial in trials if trial.state == self.trial_states.COMPLETE]
        best = [complete[i].number for i in find_pareto_front([tuple(trial.values) for trial in complete])]
        return {
            "trials": [self._summarize_trial(trial) for trial in trials],
            "pareto_front": best,
            "baseline_milliseconds": self.study.user_attrs.get("baseline_milliseconds"),
            "size": list(self.recipe.data.size),
        }

    def _summarize_trial(self, trial: FrozenTrial) -> dict[str, Any]:
        scores = _read_scores(self._trial_folder(trial.number))
        return {
            "number": trial.number,
            "state": {"COMPLETE": "complete", "PRUNED": "stopped early"}.get(trial.state.name, "failed"),
            "values": trial.user_attrs.get("values", {}),
            "score": scores[max(scores)] if scores else None,
            "step": max(scores, default=0),
            "time": trial.user_attrs.get("time"),
            "failure": self.study.user_attrs.get(f"failure/{trial.number}"),
            "folder": str(self._trial_folder(trial.number)),
        }

    def _measure_relative_time(self, recipe: Recipe) -> float:
        """Inference time relative to the recipe's network; measured once per architecture, before training."""
        parts = [_dump_architecture(each) for each in (recipe, self.recipe)]
        if parts[0] == parts[1] and "baseline_milliseconds" in self.study.user_attrs:
            return 1.0
        key = f"time/{hashlib.sha256(parts[0].encode()).hexdigest()}"
        if key not in self.study.user_attrs:
            models = {
                name: recipes.build_model(each, pretrained=False).eval()
                for name, each in (("own", recipe), ("base", self.recipe))
            }
            sizes = {each.data.size for each in (recipe, self.recipe)}
            if len(sizes) > 1:
                raise PerceptionError(
                    "Scores of trials with different data.size cannot be compared. Remove it from the search space."
                )
            picture = torch.randint(0, 256, (1, 3, *sizes.pop()), dtype=torch.uint8)
            costs = measure_costs(models, picture)
            self.study.set_user_attr("baseline_milliseconds", costs["base"].milliseconds)
            self.study.set_user_attr(key, 1.0 if parts[0] == parts[1] else time_ratio(costs["own"], [costs["base"]]))
        return self.study.user_attrs[key]

    def _abandon_trial(self, number: int, reason: str) -> None:
        self.study.set_user_attr(f"failure/{number}", reason)
        self.study.tell(number, state=self.trial_states.FAIL)
        self.abandoned.add(_trial_name(number))

    def _find_trial(self, run: TrainingRun) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[int(run.folder.name.rpartition("_")[2])]

    def _restore_run(self, trial: FrozenTrial) -> TrainingRun:
        recipe = recipes.parse(trial.user_attrs["recipe"], where=_trial_name(trial.number))
        return TrainingRun(_trial_name(trial.number), recipe, self._trial_folder(trial.number))

    def _trial_folder(self, number: int) -> Path:
        return self.out / f"trial_{number:04d}"


def _trial_name(number: int) -> str:
    return f"trial {number}"


def _dump_architecture(recipe: Recipe) -> str:
    return config.dump_yaml({"model": config.to_plain(recipe.model), "tasks": config.to_plain(recipe.tasks)})


def _suggest_value(trial: Trial | FrozenTrial, key: str, dimension: Dimension) -> object:
    match dimension.kind:
        case "choice":
            return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in dimension.values]))
        case "integer":
            return trial.suggest_int(key, *dimension.values)
        case kind:
            return trial.suggest_float(key, *dimension.values, log=kind == "log")


def _encode_value(dimension: Dimension, value: object) -> object:
    return json.dumps(value) if dimension.kind == "choice" else value


def _read_scores(folder: Path) -> dict[int, float]:
    """Step -> score from the log: of quick evaluations, and of the full evaluation at the last step."""
    log = folder / FILE
    events = read_events(log) if log.is_file() else []
    kinds = ("quick_evaluation", "evaluation")  # at the last step, the full one follows the quick one
    return {e["step"]: e["score"] for e in events if e.get("kind") in kinds and e.get("score") is not None}
