"""Benchmark of loss balancers: every balancer with one recipe over several seeds, against static weights.

Each balancer can act within the run: windows are a tenth of it, learned weights get a learning rate that allows a
hundredfold change, and all balancers with weights get the recipe's static weights. Static weights are trained a second
time, identical except for rounding. Their difference is the noise floor.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from perception import config, runs
from perception import recipe as recipes
from perception.bench.step_cost import StepCost, make_training_step, measure_steps
from perception.checkpoint import write_atomically
from perception.data.loader import make_train_loader
from perception.engine.optim import lr_factor
from perception.engine.precision import move_to_device
from perception.mtl.balancers import BALANCERS, BalanceConfig, build_balancer
from perception.mtl.delta_m import MAX_SEEDS, delta_m, detectable_change, estimate_change, log_ratio, required_seeds
from perception.ops.denormals import flush_denormals
from perception.recipe import Recipe
from perception.studies.job_runner import (
    TrainingRun,
    choose_num_jobs,
    fix_num_threads,
    lock_folder,
    read_last_metrics,
    train_all,
)
from perception.studies.progress import show_progress
from perception.types import ConfigError

STATIC, STATIC_REPEAT = "static", "static_repeat"
ROUNDING = 1e-6
"""Relative increase of the weights of `STATIC_REPEAT`. The optimizer's step does not depend on the scale of the loss,
but every number is rounded differently."""
LOG_VARIANCE_REACH = math.log(100)
"""Distance that a log-variance must be able to move within the run."""
TARGET_EFFECT, TARGET_POWER = 0.02, 0.8
"""Goal of the benchmark: to detect a difference of 2 % with a power of 80 %."""
RESULT, TABLE = "balancers.json", "balancers.md"
WeightsSource = Literal["recipe", "none"]
BenchmarkPlan = dict[str, dict[int, TrainingRun]]
"""Balancer -> seed -> run."""
MetricsBySeed = Mapping[int, Mapping[str, float]]
"""Seed -> metrics."""


def run_benchmark(
    recipe: Recipe,
    out: Path,
    *,
    balancers: Sequence[str] = (),
    num_seeds: int = 3,
    jobs: int | None = None,
    repeats: int = 5,
    space: str | None = None,
    weights: WeightsSource = "recipe",
) -> dict[str, Any]:
    """Run the trainings that are missing under ``out``, and write balancers.json and balancers.md there.

    Args:
        recipe: the recipe that all balancers use.
        out: folder of the benchmark.
        balancers: names, all by default; static weights and their repetition are always included.
        num_seeds: number of seeds, counted from the recipe's.
        jobs: parallel trainings; None means one per ``train.threads`` cores, on a GPU one.
        repeats: repetitions of the step cost measurement; 0 means none.
        space: gradient space of all balancers that compare gradients; None means each config's default.
        weights: "recipe" passes the recipe's weights to all balancers that take weights, "none" passes none.

    Returns:
        The content of balancers.json. A balancer with a failed training has the reason instead of numbers.
    """
    if not recipe.data.validation:
        raise ConfigError(f"The recipe '{recipe.name}' has no data.validation. A comparison needs held-out images.")
    with lock_folder(out) as lock:
        plan = plan_benchmark(recipe, out, balancers, num_seeds, space, weights)
        every = [its[seed] for seed in next(iter(plan.values())) for its in plan.values()]
        jobs = jobs or choose_num_jobs(every[0].recipe.train.threads, len(every))
        with show_progress(every, jobs) as advance:
            failures = train_all(every, jobs, lock, on_progress=advance)
        result = summarize_benchmark(plan, failures, measure_step_costs(plan, repeats) if repeats else {})
        write_atomically(out / RESULT, json.dumps(result, indent=2) + "\n")
        write_atomically(out / TABLE, format_markdown(result))
        return result


def plan_benchmark(
    recipe: Recipe,
    out: Path,
    balancers: Sequence[str],
    num_seeds: int,
    space: str | None = None,
    weights: WeightsSource = "recipe",
) -> BenchmarkPlan:
    """All runs, with folders under ``out``; static weights first. Raises ConfigError for an unknown balancer."""
    recipe = _raise_balance_lr(fix_num_threads(recipe))
    names = dict.fromkeys((STATIC, STATIC_REPEAT, *(balancers or BALANCERS)))
    chosen = {name: _set_balancer(recipe, name, space, weights) for name in names}
    return {
        name: {
            seed: TrainingRun(f"{name}, seed {seed}", dataclasses.replace(its, seed=seed), out / name / f"seed_{seed}")
            for seed in range(recipe.seed, recipe.seed + num_seeds)
        }
        for name, its in chosen.items()
    }


def _raise_balance_lr(recipe: Recipe) -> Recipe:
    """Raise the balancer's learning rate so that a number that moves by it per step can cover `LOG_VARIANCE_REACH`."""
    train = recipe.train
    factors = (lr_factor(step, train.steps, train.warmup_steps, train.lr_floor) for step in range(train.steps))
    reached = train.lr * math.fsum(factors)
    scale = max(train.balance_lr_scale, LOG_VARIANCE_REACH / reached if reached else 0.0)
    return dataclasses.replace(recipe, train=dataclasses.replace(train, balance_lr_scale=scale))


def _set_balancer(recipe: Recipe, name: str, space: str | None, weights: WeightsSource) -> Recipe:
    """Set a balancer. The recipe's own keeps its settings; others get defaults and a window that fits the run."""
    given = dict(getattr(recipe.balance, "weights", {})) if weights == "recipe" else {}
    if name == STATIC_REPEAT:
        name, given = STATIC, {task: given.get(task, 1.0) * (1 + ROUNDING) for task in recipe.tasks}
    kind = BALANCERS.get(name)
    settings = {field.name for field in dataclasses.fields(kind.Config)} if kind else set()
    chosen: dict[str, Any] = {"name": name}
    if recipe.balance.name == name:
        chosen = config.to_plain(recipe.balance)
    elif "window" in settings:
        chosen["window"] = max(1, recipe.train.steps // 10)
    if "weights" in settings:
        chosen["weights"] = given
    if space is not None and "space" in settings:
        chosen["space"] = space
    return dataclasses.replace(recipe, balance=config.validate_config(BalanceConfig, chosen, path="balance"))


def measure_step_costs(plan: BenchmarkPlan, repeats: int) -> dict[str, StepCost]:
    """Measure the cost of a step with each balancer on the recipe's first batch, on one CPU thread or on the GPU."""
    recipe = next(iter(plan[STATIC].values())).recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, threads = recipes.build_model(recipe, pretrained=False).train().to(device), torch.get_num_threads()
    mixture, tasks = recipes.build_mixture(recipe), tuple(recipe.tasks)
    batch = move_to_device(next(iter(make_train_loader(mixture, tasks, recipe.train.batch_size, 1))), device)
    torch.set_num_threads(1)
    try:
        with flush_denormals():
            return measure_steps(
                {
                    name: make_training_step(
                        model,
                        build_balancer(run.recipe.balance, tasks, run.recipe.seed),
                        batch,
                        run.recipe.train.precision,
                    )
                    for name, its in plan.items()
                    for run in list(its.values())[:1]
                    if name != STATIC_REPEAT
                },
                repeats,
            )
    finally:
        torch.set_num_threads(threads)


def summarize_benchmark(
    plan: BenchmarkPlan, failures: Mapping[str, str], costs: Mapping[str, StepCost]
) -> dict[str, Any]:
    """Summarize finished and failed runs as the content of balancers.json."""
    recipe = next(iter(plan[STATIC].values())).recipe
    scores = _find_score_keys(recipe)
    metrics: dict[str, dict[int, dict[str, float]]] = {}
    failed: dict[str, str] = {}
    for name, its in plan.items():
        reasons = [failures[run.name] for run in its.values() if run.name in failures]
        if reasons:
            failed[name] = reasons[0]
        else:
            metrics[name] = {seed: read_last_metrics(run) for seed, run in its.items()}
    rows = {name: _summarize_balancer(found, metrics.get(STATIC, {}), scores) for name, found in metrics.items()}
    balances: dict[str, Any] = {name: next(iter(its.values())).recipe.balance for name, its in plan.items()}
    set_verdicts(rows)
    return {
        "recipe": recipe.name,
        "seeds": list(plan[STATIC]),
        "steps": recipe.train.steps,
        "batch_size": recipe.train.batch_size,
        "size": list(recipe.data.size),
        "metrics": {key: sign > 0 for key, sign in scores.items()},
        "weights": balances[STATIC].weights,
        "without_weights": [name for name, its in balances.items() if not hasattr(its, "weights")],
        "spaces": sorted({its.space for its in balances.values() if hasattr(its, "space")}),
        "balance_lr_scale": recipe.train.balance_lr_scale,
        "balancers": rows,
        "power": estimate_power(rows),
        "failed": failed,
        "cost": {
            name: {
                "milliseconds": its.milliseconds,
                "relative_time": its.ratio_to(costs[STATIC]),
                "memory": _finite_or_none(its.peak_memory),
            }
            for name, its in costs.items()
        },
        "conclusion": format_conclusion(rows, len(plan[STATIC]), recipe.train.steps),
        "metadata": {**runs.describe_environment(), "command": " ".join(["python", *sys.argv])},
    }


def _summarize_balancer(found: MetricsBySeed, static: MetricsBySeed, scores: Mapping[str, int]) -> dict[str, Any]:
    """Entry of one balancer in balancers.json. scores: metric -> 1, or -1 if lower is better."""
    values = {key: [its.get(key, math.nan) for its in found.values()] for key in scores}
    gains = {
        key: [log_ratio(its.get(key, math.nan), static[seed].get(key, math.nan), sign) for seed, its in found.items()]
        for key, sign in scores.items()
        if static and found is not static
    }
    whole = delta_m(gains)
    return {
        "scores": {key: _mean_or_none(column) for key, column in values.items()},
        "by_seed": {key: [_finite_or_none(value) for value in column] for key, column in values.items()},
        "log_gains": list(whole),
        "delta_m": dataclasses.asdict(estimate_change(whole)) if whole else None,
    }


def set_verdicts(rows: Mapping[str, dict[str, Any]]) -> None:
    """Set each row's verdict: "better" or "worse" than static weights, "noise floor", or "inconclusive".

    Student's intervals are widened for the number of comparisons (Bonferroni): 95 % coverage for all of them together.
    """
    compared = [name for name, row in rows.items() if row["log_gains"] and name != STATIC_REPEAT]
    for name, row in rows.items():
        span = estimate_change(row["log_gains"], 1 - 0.05 / max(1, len(compared))).t_interval
        row["verdict"] = "inconclusive"
        if name in (STATIC, STATIC_REPEAT):
            row["verdict"] = "noise floor" if name == STATIC_REPEAT else ""
        elif span is not None and (span[0] > 0 or span[1] < 0):
            row["verdict"] = "better" if span[0] > 0 else "worse"


def estimate_power(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Spread of the differences over the seeds and the resulting power of a paired t-test; None with one seed.

    The spread is pooled over all balancers, because with few seeds the spread of one balancer is too uncertain.
    """
    found = [row["log_gains"] for row in rows.values() if len(row["log_gains"]) > 1]
    if not found:
        return None
    spread = math.sqrt(math.fsum(statistics.variance(values) for values in found) / len(found))
    return {"std": spread, "detectable_change": detectable_change(spread, len(found[0]), power=TARGET_POWER),
            "required_seeds": required_seeds(spread, TARGET_EFFECT, power=TARGET_POWER)}  # fmt: skip


def _find_score_keys(recipe: Recipe) -> dict[str, int]:
    """Main metric of each scored task -> 1, or -1 if lower is better."""
    tasks: Mapping[str, Any] = dict(recipes.build_model(recipe, pretrained=False).tasks.items())
    return {
        f"{name}/{task.main_metric}": task.main_metric_sign
        for name, task in tasks.items()
        if name in recipe.scored_tasks
    }


def _mean_or_none(values: Sequence[float]) -> float | None:
    return _finite_or_none(math.fsum(values) / len(values))


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def format_conclusion(rows: Mapping[str, Mapping[str, Any]], num_seeds: int, num_steps: int) -> str:
    """Conclusion: which balancers differ from static weights, the noise floor, and the seeds needed to detect 2 %."""
    names = {verdict: ", ".join(n for n, row in rows.items() if row["verdict"] == verdict) or "none"
             for verdict in ("better", "worse", "inconclusive")}  # fmt: skip
    sentences = [
        f"Against static weights, {num_seeds} seed{'s' * (num_seeds != 1)} of "
        f"{num_steps} steps, Student's intervals widened for "
        f"all comparisons together: better: {names['better']}; worse: {names['worse']}; undecided at this length: "
        f"{names['inconclusive']}."
    ]
    if STATIC_REPEAT in rows and rows[STATIC_REPEAT]["delta_m"]:
        sentences.append(
            f"The same static weights, trained twice, differ by {_format_change(rows[STATIC_REPEAT]['delta_m'])}."
        )
    found = estimate_power(rows)
    if found is None:
        return " ".join([*sentences, "One seed cannot separate an effect from noise."])
    count = f"{found['required_seeds']} seeds" if found["required_seeds"] else f"more than {MAX_SEEDS} seeds"
    smallest = found["detectable_change"]
    least = f"{smallest:.1%} or more" if smallest < 1 else "no change of less than 100 %"
    sentences.append(
        f"With this spread over the seeds ({found['std']:.1%}, pooled), {num_seeds} seeds detect {least} "
        f"with a power of {TARGET_POWER:.0%}. Detecting {TARGET_EFFECT:.0%} needs {count} of this length."
    )
    return " ".join(sentences)


def format_markdown(result: Mapping[str, Any]) -> str:
    """Format the result as Markdown, one row per balancer."""
    keys, cost, facts = list(result["metrics"]), result["cost"], result["metadata"]
    heads = ["balancer", *(f"{key}{'' if up else ' (lower is better)'}" for key, up in result["metrics"].items())]
    heads += ["Delta_m against static, 95 %", "verdict", "ms per step", "x static", "MiB"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, row in result["balancers"].items():
        its = cost.get(name, {})
        cells = [
            name,
            *(_format_number(row["scores"][key], ".4f") for key in keys),
            _format_change(row["delta_m"]),
            row["verdict"] or "–",
        ]
        cells += [
            _format_number(its.get(k), form)
            for k, form in (("milliseconds", ".0f"), ("relative_time", ".2f"), ("memory", ".0f"))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | failed: {reason} |" for name, reason in result["failed"].items()]
    height, width = result["size"]
    made = (
        f"Recipe {result['recipe']}, {height} x {width}, {result['steps']} steps of {result['batch_size']} images, "
        f"{len(result['seeds'])} seeds; means over the seeds, moving average of the last step; Delta_m from the "
        f"mean log-ratio. Weights {result['weights'] or 'equal'}, not used by "
        f"{', '.join(result['without_weights']) or 'none'}; gradients compared in "
        f"{', '.join(result['spaces']) or '–'}; "
        f"balance_lr_scale {result['balance_lr_scale']:.3g}. {facts['date']}, {facts['hardware']}. `{facts['command']}`"
    )
    return "\n".join([result["conclusion"], "", *lines, "", made, ""])


def _format_number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _format_change(found: Mapping[str, Any] | None) -> str:
    if found is None or math.isnan(found["mean"]):
        return "–"
    return f"{found['mean']:+.1%}" + (
        f" ({found['t_interval'][0]:+.1%} to {found['t_interval'][1]:+.1%})" if found["t_interval"] else ""
    )
