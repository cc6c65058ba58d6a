"""Examination of one image and its labels, in a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.data.dataset import DatasetReader, DataSource
from perception.doctor import camera_checks, image_properties, previews
from perception.doctor.findings import Issue
from perception.doctor.statistics import DepthStatistics, SegmentationStatistics, TaskStatistics, compute_statistics
from perception.ops.image import compute_letterbox
from perception.types import Annotation, Camera, ConfigError, DataError, DenseMap, ImageLabel, Instances, TaskSpec


@dataclass(frozen=True)
class WorkerContext:
    """Context of a worker.

    Attributes:
        sources: the opened sources.
        classes: task -> class list; empty for a quantity.
        input_size: (height, width) of the network's input.
        specs: task -> spec for drawing.
    """

    sources: tuple[DataSource, ...]
    classes: dict[str, tuple[str, ...]]
    input_size: tuple[int, int]
    specs: dict[str, TaskSpec] = field(default_factory=dict)


class ImageJob(NamedTuple):
    """The job to examine one image.

    Attributes:
        source_index: position of the source.
        image_index: index of the image in the source.
        row: position among the selected images of the source.
        draw: also draw a preview for the report.
        draw_only: draw the preview and do nothing else.
    """

    source_index: int
    image_index: int
    row: int = 0
    draw: bool = False
    draw_only: bool = False


@dataclass
class ImageReport:
    """The result for one image.

    Attributes:
        issues: what is wrong with the image or its labels.
        properties: properties of the file; None if the image could not be read.
        statistics: task -> statistics of its labels. Tasks without labels for this image are absent.
        camera: its intrinsics; None if it has none.
        jpegs: preview tiles.
        caption: labels of the whole image, in words.
    """

    issues: list[Issue] = field(default_factory=list)
    properties: image_properties.ImageProperties | None = None
    statistics: dict[str, TaskStatistics] = field(default_factory=dict)
    camera: Camera | None = None
    jpegs: list[bytes] = field(default_factory=list)
    caption: str = ""


def examine_image(context: WorkerContext, job: ImageJob) -> ImageReport:
    """Examine one image and its labels. Never raises because of the contents of files."""
    source, report = context.sources[job.source_index], ImageReport()
    path = source.records[job.image_index].path
    found = image_properties.read_image_file(path)
    if isinstance(found, Issue):
        report.issues.append(found)
        _read_annotations(context, source, job.image_index, None, report)
        return report
    image, start, digest = found
    size = image.shape[:2]
    annotations = _read_annotations(context, source, job.image_index, size, report)
    if job.draw:
        _draw_preview(context, image, annotations, path, report)
    if job.draw_only:
        return report
    report.properties = image_properties.collect_properties(path, image, start, digest)
    report.issues += image_properties.find_image_issues(path, image)
    frame = compute_letterbox(size, context.input_size)
    for task, annotation in annotations.items():
        report.statistics[task] = statistics = compute_statistics(annotation, len(context.classes[task]), frame)
        report.issues += _find_label_issues(statistics, path)
    try:
        report.camera = source.camera(job.image_index)
    except (DataError, ConfigError) as error:
        report.issues.append(Issue("invalid_camera", str(error)))
    if report.camera is not None and (odd := camera_checks.find_camera_issue(report.camera, size)):
        report.issues.append(Issue("implausible_camera", f"{path}: {odd}"))
    if not annotations and not report.issues:
        report.issues.append(Issue("unlabeled_image", f"{path} has no label of the recipe's tasks."))
    return report


def _draw_preview(
    context: WorkerContext,
    image: NDArray[np.uint8],
    annotations: Mapping[str, Annotation],
    path: Path,
    report: ImageReport,
) -> None:
    try:
        report.jpegs, report.caption = previews.draw_tiles(image, annotations, context.specs)
    except Exception as error:
        report.issues.append(_make_internal_issue("drawing", path, error))


def _make_internal_issue(action: str, path: Path, error: Exception) -> Issue:
    if isinstance(error, MemoryError):
        return Issue("out_of_memory", f"{action} of {path} needs more memory than available.")
    return Issue("internal_error", f"{action} of {path}: {type(error).__name__}: {error}")


def _read_annotations(
    context: WorkerContext, source: DataSource, index: int, size: tuple[int, int] | None, report: ImageReport
) -> dict[str, Annotation]:
    """Read an image's labels from every reader, and add their issues to the report."""
    united: dict[str, Annotation] = {}
    for reader, at in zip(source.readers, source.records[index].reader_indices, strict=True):
        if at is None:
            continue
        path = source.records[index].path
        try:
            labels = reader.read_annotations(at, size)
        except (DataError, ConfigError) as error:
            report.issues.append(Issue(_classify_reader_error(reader, at, size), str(error)))
            continue
        except OSError as error:
            report.issues.append(Issue("invalid_labels", f"The labels of {path} cannot be read: {error}"))
            continue
        except Exception as error:
            report.issues.append(_make_internal_issue(f"{type(reader).__name__}'s reading", path, error))
            continue
        for task, annotation in labels.items():
            fault = _find_annotation_fault(annotation, size, context.classes.get(task))
            if fault:
                name = type(reader).__name__
                report.issues.append(Issue("internal_error", f"{name} gives {fault} for task '{task}' of {path}"))
            elif task in united:
                report.issues.append(Issue("conflicting_labels", f"Two readers label task '{task}' of {path}."))
            else:
                united[task] = annotation
    return united


def _classify_reader_error(reader: DatasetReader, index: int, size: tuple[int, int] | None) -> str:
    """The issue code of a reader's error. If reading without a size works, the size was the cause."""
    if size is None:
        return "invalid_labels"
    try:
        reader.read_annotations(index, None)
    except Exception:
        return "invalid_labels"
    return "size_mismatch"


def _find_annotation_fault(
    annotation: Annotation, size: tuple[int, int] | None, classes: tuple[str, ...] | None
) -> str:
    """How an annotation violates its type, which is a bug in the reader; "" if it does not."""
    if classes is None:
        return "labels that were not requested"
    match annotation:
        case Instances():
            boxes, labels = np.asarray(annotation.boxes), np.asarray(annotation.labels)
            if boxes.ndim != 2 or boxes.shape[1:] != (4,) or labels.shape != boxes.shape[:1]:
                return f"boxes {boxes.shape} with labels {labels.shape}"
            lowest = np.zeros(len(labels)) if annotation.ignore is None else -np.asarray(annotation.ignore, np.int64)
            if not np.isfinite(boxes).all() or not ((labels >= lowest) & (labels < len(classes))).all():
                return f"boxes that are not finite or labels outside {len(classes)} classes"
        case DenseMap():
            values, valid = np.asarray(annotation.values), np.asarray(annotation.valid)
            if values.shape[-2:] != valid.shape or (size is not None and valid.shape != size):
                return f"a map {values.shape} with validity {valid.shape}"
            known = values[..., valid] if classes else values[:0]
            ids = len(classes) if annotation.label_space is None else len(annotation.label_space.class_sets)
            if known.size and not 0 <= known.min() <= known.max() < ids:
                return f"ids from {known.min()} to {known.max()} for {ids} classes"
        case ImageLabel():
            if np.shape(annotation.values) != (len(classes),):
                return f"values {np.shape(annotation.values)} for {len(classes)} classes"
    return ""


def _find_label_issues(statistics: TaskStatistics, path: Path) -> list[Issue]:
    found = []
    if getattr(statistics, "num_repeated", 0):
        found.append(Issue("duplicate_boxes", f"{path}: {getattr(statistics, 'num_repeated', 0)} boxes are copies."))
    if isinstance(statistics, SegmentationStatistics) and statistics.num_empty:
        found.append(Issue("empty_mask", f"The segmentation mask of {path} has only ignored pixels."))
    if isinstance(statistics, DepthStatistics) and statistics.num_empty:
        found.append(Issue("empty_depth", f"The depth map of {path} has no valid pixels."))
    if getattr(statistics, "num_constant", 0):
        found.append(Issue("constant_depth", f"The depth map of {path} is constant."))
    return found
