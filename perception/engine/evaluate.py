"""Evaluation: compares predictions with targets, both in source pixels, image by image.

Predictions go through `perception.ops.postprocess`, as for users. Metrics keep their state per image, so they depend
neither on the batch size nor on the number of ranks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from perception.engine import distributed
from perception.engine.interrupt import SignalInterrupt, abort_on_signal
from perception.engine.precision import Precision, autocast
from perception.metrics.metric import Metric
from perception.model import MultiTaskModel
from perception.ops import image as geometry
from perception.ops.postprocess import require_finite, restore_annotations
from perception.types import Annotation, Batch, DataError, DenseMap, LabelSpace


@dataclass(frozen=True, slots=True)
class EvaluationExample:
    """One image of the report, in source pixels.

    Attributes:
        id: id of the image.
        quality: `Metric.score_image` for the task it was selected for.
        image: uint8 RGB [H, W, 3], the network input resized back.
        prediction: task -> annotation, for all tasks.
        target: task -> annotation, for the tasks that the image is labeled for.
    """

    id: str
    quality: float
    image: NDArray
    prediction: dict[str, Annotation]
    target: dict[str, Annotation]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metrics: "<task>/<name>" -> number; NaN if nothing was labeled.
        tables: task -> class -> column -> number.
        examples: task -> {"worst": [...], "best": [...]}, on rank 0.
        score: one number that selects the best checkpoint, see `compute_score`.
        num_images: number of different images.
    """

    metrics: dict[str, float]
    tables: dict[str, dict[str, dict[str, float]]]
    examples: dict[str, dict[str, list[EvaluationExample]]]
    score: float
    num_images: int

    @property
    def notes(self) -> list[str]:
        """Sentences about classes that are excluded from the means, because the ground truth has none of them."""
        found = []
        for task, rows in self.tables.items():
            for column, what in (("pixels", "pixel"), ("count", "example")):
                names = [name for name, row in rows.items() if row.get(column) == 0]
                shown = ", ".join(names[:_MAX_LISTED_CLASSES]) + (
                    f" and {len(names) - _MAX_LISTED_CLASSES} more" if len(names) > _MAX_LISTED_CLASSES else ""
                )
                found += (
                    [f"{task}: no {what} of {shown} in the ground truth, so excluded from the mean."] if names else []
                )
        return found


_MAX_LISTED_CLASSES = 20


def evaluate(
    model: MultiTaskModel,
    batches: Iterable[Batch],
    *,
    precision: Precision = "float32",
    num_examples: int = 0,
    calibrate: bool = False,
) -> Evaluation:
    """Compute the metrics of a model.

    Every rank calls this with its own share of the images. An image that two ranks evaluate counts once, and ranks may
    have different numbers of batches.

    Args:
        model: the network.
        batches: this rank's batches.
        precision: number format of the forward pass.
        num_examples: how many of the worst and of the best images of each task are kept for the report.
        calibrate: fit the scores of ``model`` to these images (`Task.calibrate`) before computing the metrics. Use
            only held-out images that are not part of the final test.

    Raises:
        DataError: there is no image, or none is labeled.
        PerceptionError: an output is NaN. The message names image and task.
        SignalInterrupt: a stop signal came; with several ranks, raised on all of them.
    """
    device = next(model.parameters()).device
    metrics: dict[str, Metric] = {name: task.create_metric() for name, task in model.tasks.items()}
    gallery = {name: ExampleSelector(num_examples) for name in metrics}
    ids: set[str] = set()
    training, stopped = model.training, False
    model.eval()
    try:
        with torch.no_grad(), autocast(precision, device):
            for batch in batches:
                if stopped := distributed.is_stop_requested():
                    break
                spaces = _collect_label_spaces(batch)
                outputs = model.predict(batch.images.to(device), **({"label_spaces": spaces} if spaces else {}))
                arrays = {key: _to_numpy(value) for key, value in outputs.items()}
                for index in range(len(batch)):
                    ids.add(_evaluate_image(index, batch, arrays, model.specs, metrics, gallery))
    finally:
        model.train(training)
    if distributed.sum_over_ranks({"stopped": stopped})["stopped"]:
        raise SignalInterrupt
    return _merge_ranks(model, metrics, gallery, ids, calibrate)


def _collect_label_spaces(batch: Batch) -> dict[str, list[LabelSpace | None]]:
    """Task -> label space of each image, for tasks where a source has its own label space."""
    maps = {name: [a if isinstance(a, DenseMap) else None for a in own] for name, own in batch.annotations.items()}
    spaces = {name: [None if a is None else a.label_space for a in own] for name, own in maps.items()}
    return {name: own for name, own in spaces.items() if any(space is not None for space in own)}


def _to_numpy(values: torch.Tensor) -> NDArray:
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()


def _evaluate_image(
    index: int,
    batch: Batch,
    arrays: Mapping[str, NDArray],
    specs: Mapping[str, Any],
    metrics: Mapping[str, Metric],
    example_selectors: Mapping[str, ExampleSelector],
) -> str:
    """Add one image to the metrics. Returns its id, which is unique because it starts with the source name."""
    id = batch.ids[index]
    frame = batch.transforms[index]
    if frame is None:
        raise DataError(f"{id}: the image transform is missing. Evaluation needs it to map results to source pixels.")
    outputs = {key: values[index] for key, values in arrays.items()}
    require_finite(outputs, specs, id)
    prediction = restore_annotations(outputs, specs, frame, batch.cameras[index])
    labels = {name: batch.annotations[name][index] for name in metrics}
    target = {name: label for name, label in labels.items() if label is not None}
    for name, label in target.items():
        metrics[name].update(id, prediction[name], label)
        if example_selectors[name].capacity:
            quality = metrics[name].score_image(prediction[name], label)
            if example_selectors[name].is_candidate(quality):
                picture = batch.images[index].permute(1, 2, 0).cpu().numpy()
                image = geometry.unwarp_map(picture, frame, smooth=True)
                example_selectors[name].add(EvaluationExample(id, quality, image, prediction, target))
    return id


class ExampleSelector:
    """Keeps the ``capacity`` worst and best examples of a task; memory does not grow with the dataset."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._best: list[tuple[float, str, EvaluationExample]] = []
        self._worst: list[tuple[float, str, EvaluationExample]] = []

    def is_candidate(self, quality: float) -> bool:
        """Whether an image of this quality might be kept; never for NaN (no quality available)."""
        if math.isnan(quality):
            return False
        return len(self._best) < self.capacity or quality >= self._best[0][0] or -quality >= self._worst[0][0]

    def add(self, example: EvaluationExample) -> None:
        """Add an example if it is among the worst or the best. Ties are ordered by id."""
        for heap, key in ((self._best, example.quality), (self._worst, -example.quality)):
            if any(id == example.id for _, id, _ in heap):
                continue
            heapq.heappush(heap, (key, example.id, example))
            if len(heap) > self.capacity:
                heapq.heappop(heap)

    def examples(self) -> list[EvaluationExample]:
        """All kept examples, each once."""
        return list({example.id: example for _, _, example in (*self._best, *self._worst)}.values())

    def group_by_rank(self) -> dict[str, list[EvaluationExample]]:
        """Kept examples as {"worst": worst first, "best": best first}."""
        heaps = {"worst": self._worst, "best": self._best}
        return {
            name: [item[2] for item in sorted(heap, key=lambda item: item[:2])[::-1]] for name, heap in heaps.items()
        }


def _merge_ranks(
    model: MultiTaskModel,
    metrics: dict[str, Metric],
    example_selectors: dict[str, ExampleSelector],
    ids: set[str],
    calibrate: bool,
) -> Evaluation:
    """Merge the metric states on rank 0, compute there, and broadcast the numbers."""
    states = distributed.gather({name: metric.state() for name, metric in metrics.items()})
    kept = distributed.gather({name: shelf.examples() for name, shelf in example_selectors.items()})
    pictures = len(set().union(*distributed.gather(ids)))
    found = None
    if distributed.is_main_process():
        with suppress(SignalInterrupt), abort_on_signal():
            found = _compute_metrics(model, metrics, states, calibrate)
        if distributed.world_size() > 1:
            for shelves in kept:
                for name, examples in shelves.items():
                    for example in examples:
                        example_selectors[name].add(example)
    found, pictures = distributed.broadcast((found, pictures))
    if found is None:
        raise SignalInterrupt
    if calibrate:
        _broadcast_buffers(model.tasks)
    numbers, tables = found
    if not pictures:
        raise DataError("No image to evaluate. Add a validation source that contains images.")
    examples = (
        {name: shelf.group_by_rank() for name, shelf in example_selectors.items()}
        if distributed.is_main_process()
        else {}
    )
    return Evaluation(numbers, tables, examples, compute_score(model, numbers), pictures)


def _compute_metrics(
    model: MultiTaskModel, metrics: dict[str, Metric], states: list[Any], calibrate: bool
) -> tuple[dict[str, float], dict[str, dict[str, dict[str, float]]]]:
    """Metrics and tables from the merged states of all ranks."""
    numbers: dict[str, float] = {}
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for name, metric in metrics.items():
        metric.merge([state[name] for state in states])
        if calibrate:
            model.tasks[name].calibrate(metric)
        numbers |= {f"{name}/{key}": float(value) for key, value in metric.compute().items()}
        tables[name] = metric.compute_per_class()
    return numbers, tables


def _broadcast_buffers(module: nn.Module) -> None:
    """Copy rank 0's buffers to every rank."""
    found = distributed.broadcast({name: buffer.cpu() for name, buffer in module.named_buffers()})
    for name, buffer in module.named_buffers():
        buffer.copy_(found[name])


MIN_SCORE, MIN_ERROR = 0.01, 1e-6
"""Lower bounds of a metric in the score (higher is better, lower is better). A task near zero still costs much, but
its noise (an AP of 0.001 or 0.003) does not decide between checkpoints."""


def compute_score(model: MultiTaskModel, metrics: Mapping[str, float]) -> float:
    """Combine the tasks' main metrics into one number, higher is better.

    It is the geometric mean of the main metrics, with 1 / x for metrics where lower is better. Auxiliary tasks and
    tasks without labels are left out. It orders evaluations like the mean logarithm of each task's score relative to
    its best, whatever that best is. So the scale and unit of a metric do not matter, no history is needed, and later
    evaluations do not change the order of earlier ones. Compare it only between evaluations of the same tasks on the
    same images.

    Returns:
        The score; NaN if no task has a metric.
    """
    logs = [
        task.main_metric_sign * math.log(max(metrics[key], MIN_SCORE if task.main_metric_sign > 0 else MIN_ERROR))
        for name, task in model.tasks.items()
        if not task.is_auxiliary and not math.isnan(metrics.get(key := f"{name}/{task.main_metric}", math.nan))
    ]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


def compute_task_scores(model: MultiTaskModel, metrics: Mapping[str, float]) -> dict[str, float]:
    """Score of each non-auxiliary task, higher is better.

    The score is the main metric, or 1 / (1 + x) if lower is better; NaN if it was not measured.
    """
    values = {
        name: metrics.get(f"{name}/{task.main_metric}", math.nan)
        for name, task in model.tasks.items()
        if not task.is_auxiliary
    }
    return {
        name: value if model.tasks[name].main_metric_sign > 0 else 1 / (1 + value) for name, value in values.items()
    }
