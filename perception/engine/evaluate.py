"""Measuring a network: predictions in source pixels against targets in source pixels, picture by picture.

Predictions come back through `perception.ops.restore`, as they do for users; the numbers depend neither on the batch
size nor on the number of ranks, for metrics keep their state per picture.
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

from perception.engine import distributed
from perception.engine.interrupt import Stopped, abandonable
from perception.engine.precision import Precision, autocast
from perception.metrics.metric import Metric
from perception.ops import image as geometry
from perception.ops.restore import require_numbers, restore
from perception.types import Annotation, Batch, DataError, DenseMap, LabelSpace


@dataclass(frozen=True, slots=True)
class Example:
    """One picture of the report, in source pixels.

    image:      uint8 RGB [H, W, 3], as the network saw it, resized back
    prediction: task -> annotation, of all tasks
    target:     task -> annotation, of the tasks that the picture is labelled for
    quality:    `Metric.quality` of the task it was picked for
    """

    id: str
    quality: float
    image: NDArray
    prediction: dict[str, Annotation]
    target: dict[str, Annotation]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """metrics:  "<task>/<name>" -> number; NaN where nothing was labelled
    tables:   task -> class -> column -> number
    examples: task -> {"worst": [...], "best": [...]}, on rank 0
    score:    one number that picks the best checkpoint, see `score`
    pictures: number of different pictures
    """

    metrics: dict[str, float]
    tables: dict[str, dict[str, dict[str, float]]]
    examples: dict[str, dict[str, list[Example]]]
    score: float
    pictures: int

    @property
    def notes(self) -> list[str]:
        """Sentences about the classes that are in no mean, for the truth has nothing of them."""
        found = []
        for task, rows in self.tables.items():
            for column, what in (("pixels", "pixel"), ("count", "example")):
                names = [name for name, row in rows.items() if row.get(column) == 0]
                shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
                found += [f"{task}: no {what} of {shown} in the truth: not in the mean."] if names else []
        return found


_SHOWN = 20


def evaluate(
    model: Any,
    batches: Iterable[Batch],
    *,
    precision: Precision = "float32",
    keep_examples: int = 0,
    calibrate: bool = False,
) -> Evaluation:
    """Metrics of ``model`` (a `perception.model.Perception`) over this rank's share of the batches.

    Every rank calls this, with its own share of the pictures; a picture that two ranks see counts once. Ranks may
    have unlike numbers of batches. ``keep_examples``: how many of the worst and of the best pictures of each task are
    kept for the report. ``calibrate``: fit the scores of ``model`` to these pictures (`Task.calibrate`) before the
    numbers are computed: only with pictures that are held out, and not those of the final test.

    Raises DataError where there is no picture or none is labelled, PerceptionError naming picture and task where an
    output is NaN, Stopped on every rank after a signal to one of several.
    """
    device = next(model.parameters()).device
    metrics: dict[str, Metric] = {name: task.metric() for name, task in model.tasks.items()}
    gallery = {name: Gallery(keep_examples) for name in metrics}
    ids: set[str] = set()
    training, stopped = model.training, False
    model.eval()
    try:
        with torch.no_grad(), autocast(precision, device):
            for batch in batches:
                if stopped := distributed.stop_wanted():
                    break
                spaces = _spaces(batch)
                outputs = model.predict(batch.images.to(device), **({"spaces": spaces} if spaces else {}))
                arrays = {key: _to_numpy(value) for key, value in outputs.items()}
                for index in range(len(batch)):
                    ids.add(_measure(index, batch, arrays, model.specs, metrics, gallery))
    finally:
        model.train(training)
    if distributed.summed({"stopped": stopped})["stopped"]:
        raise Stopped
    return _conclude(model, metrics, gallery, ids, calibrate)


def _spaces(batch: Batch) -> dict[str, list[LabelSpace | None]]:
    """Task -> the label space of each picture, of the tasks where a source has its own."""
    maps = {name: [a if isinstance(a, DenseMap) else None for a in own] for name, own in batch.annotations.items()}
    spaces = {name: [None if a is None else a.classes for a in own] for name, own in maps.items()}
    return {name: own for name, own in spaces.items() if any(space is not None for space in own)}


def _to_numpy(values: torch.Tensor) -> NDArray:
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()


def _measure(
    index: int,
    batch: Batch,
    arrays: Mapping[str, NDArray],
    specs: Mapping[str, Any],
    metrics: Mapping[str, Metric],
    gallery: Mapping[str, Gallery],
) -> str:
    """Account for one picture of a batch. Returns its id, which begins with its source's name and so is unique."""
    id = batch.ids[index]
    frame = batch.frames[index]
    if frame is None:
        raise DataError(
            f"{id}: no frame. Evaluation needs targets in source pixels and how the picture was letterboxed."
        )
    outputs = {key: values[index] for key, values in arrays.items()}
    require_numbers(outputs, specs, id)
    prediction = restore(outputs, specs, frame, batch.cameras[index])
    labels = {name: batch.annotations[name][index] for name in metrics}
    target = {name: label for name, label in labels.items() if label is not None}
    for name, label in target.items():
        metrics[name].update(id, prediction[name], label)
        if gallery[name].size:
            quality = metrics[name].quality(prediction[name], label)
            if gallery[name].wants(quality):
                picture = batch.images[index].permute(1, 2, 0).cpu().numpy()
                image = geometry.unwarp_map(picture, frame, smooth=True)
                gallery[name].add(Example(id, quality, image, prediction, target))
    return id


class Gallery:
    """The ``size`` worst and best examples of a task; memory does not grow with the data set."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._best: list[tuple[float, str, Example]] = []
        self._worst: list[tuple[float, str, Example]] = []

    def wants(self, quality: float) -> bool:
        """Whether a picture of this quality might be kept. NaN (nothing to judge) never is."""
        if math.isnan(quality):
            return False
        return len(self._best) < self.size or quality >= self._best[0][0] or -quality >= self._worst[0][0]

    def add(self, example: Example) -> None:
        """Take an example in, unless it is neither among the worst nor the best. Equal ones are ordered by id."""
        for heap, key in ((self._best, example.quality), (self._worst, -example.quality)):
            if any(id == example.id for _, id, _ in heap):
                continue
            heapq.heappush(heap, (key, example.id, example))
            if len(heap) > self.size:
                heapq.heappop(heap)

    def examples(self) -> list[Example]:
        """All that are kept."""
        return list({example.id: example for _, _, example in (*self._best, *self._worst)}.values())

    def sorted(self) -> dict[str, list[Example]]:
        """{"worst": worst first, "best": best first}."""
        heaps = {"worst": self._worst, "best": self._best}
        return {
            name: [item[2] for item in sorted(heap, key=lambda item: item[:2])[::-1]] for name, heap in heaps.items()
        }


def _conclude(
    model: Any, metrics: dict[str, Metric], gallery: dict[str, Gallery], ids: set[str], calibrate: bool
) -> Evaluation:
    """Unite the ranks' states on rank 0, compute there, and tell everyone the numbers."""
    states = distributed.gather({name: metric.state() for name, metric in metrics.items()})
    kept = distributed.gather({name: shelf.examples() for name, shelf in gallery.items()})
    pictures = len(set().union(*distributed.gather(ids)))
    found = None
    if distributed.is_main():
        with suppress(Stopped), abandonable():
            found = _computed(model, metrics, states, calibrate)
        if distributed.world() > 1:
            for shelves in kept:
                for name, examples in shelves.items():
                    for example in examples:
                        gallery[name].add(example)
    found, pictures = distributed.from_main((found, pictures))
    if found is None:
        raise Stopped
    if calibrate:
        _share_buffers(model.tasks)
    numbers, tables = found
    if not pictures:
        raise DataError("No picture to evaluate. Give a validation source that holds some.")
    examples = {name: shelf.sorted() for name, shelf in gallery.items()} if distributed.is_main() else {}
    return Evaluation(numbers, tables, examples, score(model, numbers), pictures)


def _computed(
    model: Any, metrics: dict[str, Metric], states: list[Any], calibrate: bool
) -> tuple[dict[str, float], dict[str, dict[str, dict[str, float]]]]:
    """Numbers and tables of the united states of all ranks."""
    numbers: dict[str, float] = {}
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for name, metric in metrics.items():
        metric.merge([state[name] for state in states])
        if calibrate:
            model.tasks[name].calibrate(metric)
        numbers |= {f"{name}/{key}": float(value) for key, value in metric.compute().items()}
        tables[name] = metric.table()
    return numbers, tables


def _share_buffers(module: Any) -> None:
    """Rank 0's buffers, on every rank."""
    found = distributed.from_main({name: buffer.cpu() for name, buffer in module.named_buffers()})
    for name, buffer in module.named_buffers():
        buffer.copy_(found[name])


LEAST_SCORE, LEAST_ERROR = 0.01, 1e-6
"""What a metric counts for at least in the score, where more and where less is better: a task near zero costs dearly,
but its noise there (an AP of 0.001 or 0.003) does not decide between checkpoints."""


def score(model: Any, metrics: Mapping[str, float]) -> float:
    """One number, higher is better: the geometric mean of the metrics that the tasks name, of 1 / x where lower is
    better. NaN where no task has one; tasks without a number (nothing labelled) and auxiliary ones are left out.

    It orders evaluations as the mean of each task's score relative to its best, in logarithms, would, whatever that
    best is: so neither a task with large numbers nor the unit of a metric decides, nothing must be remembered, and the
    order of two evaluations does not change when a later one is better. It is no share of anything: compare it only
    between evaluations of the same tasks on the same pictures.
    """
    logs = [
        task.score_sign * math.log(max(metrics[key], LEAST_SCORE if task.score_sign > 0 else LEAST_ERROR))
        for name, task in model.tasks.items()
        if not task.auxiliary and not math.isnan(metrics.get(key := f"{name}/{task.score}", math.nan))
    ]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


def task_scores(model: Any, metrics: Mapping[str, float]) -> dict[str, float]:
    """Task -> its score, higher is better: the metric that its class names, or 1 / (1 + x) of one for which lower is
    better; NaN where it was not measured. Without auxiliary tasks."""
    values = {
        name: metrics.get(f"{name}/{task.score}", math.nan) for name, task in model.tasks.items() if not task.auxiliary
    }
    return {name: value if model.tasks[name].score_sign > 0 else 1 / (1 + value) for name, value in values.items()}
