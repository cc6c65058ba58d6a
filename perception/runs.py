"""Operations on a recipe or a run folder: train, evaluate, open, report."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from perception import __version__, checkpoint, config
from perception import recipe as recipes
from perception.data.dataset import DataSource
from perception.data.loader import make_evaluation_loader, make_train_loader
from perception.data.mixture import Mixture
from perception.engine import distributed
from perception.engine import train as training
from perception.engine.callbacks import Callback
from perception.engine.evaluate import Evaluation
from perception.engine.evaluate import evaluate as measure
from perception.engine.interrupt import SignalInterrupt, catch_stop_signals, exit_code
from perception.engine.log import progress_bar, write_metrics
from perception.files.safe_write import convert_write_errors, make_folder
from perception.model import MultiTaskModel
from perception.mtl.balancers import build_balancer
from perception.mtl.schedule import TaskSchedule
from perception.recipe import Recipe
from perception.report import ReportExample, read_events, write_report
from perception.types import Batch, CheckpointError, PerceptionError

NUM_EXAMPLES = 3
"""Number of worst and of best images per task in the report."""


def train(
    recipe: Recipe,
    run_folder: Path,
    *,
    resume: bool = False,
    force: bool = False,
    callbacks: Sequence[Callback] = (),
    model: MultiTaskModel | None = None,
    sources: Sequence[DataSource] | None = None,
) -> Evaluation | None:
    """Train a recipe in a run folder, evaluate the best weights, write metrics.json and report.html.

    Args:
        recipe: the recipe.
        run_folder: the folder to write.
        resume: continue from the newest valid checkpoint.
        force: resume even if the recipe has changed.
        callbacks: your own callbacks, see `perception.engine.callbacks.Callback`.
        model: use this network instead of the recipe's.
        sources: use these training sources instead of the recipe's.

    Returns:
        The evaluation of the best weights; None on ranks other than 0 and without validation sources.
    """
    with distributed.process_group() as device:
        model = (model or recipes.build_model(recipe)).to(device)
        mixture = recipes.build_mixture(recipe, sources)
        held_out = recipes.open_validation_sources(recipe) if recipe.data.validation else []
        few = recipe.train.quick_images
        quick = recipes.subsample_sources(held_out, few) if 0 < few < sum(map(len, held_out)) else None

        def evaluate_on(images: Sequence[DataSource]) -> Callable[[MultiTaskModel], Evaluation]:
            return lambda network: evaluate_model(network, recipe, images, calibrate=True)

        result = training.train(
            model,
            lambda first_step: _open_train_loader(recipe, mixture, first_step),
            recipe.train,
            run_folder=run_folder,
            recipe_text=config.dump_yaml(recipe),
            balancer=build_balancer(recipe.balance, tuple(recipe.tasks), recipe.seed),
            schedule=TaskSchedule(recipe.schedule, tuple(recipe.tasks)),
            data_fingerprints={
                f"{part}.{source.name}": source.compute_fingerprints()
                for part, opened in (("train", mixture.sources), ("validation", held_out))
                for source in opened
            },
            evaluate=evaluate_on(held_out) if held_out else None,
            quick_evaluate=evaluate_on(quick) if quick else None,
            seed=recipe.seed,
            resume=resume,
            force=force,
            warnings=recipes.collect_warnings(recipe),
            callbacks=callbacks,
        )
        if not held_out:
            return None
        ending = f"Training is finished and saved. --resume {run_folder} evaluates it and writes the report."
        with exit_on_signal(ending):
            return _finish_run(run_folder, recipe, model, result, mixture, held_out)


def _open_train_loader(recipe: Recipe, mixture: Mixture, first_step: int) -> Iterable[Batch]:
    """This rank's training batches from ``first_step`` on."""
    return make_train_loader(
        mixture,
        tuple(recipe.tasks),
        recipe.train.batch_size,
        recipe.train.steps,
        first_step,
        distributed.rank(),
        distributed.world_size(),
        recipe.data.workers,
        recipe.data.timeout,
    )


def _finish_run(
    run_folder: Path,
    recipe: Recipe,
    model: MultiTaskModel,
    result: training.TrainResult,
    mixture: Mixture,
    held_out: Sequence[DataSource],
) -> Evaluation | None:
    """Evaluate the best weights if that is not done yet, and write the results on rank 0."""
    evaluation = result.evaluation
    best = checkpoint.load(run_folder, "best")
    if evaluation is None or best.step != result.step:
        checkpoint.load_into_model(model, best)
        evaluation = evaluate_model(model, recipe, held_out)  # saved weights include their calibration
    if not distributed.is_main_process():
        return None
    write_results(run_folder, recipe, model, evaluation, best.step, describe_skipped_data(mixture))
    return evaluation


@contextmanager
def exit_on_signal(message: str) -> Iterator[None]:
    """On a stop signal, print ``message`` to stderr and raise SystemExit with the signal's exit code, on every rank."""
    with catch_stop_signals() as interruption:
        try:
            with interruption.abort_on_signal() if distributed.world_size() == 1 else nullcontext():
                yield
        except SignalInterrupt:
            if distributed.is_main_process():
                print(f"Stopped by a signal. {message}", file=sys.stderr)  # noqa: T201
            raise SystemExit(exit_code(distributed.sum_over_ranks(interruption.flags))) from None


def evaluate_model(
    model: MultiTaskModel,
    recipe: Recipe,
    sources: Sequence[DataSource],
    batch_size: int = 8,
    show_progress: bool = False,
    calibrate: bool = False,
) -> Evaluation:
    """Evaluate a network on the share of the images that belongs to this rank.

    Args:
        model: the network.
        recipe: gives input size and data workers.
        sources: the images.
        batch_size: images per batch; does not affect the metrics.
        show_progress: show a progress bar on rank 0.
        calibrate: fit the network's scores to these images first, see `perception.engine.evaluate.evaluate`.
    """
    batches = make_evaluation_loader(
        sources,
        tuple(model.tasks),
        recipe.data.size,
        batch_size,
        distributed.rank(),
        distributed.world_size(),
        recipe.data.workers,
        recipe.data.timeout,
    )
    if not show_progress or not distributed.is_main_process():
        return measure(model, batches, num_examples=NUM_EXAMPLES, calibrate=calibrate)
    with progress_bar("evaluate", len(batches)) as advance_to:
        return measure(model, report_progress(batches, advance_to), num_examples=NUM_EXAMPLES, calibrate=calibrate)


def report_progress(batches: Iterable[Batch], advance_to: Callable[[int], None]) -> Iterator[Batch]:
    """Yield the batches and report how many have been used."""
    for done, batch in enumerate(batches):
        advance_to(done)
        yield batch


def open_run(
    path: str | Path, overrides: Sequence[str] = (), tasks: Collection[str] | None = None
) -> tuple[Recipe, MultiTaskModel]:
    """Open a run folder, a checkpoint or a .safetensors file; return its recipe and its network with the best weights.

    The network is in evaluation mode and contains only ``tasks`` (default: all).

    Raises:
        CheckpointError: nothing usable is there, or the weights do not match the recipe.
    """
    if Path(path).suffix == ".onnx":
        raise CheckpointError(
            f"{path} is an exported file. It works with `perception predict` and `perception evaluate`. "
            "Here, give the run folder from which it was exported."
        )
    found = checkpoint.load_weights(Path(path))
    if not found.recipe_text:
        raise CheckpointError(f"No recipe found for {path}. Put its recipe.yaml into the same folder.")
    recipe = recipes.parse(found.recipe_text, overrides, where=str(found.path))
    model = recipes.build_model(recipe, pretrained=False)
    checkpoint.load_into_model(model, found)
    if tasks is not None:
        model.keep_tasks(tasks)
    return recipe, model.eval()


def open_inference_model(
    path: str | Path, tasks: Collection[str] | None = None, overrides: Sequence[str] = ()
) -> tuple[Recipe, MultiTaskModel]:
    """As `open_run`, for inference: auxiliary tasks are included only if ``tasks`` names them."""
    recipe, model = open_run(path, overrides, tasks)
    return recipe, model if tasks is not None else model.keep_tasks(recipe.scored_tasks)


def evaluate(
    path: Path,
    *,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    tasks: Collection[str] | None = None,
    size: tuple[int, int] | None = None,
    out: Path | None = None,
    batch_size: int = 8,
) -> Evaluation:
    """Evaluate a run on its validation sources or on those of another file.

    Args:
        path: run folder, checkpoint folder or .safetensors file.
        data: YAML file with other validation sources; None = those of the recipe.
        overrides: ``key=value`` changes to ``data`` if it is given, otherwise to the recipe.
        tasks: the tasks to evaluate; None = all.
        size: (height, width) of the network input; None = that of the recipe.
        out: folder for metrics and report; None = write nothing.
        batch_size: images per batch; does not affect the metrics.
    """
    with distributed.process_group() as device:
        recipe, model = open_run(path, () if data else overrides, tasks)
        if data is not None:
            recipe = recipes.replace_validation_data(recipe, data, overrides)
        if size is not None:
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, size=size))
        sources = recipes.open_validation_sources(recipe)
        evaluation = evaluate_model(model.to(device), recipe, sources, batch_size, show_progress=True)
        if out is not None and distributed.is_main_process():
            make_folder(out)
            write_results(out, recipe, model, evaluation, checkpoint.load_weights(path).step)
        return evaluation


def sample_validation_images(recipe: Recipe, count: int = 4) -> list[NDArray[np.uint8]]:
    """Return RGB validation images to check an export; empty if the data is not available."""
    try:
        sources = recipes.open_validation_sources(recipe)
    except PerceptionError:
        return []
    return [
        sources[i % len(sources)].load_sample(i * len(sources[i % len(sources)]) // count).image for i in range(count)
    ]


def describe_skipped_data(mixture: Mixture) -> dict[str, str]:
    """Describe the data that training skipped, for the report."""
    notes = {
        f"{source.name}: {kind}": str(count) for source in mixture.sources for kind, count in source.problems.items()
    }
    if mixture.skipped:
        notes["images that could not be read"] = ", ".join(sorted(mixture.skipped))
    return notes


def write_results(
    run_folder: Path,
    recipe: Recipe,
    model: MultiTaskModel,
    evaluation: Evaluation,
    step: int,
    notes: Mapping[str, str] = {},
) -> None:
    """Write metrics.json and the report of an evaluation. ``notes`` are additional facts for the report.

    Raises PerceptionError if they cannot be written; existing files then stay unchanged.
    """
    path = run_folder / "metrics.json"
    with convert_write_errors(path):
        write_metrics(path, {"step": step, "score": evaluation.score, **evaluation.metrics})
    log = run_folder / "metrics.jsonl"
    events = read_events(log) if log.is_file() else []
    write_report(
        run_folder / "report.html",
        title=recipe.name,
        specs=model.specs,
        metrics=evaluation.metrics,
        tables=evaluation.tables,
        events=events,
        examples=[
            ReportExample(example.id, name, example.quality, example.image, example.prediction, example.target)
            for name, shelves in evaluation.examples.items()
            for shelf in shelves.values()
            for example in shelf
        ],
        recipe=config.dump_yaml(recipe),
        metadata={**describe_evaluation(evaluation, step), **_describe_curves(recipe, events), **notes},
        auxiliary=[name for name in recipe.tasks if name not in recipe.scored_tasks],
        protocols={name: task.create_metric().protocol for name, task in model.tasks.items()},  # type: ignore[operator,union-attr]
    )


def _describe_curves(recipe: Recipe, events: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Describe the images behind the validation curves."""
    if not any(event.get("kind") == "quick_evaluation" for event in events):
        return {}
    return {"curves of the validation": f"{recipe.train.quick_images} of its images, the same ones at every evaluation"}


def describe_evaluation(evaluation: Evaluation, step: int) -> dict[str, str]:
    """Describe images, weights and environment of an evaluation, for the report."""
    return {
        "images evaluated": str(evaluation.num_images),
        "step of the weights": str(step),
        **describe_environment(),
    }


def describe_environment() -> dict[str, str]:
    """Date, command, hardware and versions."""
    return {
        "command": " ".join(["perception", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "hardware": describe_hardware(),
        "versions": f"perception {__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}",
    }


def describe_hardware() -> str:
    """Processor, number of threads, and GPU if available."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        processor = names[0] if names else processor
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return f"{processor}, {threads} thread{'s' * (threads != 1)}{gpu}"
