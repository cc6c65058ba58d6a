"""Commands of several trainings, and of trained networks that change: compare, group, tune, grow, drop."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from perception.cli.arguments import add_command, add_overrides, add_tasks, count, names, positive, say

CONTROLS = ("pictures", "compute", "budget")


def add_commands(commands: Any) -> None:
    compare = add_command(commands, "compare", _compare, "does joint training help: against single-task controls")
    compare.add_argument("config", type=Path, help="YAML recipe of the joint network")
    add_overrides(compare)
    add_tasks(compare)
    compare.add_argument("--seeds", type=count, default=3, metavar="N", help="how many, from the recipe's (default: 3)")
    compare.add_argument(
        "--controls", type=_controls, default=("pictures",), metavar="A,B",
        help="what controls have in common with the joint run: pictures; compute, each; budget, all together "
        "(default: pictures)",
    )  # fmt: skip
    _add_jobs(compare)
    compare.add_argument("--out", type=Path, help="folder of its runs (default: runs/<name of the recipe>_compare)")

    group = add_command(
        commands, "group", _group, "which tasks should share a network or a trunk, measured in one training"
    )
    group.add_argument("config", type=Path, help="YAML recipe of the joint network")
    add_overrides(group)
    add_tasks(group)
    group.add_argument("--networks", type=count, default=2, metavar="K", help="how many at most (default: 2)")
    group.add_argument(
        "--every", type=count, default=25, metavar="N", help="steps from one look ahead to the next (default: 25)"
    )
    group.add_argument("--out", type=Path, help="folder of its run (default: runs/<name of the recipe>_group)")

    tune = add_command(commands, "tune", _tune, "search balancer, weights, learning rate and sharing with Optuna")
    tune.add_argument("config", type=Path, help="YAML recipe to start from")
    add_overrides(tune)
    add_tasks(tune)
    tune.add_argument("--trials", type=count, default=30, metavar="N", help="in all, earlier ones too (default: 30)")
    tune.add_argument(
        "--space",
        type=Path,
        help="YAML file of the space (default: the recipe's tune section, or one of "
        "learning rate, balancer, weights and sharing)",
    )
    _add_jobs(tune)
    tune.add_argument("--out", type=Path, help="folder of the study (default: runs/<name of the recipe>_tune)")

    grow = add_command(commands, "grow", _grow, "add tasks to a trained network without forgetting the old ones")
    grow.add_argument("model", type=Path, metavar="RUN", help="run folder of the trained network")
    grow.add_argument("config", type=Path, help="YAML recipe of the new tasks: their data, settings and training")
    add_overrides(grow)
    add_tasks(grow)
    grow.add_argument(
        "--method", choices=("frozen", "distil"), default="frozen",
        help="frozen: old outputs stay, bit for bit; distil: all learns, the old heads are held to what the old "
        "network says (default: frozen)",
    )  # fmt: skip
    grow.add_argument(
        "--strength", type=positive, default=1.0, help="of distil's teaching beside the new losses (default: 1)"
    )
    grow.add_argument("--out", type=Path, help="run folder (default: runs/<name of the recipe>_grown)")

    drop = add_command(commands, "drop", _drop, "take tasks out of a trained network; the others stay, bit for bit")
    drop.add_argument("model", type=Path, metavar="RUN", help="run folder of the trained network")
    drop.add_argument("--tasks", type=names, required=True, metavar="A,B", help="the tasks to take out")
    drop.add_argument("--out", type=Path, help="new run folder (default: <RUN>_without_<tasks>)")


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=count, metavar="N",
        help="trainings at a time (default: one for every train.threads cores, on a GPU one)",
    )  # fmt: skip


def _controls(text: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(names(text)))
    if not chosen or set(chosen) - set(CONTROLS):
        raise argparse.ArgumentTypeError(f"'{text}' names other controls than {', '.join(CONTROLS)}")
    return chosen


def _compare(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception.studies.compare import PAGE, compare
    from perception.studies.format import table

    recipe = recipes.load(parsed.config, parsed.overrides, parsed.tasks)
    out = parsed.out or Path("runs") / f"{recipe.name}_compare"
    result = compare(recipe, out, seeds=parsed.seeds, kinds=parsed.controls, jobs=parsed.jobs)
    say([*table(result), "", f"Report: {out / PAGE}"])
    return 0


def _group(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception.studies.format import affinities
    from perception.studies.group import PAGE, group

    recipe = recipes.load(parsed.config, parsed.overrides, parsed.tasks)
    out = parsed.out or Path("runs") / f"{recipe.name}_group"
    result = group(recipe, out, networks=parsed.networks, every=parsed.every)
    say([*affinities(result), "", f"Recipes: {', '.join(result['recipes'])}", f"Report: {out / PAGE}"])
    return 0


def _tune(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception.studies import search_space
    from perception.studies.format import trials
    from perception.studies.tune import PAGE, tune

    recipe = recipes.load(parsed.config, parsed.overrides, parsed.tasks)
    searched = search_space.read(parsed.space, parsed.config) or search_space.default(recipe)
    out = parsed.out or Path("runs") / f"{recipe.name}_tune"
    result = tune(recipe, searched, out, trials=parsed.trials, jobs=parsed.jobs)
    say([*trials(result), "", f"Report: {out / PAGE}"])
    return 0


def _grow(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception.studies.format import growth
    from perception.studies.grow import PAGE, grow

    recipe = recipes.load(parsed.config, parsed.overrides, parsed.tasks)
    out = parsed.out or Path("runs") / f"{recipe.name}_grown"
    result = grow(parsed.model, recipe, out, method=parsed.method, strength=parsed.strength)
    say([*growth(result), f"Report: {out / PAGE}"])
    return 0


def _drop(parsed: argparse.Namespace) -> int:
    from perception.studies.grow import drop

    run = parsed.model
    out = parsed.out or run.with_name(f"{run.name}_without_{'_'.join(parsed.tasks)}")
    drop(run, parsed.tasks, out)
    say([f"{out} is {run} without {', '.join(parsed.tasks)}; what is left says the same, bit for bit."])
    return 0
