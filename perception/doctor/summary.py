"""A source in a few lines and tables, the same for the terminal, the page and the JSON file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from perception.doctor.accumulators import UNREADABLE, SourceState
from perception.doctor.data_plan import Plan
from perception.doctor.findings import number, percent, plain
from perception.doctor.statistics import (
    SMALL,
    BoxStatistics,
    DepthStatistics,
    Histogram,
    LabelStatistics,
    MapStatistics,
    Statistics,
)


@dataclass(frozen=True, slots=True)
class Bars:
    """Counts with names. unit: of the counts ("boxes"); pictures: in how many each occurs, None where that is it."""

    title: str
    unit: str
    names: list[str]
    counts: list[int]
    pictures: list[int] | None = None


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """A task of a source. bars: per class; spread: of a quantity (box sides in pixels, distances in metres)."""

    task: str
    facts: dict[str, str]
    bars: Bars | None = None
    spread: Bars | None = None


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """facts: label -> text, in the order in which they are shown."""

    where: str
    facts: dict[str, str]
    tasks: list[TaskSummary] = field(default_factory=list)


def summarise(state: SourceState, plan: Plan) -> SourceSummary:
    """What there is to know of a source."""
    facts = {"labels": "; ".join(plain(_config(label), 120) for label in state.planned.config.labels)}
    if state.source is None:
        return SourceSummary(state.where, {**facts, "pictures": "not opened"})
    missing = state.troubles.count("missing_picture")
    missing += sum(count for kind, count in state.source.problems.items() if "missing" in kind)
    unreadable = state.troubles.count(*UNREADABLE[1:])
    looked = "" if state.looked == state.pictures else f", {state.looked:,} of them looked at"
    facts["pictures"] = f"{state.pictures:,} found{looked}; {missing:,} missing, {unreadable:,} unreadable, "
    facts["pictures"] += f"{state.duplicates:,} duplicate"
    wrong = {
        "of another size than their labels": state.troubles.count("size_mismatch"),
        "with wrong labels": state.troubles.count("wrong_labels", "two_labels"),
        "without a label": state.troubles.count("no_label"),
    }
    facts["labels that fail"] = ", ".join(f"{count:,} {what}" for what, count in wrong.items() if count) or "none"
    facts["sizes"] = _sizes(state)
    if state.cameras:
        ends = sorted(state.focals)
        shown = f"fx {ends[0][0]:g}" if len(ends) == 1 else f"fx {ends[0][0]:g} to {ends[-1][0]:g}"
        facts["cameras"] = f"{state.cameras:,} pictures, {shown}"
    if problems := state.source.problems:
        facts["skipped or repaired"] = ", ".join(f"{count:,} {plain(kind, 80)}" for kind, count in problems.items())
    return SourceSummary(state.where, facts, [_task(task, s, plan) for task, s in state.tasks.items()])


def _config(label: object) -> str:
    keys = ("annotations", "masks", "depths", "csv", "root", "images", "labels")
    places = [place for key in keys if isinstance(place := getattr(label, key, None), str)]
    return f"{getattr(label, 'format', '?')} {places[0] if places else ''}"


def _sizes(state: SourceState) -> str:
    most = state.sizes.most_common(3)
    shown = ", ".join(f"{width} x {height} ({count:,})" for (height, width), count in most)
    return f"{shown} and {len(state.sizes) - 3:,} others" if len(state.sizes) > 3 else shown or "unknown"


def _task(task: str, found: Statistics, plan: Plan) -> TaskSummary:
    names = [plain(name, 40) for name in plan.classes[task]]
    if isinstance(found, DepthStatistics):
        return TaskSummary(task, _depth_facts(found), spread=_spread(found.metres, "distance", "pixels", "m"))
    bars = Bars("classes", _unit(found), names, found.amounts.tolist(), found.in_pictures.tolist())
    if isinstance(found, BoxStatistics):
        spread = _spread(found.sides, "side at the network's input", "boxes", "px")
        return TaskSummary(task, _box_facts(found), bars, spread)
    if isinstance(found, MapStatistics):
        return TaskSummary(task, _map_facts(found), bars)
    facts = {"labelled": f"{found.pictures:,} pictures, {found.empty:,} of them with no class"}
    if found.several:
        facts["several classes"] = f"{found.several:,} pictures"
    return TaskSummary(task, facts, Bars("classes", "pictures", names, found.positive.tolist()))


def _unit(found: BoxStatistics | MapStatistics | LabelStatistics) -> str:
    return {BoxStatistics: "boxes", MapStatistics: "pixels"}.get(type(found), "pictures")


def _box_facts(found: BoxStatistics) -> dict[str, str]:
    count = int(found.boxes.sum())
    facts = {
        "labelled": f"{found.pictures:,} pictures, {found.empty:,} of them empty",
        "boxes": f"{count:,}, and {found.ignored:,} ignore regions",
    }
    if count:
        small = percent(int(found.small.sum()), count)
        facts["side at the input"] = f"{_quantiles(found.sides, 'px')}; {small} under {SMALL:g} px"
    return facts


def _map_facts(found: MapStatistics) -> dict[str, str]:
    void = percent(found.void, found.void + found.known)
    facts = {
        "labelled": f"{found.pictures:,} pictures, {found.empty:,} of them void",
        "void": f"{void} of the pixels",
    }
    if found.pixels.sum() > found.known:
        facts["super-classes"] = "their pixels count for each class in them"
    return facts


def _depth_facts(found: DepthStatistics) -> dict[str, str]:
    facts = {
        "labelled": f"{found.pictures:,} pictures, {found.empty:,} of them without a distance",
        "holes": f"{percent(found.holes, found.pixels)} of the pixels",
    }
    if found.most:
        facts["distance"] = f"{number(found.least)} to {number(found.most)} m; {_quantiles(found.metres, 'm')}"
    return facts


def _quantiles(histogram: Histogram, unit: str) -> str:
    low, middle, high = (histogram.quantile(share) for share in (0.05, 0.5, 0.95))
    return f"5 % under {number(low)} {unit}, median {number(middle)} {unit}, 5 % over {number(high)} {unit}"


def _spread(histogram: Histogram, title: str, unit: str, of: str) -> Bars | None:
    """The histogram in steps of a factor of two."""
    octaves = np.add.reduceat(histogram.counts, np.arange(0, len(histogram.counts), 24))
    known = np.flatnonzero(octaves)
    if not len(known):
        return None
    steps = range(int(known[0]), int(known[-1]) + 1)
    names = [f"{histogram.low * 2.0**k:.3g} to {histogram.low * 2.0 ** (k + 1):.3g} {of}" for k in steps]
    return Bars(title, unit, names, [int(octaves[k]) for k in steps])
