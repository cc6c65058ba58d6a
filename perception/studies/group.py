"""Task grouping: task affinities measured during one joint training, and the best assignment of tasks to networks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from perception import checkpoint, config, runs
from perception import recipe as recipes
from perception.engine.callbacks import Callback, TrainRun
from perception.engine.precision import move_to_device
from perception.files.event_lines import read_event_lines
from perception.mtl import affinity as affinities
from perception.mtl.affinity import (
    Affinity,
    compare_groupings,
    find_best_groupings,
    group_affinity,
    measure_affinity,
    score_grouping,
)
from perception.mtl.balancers import StaticConfig
from perception.nn.sharing.groups import TaskGroupsConfig
from perception.recipe import Recipe
from perception.report.group_page import write_group_page
from perception.studies.job_runner import TrainingRun, is_finished, lock_folder
from perception.types import Batch, ConfigError, DataError

LOOKS, RESULT, PAGE, TRUNKS = "affinity.jsonl", "group.json", "group.html", "one_network.yaml"
DEFAULT_INTERVAL = 25
ADAM_GRADIENT_WEIGHT = 0.1
"""Weight of a single gradient in AdamW's step: 1 - beta_1."""


def group_tasks(
    recipe: Recipe, out: Path, *, max_networks: int = 2, interval: int = DEFAULT_INTERVAL
) -> dict[str, Any]:
    """Train the joint network under ``out`` if necessary, and write group.json, group.html and the recipes.

    The measurement leaves the training bit-identical. Another number of networks needs no new training.

    Args:
        recipe: the joint recipe.
        out: folder of the study.
        max_networks: largest number of networks; the grouping is also written as one network with several trunks.
        interval: steps between two lookahead measurements.

    Returns:
        The content of group.json.
    """
    tasks = tuple(recipe.tasks)
    if not 2 <= len(tasks) <= affinities.MAX_TASKS:
        raise ConfigError(
            f"The recipe '{recipe.name}' has {len(tasks)} tasks. Grouping needs 2 to {affinities.MAX_TASKS}."
        )
    if auxiliary := [name for name in tasks if name not in recipe.scored_tasks]:
        raise ConfigError(
            f"tasks.{auxiliary[0]}.auxiliary: auxiliary tasks cannot be grouped. Exclude it with --tasks "
            f"{','.join(recipe.scored_tasks)}, or set auxiliary to false."
        )
    with lock_folder(out):
        run = TrainingRun("joint", recipe, out / "joint")
        if not is_finished(run):
            resume = checkpoint.has_checkpoints(run.folder)
            weights = recipe.balance.weights if isinstance(recipe.balance, StaticConfig) else {}
            measurement = AffinityMeasurement(run.folder / LOOKS, interval, weights)
            runs.train(recipe, run.folder, resume=resume, callbacks=[measurement])
        found = read_affinity(run.folder / LOOKS, tasks)
        result = {**summarize_grouping(recipe, found, max_networks), "metadata": runs.describe_environment()}
        result["recipes"] = write_recipes(recipe, result["groups"], out)
        result["trunk_recipe"] = write_trunk_recipe(recipe, result["groups"], out)
        checkpoint.write_atomically(out / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        write_group_page(out / PAGE, result)
        return result


class AffinityMeasurement(Callback):
    """Measures the affinities of the tasks every ``interval`` steps, before the step, and appends them to a file.

    Args:
        path: the file; a resumed training drops the measurements that it repeats.
        interval: steps between two measurements.
        weights: task -> factor on its loss; 1 if missing.
    """

    def __init__(self, path: Path, interval: int, weights: Mapping[str, float]) -> None:
        self._path, self._interval, self._weights = path, interval, weights

    def on_start(self, run: TrainRun) -> None:
        """Drop the measurements that a resumed training repeats."""
        _truncate_records(self._path, run.state.step)

    def before_step(self, run: TrainRun, batch: Batch, tasks: Collection[str] | None) -> Mapping[str, int]:
        """Measure, if it is time and the batch labels at least two tasks."""
        model, step = run.state.model, run.state.step
        present = [name for name, labels in batch.annotations.items() if any(label is not None for label in labels)]
        if step % self._interval or len(present) < 2:
            return {}
        batch = move_to_device(batch, next(model.parameters()).device)
        found = measure_affinity(
            model,
            lambda: model.compute_losses(batch),
            present,
            step_size=ADAM_GRADIENT_WEIGHT * run.config.lr,
            weights=self._weights,
            seed=step,
        )
        _append_record(self._path, {"step": step, "affinity": found})
        return {}


def _truncate_records(path: Path, step: int) -> None:
    """Drop the measurements that a resumed training repeats, and an incomplete last line."""
    looks = [look for look in _read_records(path) if look["step"] < step]
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_atomically(path, "".join(json.dumps(look) + "\n" for look in looks))


def _append_record(path: Path, record: dict[str, Any]) -> None:
    known = {i: {j: value for j, value in row.items() if math.isfinite(value)} for i, row in record["affinity"].items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**record, "affinity": known}) + "\n")


def _read_records(path: Path) -> list[dict[str, Any]]:
    """The complete, undamaged records."""
    events = read_event_lines(path)[0] if path.is_file() else []
    return [event for _, event in events if _is_affinity_table(event.get("affinity"))]


def _is_affinity_table(found: object) -> bool:
    """Whether a value maps task -> task -> number."""
    rows = found.values() if isinstance(found, dict) else [None]
    return all(isinstance(row, dict) and all(isinstance(x, (int, float)) for x in row.values()) for row in rows)


def read_affinity(path: Path, tasks: Sequence[str]) -> Affinity:
    """Read the measurements of a training. Raises DataError if there are none."""
    looks = [look["affinity"] for look in _read_records(path)]
    if not looks:
        raise DataError(
            f"{path} holds no measurement of two tasks. A batch must label at least two tasks (data.mix.batches: "
            "mixed), and the training must be longer than --lookahead-every."
        )
    values = [[[look.get(i, {}).get(j, math.nan) for j in tasks] for i in tasks] for look in looks]
    return Affinity(tuple(tasks), np.array(values, float))


def summarize_grouping(recipe: Recipe, affinity: Affinity, max_networks: int) -> dict[str, Any]:
    """Summarize the affinity matrix, the best grouping, the runner-up, and the confidence of the choice."""
    matrix, names = affinity.mean, affinity.tasks
    ranked = find_best_groupings(matrix, max_networks)
    (best, groups), runner_up = ranked[0], ranked[1] if len(ranked) > 1 else None
    together, alone = (tuple(range(len(names))),), tuple((i,) for i in range(len(names)))
    gains = {names[j]: gain for chosen in groups for j, gain in group_affinity(matrix, chosen).items()}
    span = compare_groupings(affinity, groups, runner_up[1]) if runner_up else None
    return {
        "recipe": recipe.name,
        "networks": max_networks,
        "tasks": list(names),
        "num_measurements": len(affinity.values),
        "affinity": _matrix_to_table(matrix, names),
        "standard_error": _matrix_to_table(affinity.standard_error, names),
        "groups": _name_groups(groups, names),
        "score": best,
        "gain": gains,
        "runner_up": {"groups": _name_groups(runner_up[1], names), "score": runner_up[0]} if runner_up else None,
        "margin": {"mean": best - runner_up[0], "interval": span and list(span)} if runner_up else None,
        "one_network_score": score_grouping(matrix, together),
        "separate_networks_score": score_grouping(matrix, alone),
        "never_labeled_together": [
            [names[i], names[j]] for i in range(len(names)) for j in range(i) if math.isnan(matrix[i, j])
        ],
        "verdict": format_grouping_verdict(groups, names, best, runner_up, span),
    }


def format_grouping_verdict(groups: Any, names: Sequence[str], best: float, runner_up: Any, interval: Any) -> str:
    """Describe the choice in two sentences."""
    text = f"Best: {_format_groups(groups, names)}."
    if runner_up is None:
        return f"{text} There is no other grouping."
    other = (
        f"{_format_groups(runner_up[1], names)} by {best - runner_up[0]:.2%} "
        "of the losses per step, summed over the tasks"
    )
    if interval is None:
        return f"{text} It beats {other}; too few measurements for an interval."
    sure = "beyond the noise" if interval[0] > 0 else "within the noise: both are equally good"
    return f"{text} It beats {other} (95 % interval {interval[0]:+.2%} to {interval[1]:+.2%}), {sure}."


def _format_groups(groups: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    return " | ".join(" + ".join(names[i] for i in chosen) for chosen in groups)


def _name_groups(groups: Sequence[Sequence[int]], names: Sequence[str]) -> list[list[str]]:
    return [[names[i] for i in chosen] for chosen in groups]


def _matrix_to_table(matrix: Any, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    return {
        i: {j: None if math.isnan(value) else float(value) for j, value in zip(names, row, strict=True)}
        for i, row in zip(names, matrix, strict=True)
    }


def write_recipes(recipe: Recipe, groups: Sequence[Sequence[str]], out: Path) -> list[str]:
    """Write a recipe for each network of the grouping. Returns the paths."""
    paths = []
    for number, chosen in enumerate(groups, start=1):
        path = out / f"network_{number}.yaml"
        its = dataclasses.replace(recipes.select_tasks(recipe, chosen), name=f"{recipe.name}_{number}")
        checkpoint.write_atomically(path, config.dump_yaml(its))
        paths.append(str(path))
    return paths


def write_trunk_recipe(recipe: Recipe, groups: Sequence[Sequence[str]], out: Path) -> dict[str, str] | None:
    """Write a recipe for the grouping as one network with a trunk per group.

    Returns:
        The path of the recipe and the override that creates the trunks; None if all tasks are in one group.
    """
    path = out / TRUNKS
    if len(groups) < 2:
        path.unlink(missing_ok=True)
        return None
    sharing = TaskGroupsConfig(groups=tuple(map(tuple, groups)))
    its = dataclasses.replace(
        recipe, name=f"{recipe.name}_grouped", model=dataclasses.replace(recipe.model, sharing=sharing)
    )
    checkpoint.write_atomically(path, config.dump_yaml(its))
    line = yaml.safe_dump(config.to_plain(sharing), sort_keys=False, default_flow_style=True, width=math.inf).strip()
    return {"recipe": str(path), "override": f"model.sharing={line}"}
