"""Adding a task to a trained network without forgetting the others, and taking one out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from perception import checkpoint, config, runs
from perception import recipe as recipes
from perception.data import check_labelled, open_sources
from perception.data.dataset import Source
from perception.engine import distributed
from perception.engine.log import plain
from perception.model import Perception
from perception.mtl.delta_m import change, gain
from perception.mtl.schedule import ScheduleConfig
from perception.nn.sharing import SharingConfig
from perception.nn.sharing.groups import GroupsConfig
from perception.recipe import Recipe
from perception.report.grow_page import write_page
from perception.studies.growing import Growing, Method, differing_tasks
from perception.studies.job_runner import locked
from perception.tasks import Task
from perception.types import CheckpointError, ConfigError, DataError

RESULT, PAGE, BEFORE = "grow.json", "grow.html", "before.json"


def grow(run: Path, recipe: Recipe, out: Path, *, method: Method = "frozen", strength: float = 1.0) -> dict[str, Any]:
    """Train the tasks of ``recipe`` that the network of ``run`` lacks, in a new run folder ``out``.

    recipe: the new tasks, their data and how to train; the network itself and the old tasks are the run's. Where the
    run's own ``data.root`` does not hold its validation pictures (any more), the recipe's is taken for these too
    method: see `Growing`. strength: of the old network's teaching, beside the new losses

    Writes grow.json and grow.html: the old tasks on the old run's validation pictures before and after, and the new
    tasks. An interrupted growth goes on where it stopped. Returns what grow.json holds.
    """
    old, teacher = runs.open_run(run)
    merged, added = merge(recipe, old, run, method)
    with locked(out):
        measured = _with_pictures(old, recipe.data.root) if old.data.validation else old
        before = _before(teacher, measured, out)
        network = Growing(merged, teacher, method, strength)
        resume = checkpoint.has_checkpoints(out)
        runs.train(merged, out, resume=resume, model=network, sources=sources_of(merged, added, method))
        _, grown = runs.open_run(out, tasks=tuple(old.tasks))
        after = _measured(grown, measured) if before is not None else None
        result = conclude(teacher, before, after, _new_metrics(out, added), method)
        result = {"run": str(run), "added": added, **result, "facts": runs.machine_facts()}
        checkpoint.write_atomically(out / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        write_page(out / PAGE, result)
        return result


def merge(recipe: Recipe, old: Recipe, run: Path, method: Method = "frozen") -> tuple[Recipe, list[str]]:
    """The grown recipe and its new tasks. Raises ConfigError where it has none, or other settings for an old one.

    Its schedule need not name the old tasks: those in none of its groups take a turn together. The network is the
    run's; where that has trunks for groups of tasks, the recipe's groups may say which trunk a new task reads.
    """
    added = [name for name in recipe.tasks if name not in old.tasks]
    if not added:
        raise ConfigError(f"The recipe '{recipe.name}' has no task that {run} lacks. It has: {', '.join(old.tasks)}.")
    for name in old.tasks:
        if name in recipe.tasks and recipe.tasks[name] != old.tasks[name]:
            raise ConfigError(f"Task '{name}' has other settings than in {run}. Leave it out: the run's are taken.")
    tasks = {**old.tasks, **{name: recipe.tasks[name] for name in added}}
    schedule = _scheduled(recipe.schedule, tuple(old.tasks), added, method)
    model = dataclasses.replace(old.model, sharing=_shared(recipe.model.sharing, old.model.sharing, added))
    return dataclasses.replace(recipe, tasks=tasks, model=model, schedule=schedule), added


def _shared(wanted: SharingConfig, old: SharingConfig, added: Sequence[str]) -> SharingConfig:
    """The old sharing, with new tasks in its groups where they are wanted there."""
    if not (isinstance(wanted, GroupsConfig) and isinstance(old, GroupsConfig)):
        return old
    before = [{task for task in group if task not in added} for group in wanted.groups]
    if before[: len(old.groups)] != list(map(set, old.groups)) or any(before[len(old.groups) :]):
        raise ConfigError(
            f"model.sharing.groups: {[list(group) for group in wanted.groups]}. Expected the groups of the run, with "
            f"new tasks in them or in groups after them: {[list(group) for group in old.groups]}."
        )
    return wanted


def _scheduled(schedule: ScheduleConfig, old: Sequence[str], added: Sequence[str], method: Method) -> ScheduleConfig:
    """The new tasks' schedule, with a place for the old ones. Frozen, these learn nothing that a new one could wait
    for: they join with the first."""
    groups, join = schedule.groups, schedule.join
    named = {task for group in groups for task in group}
    if groups and (others := tuple(task for task in old if task not in named)):
        groups = (*groups, others)
    if method == "frozen" and join:
        join = {**join, **dict.fromkeys(old, min(join.get(task, 0) for task in added))}
    return dataclasses.replace(schedule, groups=groups, join=join)


def sources_of(recipe: Recipe, added: Sequence[str], method: Method) -> list[Source]:
    """The training sources, opened. Old tasks need no labels; distillation also learns from those that they have."""
    wanted = added if method == "frozen" else list(recipe.tasks)
    classes = {name: recipe.classes[name] for name in wanted}
    sources = open_sources(recipe.data.train, recipe.data.root, classes)
    for name in added:
        check_labelled(name, classes[name], sources)
    return sources


def _with_pictures(old: Recipe, root: str) -> Recipe:
    """The run's recipe with a root where its validation pictures are: its own, or else another one.

    Raises ConfigError where they are in neither.
    """
    problems = []
    for place in dict.fromkeys((old.data.root, root)):
        found = dataclasses.replace(old, data=dataclasses.replace(old.data, root=place))
        try:
            recipes.validation_sources(found)
            return found
        except (ConfigError, DataError) as error:
            problems.append(f"{place}: {error}")
    raise ConfigError(
        "The old tasks are measured on the run's validation pictures, which are not at hand. Put them back, or give "
        "data.root=... of a folder that holds them and the new ones. Looked in\n  " + "\n  ".join(problems)
    )


def _before(teacher: Perception, old: Recipe, out: Path) -> dict[str, float] | None:
    """The old tasks' metrics, measured once; None where the old run has no validation pictures."""
    if not old.data.validation:
        return None
    path = out / BEFORE
    if found := _numbers(path):
        return found
    metrics = _measured(teacher, old)
    checkpoint.write_atomically(path, json.dumps({key: plain(value) for key, value in metrics.items()}) + "\n")
    return metrics


def _measured(network: Perception, old: Recipe) -> dict[str, float]:
    with distributed.session() as device:
        return runs.evaluate_model(network.to(device), old, recipes.validation_sources(old)).metrics


def _new_metrics(out: Path, added: Sequence[str]) -> dict[str, float | None]:
    metrics = _numbers(out / "metrics.json")
    return {key: plain(value) for key, value in metrics.items() if key.partition("/")[0] in added}


def _numbers(path: Path) -> dict[str, float]:
    """A flat file of numbers, null as NaN; {} where there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        found = {}
    values = found if isinstance(found, dict) else {}
    return {key: value if isinstance(value, (int, float)) else math.nan for key, value in values.items()}


def conclude(
    teacher: Perception,
    before: Mapping[str, float] | None,
    after: Mapping[str, float] | None,
    new: Mapping[str, float | None],
    method: Method,
) -> dict[str, Any]:
    """What the old tasks lost, by their own scores and every metric."""
    tasks: dict[str, Any] = {}
    if before is not None and after is not None:
        scores: Mapping[str, Any] = dict(teacher.tasks.items())
        tasks = {name: _kept(name, task, before, after) for name, task in scores.items()}
    return {"method": method, "old": tasks, "new": dict(new)}


def _kept(name: str, task: Task, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """One old task before and after."""
    key, own = f"{name}/{task.score}", [key for key in before if key.startswith(f"{name}/")]
    moved = change(gain(after[key], before[key], task.score_sign))
    same = all(_equal(before[k], after[k]) for k in own)
    return {
        "metric": key,
        "before": plain(before[key]),
        "after": plain(after[key]),
        "change": plain(moved),
        "verdict": f"{name}: every metric is what it was."
        if same
        else f"{name}: {key} was {before[key]:.4f} and is {after[key]:.4f}."
        if math.isnan(moved)
        else f"{name}: {key} changed by {moved:+.2%} (positive is better).",
        "metrics": {k: {"before": plain(before[k]), "after": plain(after[k])} for k in own},
    }


def _equal(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def drop(run: Path, tasks: Collection[str], out: Path) -> Path:
    """A new run folder with the best weights of ``run`` but without ``tasks``; the others say the same, bit for bit.

    Raises ConfigError where a task is unknown or none would be left, CheckpointError where ``out`` holds a run or the
    others would say something else.
    """
    recipe, whole = runs.open_run(run)
    if unknown := sorted(set(tasks) - set(recipe.tasks)):
        raise ConfigError(f"{run} has no task '{unknown[0]}'. It has: {', '.join(recipe.tasks)}.")
    kept = [name for name in recipe.tasks if name not in tasks]
    if not kept:
        raise ConfigError(f"{run} has no other task than {', '.join(tasks)}. Keep at least one.")
    if checkpoint.has_checkpoints(out):
        raise CheckpointError(f"{out} already holds checkpoints. Give another folder with --out.")
    reduced = recipes.with_tasks(recipe, kept)
    network = recipes.build_model(reduced, weights=False).eval()
    weights = whole.state_dict()
    network.load_state_dict({name: weights.get(name, value) for name, value in network.state_dict().items()})
    changed = differing_tasks(whole, network, recipe.data.size)
    if changed:
        raise CheckpointError(
            f"Without {', '.join(tasks)}, {', '.join(changed)} would say something else: this network lets its tasks "
            f"look at each other. Train it again with --tasks {','.join(kept)}."
        )
    text, step = config.dump(reduced), checkpoint.load_weights(run).step
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_atomically(out / checkpoint.RECIPE, text)
    return checkpoint.save(out, max(0, step), model=network.state_dict(), train_state={}, recipe=text, best=True)
