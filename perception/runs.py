"""What the commands do with a recipe or a run folder: train, evaluate, open, report."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import date
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from perception import __version__, checkpoint, config
from perception import recipe as recipes
from perception.data.dataset import Source
from perception.data.loader import evaluation_batches, train_batches
from perception.data.mixture import Mixture
from perception.engine import distributed
from perception.engine import train as training
from perception.engine.evaluate import Evaluation
from perception.engine.evaluate import evaluate as measure
from perception.engine.interrupt import Stopped, exit_code, interruptible
from perception.engine.log import progress_bar, write_metrics
from perception.files.safe_write import make_folder, writing
from perception.model import Perception
from perception.mtl.balancers import build_balancer
from perception.mtl.schedule import Schedule
from perception.recipe import Recipe
from perception.report import Example, read_events, write_report
from perception.types import Batch, CheckpointError, PerceptionError

KEPT_EXAMPLES = 3
"""How many of the worst and of the best pictures of each task the report shows."""


Watch: TypeAlias = Callable[[Perception, int, Batch], None]


def train(
    recipe: Recipe,
    run: Path,
    *,
    resume: bool = False,
    force: bool = False,
    watch: Watch | None = None,
    model: Perception | None = None,
    sources: Sequence[Source] | None = None,
) -> Evaluation | None:
    """Train a recipe into a run folder, evaluate its best weights, write metrics.json and report.html.

    watch: called before each step with the network, the step's number and this rank's batch; leaves the network as it
    finds it
    model, sources: to be used instead of those that the recipe says

    Returns the evaluation of the best weights; None on ranks other than 0 and where there is no validation source.
    """
    with distributed.session() as device:
        model = (model or recipes.build_model(recipe)).to(device)
        settings = recipe.data
        mixture = recipes.build_mixture(recipe, sources)
        held_out = recipes.validation_sources(recipe) if settings.validation else []

        def batches(start: int):
            stream = train_batches(
                mixture,
                tuple(recipe.tasks),
                recipe.train.batch_size,
                recipe.train.steps,
                start,
                distributed.rank(),
                distributed.world(),
                settings.workers,
                settings.timeout,
            )
            return stream if watch is None else watched(stream, start, model, watch)

        def evaluate_now(network: Perception) -> Evaluation:
            return evaluate_model(network, recipe, held_out, calibrate=True)

        def quick(network: Perception) -> Evaluation:
            return evaluate_model(network, recipe, recipes.thinned(held_out, few), calibrate=True)

        few = recipe.train.quick_images

        result = training.train(
            model,
            batches,
            recipe.train,
            run=run,
            recipe=config.dump(recipe),
            balancer=build_balancer(recipe.balance, tuple(recipe.tasks), recipe.seed),
            schedule=Schedule(recipe.schedule, tuple(recipe.tasks)),
            data={
                f"{part}.{source.name}": source.fingerprint()
                for part, sources in (("train", mixture.sources), ("validation", held_out))
                for source in sources
            },
            evaluate=evaluate_now if held_out else None,
            quick=quick if 0 < few < sum(map(len, held_out)) else None,
            seed=recipe.seed,
            resume=resume,
            force=force,
            warnings=recipes.warnings(recipe),
        )
        if not held_out:
            return None
        with stoppable(f"All is trained and saved; --resume {run} measures it and writes the report."):
            evaluation = result.evaluation
            best = checkpoint.load(run, "best")
            if evaluation is None or best.step != result.step:
                checkpoint.fit(model, best)
                evaluation = evaluate_model(model, recipe, held_out)  # as they are saved, calibrated when they were
            if not distributed.is_main():
                return None
            finish(run, recipe, model, evaluation, best.step, left_out(mixture))
            return evaluation


@contextmanager
def stoppable(said: str) -> Iterator[None]:
    """What a signal ends at once, on every rank, with ``said`` on stderr. Raises SystemExit with its exit code."""
    with interruptible() as interruption:
        try:
            with interruption.abandonable() if distributed.world() == 1 else nullcontext():
                yield
        except Stopped:
            if distributed.is_main():
                print(f"Stopped by a signal. {said}", file=sys.stderr)  # noqa: T201
            raise SystemExit(exit_code(distributed.summed(interruption.flags))) from None


def watched(stream: Iterable[Batch], start: int, model: Perception, watch: Watch) -> Iterator[Batch]:
    """The batches of the steps from ``start`` on, each shown before it is used."""
    for step, batch in enumerate(stream, start):
        watch(model, step, batch)
        yield batch


def evaluate_model(
    model: Perception,
    recipe: Recipe,
    sources: Sequence[Source],
    batch_size: int = 8,
    show_progress: bool = False,
    calibrate: bool = False,
) -> Evaluation:
    """Metrics of a network on sources, by this rank's share of the pictures.

    calibrate: fit the network's scores to these pictures first, see `perception.engine.evaluate.evaluate`.
    """
    batches = evaluation_batches(
        sources,
        tuple(model.tasks),
        recipe.data.size,
        batch_size,
        distributed.rank(),
        distributed.world(),
        recipe.data.workers,
        recipe.data.timeout,
    )
    if not show_progress or not distributed.is_main():
        return measure(model, batches, keep_examples=KEPT_EXAMPLES, calibrate=calibrate)
    with progress_bar("evaluate", len(batches)) as advance_to:
        return measure(model, told(batches, advance_to), keep_examples=KEPT_EXAMPLES, calibrate=calibrate)


def told(batches: Iterable[Batch], advance_to: Callable[[int], None]) -> Iterator[Batch]:
    """The batches, telling how many were used."""
    for done, batch in enumerate(batches):
        advance_to(done)
        yield batch


def open_run(
    path: str | Path, overrides: Sequence[str] = (), tasks: Collection[str] | None = None
) -> tuple[Recipe, Perception]:
    """The recipe and the network, with its best weights, of a run folder, a checkpoint or a .safetensors file.

    The network is in evaluation mode and holds only ``tasks`` (all by default).
    """
    if Path(path).suffix == ".onnx":
        raise CheckpointError(
            f"{path} is an exported file: it can be run (`perception predict`) and measured (`perception evaluate`). "
            "Here give the run folder that it was exported from."
        )
    found = checkpoint.load_weights(Path(path))
    if not found.recipe:
        raise CheckpointError(f"No recipe beside {path}. Keep recipe.yaml in the folder of the weights.")
    recipe = recipes.parse(found.recipe, overrides, where=str(found.path))
    model = recipes.build_model(recipe, weights=False)
    checkpoint.fit(model, found)
    if tasks is not None:
        model.keep(tasks)
    return recipe, model.eval()


def open_network(
    path: str | Path, tasks: Collection[str] | None = None, overrides: Sequence[str] = ()
) -> tuple[Recipe, Perception]:
    """As `open_run`, to be used: holds the auxiliary tasks only where ``tasks`` names them."""
    recipe, model = open_run(path, overrides, tasks)
    return recipe, model if tasks is not None else model.keep(recipe.scored)


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
    """Evaluate a run on its validation sources or on another file's; write metrics and report to ``out``.

    size: (height, width) that the network sees; None = as its recipe says
    """
    with distributed.session() as device:
        recipe, model = open_run(path, () if data else overrides, tasks)
        if data is not None:
            recipe = recipes.with_other_data(recipe, data, overrides)
        if size is not None:
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, size=size))
        sources = recipes.validation_sources(recipe)
        evaluation = evaluate_model(model.to(device), recipe, sources, batch_size, show_progress=True)
        if out is not None and distributed.is_main():
            make_folder(out)
            finish(out, recipe, model, evaluation, checkpoint.load_weights(path).step)
        return evaluation


def some_pictures(recipe: Recipe, count: int = 4) -> list[NDArray[np.uint8]]:
    """A few of the recipe's validation pictures, RGB, for checking an export; none where the data is not at hand."""
    try:
        sources = recipes.validation_sources(recipe)
    except PerceptionError:
        return []
    return [sources[i % len(sources)].sample(i * len(sources[i % len(sources)]) // count).image for i in range(count)]


def left_out(mixture: Mixture) -> dict[str, str]:
    """What training passed over in the data, for the report."""
    notes = {
        f"{source.name}: {kind}": str(count) for source in mixture.sources for kind, count in source.problems.items()
    }
    if mixture.skipped:
        notes["pictures that could not be read"] = ", ".join(sorted(mixture.skipped))
    return notes


def finish(
    run: Path, recipe: Recipe, model: Perception, evaluation: Evaluation, step: int, notes: Mapping[str, str] = {}
) -> None:
    """Write metrics.json and the report of an evaluation. notes: further facts for the report.

    Raises PerceptionError where they cannot be written; then those that were there stay.
    """
    path = run / "metrics.json"
    with writing(path):
        write_metrics(path, {"step": step, "score": evaluation.score, **evaluation.metrics})
    log = run / "metrics.jsonl"
    events = read_events(log) if log.is_file() else []
    write_report(
        run / "report.html",
        title=recipe.name,
        specs=model.specs,
        metrics=evaluation.metrics,
        tables=evaluation.tables,
        events=events,
        examples=[
            Example(example.id, name, example.quality, example.image, example.prediction, example.target)
            for name, shelves in evaluation.examples.items()
            for shelf in shelves.values()
            for example in shelf
        ],
        recipe=config.dump(recipe),
        facts={**facts(evaluation, step), **_curves(recipe, events), **notes},
        auxiliary=[name for name in recipe.tasks if name not in recipe.scored],
        protocols={name: task.metric().protocol for name, task in model.tasks.items()},  # type: ignore[operator,union-attr]
    )


def _curves(recipe: Recipe, events: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """What the curves of the validation are of."""
    if not any(event.get("kind") == "quick_evaluation" for event in events):
        return {}
    return {"curves of the validation": f"{recipe.train.quick_images} of its pictures, the same at every evaluation"}


def facts(evaluation: Evaluation, step: int) -> dict[str, str]:
    """Where and with what the numbers were made."""
    return {"pictures evaluated": str(evaluation.pictures), "step of the weights": str(step), **machine_facts()}


def machine_facts() -> dict[str, str]:
    """When, by which command, on what hardware and with which versions."""
    return {
        "command": " ".join(["perception", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "versions": f"perception {__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}",
    }


def hardware() -> str:
    """Processor, number of threads, and the GPU if there is one."""
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
