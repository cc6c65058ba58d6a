"""Does it matter how tasks are balanced? Every balancer by one recipe over several seeds, against static weights."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from perception import config, runs
from perception import recipe as recipes
from perception.checkpoint import write_atomically
from perception.data.loader import train_batches
from perception.engine.precision import move
from perception.mtl.balancers import BALANCERS, BalanceConfig, build_balancer
from perception.mtl.compare import delta_m, estimate, relative_change
from perception.ops.denormals import flushed_denormals
from perception.recipe import Recipe
from perception.studies.children import Run, default_jobs, last_metrics, locked, train_all, with_threads
from perception.studies.progress import told
from perception.studies.step_cost import StepCost, measure_steps, training_step
from perception.types import ConfigError

STATIC = "static"
RESULT, TABLE = "balancers.json", "balancers.md"
Plan = dict[str, dict[int, Run]]
"""Balancer -> seed -> run."""
BySeed = Mapping[int, Mapping[str, float]]
"""Seed -> metrics."""


def benchmark(
    recipe: Recipe, out: Path, *, balancers: Sequence[str] = (), seeds: int = 3, jobs: int | None = None, turns: int = 5
) -> dict[str, Any]:
    """Train what is not trained yet under ``out``, and write balancers.json and balancers.md there.

    balancers: their names, all by default; static weights (the recipe's, where it is static) are always among them
    seeds: how many, counted from the recipe's. jobs: trainings at a time; None = one for each ``train.threads`` cores,
    on a GPU one. turns: of the measurement of a step's cost; 0 = none

    Returns what balancers.json holds. A balancer of which a training fails has no numbers, but the reason.
    """
    if not recipe.data.validation:
        raise ConfigError(f"The recipe '{recipe.name}' has no data.validation. A comparison needs held-out pictures.")
    with locked(out) as lock:
        plan = make_plan(recipe, out, balancers, seeds)
        every = [its[seed] for seed in next(iter(plan.values())) for its in plan.values()]
        jobs = jobs or default_jobs(every[0].recipe.train.threads, len(every))
        with told(every, jobs) as advance:
            failures = train_all(every, jobs, lock, advance=advance)
        result = conclude(plan, failures, step_costs(plan, turns) if turns else {})
        write_atomically(out / RESULT, json.dumps(result, indent=2) + "\n")
        write_atomically(out / TABLE, table(result))
        return result


def make_plan(recipe: Recipe, out: Path, balancers: Sequence[str], seeds: int) -> Plan:
    """Every run, its folder under ``out``; static weights first. Raises ConfigError where there is no such balancer."""
    recipe = with_threads(recipe)
    names = dict.fromkeys((STATIC, *(balancers or BALANCERS)))
    chosen = {name: _with_balancer(recipe, name) for name in names}
    return {
        name: {
            seed: Run(f"{name}, seed {seed}", dataclasses.replace(its, seed=seed), out / name / f"seed_{seed}")
            for seed in range(recipe.seed, recipe.seed + seeds)
        }
        for name, its in chosen.items()
    }


def _with_balancer(recipe: Recipe, name: str) -> Recipe:
    """The recipe with a balancer as it comes; a balancer that the recipe sets keeps its settings."""
    if recipe.balance.name == name:
        return recipe
    return dataclasses.replace(recipe, balance=config.build(BalanceConfig, {"name": name}, path="balance"))


def step_costs(plan: Plan, turns: int) -> dict[str, StepCost]:
    """What a step of each balancer costs on the recipe's first batch, on one thread of the CPU or on the GPU."""
    recipe = next(iter(plan[STATIC].values())).recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, threads = recipes.build_model(recipe, weights=False).train().to(device), torch.get_num_threads()
    mixture, tasks = recipes.build_mixture(recipe), tuple(recipe.tasks)
    batch = move(next(iter(train_batches(mixture, tasks, recipe.train.batch_size, 1))), device)
    torch.set_num_threads(1)
    try:
        with flushed_denormals():
            return measure_steps(
                {
                    name: training_step(
                        model,
                        build_balancer(run.recipe.balance, tasks, run.recipe.seed),
                        batch,
                        run.recipe.train.precision,
                    )
                    for name, its in plan.items()
                    for run in list(its.values())[:1]
                },
                turns,
            )
    finally:
        torch.set_num_threads(threads)


def conclude(plan: Plan, failures: Mapping[str, str], costs: Mapping[str, StepCost]) -> dict[str, Any]:
    """What balancers.json holds, of runs that are finished or failed."""
    recipe = next(iter(plan[STATIC].values())).recipe
    scores = _score_keys(recipe)
    metrics: dict[str, dict[int, dict[str, float]]] = {}
    failed: dict[str, str] = {}
    for name, its in plan.items():
        reasons = [failures[run.name] for run in its.values() if run.name in failures]
        if reasons:
            failed[name] = reasons[0]
        else:
            metrics[name] = {seed: last_metrics(run) for seed, run in its.items()}
    rows = {name: _row(found, metrics.get(STATIC, {}), scores) for name, found in metrics.items()}
    return {
        "recipe": recipe.name,
        "seeds": list(plan[STATIC]),
        "steps": recipe.train.steps,
        "batch_size": recipe.train.batch_size,
        "size": list(recipe.data.size),
        "metrics": {key: sign > 0 for key, sign in scores.items()},
        "balancers": rows,
        "failed": failed,
        "cost": {
            name: {
                "milliseconds": its.milliseconds,
                "over_static": its.over(costs[STATIC]),
                "memory": _known(its.memory),
            }
            for name, its in costs.items()
        },
        "conclusion": conclusion(rows, len(plan[STATIC])),
        "facts": {**runs.machine_facts(), "command": " ".join(["python", *sys.argv])},
    }


def _row(found: BySeed, static: BySeed, scores: Mapping[str, int]) -> dict[str, Any]:
    """What balancers.json says of one balancer. scores: metric -> 1, or -1 where less is better"""
    values = {key: [its.get(key, math.nan) for its in found.values()] for key in scores}
    changes = {
        key: [
            relative_change(its.get(key, math.nan), static[seed].get(key, math.nan), sign)
            for seed, its in found.items()
        ]
        for key, sign in scores.items()
        if static and found is not static
    }
    gains = delta_m(changes)
    return {
        "scores": {key: _mean(column) for key, column in values.items()},
        "by_seed": {key: [_known(value) for value in column] for key, column in values.items()},
        "delta_m": dataclasses.asdict(estimate(gains)) if gains else None,
    }


def _score_keys(recipe: Recipe) -> dict[str, int]:
    """The metric that each task is judged by -> 1, or -1 where less is better."""
    tasks: Mapping[str, Any] = dict(recipes.build_model(recipe, weights=False).tasks.items())
    return {f"{name}/{task.score}": task.score_sign for name, task in tasks.items()}


def _mean(values: Sequence[float]) -> float | None:
    return _known(math.fsum(values) / len(values))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def conclusion(rows: Mapping[str, Mapping[str, Any]], seeds: int) -> str:
    """Plain sentences. Student's intervals are widened for so many comparisons (Bonferroni)."""
    gains = {name: row["delta_m"]["values"] for name, row in rows.items() if row["delta_m"]}
    if not gains:
        return "Nothing to compare: static weights, or all others, have no score."
    found = {name: estimate(values, 1 - 0.05 / len(gains)) for name, values in gains.items()}
    best = max(found, key=lambda name: found[name].mean)
    said = f"The best of {len(found)} against static weights is {best}: Delta_m {found[best].mean:+.1%}"
    span = found[best].t
    if span is None:
        return f"{said} with one seed, which nothing tells from noise."
    worse = ", ".join(name for name, its in found.items() if its.t and its.t[1] < 0) or "none"
    proven = "a gain beyond noise" if span[0] > 0 else "no gain over static weights is proven"
    over = f"over {seeds} seeds, widened for {len(found)} comparisons"
    return f"{said} ({span[0]:+.1%} to {span[1]:+.1%} {over}): {proven}. Worse beyond noise: {worse}."


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown: a row for each balancer."""
    keys, cost, facts = list(result["metrics"]), result["cost"], result["facts"]
    heads = ["balancer", *(f"{key}{'' if up else ' (less is better)'}" for key, up in result["metrics"].items())]
    heads += ["Delta_m against static, 95 %", "ms a step", "x static", "MiB"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, row in result["balancers"].items():
        its = cost.get(name, {})
        cells = [name, *(_number(row["scores"][key], ".4f") for key in keys), _gain(row["delta_m"])]
        cells += [
            _number(its.get(k), form)
            for k, form in (("milliseconds", ".0f"), ("over_static", ".2f"), ("memory", ".0f"))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | failed: {reason} |" for name, reason in result["failed"].items()]
    height, width = result["size"]
    made = (
        f"Recipe {result['recipe']}, {height} x {width}, {result['steps']} steps of {result['batch_size']} pictures, "
        f"{len(result['seeds'])} seeds; means over the seeds, the moving average at the last step. {facts['date']}, "
        f"{facts['hardware']}. `{facts['command']}`"
    )
    return "\n".join([result["conclusion"], "", *lines, "", made, ""])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _gain(found: Mapping[str, Any] | None) -> str:
    if found is None or math.isnan(found["mean"]):
        return "–"
    return f"{found['mean']:+.1%}" + (f" ({found['t'][0]:+.1%} to {found['t'][1]:+.1%})" if found["t"] else "")
