"""Searching recipes: Optuna over balancer, weights, learning rate, sharing and what else the space names.

Two things are wanted at once, a high score and a fast network, so what comes out is a front, not a winner. The study is
on disk (SQLite, which optuna-dashboard reads) and goes on where it stopped; every trial is an ordinary run folder.
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
"""So often a trial is evaluated that would be only at its end: nothing can be stopped early without scores."""


def tune(
    recipe: Recipe, space: SearchSpace, out: Path, *, num_trials: int = 30, jobs: int | None = None
) -> dict[str, Any]:
    """Train until there are ``num_trials`` trials, those of earlier calls included; write tune.json and tune.html.

    The first trial is the recipe as it is, where the space holds it. Returns what tune.json holds.
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
    """The study in ``out``, new or from before. Raises ConfigError where that one searched something else."""
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
        # The sampler keeps no state on disk: seeded by how far the study is, it does not draw the same trials again.
        study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + len(study.get_trials(deepcopy=False)))
        for name, mine in (("recipe", config.dump_yaml(recipe)), ("space", dump_space(space))):
            before = study.user_attrs.get(name)
            if before is None:
                study.set_user_attr(name, mine)
            elif before != mine:
                raise ConfigError(
                    f"{out} holds a study of another {name}. Go on with that one, or give another folder with --out."
                )
        yield study
    finally:
        storage.engine.dispose()
