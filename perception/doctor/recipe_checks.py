"""Findings about all sources together: unlabeled tasks and classes, and sampling rates of the sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import find_classes_by_exclusion
from perception.data.joint_labels import explain_incomparable_gradients
from perception.data.sampler import compute_sampling_shares
from perception.doctor import class_checks
from perception.doctor.accumulators import SourceState
from perception.doctor.data_plan import SPLITS, DataPlan
from perception.doctor.findings import Finding, Severity, sanitize_text
from perception.doctor.statistics import DepthStatistics, SegmentationStatistics

RARE_CLASS_IMAGES = 10
"""A class that occurs in fewer training images is rare."""
_MAX_REPEAT_RATIO = 20


def check_recipe(states: Sequence[SourceState], plan: DataPlan, is_sampled: bool) -> list[Finding]:
    """Return all findings about the sources together. ``is_sampled``: only some images were examined."""
    found = list(_check_splits(states, plan))
    for task in plan.tasks:
        known = [s for s in states if task in s.unreadable_tasks]
        unsure = (
            {state.split for state in known}
            | plan.unreadable_splits
            | {s.split for s in states if s.planned.is_incomplete}
        )
        found += _check_task(states, plan, task, unsure)
        found += _check_classes(states, plan, task, unsure, is_sampled)
        found += class_checks.find_inseparable_classes(states, plan, task)
    return [*found, *_check_source_weights(states, plan), *_check_conflict_space(plan)]


def _check_conflict_space(plan: DataPlan) -> Iterator[Finding]:
    balance = plan.raw_recipe.get("balance")
    given = balance if isinstance(balance, dict) and balance.get("name") != "gradnorm" else {}
    labels = [source.config.labels for source in plan.sources if source.split == "train"]
    if "train" not in plan.unreadable_splits and (
        what := explain_incomparable_gradients(given.get("space"), labels, tuple(plan.tasks))
    ):
        yield Finding(
            "warning",
            "unused_conflict_space",
            "recipe",
            what,
            "It detects conflicts in the weights, at little extra cost.",
        )


def _check_splits(states: Sequence[SourceState], plan: DataPlan) -> Iterator[Finding]:
    for part in SPLITS:
        if part in plan.unreadable_splits or any(source.split == part for source in plan.sources):
            continue
        if part == "train":
            yield Finding("error", "no_sources", "data", "data.train has no source.", "Add a list of sources.")
        else:
            what = "data.validation has no source: training cannot compute metrics or keep the best checkpoint."
            yield Finding("warning", "no_validation", "data", what, "Hold out some images.")
    for state in states:
        tasks = {task for label in state.planned.config.labels for task in label.tasks}
        if not tasks & set(plan.tasks):
            what = f"It labels {', '.join(sorted(tasks))}, which is not a task of the recipe. The source is not used."
            mend = "Remove the source, add the task, or give its reader task: ..."
            yield Finding("warning", "unused_source", state.where, what, mend)


def _check_task(
    states: Sequence[SourceState], plan: DataPlan, task: str, unreadable_splits: set[str]
) -> Iterator[Finding]:
    for part in SPLITS:
        those = [s for s in states if s.split == part]
        if not those or part in unreadable_splits or any(task in s.statistics for s in those):
            continue
        if part == "train":
            what = f"No training source labels '{task}', so it would not be trained."
            yield Finding(
                "error", "unlabeled_task", "data", what, "Add a source with labels for it, or remove the task."
            )
        else:
            what = f"No validation source labels '{task}', so it will not be evaluated."
            yield Finding("warning", "unmeasured_task", "data", what, "Add a source, or accept that it has no metrics.")


def _check_classes(
    states: Sequence[SourceState], plan: DataPlan, task: str, unreadable_splits: set[str], is_sampled: bool
) -> Iterator[Finding]:
    names = plan.classes[task]
    if not names or "train" in unreadable_splits:
        return
    train, held_out = (_sum_per_class(states, task, part, len(names)) for part in SPLITS)
    if train is None:
        return
    labelled = _find_labeled_classes(states, task, len(names))
    maps = [
        found for state in states if state.split == "train" for found in class_checks.collect_class_maps(state, task)
    ]
    unlabelled = ~labelled & ~find_classes_by_exclusion(
        [found for found in maps if found.label_space is not None], len(names)
    )
    absent = (train == 0) & labelled
    nowhere = absent if held_out is None else absent & (held_out == 0)
    only = absent & ~nowhere
    pictures = _sum_per_class(states, task, "train", len(names), "images_per_class")
    total = sum(s.statistics[task].num_images for s in states if s.split == "train" and task in s.statistics)
    rare = (
        (train > 0) & (pictures < RARE_CLASS_IMAGES)
        if pictures is not None and total > 10 * RARE_CLASS_IMAGES
        else np.zeros(len(names), bool)
    )
    measured = np.ones(len(names), bool) if held_out is None or "validation" in unreadable_splits else held_out > 0
    unmeasured = (train > 0) & ~measured
    doubt: Severity = "note" if is_sampled else "warning"
    pixels = any(isinstance(state.statistics.get(task), SegmentationStatistics) for state in states)
    certain: Severity = "error" if pixels and not is_sampled and "validation" not in unreadable_splits else doubt
    rows: tuple[tuple[NDArray[np.bool_], Severity, str, str, str], ...] = (
        (unlabelled, "error", "unlabeled_classes", "labeled by no training source", "Add a source, or remove them."),
        (only, doubt, "untrained_classes", "only in validation, never in training", "Move images, or remove them."),
        (nowhere, certain, "absent_classes", "absent from all labels", "Check rename and ignore, or remove them."),
        (rare, doubt, "rare_classes", f"in fewer than {RARE_CLASS_IMAGES} "
                                      "training images", "Add images, or merge classes."),
        (unmeasured, doubt, "unmeasured_classes", "in training but not in validation", "They will not be evaluated."),
    )  # fmt: skip
    for which, severity, kind, what, mend in rows:
        if which.any():
            listed = [sanitize_text(names[k], 60) for k in np.flatnonzero(which)]
            shown = ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
            verb = "are" if len(listed) > 1 else "is"
            sentence = f"{len(listed)} of {len(names)} classes of '{task}' {verb} {what}: {shown}."
            yield Finding(severity, kind, "data", sentence, mend, len(listed))


def _sum_per_class(
    states: Sequence[SourceState], task: str, split: str, count: int, field: str = "counts_per_class"
) -> NDArray[np.int64] | None:
    """Sum a count per class over the sources of a split; None if no image was examined."""
    rows = [
        getattr(s.statistics[task], field)
        for s in states
        if s.split == split and task in s.statistics and not isinstance(s.statistics[task], DepthStatistics)
    ]
    return np.sum(rows, axis=0).reshape(count) if rows else None


def _find_labeled_classes(states: Sequence[SourceState], task: str, count: int) -> NDArray[np.bool_]:
    """The classes that training sources label; all of them if a source does not declare its classes."""
    union = np.zeros(count, bool)
    for state in states:
        if state.split == "train" and task in state.statistics:
            stated = getattr(state.statistics[task], "labeled_classes", None)
            said = state.labeled_classes.get(task) if stated is None else stated
            union |= np.ones(count, bool) if said is None else said
    return union


def _check_source_weights(states: Sequence[SourceState], plan: DataPlan) -> Iterator[Finding]:
    """Sources whose images are sampled much more often than those of others."""
    train = [s for s in states if s.split == "train" and s.source is not None and s.num_images]
    if len(train) < 2:
        return
    often = repeat_factors(train, plan)
    most, least = int(np.argmax(often)), int(np.argmin(often))
    if often[most] > _MAX_REPEAT_RATIO * often[least]:
        what = f"Each image of {train[most].where} is sampled {often[most] / often[least]:.0f} times as often as one "
        what += f"of {train[least].where} ({train[most].num_images:,} and {train[least].num_images:,} images)."
        yield Finding("warning", "uneven_sources", "data", what, "Check weight and data.mix if this is not intended.")


def repeat_factors(train: Sequence[SourceState], plan: DataPlan) -> list[float]:
    """Return how often an image of each training source is sampled, relative to one epoch over all sources."""
    sizes = [s.num_images for s in train]
    coverage = [s.source.coverage for s in train if s.source is not None]
    parts = compute_sampling_shares(sizes, [s.planned.config.weight for s in train], coverage, plan.data.mix)
    return [part * sum(sizes) / size for part, size in zip(parts, sizes, strict=True)]
