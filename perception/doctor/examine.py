"""One picture and all its labels, examined in a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perception.data.dataset import Reader, Source
from perception.doctor import camera_checks, image_facts, samples
from perception.doctor.findings import Trouble
from perception.doctor.statistics import Statistics, measure
from perception.ops.image import letterbox_frame
from perception.types import Annotation, Camera, ConfigError, DataError, DenseMap, ImageLabel, Instances, TaskSpec


@dataclass(frozen=True)
class Ward:
    """What a worker knows: the opened sources, the recipe's classes and the network's input size."""

    sources: tuple[Source, ...]
    classes: dict[str, tuple[str, ...]]
    size: tuple[int, int]
    specs: dict[str, TaskSpec] = field(default_factory=dict)


class Job(NamedTuple):
    """Examine picture ``index`` of a source, the ``row``-th that is looked at.

    draw: also make a sample for the page. only: nothing else
    """

    source: int
    index: int
    row: int = 0
    draw: bool = False
    only: bool = False


@dataclass
class Report:
    """What was found. facts: None where the picture could not be read. camera: None where it has none.

    missing: tasks of the source's readers that say nothing of this picture are absent from ``tasks``
    """

    troubles: list[Trouble] = field(default_factory=list)
    facts: image_facts.Facts | None = None
    tasks: dict[str, Statistics] = field(default_factory=dict)
    camera: Camera | None = None
    tiles: list[bytes] = field(default_factory=list)
    words: str = ""


def examine(ward: Ward, job: Job) -> Report:
    """Everything that can be said of one picture. Never raises for what is in the files."""
    source, report = ward.sources[job.source], Report()
    path = source.pictures[job.index].path
    found = image_facts.read(path)
    if isinstance(found, Trouble):
        report.troubles.append(found)
        _annotations(ward, source, job.index, None, report)
        return report
    image, start, digest = found
    size = image.shape[:2]
    annotations = _annotations(ward, source, job.index, size, report)
    if job.draw:
        _draw(ward, image, annotations, path, report)
    if job.only:
        return report
    report.facts = image_facts.facts(path, image, start, digest)
    report.troubles += image_facts.oddities(path, image)
    frame = letterbox_frame(size, ward.size)
    for task, annotation in annotations.items():
        report.tasks[task] = statistics = measure(annotation, len(ward.classes[task]), frame)
        report.troubles += _label_oddities(statistics, path)
    try:
        report.camera = source.camera(job.index)
    except (DataError, ConfigError) as error:
        report.troubles.append(Trouble("wrong_camera", str(error)))
    if report.camera is not None and (odd := camera_checks.oddity(report.camera, size)):
        report.troubles.append(Trouble("odd_camera", f"{path}: {odd}"))
    if not annotations and not report.troubles:
        report.troubles.append(Trouble("no_label", f"{path} has no label of the recipe's tasks."))
    return report


def _draw(ward: Ward, image: Any, annotations: Mapping[str, Annotation], path: Path, report: Report) -> None:
    try:
        report.tiles, report.words = samples.tiles(image, annotations, ward.specs)
    except Exception as error:
        report.troubles.append(_unexpected("drawing", path, error))


def _unexpected(what: str, path: Path, error: Exception) -> Trouble:
    if isinstance(error, MemoryError):
        return Trouble("out_of_memory", f"{what} of {path} needs more memory than there is.")
    return Trouble("internal_error", f"{what} of {path}: {type(error).__name__}: {error}")


def _annotations(
    ward: Ward, source: Source, index: int, size: tuple[int, int] | None, report: Report
) -> dict[str, Annotation]:
    """The labels that every reader gives for a picture; what is wrong with them goes to the report."""
    united: dict[str, Annotation] = {}
    for reader, at in zip(source.readers, source.pictures[index].indices, strict=True):
        if at is None:
            continue
        path = source.pictures[index].path
        try:
            labels = reader.annotations(at, size)
        except (DataError, ConfigError) as error:
            report.troubles.append(Trouble(_kind(reader, at, size), str(error)))
            continue
        except OSError as error:
            report.troubles.append(Trouble("wrong_labels", f"The labels of {path} cannot be read: {error}"))
            continue
        except Exception as error:
            report.troubles.append(_unexpected(f"{type(reader).__name__}'s reading", path, error))
            continue
        for task, annotation in labels.items():
            fault = _fault(annotation, size, ward.classes.get(task))
            if fault:
                name = type(reader).__name__
                report.troubles.append(Trouble("internal_error", f"{name} gives {fault} for task '{task}' of {path}"))
            elif task in united:
                report.troubles.append(Trouble("two_labels", f"Two readers label task '{task}' of {path}."))
            else:
                united[task] = annotation
    return united


def _kind(reader: Reader, at: int, size: tuple[int, int] | None) -> str:
    """The kind of trouble where a reader raised: if it is content without a size, the size was it."""
    if size is None:
        return "wrong_labels"
    try:
        reader.annotations(at, None)
    except Exception:
        return "wrong_labels"
    return "size_mismatch"


def _fault(annotation: Annotation, size: tuple[int, int] | None, classes: tuple[str, ...] | None) -> str:
    """How an annotation breaks the promise of its type: a fault of the reader. "" where it does not."""
    if classes is None:
        return "labels that nobody asked for"
    match annotation:
        case Instances():
            boxes, labels = np.asarray(annotation.boxes), np.asarray(annotation.labels)
            if boxes.ndim != 2 or boxes.shape[1:] != (4,) or labels.shape != boxes.shape[:1]:
                return f"boxes {boxes.shape} with labels {labels.shape}"
            lowest = np.zeros(len(labels)) if annotation.ignore is None else -np.asarray(annotation.ignore, np.int64)
            if not np.isfinite(boxes).all() or not ((labels >= lowest) & (labels < len(classes))).all():
                return f"boxes that are no numbers or labels beyond {len(classes)} classes"
        case DenseMap():
            values, valid = np.asarray(annotation.values), np.asarray(annotation.valid)
            if values.shape[-2:] != valid.shape or (size is not None and valid.shape != size):
                return f"a map {values.shape} with validity {valid.shape}"
            known = values[..., valid] if classes else values[:0]
            ids = len(classes) if annotation.classes is None else len(annotation.classes.sets)
            if known.size and not 0 <= known.min() <= known.max() < ids:
                return f"ids from {known.min()} to {known.max()} for {ids} classes"
        case ImageLabel():
            if np.shape(annotation.values) != (len(classes),):
                return f"values {np.shape(annotation.values)} for {len(classes)} classes"
    return ""


def _label_oddities(statistics: Statistics, path: Path) -> list[Trouble]:
    kind = type(statistics).__name__
    found = []
    if getattr(statistics, "repeated", 0):
        found.append(Trouble("repeated_boxes", f"{path}: {getattr(statistics, 'repeated', 0)} boxes are copies."))
    if kind == "MapStatistics" and statistics.empty:
        found.append(Trouble("void_map", f"The label map of {path} is void everywhere."))
    if kind == "DepthStatistics" and statistics.empty:
        found.append(Trouble("empty_depth", f"The depth map of {path} has no valid pixel."))
    if getattr(statistics, "constant", 0):
        found.append(Trouble("constant_depth", f"The depth map of {path} is constant."))
    return found
