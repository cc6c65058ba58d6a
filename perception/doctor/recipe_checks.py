"""What the sources come to together: tasks and classes that nobody labels, and how often each source is seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import by_exclusion
from perception.data.joint_labels import void_space
from perception.data.sampler import shares
from perception.doctor import class_checks
from perception.doctor.accumulators import SourceState
from perception.doctor.data_plan import PARTS, Plan
from perception.doctor.findings import Finding, Severity, plain
from perception.doctor.statistics import DepthStatistics, MapStatistics

RARE = 10
"""A class in fewer training pictures than this is rare."""
_UNEVEN = 20


def findings(states: Sequence[SourceState], plan: Plan, quick: bool) -> list[Finding]:
    """All findings about the sources together. quick: only some pictures were looked at."""
    found = list(_parts(states, plan))
    for task in plan.tasks:
        known = [s for s in states if task in s.lost]
        unsure = {state.part for state in known} | plan.unknown | {s.part for s in states if s.planned.broken}
        found += _task(states, plan, task, unsure)
        found += _classes(states, plan, task, unsure, quick)
        found += class_checks.never_told_apart(states, plan, task)
    return [*found, *_weights(states, plan), *_space(plan)]


def _space(plan: Plan) -> Iterator[Finding]:
    balance = plan.mapping.get("balance")
    given = balance if isinstance(balance, dict) and balance.get("name") != "gradnorm" else {}
    labels = [source.config.labels for source in plan.sources if source.part == "train"]
    if "train" not in plan.unknown and (what := void_space(given.get("space"), labels, tuple(plan.tasks))):
        yield Finding("warning", "void_space", "recipe", what, "It sees conflict in the weights, at little more cost.")


def _parts(states: Sequence[SourceState], plan: Plan) -> Iterator[Finding]:
    for part in PARTS:
        if part in plan.unknown or any(source.part == part for source in plan.sources):
            continue
        if part == "train":
            yield Finding("error", "no_sources", "data", "data.train names no source.", "Give a list of sources.")
        else:
            what = "data.validation names no source: training will measure nothing and keep no best checkpoint."
            yield Finding("warning", "no_validation", "data", what, "Hold some pictures back.")
    for state in states:
        tasks = {task for label in state.planned.config.labels for task in label.tasks}
        if not tasks & set(plan.tasks):
            what = f"It labels {', '.join(sorted(tasks))}, which is no task of the recipe: it is not used."
            mend = "Remove the source, add the task, or give its reader task: ..."
            yield Finding("warning", "unused_source", state.where, what, mend)


def _task(states: Sequence[SourceState], plan: Plan, task: str, unsure: set[str]) -> Iterator[Finding]:
    for part in PARTS:
        those = [s for s in states if s.part == part]
        if not those or part in unsure or any(task in s.tasks for s in those):
            continue
        if part == "train":
            what = f"No training source labels '{task}': it would never be trained."
            yield Finding("error", "unlabelled_task", "data", what, "Add a source with its labels, or remove the task.")
        else:
            what = f"No validation source labels '{task}': it will not be measured."
            yield Finding("warning", "unmeasured_task", "data", what, "Add a source, or live without its numbers.")


def _classes(states: Sequence[SourceState], plan: Plan, task: str, unsure: set[str], quick: bool) -> Iterator[Finding]:
    names = plan.classes[task]
    if not names or "train" in unsure:
        return
    train, held_out = (_amounts(states, task, part, len(names)) for part in PARTS)
    if train is None:
        return
    labelled = _labelled(states, task, len(names))
    maps = [found for state in states if state.part == "train" for found in class_checks.class_maps(state, task)]
    unlabelled = ~labelled & ~by_exclusion([found for found in maps if found.space is not None], len(names))
    absent = (train == 0) & labelled
    nowhere = absent if held_out is None else absent & (held_out == 0)
    only = absent & ~nowhere
    pictures = _amounts(states, task, "train", len(names), "in_pictures")
    total = sum(s.tasks[task].pictures for s in states if s.part == "train" and task in s.tasks)
    rare = (train > 0) & (pictures < RARE) if pictures is not None and total > 10 * RARE else np.zeros(len(names), bool)
    measured = np.ones(len(names), bool) if held_out is None or "validation" in unsure else held_out > 0
    unmeasured = (train > 0) & ~measured
    doubt: Severity = "note" if quick else "warning"
    pixels = any(isinstance(state.tasks.get(task), MapStatistics) for state in states)
    certain: Severity = "error" if pixels and not quick and "validation" not in unsure else doubt
    rows: tuple[tuple[NDArray[np.bool_], Severity, str, str, str], ...] = (
        (unlabelled, "error", "unlabelled_classes", "labelled by no training source", "Add a source, or remove them."),
        (only, doubt, "untrained_classes", "in validation only, never in training", "Move pictures, or remove them."),
        (nowhere, certain, "absent_classes", "nowhere to be found", "Look at rename and ignore, or remove them."),
        (rare, doubt, "rare_classes", f"in fewer than {RARE} training pictures", "Add some, or join classes."),
        (unmeasured, doubt, "unmeasured_classes", "in training but not in validation", "They will not be measured."),
    )  # fmt: skip
    for which, severity, kind, what, mend in rows:
        if which.any():
            listed = [plain(names[k], 60) for k in np.flatnonzero(which)]
            shown = ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
            verb = "are" if len(listed) > 1 else "is"
            sentence = f"{len(listed)} of {len(names)} classes of '{task}' {verb} {what}: {shown}."
            yield Finding(severity, kind, "data", sentence, mend, len(listed))


def _amounts(
    states: Sequence[SourceState], task: str, part: str, count: int, name: str = "amounts"
) -> NDArray[np.int64] | None:
    """How much there is of each class; None where no picture was looked at."""
    rows = [
        getattr(s.tasks[task], name)
        for s in states
        if s.part == part and task in s.tasks and not isinstance(s.tasks[task], DepthStatistics)
    ]
    return np.sum(rows, axis=0).reshape(count) if rows else None


def _labelled(states: Sequence[SourceState], task: str, count: int) -> NDArray[np.bool_]:
    """The classes that some training source labels; all where one does not say."""
    union = np.zeros(count, bool)
    for state in states:
        if state.part == "train" and task in state.tasks:
            stated = getattr(state.tasks[task], "labelled", None)
            said = state.labelled.get(task) if stated is None else stated
            union |= np.ones(count, bool) if said is None else said
    return union


def _weights(states: Sequence[SourceState], plan: Plan) -> Iterator[Finding]:
    """Sources of which each picture comes up much more often than of others."""
    train = [s for s in states if s.part == "train" and s.source is not None and s.pictures]
    if len(train) < 2:
        return
    often = turns(train, plan)
    most, least = int(np.argmax(often)), int(np.argmin(often))
    if often[most] > _UNEVEN * often[least]:
        what = f"Each picture of {train[most].where} comes up {often[most] / often[least]:.0f} times as often as one "
        what += f"of {train[least].where} ({train[most].pictures:,} and {train[least].pictures:,} pictures)."
        yield Finding("warning", "uneven_sources", "data", what, "Is that meant? It is set by weight and data.mix.")


def turns(train: Sequence[SourceState], plan: Plan) -> list[float]:
    """How often a picture of each training source comes up, relative to one epoch over all."""
    sizes = [s.pictures for s in train]
    coverage = [s.source.coverage for s in train if s.source is not None]
    parts = shares(sizes, [s.planned.config.weight for s in train], coverage, plan.data.mix)
    return [part * sum(sizes) / size for part, size in zip(parts, sizes, strict=True)]
