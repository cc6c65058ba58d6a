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
from perception.report.tune_page import write_page
from perception.studies.job_runner import default_jobs, locked, train_all, with_threads
from perception.studies.progress import told
from perception.studies.search import Search
from perception.studies.search_space import Space, text
from perception.types import ConfigError

DATABASE, RESULT, PAGE = "study.db", "tune.json", "tune.html"
EVALUATIONS = 5
"""So often a trial is evaluated that would be only at its end: nothing can be stopped early without scores."""


def tune(recipe: Recipe, space: Space, out: Path, *, trials: int = 30, jobs: int | None = None) -> dict[str, Any]:
    """Train until there are ``trials`` trials, those of earlier calls included; write tune.json and tune.html.

    The first trial is the recipe as it is, where the space holds it. Returns what tune.json holds.
    """
    if not recipe.data.validation:
        raise ConfigError(f"The recipe '{recipe.name}' has no data.validation. Tuning needs held-out pictures.")
    recipe = _evaluated(with_threads(recipe))
    with locked(out) as lock, opened(out, recipe, space) as study:
        search = Search(recipe, space, out, study)
        jobs = jobs or default_jobs(recipe.train.threads, trials)
        with told(search.runs, jobs, trials, search.closed) as advance:
            search.failed(
                train_all(
                    search.ask(trials),
                    jobs,
                    lock,
                    finished=search.finished,
                    stop_early=search.hopeless,
                    advance=advance,
                    all_alike=False,
                )
            )
        result = {"recipe": recipe.name, **search.conclude(), "facts": runs.machine_facts()}
        checkpoint.write_atomically(out / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        write_page(out / PAGE, result)
        return result


def _evaluated(recipe: Recipe) -> Recipe:
    if 0 < recipe.train.evaluation_interval < recipe.train.steps:
        return recipe
    every = max(1, recipe.train.steps // EVALUATIONS)
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, evaluate_every=every))


@contextmanager
def opened(out: Path, recipe: Recipe, space: Space) -> Iterator[Any]:
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
        for name, mine in (("recipe", config.dump(recipe)), ("space", text(space))):
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
