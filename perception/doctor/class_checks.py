"""What the sources' label maps say of which classes: partial lists, super-classes, classes that nobody tells apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import ClassMap
from perception.doctor.accumulators import SourceState
from perception.doctor.data_plan import Plan
from perception.doctor.findings import Finding, plain
from perception.doctor.statistics import MapStatistics

_SHOWN = 20


def findings(state: SourceState, plan: Plan, task: str) -> Iterator[Finding]:
    """Which classes the label maps of one source tell; a warning where that is not all and the recipe says nothing."""
    names = plan.classes[task]
    for found in class_maps(state, task):
        if found.classes is None and found.space is None:
            continue
        labelled = np.ones(len(names), bool) if found.classes is None else found.classes
        what = f"Its label maps tell {labelled.sum()} of {len(names)} classes of '{task}': {_listed(names, labelled)}."
        if found.stated:
            yield Finding("note", "labelled_classes", state.where, what + _of_sets(found, names))
            continue
        what += f" Every labelled pixel teaches that it is none of the others: {_listed(names, ~labelled)}."
        mend = "Is one of its classes several of the recipe's? coarse: {name: [...]}. Does it leave some unlabelled? "
        mend += "labels_only: [...]. Is it right so? labels_only with all classes that it tells."
        yield Finding("warning", "partial_classes", state.where, what, mend, int((~labelled).sum()))


def never_told_apart(states: Sequence[SourceState], plan: Plan, task: str) -> Iterator[Finding]:
    """Classes that are in the same super-classes of all training sources: nothing tells one from the other."""
    maps = [found for state in states if state.part == "train" for found in class_maps(state, task)]
    names = plan.classes[task]
    if all(found.space is None for found in maps):
        return
    rows = np.array([row for found in maps for row in found.sets(len(names))], bool)
    groups: dict[bytes, list[str]] = {}
    for k, name in enumerate(names):
        if rows[:, k].any():
            groups.setdefault(rows[:, k].tobytes(), []).append(name)
    for group in groups.values():
        if len(group) > 1:
            shown = ", ".join(plain(name, 60) for name in group[:_SHOWN])
            what = f"No training source tells these classes of '{task}' apart: {shown}."
            mend = "Add a source that does, or make them one class."
            yield Finding("warning", "inseparable_classes", "data", what, mend, len(group))


def class_maps(state: SourceState, task: str) -> list[ClassMap]:
    """Of the readers that give label maps of the task, each once."""
    if state.source is None or not isinstance(state.tasks.get(task), MapStatistics):
        return []
    maps = [reader.class_maps[task] for reader in state.source.readers if task in reader.class_maps]
    return list({(m.space, None if m.classes is None else m.classes.tobytes()): m for m in maps}.values())


def _listed(names: Sequence[str], which: NDArray[np.bool_]) -> str:
    chosen = [plain(name, 60) for name, known in zip(names, which.tolist(), strict=True) if known]
    return ", ".join(chosen[:_SHOWN]) + (f" and {len(chosen) - _SHOWN} more" if len(chosen) > _SHOWN else "")


def _of_sets(found: ClassMap, names: Sequence[str]) -> str:
    """The super-classes, in words."""
    if found.space is None:
        return ""
    sets = zip(found.space.names, found.space.sets, strict=True)
    several = [
        f"{plain(name, 60)} ({', '.join(plain(names[k], 60) for k in each)})"
        for name, each in sets
        if name and each[1:]
    ]
    words = f" Super-classes: {', '.join(several[:_SHOWN])}." if several else ""
    return words + (" Other labels say only what a pixel is not." if "" in found.space.names else "")
