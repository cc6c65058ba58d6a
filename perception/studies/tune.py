"""Recipe search with Optuna over balancer, weights, learning rate, sharing and other keys of the space.

There are two objectives, a high score and a fast network, so the result is a Pareto front. The study is stored on disk
(SQLite, readable by optuna-dashboard) and can be continued. Every trial has an ordinary run folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perception import checkpoint, config, runs
from perception.recipe import Recipe
from perception.report.tune_page import write_tune_page
from perception.studies.job_runner import choose_num_jobs, fix_num_threads, lock_folder, train_all
from perception.studies.progress import show_progress
from perception.studies.search import RecipeSearch
from perception.studies.search_space import SearchSpace, dump_space
from perception.types import ConfigError

DATABASE, RESULT, PAGE = "study.db", "tune.json", "tune.html"
PRUNING_EVALUATIONS = 5
"""Evaluations per trial if the recipe evaluates only at the end: early stopping needs scores."""


def tune(
    recipe: Recipe, space: SearchSpace, out: Path, *, num_trials: int = 30, jobs: int | None = None
) -> dict[str, Any]:
    """Run trials and write tune.json and tune.html. The first trial is the recipe itself, if the space contains it.

    Args:
        recipe: the recipe to start from.
        space: the search space.
        out: folder of the study.
        num_trials: total number of trials, including those of earlier calls.
        jobs: parallel trainings; None means one per ``train.threads`` cores, on a GPU one.

    Returns:
        The content of tune.json.
    """
    if not recipe.data.validation:
        raise ConfigError(f"The recipe '{recipe.name}' has no data.validation. Tuning needs held-out images.")
    recipe = _ensure_evaluations(fix_num_threads(recipe))
    with lock_folder(out) as lock, open_study(out, recipe, space) as study:
        search = RecipeSearch(recipe, space, out, study)
        jobs = jobs or choose_num_jobs(recipe.train.threads, num_trials)
        with show_progress(search.runs, jobs, num_trials, search.abandoned) as advance:
            search.report_failures(
                train_all(
                    search.generate_runs(num_trials),
                    jobs,
                    lock,
                    on_finished=search.report_finished,
                    should_stop=search.should_prune,
                    on_progress=advance,
                    fail_fast=False,
                )
            )
        result = {"recipe": recipe.name, **search.summarize(), "metadata": runs.describe_environment()}
        checkpoint.write_atomically(out / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        write_tune_page(out / PAGE, result)
        return result


def _ensure_evaluations(recipe: Recipe) -> Recipe:
    if 0 < recipe.train.evaluation_interval < recipe.train.steps:
        return recipe
    every = max(1, recipe.train.steps // PRUNING_EVALUATIONS)
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, evaluate_every=every))


@contextmanager
def open_study(out: Path, recipe: Recipe, space: SearchSpace) -> Iterator[Any]:
    """Open or create the study in ``out``. Raises ConfigError if it belongs to another recipe or space."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ConfigError("Tuning needs the package optuna: pip install 'dense-perception[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(out / DATABASE).absolute()}")
    try:
        study = optuna.create_study(
            study_name="tune", storage=storage, directions=["maximize", "minimize"], load_if_exists=True
        )
        # The sampler stores no state on disk. The number of trials in the seed avoids repeating the same trials.
        study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + len(study.get_trials(deepcopy=False)))
        for name, mine in (("recipe", config.dump_yaml(recipe)), ("space", dump_space(space))):
            before = study.user_attrs.get(name)
            if before is None:
                study.set_user_attr(name, mine)
            elif before != mine:
                raise ConfigError(
                    f"{out} holds a study of another {name}. Use that {name}, or choose another folder with --out."
                )
        yield study
    finally:
        storage.engine.dispose()
