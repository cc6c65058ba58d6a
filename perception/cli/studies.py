"""Commands that run several trainings or change trained networks: compare, group, tune, grow, drop."""

from __future__ import annotations

import argparse
from pathlib import Path

from perception.cli.arguments import (
    Commands,
    add_command,
    add_overrides,
    add_tasks,
    parse_count,
    parse_names,
    parse_positive,
    print_lines,
)

CONTROL_KINDS = ("images", "compute", "budget")


def add_commands(commands: Commands) -> None:
    """Add the commands `compare`, `group`, `tune`, `grow` and `drop`."""
    _add_compare(commands)
    _add_group(commands)
    _add_tune(commands)
    _add_grow(commands)
    _add_drop(commands)


def _add_compare(commands: Commands) -> None:
    compare = add_command(commands, "compare", _compare, "compare joint training with single-task baselines")
    compare.add_argument("config", type=Path, help="YAML recipe of the joint network")
    add_overrides(compare)
    add_tasks(compare)
    compare.add_argument(
        "--seeds",
        type=parse_count,
        default=3,
        metavar="N",
        help="number of seeds, counted from the recipe's (default: 3)",
    )
    compare.add_argument(
        "--controls", type=_parse_control_kinds, default=("images",), metavar="A,B",
        help="what each baseline shares with the joint run: images; compute (each of them); budget (all of them "
        "together) (default: images)",
    )  # fmt: skip
    _add_jobs_option(compare)
    compare.add_argument("--out", type=Path, help="folder of the runs (default: runs/<name of the recipe>_compare)")


def _add_group(commands: Commands) -> None:
    group = add_command(
        commands, "group", _group, "which tasks should share a network or a trunk, measured in one training"
    )
    group.add_argument("config", type=Path, help="YAML recipe of the joint network")
    add_overrides(group)
    add_tasks(group)
    group.add_argument(
        "--networks", type=parse_count, default=2, metavar="K", help="largest number of networks (default: 2)"
    )
    group.add_argument(
        "--lookahead-every",
        type=parse_count,
        default=25,
        metavar="N",
        help="steps between two lookahead measurements (default: 25)",
    )
    group.add_argument("--out", type=Path, help="run folder (default: runs/<name of the recipe>_group)")


def _add_tune(commands: Commands) -> None:
    tune = add_command(commands, "tune", _tune, "search balancer, weights, learning rate and sharing with Optuna")
    tune.add_argument("config", type=Path, help="YAML recipe to start from")
    add_overrides(tune)
    add_tasks(tune)
    tune.add_argument(
        "--trials",
        type=parse_count,
        default=30,
        metavar="N",
        help="total number of trials, earlier ones included (default: 30)",
    )
    tune.add_argument(
        "--space",
        type=Path,
        help="YAML file of the search space (default: the recipe's tune section, else learning rate, balancer, weights "
        "and sharing)",
    )
    _add_jobs_option(tune)
    tune.add_argument("--out", type=Path, help="folder of the study (default: runs/<name of the recipe>_tune)")


def _add_grow(commands: Commands) -> None:
    grow = add_command(commands, "grow", _grow, "add tasks to a trained network without forgetting the old ones")
    grow.add_argument("model", type=Path, metavar="RUN", help="run folder of the trained network")
    grow.add_argument("config", type=Path, help="YAML recipe of the new tasks: their data, settings and training")
    add_overrides(grow)
    add_tasks(grow)
    grow.add_argument(
        "--method", choices=("frozen", "distill"), default="frozen",
        help="frozen: old outputs stay bit-identical; distill: all weights train, and the old heads are kept close to "
        "the outputs of the old network (default: frozen)",
    )  # fmt: skip
    grow.add_argument(
        "--distillation-weight",
        type=parse_positive,
        default=1.0,
        help="weight of the distillation loss relative to the new losses (default: 1)",
    )
    grow.add_argument("--out", type=Path, help="run folder (default: runs/<name of the recipe>_grown)")


def _add_drop(commands: Commands) -> None:
    drop = add_command(commands, "drop", _drop, "remove tasks from a trained network; the others stay bit-identical")
    drop.add_argument("model", type=Path, metavar="RUN", help="run folder of the trained network")
    drop.add_argument("tasks", type=parse_names, metavar="TASKS", help="tasks to remove, separated by commas")
    drop.add_argument("--out", type=Path, help="new run folder (default: <RUN>_without_<tasks>)")


def _add_jobs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=parse_count, metavar="N",
        help="parallel trainings (default: one per train.threads cores; on a GPU 1)",
    )  # fmt: skip


def _parse_control_kinds(text: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(parse_names(text)))
    if not chosen or set(chosen) - set(CONTROL_KINDS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(CONTROL_KINDS)}, got '{text}'")
    return chosen


def _compare(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception.studies.compare import PAGE, compare
    from perception.studies.format import format_comparison

    recipe = recipes.load(parsed.config, parsed.overrides, parsed.tasks)
    out = parsed.out or Path("runs") / f"{recipe.name}_compare"
    result = compare(recipe, out, num_seeds=parsed.seeds, control_kinds=parsed.controls, jobs=parsed.jobs)
    print_lines([*format_comparison(result), "", f"Report: {out / PAGE}"])
    return 0


def _group(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception.studies.format import format_affinities
    from perception.studies.group import PAGE, group_tasks

    recipe = recipes.load(parsed.config, parsed.overrides, parsed.tasks)
    out = parsed.out or Path("runs") / f"{recipe.name}_group"
    result = group_tasks(recipe, out, max_networks=parsed.networks, interval=parsed.lookahead_every)
    print_lines([*format_affinities(result), "", f"Recipes: {', '.join(result['recipes'])}", f"Report: {out / PAGE}"])
    return 0


def _tune(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception.studies import search_space
    from perception.studies.format import format_trials
    from perception.studies.tune import PAGE, tune

    recipe = recipes.load(parsed.config, parsed.overrides, parsed.tasks)
    searched = search_space.load_space(parsed.space, parsed.config) or search_space.build_default_space(recipe)
    out = parsed.out or Path("runs") / f"{recipe.name}_tune"
    result = tune(recipe, searched, out, num_trials=parsed.trials, jobs=parsed.jobs)
    print_lines([*format_trials(result), "", f"Report: {out / PAGE}"])
    return 0


def _grow(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception.studies.format import format_growth
    from perception.studies.grow import PAGE, grow

    recipe = recipes.load(parsed.config, parsed.overrides, parsed.tasks)
    out = parsed.out or Path("runs") / f"{recipe.name}_grown"
    result = grow(parsed.model, recipe, out, method=parsed.method, distillation_weight=parsed.distillation_weight)
    print_lines([*format_growth(result), f"Report: {out / PAGE}"])
    return 0


def _drop(parsed: argparse.Namespace) -> int:
    from perception.studies.grow import drop_tasks

    run = parsed.model
    out = parsed.out or run.with_name(f"{run.name}_without_{'_'.join(parsed.tasks)}")
    drop_tasks(run, parsed.tasks, out)
    print_lines([f"{out} is {run} without {', '.join(parsed.tasks)}. The remaining outputs are bit-identical."])
    return 0
