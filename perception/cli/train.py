"""The training commands: demo, train, evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path

from perception.cli.arguments import (
    Commands,
    add_command,
    add_overrides,
    add_tasks,
    parse_count,
    parse_size,
    print_lines,
)


def add_commands(commands: Commands) -> None:
    """Add the commands `demo`, `train` and `evaluate`."""
    demo = add_command(commands, "demo", _demo, "run the full workflow on synthetic street data, in minutes")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default: runs/demo)")
    add_overrides(demo)

    train = add_command(commands, "train", _train, "train the network of a recipe")
    train.add_argument("config", nargs="?", type=Path, help="YAML recipe; not needed with --resume")
    add_overrides(train)
    add_tasks(train)
    train.add_argument("--out", type=Path, help="run folder (default: runs/<name of the recipe>)")
    train.add_argument("--resume", type=Path, metavar="RUN", help="continue from the newest checkpoint of a run folder")
    train.add_argument("--force", action="store_true", help="resume even if the recipe or the data has changed")

    evaluate = add_command(commands, "evaluate", _evaluate, "evaluate a run or an exported file on held-out images")
    evaluate.add_argument(
        "model", type=Path, metavar="MODEL", help="run folder, checkpoint, .safetensors file or exported .onnx file"
    )
    add_overrides(evaluate)
    add_tasks(evaluate)
    evaluate.add_argument("--data", type=Path, help="YAML file whose data.validation replaces the run's")
    evaluate.add_argument(
        "--size", type=parse_size, metavar="HxW", help="input size of the network (default: as in training)"
    )
    evaluate.add_argument("--out", type=Path, help="write metrics.json and report.html to this folder")
    evaluate.add_argument(
        "--batch-size", type=parse_count, default=8, metavar="N", help="batch size; does not affect the metrics"
    )


def _demo(parsed: argparse.Namespace) -> int:
    from perception.demo import run_demo

    run_demo(parsed.out, parsed.overrides)
    return 0


def _train(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception import runs
    from perception.types import ConfigError

    if parsed.config is not None and "=" in str(parsed.config):
        parsed.overrides.insert(0, str(parsed.config))
        parsed.config = None
    if parsed.config is None and parsed.resume is None:
        raise ConfigError("Give a recipe, for example: perception train configs/street.yaml")
    path = parsed.config or parsed.resume / "recipe.yaml"
    recipe = recipes.load(path, parsed.overrides, parsed.tasks)
    run = parsed.resume or parsed.out or Path("runs") / recipe.name
    evaluation = runs.train(recipe, run, resume=parsed.resume is not None, force=parsed.force)
    if evaluation is not None:
        _print_metrics(evaluation)
        print_lines(
            [f"Report: {run / 'report.html'}, weights: {run / 'checkpoints'}, metrics: {run / 'metrics.jsonl'}"]
        )
    return 0


def _evaluate(parsed: argparse.Namespace) -> int:
    from perception import runs
    from perception.engine.distributed import is_main_process
    from perception.export import evaluate_onnx

    measure = evaluate_onnx.evaluate if parsed.model.suffix == ".onnx" else runs.evaluate
    evaluation = measure(
        parsed.model,
        data=parsed.data,
        overrides=parsed.overrides,
        tasks=parsed.tasks,
        size=parsed.size,
        out=parsed.out,
        batch_size=parsed.batch_size,
    )
    if is_main_process():
        _print_metrics(evaluation)
    return 0


def _print_metrics(evaluation) -> None:
    numbers = [f"{name:36s} {value:.4f}" for name, value in evaluation.metrics.items()]
    print_lines([f"{evaluation.num_images} images", *numbers, *evaluation.notes])
