"""Adds tasks to a trained network without forgetting the old ones, and removes tasks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from perception import checkpoint, config, runs
from perception import recipe as recipes
from perception.data import check_label_coverage, open_sources
from perception.data.dataset import DataSource
from perception.engine import distributed
from perception.engine.log import to_json_value
from perception.model import MultiTaskModel
from perception.mtl.delta_m import log_ratio, relative_change
from perception.mtl.schedule import TaskScheduleConfig
from perception.nn.sharing import SharingConfig
from perception.nn.sharing.groups import TaskGroupsConfig
from perception.recipe import Recipe
from perception.report.grow_page import write_grow_page
from perception.studies.grown_model import GrowMethod, GrownModel, find_differing_tasks
from perception.studies.job_runner import lock_folder
from perception.tasks import Task
from perception.types import CheckpointError, ConfigError, DataError

RESULT, PAGE, BEFORE = "grow.json", "grow.html", "before.json"


def grow(
    run_folder: Path, recipe: Recipe, out: Path, *, method: GrowMethod = "frozen", distillation_weight: float = 1.0
) -> dict[str, Any]:
    """Train the tasks of ``recipe`` that the network of ``run_folder`` lacks, in a new run folder ``out``.

    Writes grow.json and grow.html: the old tasks on the old run's validation images before and after, and the new
    tasks. An interrupted study resumes where it stopped.

    Args:
        run_folder: run of the trained network, which defines the architecture and the old tasks.
        recipe: the new tasks, their data, and the training settings. If the run's own ``data.root`` does not hold its
            validation images (any more), the recipe's ``data.root`` is used for them, too.
        out: new run folder.
        method: see `GrownModel`.
        distillation_weight: weight of the distillation loss relative to the new losses.

    Returns:
        The content of grow.json.
    """
    old, teacher = runs.open_run(run_folder)
    merged, added = merge_recipes(recipe, old, run_folder, method)
    with lock_folder(out):
        measured = _locate_validation_data(old, recipe.data.root) if old.data.validation else old
        before = _load_or_evaluate_before(teacher, measured, out)
        network = GrownModel(merged, teacher, method, distillation_weight)
        resume = checkpoint.has_checkpoints(out)
        runs.train(merged, out, resume=resume, model=network, sources=open_grow_sources(merged, added, method))
        _, grown = runs.open_run(out, tasks=tuple(old.tasks))
        after = _evaluate_old_tasks(grown, measured) if before is not None else None
        result = summarize_growth(teacher, before, after, _read_new_metrics(out, added), method)
        result = {"run": str(run_folder), "added_tasks": added, **result, "metadata": runs.describe_environment()}
        checkpoint.write_atomically(out / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        write_grow_page(out / PAGE, result)
        return result


def merge_recipes(
    recipe: Recipe, old_recipe: Recipe, run_folder: Path, method: GrowMethod = "frozen"
) -> tuple[Recipe, list[str]]:
    """Merge the recipe of the new tasks with that of the run. Returns the merged recipe and the new tasks.

    The schedule need not name the old tasks: those in none of its groups form a group of their own. The network is the
    run's. If it has trunks for groups of tasks, the recipe's groups may assign a new task to a trunk.

    Raises:
        ConfigError: there is no new task, or an old task has different settings.
    """
    added = [name for name in recipe.tasks if name not in old_recipe.tasks]
    if not added:
        raise ConfigError(
            f"The recipe '{recipe.name}' has no task that {run_folder} lacks. It has: {', '.join(old_recipe.tasks)}."
        )
    for name in old_recipe.tasks:
        if name in recipe.tasks and recipe.tasks[name] != old_recipe.tasks[name]:
            raise ConfigError(
                f"Task '{name}' has other settings than in {run_folder}. Remove it: the run's settings are used."
            )
    tasks = {**old_recipe.tasks, **{name: recipe.tasks[name] for name in added}}
    schedule = _merge_schedule(recipe.schedule, tuple(old_recipe.tasks), added, method)
    model = dataclasses.replace(
        old_recipe.model, sharing=_merge_sharing(recipe.model.sharing, old_recipe.model.sharing, added)
    )
    return dataclasses.replace(recipe, tasks=tasks, model=model, schedule=schedule), added


def _merge_sharing(wanted: SharingConfig, old: SharingConfig, added: Sequence[str]) -> SharingConfig:
    """The old sharing, with the new tasks in the groups that the recipe assigns."""
    if not (isinstance(wanted, TaskGroupsConfig) and isinstance(old, TaskGroupsConfig)):
        return old
    before = [{task for task in group if task not in added} for group in wanted.groups]
    if before[: len(old.groups)] != list(map(set, old.groups)) or any(before[len(old.groups) :]):
        raise ConfigError(
            f"model.sharing.groups: {[list(group) for group in wanted.groups]}. Expected the groups of the run, with "
            f"new tasks in them or in groups after them: {[list(group) for group in old.groups]}."
        )
    return wanted


def _merge_schedule(
    schedule: TaskScheduleConfig, old: Sequence[str], added: Sequence[str], method: GrowMethod
) -> TaskScheduleConfig:
    """The new tasks' schedule, extended by the old tasks. Frozen old tasks start together with the first new task."""
    groups, join = schedule.groups, schedule.start_steps
    named = {task for group in groups for task in group}
    if groups and (others := tuple(task for task in old if task not in named)):
        groups = (*groups, others)
    if method == "frozen" and join:
        join = {**join, **dict.fromkeys(old, min(join.get(task, 0) for task in added))}
    return dataclasses.replace(schedule, groups=groups, start_steps=join)


def open_grow_sources(recipe: Recipe, added: Sequence[str], method: GrowMethod) -> list[DataSource]:
    """Open the training sources. Old tasks need no labels, but distillation also uses existing ones."""
    wanted = added if method == "frozen" else list(recipe.tasks)
    classes = {name: recipe.classes[name] for name in wanted}
    sources = open_sources(recipe.data.train, recipe.data.root, classes)
    for name in added:
        check_label_coverage(name, classes[name], sources)
    return sources


def _locate_validation_data(old_recipe: Recipe, root: str) -> Recipe:
    """The run's recipe with the root that holds its validation images: its own, or else ``root``.

    Raises ConfigError if neither holds them.
    """
    problems = []
    for place in dict.fromkeys((old_recipe.data.root, root)):
        found = dataclasses.replace(old_recipe, data=dataclasses.replace(old_recipe.data, root=place))
        try:
            recipes.open_validation_sources(found)
            return found
        except (ConfigError, DataError) as error:
            problems.append(f"{place}: {error}")
    raise ConfigError(
        "The old tasks are evaluated on the run's validation images, which are missing. Restore them, or set data.root "
        "to a folder that holds them and the new images. Searched in\n  " + "\n  ".join(problems)
    )


def _load_or_evaluate_before(teacher: MultiTaskModel, old_recipe: Recipe, out: Path) -> dict[str, float] | None:
    """The old tasks' metrics, computed only once; None if the old run has no validation images."""
    if not old_recipe.data.validation:
        return None
    path = out / BEFORE
    if found := _read_numbers(path):
        return found
    metrics = _evaluate_old_tasks(teacher, old_recipe)
    checkpoint.write_atomically(path, json.dumps({key: to_json_value(value) for key, value in metrics.items()}) + "\n")
    return metrics


def _evaluate_old_tasks(network: MultiTaskModel, old_recipe: Recipe) -> dict[str, float]:
    with distributed.process_group() as device:
        return runs.evaluate_model(network.to(device), old_recipe, recipes.open_validation_sources(old_recipe)).metrics


def _read_new_metrics(out: Path, added: Sequence[str]) -> dict[str, float | None]:
    metrics = _read_numbers(out / "metrics.json")
    return {key: to_json_value(value) for key, value in metrics.items() if key.partition("/")[0] in added}


def _read_numbers(path: Path) -> dict[str, float]:
    """Read a flat JSON file of numbers, null as NaN; {} if it is missing or damaged."""
    try:
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        found = {}
    values = found if isinstance(found, dict) else {}
    return {key: value if isinstance(value, (int, float)) else math.nan for key, value in values.items()}


def summarize_growth(
    teacher: MultiTaskModel,
    before: Mapping[str, float] | None,
    after: Mapping[str, float] | None,
    new: Mapping[str, float | None],
    method: GrowMethod,
) -> dict[str, Any]:
    """Summarize the changes of the old tasks in score and all metrics, and the metrics of the new tasks."""
    tasks: dict[str, Any] = {}
    if before is not None and after is not None:
        scores: Mapping[str, Any] = dict(teacher.tasks.items())
        tasks = {name: _compare_old_task(name, task, before, after) for name, task in scores.items()}
    return {"method": method, "old": tasks, "new": dict(new)}


def _compare_old_task(name: str, task: Task, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """Compare one old task before and after."""
    key, own = f"{name}/{task.main_metric}", [key for key in before if key.startswith(f"{name}/")]
    moved = relative_change(log_ratio(after[key], before[key], task.main_metric_sign))
    same = all(_is_equal(before[k], after[k]) for k in own)
    return {
        "metric": key,
        "before": to_json_value(before[key]),
        "after": to_json_value(after[key]),
        "change": to_json_value(moved),
        "verdict": f"{name}: all metrics are unchanged."
        if same
        else f"{name}: {key} was {before[key]:.4f} and is {after[key]:.4f}."
        if math.isnan(moved)
        else f"{name}: {key} changed by {moved:+.2%} (positive is better).",
        "metrics": {k: {"before": to_json_value(before[k]), "after": to_json_value(after[k])} for k in own},
    }


def _is_equal(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def drop_tasks(run_folder: Path, tasks: Collection[str], out: Path) -> Path:
    """Write a new run folder with the best weights of ``run_folder``, without ``tasks``.

    The outputs of the remaining tasks stay bit-identical.

    Args:
        run_folder: run of the trained network.
        tasks: tasks to remove.
        out: new run folder.

    Returns:
        The path of the new checkpoint.

    Raises:
        ConfigError: a task is unknown, or no task would remain.
        CheckpointError: ``out`` already holds a run, or the outputs of the remaining tasks would change.
    """
    recipe, whole = runs.open_run(run_folder)
    if unknown := sorted(set(tasks) - set(recipe.tasks)):
        raise ConfigError(f"{run_folder} has no task '{unknown[0]}'. It has: {', '.join(recipe.tasks)}.")
    kept = [name for name in recipe.tasks if name not in tasks]
    if not kept:
        raise ConfigError(f"{run_folder} has no other task than {', '.join(tasks)}. Keep at least one.")
    if checkpoint.has_checkpoints(out):
        raise CheckpointError(f"{out} already holds checkpoints. Choose another folder with --out.")
    reduced = recipes.select_tasks(recipe, kept)
    network = recipes.build_model(reduced, pretrained=False).eval()
    weights = whole.state_dict()
    network.load_state_dict({name: weights.get(name, value) for name, value in network.state_dict().items()})
    changed = find_differing_tasks(whole, network, recipe.data.size)
    if changed:
        raise CheckpointError(
            f"Removing {', '.join(tasks)} changes the outputs of {', '.join(changed)}, because this model has "
            f"cross-task connections. Train it again with --tasks {','.join(kept)}."
        )
    text, step = config.dump_yaml(reduced), checkpoint.load_weights(run_folder).step
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_atomically(out / checkpoint.RECIPE, text)
    return checkpoint.save(out, max(0, step), model=network.state_dict(), train_state={}, recipe_text=text, best=True)
