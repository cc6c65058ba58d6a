"""Findings about the classes of segmentation masks: partial lists, super-classes, inseparable classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import ClassMap
from perception.doctor.accumulators import SourceState
from perception.doctor.data_plan import DataPlan
from perception.doctor.findings import Finding, sanitize_text
from perception.doctor.statistics import SegmentationStatistics

_SHOWN = 20


def check_labeled_classes(state: SourceState, plan: DataPlan, task: str) -> Iterator[Finding]:
    """Report which classes the segmentation masks of one source label.

    Yields a warning if some classes are missing and the recipe does not declare this.
    """
    names = plan.classes[task]
    for found in collect_class_maps(state, task):
        if found.labeled_classes is None and found.label_space is None:
            continue
        labelled = np.ones(len(names), bool) if found.labeled_classes is None else found.labeled_classes
        what = (
            f"Its segmentation masks label {labelled.sum()} of {len(names)} classes of "
            f"'{task}': {_list_classes(names, labelled)}."
        )
        if found.is_explicit:
            yield Finding("note", "labeled_classes", state.where, what + _describe_superclasses(found, names))
            continue
        what += f" Every labeled pixel counts as a negative for the others: {_list_classes(names, ~labelled)}."
        mend = "If one of its classes covers several of the recipe, give superclasses: {name: [...]}. If it leaves "
        mend += (
            "objects of some classes unlabeled, list the labeled ones: labels_only: [...]. If all this is intended, "
        )
        mend += "list all its classes there."
        yield Finding("warning", "partial_classes", state.where, what, mend, int((~labelled).sum()))


def find_inseparable_classes(states: Sequence[SourceState], plan: DataPlan, task: str) -> Iterator[Finding]:
    """Find classes that share the same super-classes in all training sources: no label separates them."""
    maps = [found for state in states if state.split == "train" for found in collect_class_maps(state, task)]
    names = plan.classes[task]
    if all(found.label_space is None for found in maps):
        return
    rows = np.array([row for found in maps for row in found.class_sets(len(names))], bool)
    groups: dict[bytes, list[str]] = {}
    for k, name in enumerate(names):
        if rows[:, k].any():
            groups.setdefault(rows[:, k].tobytes(), []).append(name)
    for group in groups.values():
        if len(group) > 1:
            shown = ", ".join(sanitize_text(name, 60) for name in group[:_SHOWN])
            what = f"No training source separates these classes of '{task}': {shown}."
            mend = "Add a source that separates them, or merge them into one class."
            yield Finding("warning", "inseparable_classes", "data", what, mend, len(group))


def collect_class_maps(state: SourceState, task: str) -> list[ClassMap]:
    """Return the distinct class maps of the readers that provide segmentation masks of the task."""
    if state.source is None or not isinstance(state.statistics.get(task), SegmentationStatistics):
        return []
    maps = [reader.class_maps[task] for reader in state.source.readers if task in reader.class_maps]
    return list(
        {(m.label_space, None if m.labeled_classes is None else m.labeled_classes.tobytes()): m for m in maps}.values()
    )


def _list_classes(names: Sequence[str], mask: NDArray[np.bool_]) -> str:
    chosen = [sanitize_text(name, 60) for name, known in zip(names, mask.tolist(), strict=True) if known]
    return ", ".join(chosen[:_SHOWN]) + (f" and {len(chosen) - _SHOWN} more" if len(chosen) > _SHOWN else "")


def _describe_superclasses(class_map: ClassMap, names: Sequence[str]) -> str:
    """The super-classes, in words."""
    if class_map.label_space is None:
        return ""
    sets = zip(class_map.label_space.names, class_map.label_space.class_sets, strict=True)
    several = [
        f"{sanitize_text(name, 60)} ({', '.join(sanitize_text(names[k], 60) for k in each)})"
        for name, each in sets
        if name and each[1:]
    ]
    words = f" Super-classes: {', '.join(several[:_SHOWN])}." if several else ""
    return words + (" Other labels only exclude classes." if "" in class_map.label_space.names else "")
