"""Summary of a source in a few lines and tables, for the terminal, the report and the JSON file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from perception.doctor.accumulators import UNREADABLE_CODES, SourceState
from perception.doctor.data_plan import DataPlan
from perception.doctor.findings import format_percent, format_quantity, sanitize_text
from perception.doctor.statistics import (
    SMALL_BOX_SIDE,
    BoxStatistics,
    ClassificationStatistics,
    DepthStatistics,
    LogHistogram,
    SegmentationStatistics,
    TaskStatistics,
)


@dataclass(frozen=True, slots=True)
class BarChart:
    """Named counts.

    Attributes:
        title: title of the chart.
        unit: unit of the counts, for example "boxes".
        names: names of the bars.
        counts: one count per bar.
        images: number of images per bar; None if the counts are images already, or not known.
    """

    title: str
    unit: str
    names: list[str]
    counts: list[int]
    images: list[int] | None = None


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """Summary of one task of a source.

    Attributes:
        task: name of the task.
        properties: label -> text, in display order.
        class_chart: counts per class.
        distribution_chart: distribution of a quantity: box sides in pixels, or depths in metres.
    """

    task: str
    properties: dict[str, str]
    class_chart: BarChart | None = None
    distribution_chart: BarChart | None = None


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """Summary of one source.

    Attributes:
        where: name of the source in findings.
        properties: label -> text, in display order.
        tasks: one summary per labeled task.
    """

    where: str
    properties: dict[str, str]
    tasks: list[TaskSummary] = field(default_factory=list)


def summarize_source(state: SourceState, plan: DataPlan) -> SourceSummary:
    """Summarize a source."""
    facts = {"labels": "; ".join(sanitize_text(_describe_reader(label), 120) for label in state.planned.config.labels)}
    if state.source is None:
        return SourceSummary(state.where, {**facts, "images": "not opened"})
    missing = state.issues.count("missing_image")
    missing += sum(count for kind, count in state.source.problems.items() if "missing" in kind)
    unreadable = state.issues.count(*UNREADABLE_CODES[1:])
    looked = "" if state.num_examined == state.num_images else f", {state.num_examined:,} of them examined"
    facts["images"] = f"{state.num_images:,} found{looked}; {missing:,} missing, {unreadable:,} unreadable, "
    facts["images"] += f"{state.num_duplicates:,} duplicate"
    wrong = {
        "with a different size than their labels": state.issues.count("size_mismatch"),
        "with invalid labels": state.issues.count("invalid_labels", "conflicting_labels"),
        "without labels": state.issues.count("unlabeled_image"),
    }
    facts["label errors"] = ", ".join(f"{count:,} {what}" for what, count in wrong.items() if count) or "none"
    facts["sizes"] = _describe_sizes(state)
    if state.num_cameras:
        ends = sorted(state.focal_lengths)
        shown = f"fx {ends[0][0]:g}" if len(ends) == 1 else f"fx {ends[0][0]:g} to {ends[-1][0]:g}"
        facts["cameras"] = f"{state.num_cameras:,} images, {shown}"
    if problems := state.source.problems:
        facts["skipped or repaired"] = ", ".join(
            f"{count:,} {sanitize_text(kind, 80)}" for kind, count in problems.items()
        )
    return SourceSummary(state.where, facts, [_summarize_task(task, s, plan) for task, s in state.statistics.items()])


def _describe_reader(reader_config: object) -> str:
    keys = ("annotations", "masks", "depths", "csv", "root", "images", "labels")
    places = [place for key in keys if isinstance(place := getattr(reader_config, key, None), str)]
    return f"{getattr(reader_config, 'format', '?')} {places[0] if places else ''}"


def _describe_sizes(state: SourceState) -> str:
    most = state.image_sizes.most_common(3)
    shown = ", ".join(f"{width} x {height} ({count:,})" for (height, width), count in most)
    return f"{shown} and {len(state.image_sizes) - 3:,} others" if len(state.image_sizes) > 3 else shown or "unknown"


def _summarize_task(task: str, statistics: TaskStatistics, plan: DataPlan) -> TaskSummary:
    names = [sanitize_text(name, 40) for name in plan.classes[task]]
    if isinstance(statistics, DepthStatistics):
        return TaskSummary(
            task,
            _describe_depths(statistics),
            distribution_chart=_chart_histogram(statistics.depths, "depth", "pixels", "m"),
        )
    bars = BarChart(
        "classes",
        _get_unit(statistics),
        names,
        statistics.counts_per_class.tolist(),
        statistics.images_per_class.tolist(),
    )
    if isinstance(statistics, BoxStatistics):
        spread = _chart_histogram(statistics.sides, "side at the network's input", "boxes", "px")
        return TaskSummary(task, _describe_boxes(statistics), bars, spread)
    if isinstance(statistics, SegmentationStatistics):
        return TaskSummary(task, _describe_masks(statistics), bars)
    facts = {"labeled": f"{statistics.num_images:,} images, {statistics.num_empty:,} of them without a class"}
    if statistics.num_multi_label:
        facts["several classes"] = f"{statistics.num_multi_label:,} images"
    return TaskSummary(task, facts, BarChart("classes", "images", names, statistics.positives_per_class.tolist()))


def _get_unit(statistics: BoxStatistics | SegmentationStatistics | ClassificationStatistics) -> str:
    return {BoxStatistics: "boxes", SegmentationStatistics: "pixels"}.get(type(statistics), "images")


def _describe_boxes(statistics: BoxStatistics) -> dict[str, str]:
    count = int(statistics.boxes_per_class.sum())
    facts = {
        "labeled": f"{statistics.num_images:,} images, {statistics.num_empty:,} of them empty",
        "boxes": f"{count:,}, and {statistics.num_ignored:,} ignore regions",
    }
    if count:
        small = format_percent(int(statistics.small_per_class.sum()), count)
        facts["side at the input"] = f"{_format_quantiles(statistics.sides, 'px')}; {small} below {SMALL_BOX_SIDE:g} px"
    return facts


def _describe_masks(statistics: SegmentationStatistics) -> dict[str, str]:
    void = format_percent(statistics.num_ignored_pixels, statistics.num_ignored_pixels + statistics.num_labeled_pixels)
    facts = {
        "labeled": f"{statistics.num_images:,} images, {statistics.num_empty:,} of them with only ignored pixels",
        "ignored": f"{void} of the pixels",
    }
    if statistics.pixels_per_class.sum() > statistics.num_labeled_pixels:
        facts["super-classes"] = "their pixels count for each of their classes"
    return facts


def _describe_depths(statistics: DepthStatistics) -> dict[str, str]:
    facts = {
        "labeled": f"{statistics.num_images:,} images, {statistics.num_empty:,} of them without valid pixels",
        "invalid": f"{format_percent(statistics.num_invalid_pixels, statistics.num_pixels)} of the pixels",
    }
    if statistics.max_depth:
        facts["depth"] = (
            f"{format_quantity(statistics.min_depth)} to {format_quantity(statistics.max_depth)} "
            f"m; {_format_quantiles(statistics.depths, 'm')}"
        )
    return facts


def _format_quantiles(histogram: LogHistogram, unit: str) -> str:
    low, middle, high = (histogram.quantile(share) for share in (0.05, 0.5, 0.95))
    return (
        f"5 % below {format_quantity(low)} {unit}, median {format_quantity(middle)} "
        f"{unit}, 5 % above {format_quantity(high)} {unit}"
    )


def _chart_histogram(histogram: LogHistogram, title: str, count_unit: str, value_unit: str) -> BarChart | None:
    """The histogram with one bar per factor of two."""
    octaves = np.add.reduceat(histogram.counts, np.arange(0, len(histogram.counts), 24))
    known = np.flatnonzero(octaves)
    if not len(known):
        return None
    steps = range(int(known[0]), int(known[-1]) + 1)
    names = [f"{histogram.low * 2.0**k:.3g} to {histogram.low * 2.0 ** (k + 1):.3g} {value_unit}" for k in steps]
    return BarChart(title, count_unit, names, [int(octaves[k]) for k in steps])
