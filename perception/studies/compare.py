"""Comparison of joint training with single-task baselines of the same recipe, over several seeds."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception import recipe as recipes
from perception import runs
from perception.bench.cost import NUM_ROUNDS, NetworkCost, measure_costs, time_ratio
from perception.checkpoint import write_atomically
from perception.data.loader import make_evaluation_loader
from perception.engine.log import to_json_value
from perception.model import MultiTaskModel
from perception.mtl.delta_m import delta_m, estimate_change, log_ratio
from perception.recipe import Recipe
from perception.report.compare_page import write_compare_page
from perception.studies.baselines import CONTROL_DESCRIPTIONS, ControlKind, make_control, match_controls
from perception.studies.format import format_delta_m, format_task_verdict
from perception.studies.job_runner import (
    TrainingRun,
    choose_num_jobs,
    fix_num_threads,
    lock_folder,
    read_last_metrics,
    train_all,
)
from perception.studies.progress import show_progress
from perception.types import ConfigError, PerceptionError

JOINT = "joint"
RESULT, PAGE = "compare.json", "compare.html"


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """The trainings of a comparison.

    Attributes:
        recipe: the joint recipe.
        joint: seed -> run.
        controls: kind of baseline -> task -> seed -> run.
    """

    recipe: Recipe
    joint: dict[int, TrainingRun]
    controls: dict[ControlKind, dict[str, dict[int, TrainingRun]]]

    @property
    def runs(self) -> list[TrainingRun]:
        """All runs, seed by seed, so that an interrupted comparison has complete seeds."""
        return [
            run
            for seed, joint in self.joint.items()
            for run in (joint, *(c[seed] for kind in self.controls.values() for c in kind.values()))
        ]


def compare(
    recipe: Recipe,
    out: Path,
    *,
    num_seeds: int = 3,
    control_kinds: Sequence[ControlKind] = ("images",),
    jobs: int | None = None,
    repeats: int = NUM_ROUNDS,
) -> dict[str, Any]:
    """Run the trainings that are missing under ``out``, and write compare.json and compare.html there.

    Args:
        recipe: the joint recipe.
        out: folder of the comparison.
        num_seeds: number of seeds, counted from the recipe's.
        control_kinds: kinds of baselines.
        jobs: parallel trainings; None means one per ``train.threads`` cores, on a GPU one.
        repeats: repetitions of the latency measurement; 0 means none.

    Returns:
        The content of compare.json.

    Raises:
        PerceptionError: some trainings failed. The message names them.
    """
    if len(recipe.scored_tasks) < 2:
        raise ConfigError(f"The recipe '{recipe.name}' scores one task. A comparison needs at least two.")
    if not recipe.data.validation:
        raise ConfigError(f"The recipe '{recipe.name}' has no data.validation. A comparison needs held-out images.")
    with lock_folder(out) as lock:
        plan = plan_comparison(recipe, out, num_seeds, control_kinds)
        jobs = jobs or choose_num_jobs(plan.recipe.train.threads, len(plan.runs))
        with show_progress(plan.runs, jobs) as advance:
            failures = train_all(plan.runs, jobs, lock, on_progress=advance)
        if failures:
            raise PerceptionError(
                "\n  ".join(["Some trainings failed. Run the same command to retry them:", *failures.values()])
            )
        result = summarize_comparison(plan, measure_networks(plan, repeats) if repeats else None)
        write_atomically(out / RESULT, json.dumps(_to_json(result), indent=2, allow_nan=False) + "\n")
        write_compare_page(out / PAGE, result)
        return result


def plan_comparison(recipe: Recipe, out: Path, num_seeds: int, control_kinds: Sequence[ControlKind]) -> ComparisonPlan:
    """Plan all runs of the comparison, with folders under ``out``. Opens the training sources."""
    recipe = fix_num_threads(recipe)
    sources = recipes.open_training_sources(recipe)
    alone = {task: make_control(recipe, task, sources) for task in recipe.scored_tasks}
    numbers = range(recipe.seed, recipe.seed + num_seeds)
    return ComparisonPlan(
        recipe,
        {seed: _make_run(recipe, JOINT, seed, out) for seed in numbers},
        {
            kind: {
                task: {seed: _make_run(its, f"{task}_{kind}", seed, out) for seed in numbers}
                for task, its in match_controls(kind, recipe, alone).items()
            }
            for kind in control_kinds
        },
    )


def _make_run(recipe: Recipe, name: str, seed: int, out: Path) -> TrainingRun:
    return TrainingRun(f"{name}, seed {seed}", dataclasses.replace(recipe, seed=seed), out / name / f"seed_{seed}")


def measure_networks(plan: ComparisonPlan, repeats: int) -> dict[str, NetworkCost]:
    """Measure the cost of the joint network and of each task's baseline (first seed) on a held-out image."""
    seed = plan.recipe.seed
    folders = {JOINT: plan.joint[seed].folder}
    folders |= {task: its[seed].folder for task, its in next(iter(plan.controls.values())).items()}
    models = {name: runs.open_inference_model(folder)[1] for name, folder in folders.items()}
    sources, data = recipes.open_validation_sources(plan.recipe), plan.recipe.data
    picture = next(iter(make_evaluation_loader(sources, tuple(plan.recipe.tasks), data.size, 1))).images
    return measure_costs(models, picture, repeats)


def summarize_comparison(plan: ComparisonPlan, cost: Mapping[str, NetworkCost] | None) -> dict[str, Any]:
    """Summarize finished runs as the content of compare.json."""
    joint = {seed: read_last_metrics(run) for seed, run in plan.joint.items()}
    network = recipes.build_model(plan.recipe, pretrained=False)
    return {
        "recipe": plan.recipe.name,
        "seeds": list(plan.joint),
        "steps": plan.recipe.train.steps,
        "change_definition": "exp(mean over the seeds of the log-ratio to the baseline of that seed) - 1; Delta_m is "
        "the same for the mean over the tasks",
        "score_metrics": "moving average of the weights at the last step; no checkpoint is selected on the held-out "
        "images",
        "controls": {kind: _compare_to_controls(kind, its, network, joint) for kind, its in plan.controls.items()},
        "cost": _summarize_cost(plan, cost) if cost else None,
        "metadata": runs.describe_environment(),
    }


def _compare_to_controls(
    kind: ControlKind,
    controls: Mapping[str, Mapping[int, TrainingRun]],
    network: MultiTaskModel,
    joint: Mapping[int, Mapping[str, float]],
) -> dict[str, Any]:
    tasks, gains = {}, {}
    for name, its in controls.items():
        task: Any = network.tasks[name]
        key = f"{name}/{task.main_metric}"
        alone = {seed: read_last_metrics(run) for seed, run in its.items()}
        pairs = [(joint[seed].get(key, math.nan), alone[seed].get(key, math.nan)) for seed in joint]
        gains[name] = [log_ratio(*pair, task.main_metric_sign) for pair in pairs]
        found = estimate_change(gains[name])
        some = next(iter(its.values())).recipe.train
        tasks[name] = {
            "metric": key,
            "higher_is_better": task.main_metric_sign > 0,
            "joint": [pair[0] for pair in pairs],
            "control": [pair[1] for pair in pairs],
            "change": dataclasses.asdict(found),
            "verdict": format_task_verdict(name, found),
            "control_steps": some.steps,
            "control_batch_size": some.batch_size,
            "metrics": {
                other: {"joint": _mean_metric(joint.values(), other), "control": _mean_metric(alone.values(), other)}
                for other in next(iter(joint.values()))
                if other.startswith(f"{name}/")
            },
        }
    found = estimate_change(delta_m(gains))
    return {
        "equal_budget": CONTROL_DESCRIPTIONS[kind],
        "tasks": tasks,
        "delta_m": dataclasses.asdict(found),
        "excluded_tasks": [name for name, values in gains.items() if any(map(math.isnan, values))],
        "verdict": format_delta_m(found),
    }


def _mean_metric(found: Iterable[Mapping[str, float]], key: str) -> float:
    values = [metrics.get(key, math.nan) for metrics in found]
    return math.fsum(values) / len(values)


def _summarize_cost(plan: ComparisonPlan, cost: Mapping[str, NetworkCost]) -> dict[str, Any]:
    one, others = cost[JOINT], [value for name, value in cost.items() if name != JOINT]
    parameters = sum(other.parameters for other in others)
    return {
        "size": list(plan.recipe.data.size),
        "networks": {
            name: {"parameters": value.parameters, "milliseconds": value.milliseconds} for name, value in cost.items()
        },
        "sum_of_controls": {"parameters": parameters, "milliseconds": sum(other.milliseconds for other in others)},
        "ratio": {"parameters": one.parameters / parameters, "time": time_ratio(one, others)},
        "protocol": f"one decoded image, CPU time on one thread, median of {len(one.seconds)} repetitions",
    }


def _to_json(value: object) -> object:
    """Convert a value for JSON."""
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    return [_to_json(item) for item in value] if isinstance(value, (list, tuple)) else to_json_value(value)
