"""Does joint training help? The joint network against single-task controls by the same recipe, over several seeds."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception import recipe as recipes
from perception import runs
from perception.bench.cost import TURNS, Cost, measure, ratio
from perception.checkpoint import write_atomically
from perception.data.loader import evaluation_batches
from perception.engine.log import plain
from perception.model import Perception
from perception.mtl.delta_m import delta_m, estimate, gain
from perception.recipe import Recipe
from perception.report.compare_page import write_page
from perception.studies.baselines import HELD_EQUAL, Control, control, matched
from perception.studies.format import overall, verdict
from perception.studies.job_runner import Run, default_jobs, last_metrics, locked, train_all, with_threads
from perception.studies.progress import told
from perception.types import ConfigError, PerceptionError

JOINT = "joint"
RESULT, PAGE = "compare.json", "compare.html"


@dataclass(frozen=True, slots=True)
class Plan:
    """The trainings of a comparison.

    joint:    seed -> run
    controls: kind of control -> task -> seed -> run
    """

    recipe: Recipe
    joint: dict[int, Run]
    controls: dict[Control, dict[str, dict[int, Run]]]

    @property
    def runs(self) -> list[Run]:
        """Seed by seed, so that an interrupted comparison has whole seeds."""
        return [
            run
            for seed, joint in self.joint.items()
            for run in (joint, *(c[seed] for kind in self.controls.values() for c in kind.values()))
        ]


def compare(
    recipe: Recipe,
    out: Path,
    *,
    seeds: int = 3,
    kinds: Sequence[Control] = ("pictures",),
    jobs: int | None = None,
    turns: int = TURNS,
) -> dict[str, Any]:
    """Train what is not trained yet under ``out``, and write compare.json and compare.html there.

    seeds: how many, counted from the recipe's. jobs: trainings at a time; None = one for each ``train.threads`` cores,
    on a GPU one. turns: of the measurement of latency; 0 = none

    Returns what compare.json holds. Raises PerceptionError naming the trainings that failed.
    """
    if len(recipe.scored) < 2:
        raise ConfigError(f"The recipe '{recipe.name}' scores one task. A comparison needs at least two.")
    if not recipe.data.validation:
        raise ConfigError(f"The recipe '{recipe.name}' has no data.validation. A comparison needs held-out pictures.")
    with locked(out) as lock:
        plan = make_plan(recipe, out, seeds, kinds)
        jobs = jobs or default_jobs(plan.recipe.train.threads, len(plan.runs))
        with told(plan.runs, jobs) as advance:
            failures = train_all(plan.runs, jobs, lock, advance=advance)
        if failures:
            raise PerceptionError(
                "\n  ".join(["Some trainings failed; the same command tries them again:", *failures.values()])
            )
        result = conclude(plan, measured_cost(plan, turns) if turns else None)
        write_atomically(out / RESULT, json.dumps(_plain(result), indent=2, allow_nan=False) + "\n")
        write_page(out / PAGE, result)
        return result


def make_plan(recipe: Recipe, out: Path, seeds: int, kinds: Sequence[Control]) -> Plan:
    """Every run of the comparison, its folder under ``out``. Opens the training sources."""
    recipe = with_threads(recipe)
    sources = recipes.training_sources(recipe)
    alone = {task: control(recipe, task, sources) for task in recipe.scored}
    numbers = range(recipe.seed, recipe.seed + seeds)
    return Plan(
        recipe,
        {seed: _run(recipe, JOINT, seed, out) for seed in numbers},
        {
            kind: {
                task: {seed: _run(its, f"{task}_{kind}", seed, out) for seed in numbers}
                for task, its in matched(kind, recipe, alone).items()
            }
            for kind in kinds
        },
    )


def _run(recipe: Recipe, name: str, seed: int, out: Path) -> Run:
    return Run(f"{name}, seed {seed}", dataclasses.replace(recipe, seed=seed), out / name / f"seed_{seed}")


def measured_cost(plan: Plan, turns: int) -> dict[str, Cost]:
    """The cost of the joint network and of each task's control of the first seed, on a held-out picture."""
    seed = plan.recipe.seed
    folders = {JOINT: plan.joint[seed].folder}
    folders |= {task: its[seed].folder for task, its in next(iter(plan.controls.values())).items()}
    models = {name: runs.open_network(folder)[1] for name, folder in folders.items()}
    sources, data = recipes.validation_sources(plan.recipe), plan.recipe.data
    picture = next(iter(evaluation_batches(sources, tuple(plan.recipe.tasks), data.size, 1))).images
    return measure(models, picture, turns)


def conclude(plan: Plan, cost: Mapping[str, Cost] | None) -> dict[str, Any]:
    """What compare.json holds, of runs that are all finished."""
    joint = {seed: last_metrics(run) for seed, run in plan.joint.items()}
    network = recipes.build_model(plan.recipe, weights=False)
    return {
        "recipe": plan.recipe.name,
        "seeds": list(plan.joint),
        "steps": plan.recipe.train.steps,
        "changes_are": "exp(mean over the seeds of the log-ratio against the control of the same seed) - 1; Delta_m is "
        "that of the mean over the tasks",
        "judged_by": "the moving average of the weights at the last step; nothing is picked by looking at the held-out "
        "pictures",
        "controls": {kind: _against(kind, its, network, joint) for kind, its in plan.controls.items()},
        "cost": _cost(plan, cost) if cost else None,
        "facts": runs.machine_facts(),
    }


def _against(
    kind: Control,
    controls: Mapping[str, Mapping[int, Run]],
    network: Perception,
    joint: Mapping[int, Mapping[str, float]],
) -> dict[str, Any]:
    tasks, gains = {}, {}
    for name, its in controls.items():
        task: Any = network.tasks[name]
        key = f"{name}/{task.score}"
        alone = {seed: last_metrics(run) for seed, run in its.items()}
        pairs = [(joint[seed].get(key, math.nan), alone[seed].get(key, math.nan)) for seed in joint]
        gains[name] = [gain(*pair, task.score_sign) for pair in pairs]
        found = estimate(gains[name])
        some = next(iter(its.values())).recipe.train
        tasks[name] = {
            "metric": key,
            "higher_is_better": task.score_sign > 0,
            "joint": [pair[0] for pair in pairs],
            "control": [pair[1] for pair in pairs],
            "change": dataclasses.asdict(found),
            "verdict": verdict(name, found),
            "control_steps": some.steps,
            "control_batch_size": some.batch_size,
            "metrics": {
                other: {"joint": _mean(joint.values(), other), "control": _mean(alone.values(), other)}
                for other in next(iter(joint.values()))
                if other.startswith(f"{name}/")
            },
        }
    found = estimate(delta_m(gains))
    return {
        "held_equal": HELD_EQUAL[kind],
        "tasks": tasks,
        "delta_m": dataclasses.asdict(found),
        "left_out": [name for name, values in gains.items() if any(map(math.isnan, values))],
        "verdict": overall(found),
    }


def _mean(found: Any, key: str) -> float:
    values = [metrics.get(key, math.nan) for metrics in found]
    return math.fsum(values) / len(values)


def _cost(plan: Plan, cost: Mapping[str, Cost]) -> dict[str, Any]:
    one, others = cost[JOINT], [value for name, value in cost.items() if name != JOINT]
    parameters = sum(other.parameters for other in others)
    return {
        "size": list(plan.recipe.data.size),
        "networks": {
            name: {"parameters": value.parameters, "milliseconds": value.milliseconds} for name, value in cost.items()
        },
        "sum_of_controls": {"parameters": parameters, "milliseconds": sum(other.milliseconds for other in others)},
        "ratio": {"parameters": one.parameters / parameters, "time": ratio(one, others)},
        "how": f"one decoded picture, processor time on one thread, median of {len(one.seconds)} turns",
    }


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else plain(value)
